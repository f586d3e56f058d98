//! The figures in `bench/README.md`, between two marks.

use std::path::Path;

use anyhow::Context;

use crate::report::{Report, markdown};

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// Puts the report between the marks of the README.
///
/// # Errors
/// When the README cannot be written or has no marks.
pub fn update_readme(report: &Report) -> anyhow::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let renewed = renew(&text, &markdown(report))
        .with_context(|| format!("{} has no `{BEGIN}` ... `{END}`", path.display()))?;
    Ok(std::fs::write(path, renewed)?)
}

fn renew(text: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", figures.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_marks_changes() {
        let text = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        let renewed = renew(&text, "new\n").expect("marks");
        assert_eq!(renewed, format!("head\n{BEGIN}\n\nnew\n\n{END}\ntail\n"));
        assert_eq!(renew("no marks", "new"), None);
    }
}
