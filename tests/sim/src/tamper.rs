//! Planted bugs that lie between the brain and the world: what the brain decided is altered before
//! anybody sees it, as if the brain had decided so.

use orchestrator_core::{Action, Answer, Event, Notice, OpenStream, Settings, Step, UnloadCause, Write};

use crate::bugs::Bug;
use crate::client::client_of;
use crate::world::World;

impl World {
    /// The step as the planted bug has it.
    pub fn tampered(&self, mut step: Step) -> Step {
        match self.bug {
            Some(Bug::SpawnUnwritten) => step.writes.retain(|write| !matches!(write, Write::PutSpawn(_))),
            Some(Bug::SessionKept) => {
                step.writes.retain(|write| !matches!(write, Write::DeleteSession { .. }));
            }
            Some(Bug::RunningUnwritten) => step.writes.retain(|write| {
                !matches!(write, Write::UpdateJob(row) if row.status == api_types::task::TaskStatus::Running)
            }),
            Some(Bug::TermsLeftOut) => step.writes.iter_mut().for_each(leave_terms_out),
            Some(Bug::SpawnTwice) => add(&mut step, |action| match action {
                Action::SpawnWorker { .. } => Some(action.clone()),
                _ => None,
            }),
            Some(Bug::StopBusy) => add(&mut step, |action| self.stop_at_once(action)),
            Some(Bug::RunElsewhereToo) => add(&mut step, |action| self.open_elsewhere(action, true)),
            Some(Bug::WrongModel) => replace(&mut step, |action| self.open_elsewhere(action, false)),
            _ => {}
        }
        step
    }

    /// What the planted bug answers to a task in place of the brain: the job of the same key that was left.
    pub fn answered_with_the_left(&self, event: &Event) -> Option<Step> {
        let Event::Submit(submission) = event else { return None };
        if self.bug != Some(Bug::AbandonedAnswers) || submission.idempotency.is_none() {
            return None;
        }
        let of_client = |job_id| client_of(job_id) == client_of(submission.job_id);
        let mut jobs = self.store.jobs.values().map(|stored| &stored.row);
        let left = jobs.find(|row| of_client(row.job_id) && row.idempotency.is_none())?;
        let answer = Answer::Accepted {
            job_id: left.job_id,
            status: left.status,
            queue_position: 0,
            eta: None,
            replayed: true,
            model: left.model.clone(),
        };
        let actions = vec![Action::Answer { request: submission.request, answer }];
        Some(Step { actions, ..Step::default() })
    }

    /// The settings as the planted bug has them; the checks go by those of the plan.
    pub fn settings(&self) -> Settings {
        let mut settings = self.plan.settings.clone();
        let supply = &mut settings.supply;
        match self.bug {
            Some(Bug::KeepAliveShort) => supply.keep_alive_ms = supply.keep_alive_ms.map(|_| 0),
            Some(Bug::ResidencyIgnored) => (supply.min_residency_ms, supply.swap_patience_ms) = (0, 0),
            _ => {}
        }
        settings
    }

    /// A busy worker that is to give way is stopped before its runs have ended.
    fn stop_at_once(&self, action: &Action) -> Option<Action> {
        let Action::Notify(Notice::Unload { worker_id, cause: UnloadCause::Swapped, .. }) = action else {
            return None;
        };
        let brain = &self.daemon.as_ref()?.brain;
        let pool_id = brain.worker_row(worker_id)?.facts.pool_id.as_ref()?;
        let pool = brain.pools().into_iter().find(|pool| pool.pool_id == *pool_id)?.clone();
        Some(Action::StopWorker { pool, worker_id: worker_id.clone() })
    }

    /// The same run on another worker, of the same model or of another one.
    fn open_elsewhere(&self, action: &Action, same_model: bool) -> Option<Action> {
        let Action::OpenStream(open) = action else { return None };
        let daemon = self.daemon.as_ref()?;
        let workers = daemon.brain.workers(self.time());
        let model = &workers.iter().find(|worker| worker.facts.worker_id == open.run.worker_id)?.facts.model;
        let other = workers.iter().find(|worker| {
            worker.facts.worker_id != open.run.worker_id && (worker.facts.model == *model) == same_model
        })?;
        let mut run = open.run.clone();
        (run.worker_id, run.incarnation) = (other.facts.worker_id.clone(), other.incarnation);
        Some(Action::OpenStream(OpenStream { run, ..open.clone() }))
    }
}

fn leave_terms_out(write: &mut Write) {
    if let Write::PutDecision { decision, .. } = write {
        let terms = decision.candidates.iter_mut().filter_map(|candidate| candidate.terms.as_mut());
        terms.for_each(|terms| (terms.policy, terms.load) = (0.0, 0.0));
    }
}

fn add(step: &mut Step, more: impl Fn(&Action) -> Option<Action>) {
    let more: Vec<Action> = step.actions.iter().filter_map(more).collect();
    step.actions.extend(more);
}

fn replace(step: &mut Step, other: impl Fn(&Action) -> Option<Action>) {
    for action in &mut step.actions {
        if let Some(other) = other(action) {
            *action = other;
        }
    }
}
