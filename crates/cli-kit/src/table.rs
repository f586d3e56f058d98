//! Tables: rules and a title on a terminal, bare aligned columns in a pipe.

use comfy_table::{ColumnConstraint, ContentArrangement, LineStyle, Table as Grid, TableStyle, presets};

/// Nothing but a rule between the headings and the rows.
const RULED: TableStyle = presets::NOTHING.header_separator(LineStyle::none().fill('-'));

/// Rows under headings, with an optional title above and a summary below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    title: Option<String>,
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
    summary: Option<String>,
}

impl Table {
    /// An empty table with these headings.
    pub fn new<H: Into<String>>(headings: impl IntoIterator<Item = H>) -> Self {
        Self { headings: headings.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Puts a title above the table; shown on terminals only.
    #[must_use]
    pub fn with_title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Puts a line below the table, such as a total; shown on terminals only.
    #[must_use]
    pub fn with_summary(mut self, summary: impl Into<String>) -> Self {
        self.summary = Some(summary.into());
        self
    }

    /// Adds a row; cells that hold control characters are made harmless.
    pub fn row<C: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(|cell| plain_text(cell.as_ref())).collect());
    }

    /// The table as text: for a terminal of `columns` width, or for a pipe when `None`.
    pub fn render(&self, columns: Option<u16>) -> String {
        match columns {
            Some(columns) => self.render_framed(columns),
            None => self.grid(None).join("\n") + "\n",
        }
    }

    fn render_framed(&self, columns: u16) -> String {
        let lines = self.grid(Some(columns));
        let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        let rule = "=".repeat(width);
        let framed =
            [rule.as_str()].into_iter().chain(lines.iter().map(String::as_str)).chain([rule.as_str()]);
        let all = self.title.as_deref().into_iter().chain(framed).chain(self.summary.as_deref());
        all.fold(String::new(), |shown, line| shown + line + "\n")
    }

    fn grid(&self, columns: Option<u16>) -> Vec<String> {
        self.laid_out(columns).lines().map(|line| line.trim_end().to_owned()).collect()
    }

    fn laid_out(&self, columns: Option<u16>) -> Grid {
        let mut grid = Grid::new();
        match columns {
            Some(columns) => {
                grid.load_style(RULED)
                    .set_content_arrangement(ContentArrangement::Dynamic)
                    .set_width(columns);
            }
            None => {
                grid.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        grid.set_header(&self.headings);
        for row in &self.rows {
            grid.add_row(row);
        }
        for column in grid.column_iter_mut() {
            column.set_padding((0, 2));
        }
        if let Some(first) = grid.column_mut(0).filter(|_| self.first_column_is_narrow(columns)) {
            first.set_constraint(ColumnConstraint::ContentWidth);
        }
        grid
    }

    /// Names in the first column are copied, so they are not wrapped while they take less than
    /// half of the terminal.
    fn first_column_is_narrow(&self, columns: Option<u16>) -> bool {
        let cells = self.rows.iter().filter_map(|row| row.first()).chain(self.headings.first());
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        columns.is_some_and(|columns| widest + 2 <= usize::from(columns) / 2)
    }
}

/// Text without control characters, so that a name from elsewhere cannot steer the terminal.
pub fn plain_text(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> Table {
        let mut table = Table::new(["ID", "Size"]).with_title("Models").with_summary("Total models: 2");
        table.row(["smollm2-135m", "0.1 GB"]);
        table.row(["evil\u{1b}[2J", "-"]);
        table
    }

    #[test]
    fn a_pipe_gets_bare_columns_one_row_a_line() {
        assert_eq!(
            models().render(None),
            "ID            Size\nsmollm2-135m  0.1 GB\nevil\u{fffd}[2J      -\n"
        );
    }

    #[test]
    fn a_terminal_gets_title_rules_and_total() {
        let shown = models().render(Some(80));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "Models");
        assert!(lines[1].starts_with("===="));
        assert_eq!(lines[2], "ID            Size");
        assert!(lines[3].starts_with("----"));
        assert_eq!(lines.last(), Some(&"Total models: 2"));
    }

    #[test]
    fn names_in_the_first_column_stay_whole() {
        let mut table = Table::new(["ID", "What"]);
        table.row(["worker-cpu-0123456789ab", &"words ".repeat(30)]);
        let shown = table.render(Some(60));
        assert!(
            shown.contains("worker-cpu-0123456789ab") && shown.lines().all(|line| line.len() <= 60),
            "{shown}"
        );
    }

    #[test]
    fn a_narrow_terminal_wraps_instead_of_overflowing() {
        let mut table = Table::new(["Name", "What"]);
        table.row(["a", "several words that do not fit into twenty columns"]);
        let shown = table.render(Some(20));
        assert!(shown.lines().all(|line| line.chars().count() <= 20), "{shown}");
    }
}
