//! Progress of long work: bars on a terminal, one JSON object per line otherwise.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use api_types::pool::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{Printer, plain_text};

/// Shows [`Progress`] on standard error. May be used from any thread.
#[derive(Debug)]
pub struct ProgressView {
    bars: Option<Bars>,
    /// Whether what is told to people goes out as JSON like the rest.
    notes_as_json: bool,
}

#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    by_name: Mutex<BTreeMap<String, ProgressBar>>,
}

impl ProgressView {
    /// Bars when standard error is a terminal and people read it. Otherwise JSON lines; what is
    /// told to people stays text unless a program reads it.
    pub fn new(printer: &Printer) -> Self {
        let notes_as_json = printer.is_json() || printer.is_remote();
        let people = std::io::stderr().is_terminal() && !notes_as_json;
        let bars = people.then(|| Bars { all: MultiProgress::new(), by_name: Mutex::default() });
        Self { bars, notes_as_json }
    }

    /// Shows one step.
    pub fn show(&self, progress: &Progress) {
        match (&self.bars, progress) {
            (Some(bars), _) => bars.show(progress),
            (None, Progress::Note { message }) if !self.notes_as_json => crate::printer::note(message),
            (None, _) => write_line(progress),
        }
    }

    /// Tells something that belongs between the steps, above any bars.
    pub fn note(&self, message: impl Into<String>) {
        self.show(&Progress::Note { message: message.into() });
    }

    /// Takes the bars off the screen; later steps draw new ones.
    pub fn clear(&self) {
        if let Some(bars) = &self.bars {
            lock(&bars.by_name).values().for_each(ProgressBar::finish_and_clear);
            lock(&bars.by_name).clear();
        }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Bars {
    fn show(&self, progress: &Progress) {
        match progress {
            Progress::Download { file, done_bytes, total_bytes } => {
                self.bytes(&format!("download {file}"), *done_bytes, *total_bytes);
            }
            Progress::Verify { file, done_bytes, total_bytes } => {
                self.bytes(&format!("verify {file}"), *done_bytes, Some(*total_bytes));
            }
            Progress::Load { worker_id, progress } => {
                self.share(&format!("load {worker_id}"), *progress);
            }
            Progress::Note { message } => self.all.suspend(|| crate::printer::note(message)),
        }
    }

    fn bytes(&self, name: &str, done: u64, total: Option<u64>) {
        let bar = self.bar(name, total.unwrap_or(0), || match total {
            Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {spinner} {bytes} {bytes_per_sec}",
        });
        if let Some(total) = total {
            bar.set_length(total);
        }
        self.advance(name, &bar, done, total);
    }

    fn share(&self, name: &str, share: f32) {
        let percent = (share.clamp(0.0, 1.0) * 100.0) as u64;
        let bar = self.bar(name, 100, || "{msg} [{bar:30}] {percent} % {elapsed}");
        self.advance(name, &bar, percent, Some(100));
    }

    fn advance(&self, name: &str, bar: &ProgressBar, done: u64, total: Option<u64>) {
        bar.set_position(done);
        if total.is_some_and(|total| done >= total) {
            bar.finish_and_clear();
            lock(&self.by_name).remove(name);
        }
    }

    fn bar(&self, name: &str, length: u64, template: impl FnOnce() -> &'static str) -> ProgressBar {
        let mut bars = lock(&self.by_name);
        if let Some(bar) = bars.get(name) {
            return bar.clone();
        }
        let style = ProgressStyle::with_template(template()).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.all.add(ProgressBar::new(length).with_style(style.progress_chars("=> ")));
        bar.set_message(plain_text(name));
        bar.enable_steady_tick(Duration::from_millis(200));
        bars.insert(name.to_owned(), bar.clone());
        bar
    }
}

fn write_line(progress: &Progress) {
    if let Ok(line) = serde_json::to_string(progress) {
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

/// The map holds no invariant that a panic elsewhere could break.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
