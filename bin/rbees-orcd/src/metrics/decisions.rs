//! What the brain decided, counted from its notices and actions.

use api_types::ErrorCode;
use orchestrator_core::policy::{Hook, PolicyStanding};
use orchestrator_core::{Notice, OpenStream, SpawnPhase, UnloadCause};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Label, signed};

/// See the module. Every label is one of a fixed set of words.
#[derive(Debug, Default)]
pub struct Decisions {
    /// Attempts after a job's first.
    retries: Counter,
    /// Attempts that go on with the tokens of an earlier one: `exact` or `inexact`.
    seams: Family<Label, Counter>,
    /// Jobs that ended with an error, by its code: `POISON`, `RETRIES_EXHAUSTED`, ...
    failed: Family<Label, Counter>,
    /// Times that a worker sent what is not the protocol.
    protocol_errors: Counter,
    /// Times that a worker broke it once too often, first or again.
    quarantines: Counter,
    /// Workers on demand: `started`, `ready` or `failed`.
    spawns: Family<Label, Counter>,
    /// Workers taken away: `idle`, `evicted` or `swapped`.
    unloads: Family<Label, Counter>,
    /// Policies that failed too often and were taken out of force.
    policy_demotions: Counter,
    /// Decisions that the present shadow and the live policy both made, by hook.
    shadow_compared: Family<Label, Gauge>,
    /// Those that would have differed.
    shadow_differed: Family<Label, Gauge>,
    /// Questions that the present shadow gave no answer to.
    shadow_failed: Family<Label, Gauge>,
}

impl Decisions {
    /// A worker was told to run a job.
    pub fn handed_out(&self, open: &OpenStream) {
        if open.run.attempt.0 > 1 {
            self.retries.inc();
        }
        if let Some(seam) = open.goes_on.as_ref().and_then(|goes_on| goes_on.seams.last()) {
            count(&self.seams, if seam.exact { "exact" } else { "inexact" });
        }
    }

    /// A job ended with this error.
    pub fn failed(&self, code: ErrorCode) {
        count(&self.failed, code.as_str());
    }

    /// The brain has news.
    pub fn noticed(&self, notice: &Notice) {
        match notice {
            Notice::ProtocolBroken { quarantine_ms, .. } => {
                self.protocol_errors.inc();
                self.quarantines.inc_by(u64::from(quarantine_ms.is_some()));
            }
            Notice::Spawn { phase, .. } => count(
                &self.spawns,
                match phase {
                    SpawnPhase::Started => "started",
                    SpawnPhase::Ready => "ready",
                    SpawnPhase::Failed => "failed",
                },
            ),
            Notice::Unload { cause, .. } => count(
                &self.unloads,
                match cause {
                    UnloadCause::Idle => "idle",
                    UnloadCause::Evicted => "evicted",
                    UnloadCause::Swapped => "swapped",
                },
            ),
            Notice::PolicyDemoted(_) => drop(self.policy_demotions.inc()),
            Notice::PolicyFailed { .. }
            | Notice::Job { .. }
            | Notice::Worker { .. }
            | Notice::Queue { .. }
            | Notice::StaleDropped { .. } => {}
        }
    }

    /// How the shadow does; nothing without one.
    pub fn shadow(&self, standing: &PolicyStanding) {
        let there = standing.rows.shadow.is_some();
        for (family, counts) in [
            (&self.shadow_compared, &standing.shadow.compared),
            (&self.shadow_differed, &standing.shadow.differed),
            (&self.shadow_failed, &standing.shadow.failures),
        ] {
            family.clear();
            for hook in Hook::ALL.into_iter().filter(|_| there) {
                let count = counts.get(&hook).copied().unwrap_or_default();
                family.get_or_create(&Label { kind: hook.name() }).set(signed(count));
            }
        }
    }

    /// Makes them known.
    pub(super) fn register(&self, all: &mut Registry) {
        all.register("retries", "Attempts after a job's first", self.retries.clone());
        all.register("seams", "Attempts that go on where another stopped", self.seams.clone());
        all.register("jobs_failed", "Jobs that ended with an error, by its code", self.failed.clone());
        all.register("protocol_errors", "Times a worker broke the protocol", self.protocol_errors.clone());
        all.register("quarantines", "Times a worker did so once too often", self.quarantines.clone());
        all.register("spawns", "Workers on demand, by how far they came", self.spawns.clone());
        all.register("unloads", "Workers taken away, by why", self.unloads.clone());
        all.register("policy_demotions", "Policies that failed too often", self.policy_demotions.clone());
        for (name, help, gauges) in [
            ("shadow_compared", "Decisions of the shadow, by hook", &self.shadow_compared),
            ("shadow_differed", "Those unlike the live policy's", &self.shadow_differed),
            ("shadow_failed", "Questions the shadow did not answer", &self.shadow_failed),
        ] {
            all.register(name, help, gauges.clone());
        }
    }
}

fn count(family: &Family<Label, Counter>, kind: &'static str) {
    family.get_or_create(&Label { kind }).inc();
}

#[cfg(test)]
mod tests {
    use orchestrator_core::policy::{PolicyRows, PolicyText, Tally};
    use orchestrator_core::{GoOn, RunKey};

    use super::*;
    use crate::metrics::Metrics;

    fn open(attempt: u32, exact: Option<bool>) -> OpenStream {
        let worker_id: api_types::WorkerId = "w1".parse().expect("an id");
        let seam = |exact| api_types::worker::Seam {
            at: 1,
            from_worker: worker_id.clone(),
            to_worker: worker_id.clone(),
            i: 1,
            exact,
        };
        OpenStream {
            run: RunKey {
                job_id: api_types::JobId::from_uuid(uuid::Uuid::nil()),
                attempt: api_types::Attempt(attempt),
                worker_id: worker_id.clone(),
                incarnation: api_types::Incarnation(1),
            },
            uri: String::new(),
            secret: None,
            first_event_id: 1,
            time_limit_ms: 1,
            prefix: None,
            goes_on: exact.map(|exact| GoOn { tokens: 1, seams: vec![seam(exact)] }),
        }
    }

    fn standing(shadow: bool) -> PolicyStanding {
        PolicyStanding {
            rows: PolicyRows { shadow: shadow.then(PolicyText::built_in), ..PolicyRows::default() },
            live: Tally::default(),
            shadow: Tally { differed: [(Hook::Score, 4)].into(), ..Tally::default() },
            shadow_stopped: false,
            demoted: Tally::default(),
        }
    }

    #[test]
    fn what_was_decided_is_counted_under_fixed_words() {
        let metrics = Metrics::default();
        let decisions = &metrics.decisions;
        [open(1, None), open(2, None), open(3, Some(true)), open(2, Some(false))]
            .iter()
            .for_each(|open| decisions.handed_out(open));
        decisions.failed(ErrorCode::Poison);
        for quarantine_ms in [None, None, Some(300_000)] {
            let worker_id = "w1".parse().expect("an id");
            decisions.noticed(&Notice::ProtocolBroken { worker_id, errors: 1, quarantine_ms });
        }
        decisions.noticed(&Notice::Unload {
            worker_id: "w1".parse().expect("an id"),
            model: "m".to_owned(),
            cause: UnloadCause::Evicted,
            for_model: None,
        });
        decisions.noticed(&Notice::Spawn {
            pool_id: "p".parse().expect("an id"),
            worker_id: "w1".parse().expect("an id"),
            model: "m".to_owned(),
            phase: SpawnPhase::Failed,
            error: None,
        });
        decisions.shadow(&standing(true));
        let text = metrics.render();
        for line in [
            "rbees_orcd_retries_total 3",
            "rbees_orcd_seams_total{kind=\"exact\"} 1",
            "rbees_orcd_seams_total{kind=\"inexact\"} 1",
            "rbees_orcd_jobs_failed_total{kind=\"POISON\"} 1",
            "rbees_orcd_protocol_errors_total 3",
            "rbees_orcd_quarantines_total 1",
            "rbees_orcd_unloads_total{kind=\"evicted\"} 1",
            "rbees_orcd_spawns_total{kind=\"failed\"} 1",
            "rbees_orcd_shadow_differed{kind=\"score\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        decisions.shadow(&standing(false));
        assert!(
            !metrics.render().contains("rbees_orcd_shadow_differed{"),
            "without a shadow nothing is said"
        );
    }
}
