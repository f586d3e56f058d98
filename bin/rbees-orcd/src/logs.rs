//! Log lines on their way to standard error: gathered for a moment, because a system call per job
//! costs a tenth of a short job. Warnings and errors go out at once, with all that came before.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line may wait.
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes that may wait.
const ENOUGH: usize = 64 * 1024;

/// Where lines gather. A clone is the same place.
#[derive(Debug, Clone, Default)]
pub struct Logs(Arc<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    lines: Mutex<Vec<u8>>,
    came: Condvar,
}

impl Logs {
    /// Logs whose lines are written out by a thread of their own.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let logs = Self::default();
        let writer = logs.clone();
        std::thread::Builder::new().name("logs".to_owned()).spawn(move || writer.write_for_ever())?;
        Ok(logs)
    }

    /// Writes out what has gathered.
    pub fn flush(&self) {
        let mut lines = self.lock();
        write_out(&mut lines);
    }

    fn write_for_ever(&self) {
        loop {
            let lines = self.lock();
            let waited = self.0.came.wait_while(lines, |lines| lines.is_empty());
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            std::thread::sleep(PATIENCE);
            self.flush();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody can be told that standard error is gone.
fn write_out(lines: &mut Vec<u8>) {
    let _ = io::stderr().lock().write_all(lines);
    lines.clear();
}

/// Takes one line.
#[derive(Debug)]
pub struct Line<'a> {
    logs: &'a Logs,
    urgent: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = self.logs.lock();
        let first = lines.is_empty();
        lines.extend_from_slice(line);
        if self.urgent || lines.len() >= ENOUGH {
            write_out(&mut lines);
        } else if first {
            drop(lines);
            self.logs.0.came.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { logs: self, urgent: true }
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Line<'a> {
        Line { logs: self, urgent: *line.level() <= Level::WARN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_gather_until_one_is_urgent() {
        let logs = Logs::default();
        let mut calm = Line { logs: &logs, urgent: false };
        calm.write_all(b"one\n").expect("taken");
        calm.write_all(b"two\n").expect("taken");
        assert_eq!(*logs.lock(), b"one\ntwo\n");
        Line { logs: &logs, urgent: true }.write_all(b"\n").expect("taken");
        assert!(logs.lock().is_empty(), "all were written out");
    }
}
