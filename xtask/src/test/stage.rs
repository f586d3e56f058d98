//! Stages: run one after another, timed, summed up at the end.

use std::time::{Duration, Instant};

/// How a stage ended.
enum Outcome {
    Passed(Duration),
    Failed(Duration, String),
    NotRun,
}

/// Runs stages until one fails, or all of them with `keep_going`.
pub struct Runner {
    keep_going: bool,
    stages: Vec<(&'static str, Outcome)>,
}

impl Runner {
    /// A runner that has run nothing yet.
    pub const fn new(keep_going: bool) -> Self {
        Self { keep_going, stages: Vec::new() }
    }

    /// Runs `stage` unless an earlier one failed; returns what it made, if it passed.
    ///
    /// The stage writes to this program's own output, so a failing one is the last thing on the
    /// screen before the summary.
    pub fn stage<T>(&mut self, name: &'static str, stage: impl FnOnce() -> anyhow::Result<T>) -> Option<T> {
        if self.has_failed() && !self.keep_going {
            self.stages.push((name, Outcome::NotRun));
            return None;
        }
        println!("== {name}");
        let started = Instant::now();
        let result = stage();
        let took = started.elapsed();
        match result {
            Ok(made) => {
                println!("== {name}: passed in {}", seconds(took));
                self.stages.push((name, Outcome::Passed(took)));
                Some(made)
            }
            Err(error) => {
                println!("== {name}: FAILED in {}\n{error:#}", seconds(took));
                self.stages.push((name, Outcome::Failed(took, format!("{error:#}"))));
                None
            }
        }
    }

    /// Prints one line per stage and the count of them; returns whether all passed.
    pub fn summarise(&self) -> bool {
        println!("\nsummary");
        for (name, outcome) in &self.stages {
            println!("  {}", line(name, outcome));
        }
        println!("{}", self.counts());
        !self.has_failed()
    }

    fn counts(&self) -> String {
        let count = |wanted: fn(&Outcome) -> bool| self.stages.iter().filter(|(_, o)| wanted(o)).count();
        let passed = count(|outcome| matches!(outcome, Outcome::Passed(_)));
        let failed = count(|outcome| matches!(outcome, Outcome::Failed(..)));
        let skipped = count(|outcome| matches!(outcome, Outcome::NotRun));
        if skipped == 0 {
            format!("stages: {passed} passed, {failed} failed")
        } else {
            format!("stages: {passed} passed, {failed} failed, {skipped} skipped")
        }
    }

    fn has_failed(&self) -> bool {
        self.stages.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(..)))
    }
}

fn line(name: &str, outcome: &Outcome) -> String {
    match outcome {
        Outcome::Passed(took) => format!("passed   {:>8}  {name}", seconds(*took)),
        Outcome::Failed(took, error) => {
            let first = error.lines().next().unwrap_or_default();
            format!("FAILED   {:>8}  {name}: {first}", seconds(*took))
        }
        Outcome::NotRun => format!("not run  {:>8}  {name}", "-"),
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::Runner;

    #[test]
    fn what_follows_a_failure_is_not_run() {
        let mut runner = Runner::new(false);
        assert_eq!(runner.stage("one", || Ok(1)), Some(1));
        assert_eq!(runner.stage("two", || anyhow::bail!("broken")), None::<()>);
        assert_eq!(runner.stage("three", || Ok(3)), None);
        assert_eq!(runner.counts(), "stages: 1 passed, 1 failed, 1 skipped");
        assert!(!runner.summarise());
    }

    #[test]
    fn keep_going_runs_the_rest_and_still_fails() {
        let mut runner = Runner::new(true);
        assert_eq!(runner.stage("one", || anyhow::bail!("broken")), None::<()>);
        assert_eq!(runner.stage("two", || Ok(2)), Some(2));
        assert_eq!(runner.counts(), "stages: 1 passed, 1 failed");
        assert!(!runner.summarise());
    }
}
