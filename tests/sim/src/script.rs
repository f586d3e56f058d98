//! Policies that people write, set in the middle of everything: good ones, one that fails at every
//! other question, one that keeps a worker free.

use std::sync::{Arc, LazyLock};

use orchestrator_core::Event;
use orchestrator_core::policy::{PolicyChange, PolicyText, Scripts};
use policy_script::Language;

use crate::daemon::Caller;
use crate::world::World;

/// One for all seeds: what it compiles depends on nothing but the text.
static LANGUAGE: LazyLock<Arc<Language>> = LazyLock::new(Arc::default);

/// The scripts that are set, by name.
const SCRIPTS: [(&str, &str); 5] = [
    ("default", policy_script::DEFAULT_SCRIPT),
    ("fair-team", include_str!("../../../policies/fair-team.rhai")),
    ("least-loaded", include_str!("../../../policies/least-loaded.rhai")),
    (
        "failing",
        "fn score(job, worker) { if worker.slots_free > 1 { throw \"no\" } 1.0 }\n\
         fn order(job) { if job.prompt_bytes > 5 { let a = []; a[9] } else { 0 } }",
    ),
    ("endless", "fn score(job, worker) { loop { } }"),
];

/// The language of policies.
pub fn language() -> Arc<dyn Scripts> {
    Arc::<Language>::clone(&LANGUAGE)
}

/// A change of the policies, by number.
fn change(number: u64) -> PolicyChange {
    let text = |at: usize| {
        let (name, source) = SCRIPTS[at];
        PolicyText { name: name.to_owned(), source: Some(source.into()), sha256: format!("{at:064x}") }
    };
    let at = (number / 8) as usize % SCRIPTS.len();
    match number % 8 {
        0 => PolicyChange::Rollback,
        1 => PolicyChange::Promote,
        2 => PolicyChange::Shadow(Some(text(at))),
        3 => PolicyChange::Shadow(None),
        _ => PolicyChange::Live(text(at)),
    }
}

impl World {
    /// The operator changes the policies.
    pub fn set_policy(&mut self, number: u64) {
        let request = self.draw_request();
        let event = Event::SetPolicy { request, change: change(number) };
        self.send_to_daemon(1, event, request, Caller::Nobody);
    }

    /// A client wants a session forgotten.
    pub fn forget_session(&mut self, number: u64) {
        let name = |kind: &str, of: u64| format!("{kind}-{}", number % of);
        let (Ok(tenant), Ok(session_id)) = (name("tenant", 3).parse(), name("session", 6).parse()) else {
            return;
        };
        let request = self.draw_request();
        self.send_to_daemon(1, Event::DeleteSession { request, tenant, session_id }, request, Caller::Nobody);
    }
}
