//! The shell's part in policies: their texts, their file, and the clock that watches them.

use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use orchestrator_core::policy::PolicyText;
use policy_script::check::{check, in_words};
use policy_script::limits::{SOURCE_BYTES, WATCHDOG_MS};
use policy_script::{Language, Watch};
use sha2::{Digest, Sha256};

/// How often the watchdog looks while policies are asked.
const LOOK_EVERY: Duration = Duration::from_millis(WATCHDOG_MS / 2);
/// Looks without a new answer after which the watchdog sleeps.
const QUIET_LOOKS: u32 = 40;

/// A script with its name and its hash.
pub fn text(name: &str, source: &str) -> PolicyText {
    let hash = Sha256::digest(source.as_bytes());
    let sha256 = hash.iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    PolicyText { name: name.to_owned(), source: Some(source.into()), sha256 }
}

/// The policy of a file, named after it, if it passes its check on made-up workers.
///
/// # Errors
/// What is wrong with the file or the script, with its place.
pub fn read(path: &Path) -> Result<PolicyText, String> {
    let shown = path.display();
    let length = std::fs::metadata(path).map_err(|error| format!("{shown} cannot be read: {error}"))?.len();
    if length > SOURCE_BYTES as u64 {
        return Err(format!("{shown} has {length} bytes; a script may have {SOURCE_BYTES}"));
    }
    let source = std::fs::read_to_string(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let name = path.file_stem().map_or_else(|| "policy".into(), |stem| stem.to_string_lossy());
    match check(&name, &source, &[]).errors.first() {
        None => Ok(text(&name, &source)),
        Some(error) => Err(format!("{shown}: {}", in_words(error))),
    }
}

/// Starts the thread that stops an answer which takes longer than [`WATCHDOG_MS`]. It ends with the
/// language.
///
/// # Errors
/// When the system gives no thread.
pub fn watch_over(language: &Language) -> std::io::Result<()> {
    let watch = language.watch();
    let weak = Arc::downgrade(&watch);
    let thread = thread::Builder::new().name("policy-watchdog".to_owned()).spawn(move || guard(&weak))?;
    watch.watched_by(thread.thread().clone());
    thread.thread().unpark();
    Ok(())
}

fn guard(watch: &Weak<Watch>) {
    // Until `watched_by` has been called nobody could wake us.
    thread::park();
    let (mut seen, mut since, mut quiet) = (0, std::time::Instant::now(), 0);
    loop {
        let Some(watch) = watch.upgrade() else { return };
        let progress = watch.progress();
        if progress != seen {
            (seen, since, quiet) = (progress, std::time::Instant::now(), 0);
        } else if let Some(answer) = watch.answering() {
            if answer == seen && since.elapsed() >= Duration::from_millis(WATCHDOG_MS) {
                watch.stop(answer);
            }
        } else {
            quiet += 1;
        }
        let sleeps = quiet >= QUIET_LOOKS && watch.sleep(progress);
        drop(watch);
        if sleeps {
            quiet = 0;
            // Looks up now and then, so that it ends when the language does.
            thread::park_timeout(Duration::from_secs(60));
        } else {
            thread::sleep(LOOK_EVERY);
        }
    }
}
