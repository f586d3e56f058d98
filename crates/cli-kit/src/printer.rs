//! The one way to standard output and standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;

use crate::{Format, Table, plain_text};

/// Less than this is no terminal that anybody looks at.
const MIN_COLUMNS: u16 = 20;

/// Prints data to standard output and everything else to standard error.
///
/// When the reader of standard output has gone, what follows is dropped without a word;
/// [`Printer::is_closed`] tells a streaming command that it may stop. Data that was lost for another
/// reason, such as a full disk, is a failure: see [`Printer::lost`].
#[derive(Debug)]
pub struct Printer {
    format: Format,
    /// Width of the terminal that shows standard output; `None` for a pipe or file.
    columns: Option<u16>,
    remote: bool,
    closed: AtomicBool,
    lost: OnceLock<io::Error>,
}

impl Printer {
    /// A printer for this process's own standard output.
    pub fn new(format: Format) -> Self {
        let columns = io::stdout().is_terminal().then(terminal_columns);
        Self { format, columns, remote: false, closed: AtomicBool::new(false), lost: OnceLock::new() }
    }

    /// A printer whose output is shown on somebody else's terminal of this width, or in their
    /// pipe when `None`.
    pub fn for_remote(format: Format, columns: Option<u16>) -> Self {
        Self { format, columns, remote: true, closed: AtomicBool::new(false), lost: OnceLock::new() }
    }

    /// How data is printed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether data is printed as JSON.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Width of the terminal that shows the data; `None` for a pipe or file.
    pub fn columns(&self) -> Option<u16> {
        self.columns
    }

    /// Whether another program of ours reads standard error and shows it to people.
    pub fn is_remote(&self) -> bool {
        self.remote
    }

    /// Whether the reader of standard output has gone.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Why data could not be written, where the reason is not that nobody reads it any more.
    pub fn lost(&self) -> Option<&io::Error> {
        self.lost.get()
    }

    /// Prints `value` as JSON, or the table made of it.
    pub fn show<T: Serialize>(&self, value: &T, table: impl FnOnce(&T) -> Table) {
        if self.is_json() {
            self.json(value);
        } else {
            self.table(&table(value));
        }
    }

    /// Prints a table.
    pub fn table(&self, table: &Table) {
        self.text(&table.render(self.columns));
    }

    /// Prints one JSON value, indented.
    pub fn json(&self, value: &impl Serialize) {
        if let Ok(mut json) = serde_json::to_vec_pretty(value) {
            json.push(b'\n');
            self.bytes(&json);
        }
    }

    /// Prints one JSON value on one line, for streams.
    pub fn json_line(&self, value: &impl Serialize) {
        if let Ok(mut json) = serde_json::to_vec(value) {
            json.push(b'\n');
            self.bytes(&json);
        }
    }

    /// Prints one line of data.
    pub fn line(&self, text: impl AsRef<str>) {
        self.text(&format!("{}\n", text.as_ref()));
    }

    /// Prints data as it is and flushes it, for tokens as they come.
    pub fn text(&self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Passes bytes on as they are and flushes them.
    pub fn bytes(&self, bytes: &[u8]) {
        if self.is_closed() {
            return;
        }
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
            self.closed.store(true, Ordering::Relaxed);
            if error.kind() != io::ErrorKind::BrokenPipe {
                let _ = self.lost.set(error);
            }
        }
    }

    /// Tells people something on standard error.
    pub fn note(&self, text: impl AsRef<str>) {
        note(text.as_ref());
    }

    /// Warns people on standard error.
    pub fn warn(&self, text: impl AsRef<str>) {
        labelled("warning", AnsiColor::Yellow, text.as_ref());
    }
}

/// A terminal that says it has no width, as some in containers do, is taken for a usual one.
fn terminal_columns() -> u16 {
    // comfy-table asks the terminal itself; a table without rows is enough to ask.
    comfy_table::Table::new().width().filter(|columns| *columns >= MIN_COLUMNS).unwrap_or(80)
}

/// One line on standard error; a closed standard error is not an error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{}", keep_lines(text));
}

/// One line on standard error with a coloured word in front, where colour is wanted.
pub(crate) fn labelled(label: &str, colour: AnsiColor, text: &str) {
    let style = Style::new().bold().fg_color(Some(colour.into()));
    let _ = writeln!(anstream::stderr().lock(), "{style}{label}:{style:#} {}", keep_lines(text));
}

fn keep_lines(text: &str) -> String {
    text.lines().map(plain_text).collect::<Vec<_>>().join("\n")
}
