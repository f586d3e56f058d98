//! The operator changes the policies in force; and what a policy's no means for a job.

use api_types::{ErrorCode, ErrorDetail};

use crate::event::RequestId;
use crate::orchestrator::Orchestrator;
use crate::policy::{Admission, Again, FailureFacts, Hook, NoSuchPolicy, PolicyChange, QueueFacts};
use crate::retry::exhausted;
use crate::row::JobRow;
use crate::step::{Answer, Write};
use crate::turn::Turn;

impl Orchestrator {
    /// Makes the change, or refuses it and changes nothing. Jobs that run or were placed stay where
    /// they are; waiting ones are looked at again under the new policy.
    pub(crate) fn set_policy(&mut self, request: RequestId, change: PolicyChange, turn: &mut Turn) {
        if let Err(missing) = self.policy.change(change) {
            return turn.refuse(request, no_such_policy(missing));
        }
        turn.write(Write::PutPolicies(self.policy.rows()));
        turn.to_place.extend(self.registry.models().map(|(model, _)| model.clone()));
        turn.answer(request, Answer::Done);
    }

    /// Asks the policy about a new job that every other rule lets in. A job that is held waits for
    /// its `not_before`.
    ///
    /// # Errors
    /// `POLICY_REFUSED` with the policy's reason.
    pub(crate) fn ask_admission(&self, row: &mut JobRow, turn: &mut Turn) -> Result<(), ErrorDetail> {
        if !self.policy.asks(Hook::Admit) {
            return Ok(());
        }
        let (facts, queue) = (self.job_facts(row, turn.now), self.queue_facts(row));
        match self.policy.admit(&row.job_id, &facts, &queue, &mut turn.policy) {
            Admission::Admit => Ok(()),
            Admission::Hold(ms) => {
                row.not_before = (ms > 0).then(|| turn.now + ms);
                Ok(())
            }
            Admission::Refuse(reason) => Err(refused(self.policy.live_name(), &reason)),
        }
    }

    fn queue_facts(&self, row: &JobRow) -> QueueFacts {
        let (tenant_waiting, tenant_running) = self.tenants.waiting_and_running(&row.tenant);
        QueueFacts {
            model_waiting: self.queue.of_model(&row.model),
            tenant_waiting,
            tenant_running,
            waiting: self.queue.len(),
            before: self.queue.before_new(&row.model, row.priority, &row.tenant, &row.session_id),
            capacity: self.settings.queue_capacity,
            workers: self.registry.openings().serving(&row.model),
        }
    }

    /// Asks the policy about a job that the retry settings would try again. Some: it ends with this.
    pub(crate) fn ask_retry(
        &self,
        row: &JobRow,
        error: &ErrorDetail,
        turn: &mut Turn,
    ) -> Option<ErrorDetail> {
        if !self.policy.asks(Hook::Retry) {
            return None;
        }
        let failure = FailureFacts {
            code: error.code.as_str(),
            workers_lost: row.workers_lost.len() as u64,
            attempts: self.settings.retry.attempts,
        };
        let facts = self.job_facts(row, turn.now);
        match self.policy.retry(&row.job_id, &facts, &failure, &mut turn.policy) {
            Again::GoOn => None,
            Again::GiveUp => Some(exhausted(row, error, "the policy gave it up")),
        }
    }
}

fn refused(policy: &str, reason: &str) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::PolicyRefused, format!("The policy `{policy}` refused the job: {reason}"))
        .with_hint("`rbees policy show` shows the policy.")
}

fn no_such_policy(missing: NoSuchPolicy) -> ErrorDetail {
    let (message, hint) = match missing {
        NoSuchPolicy::Shadow => {
            ("No shadow policy is set, so there is none to promote.", "`rbees policy shadow FILE` sets one.")
        }
        NoSuchPolicy::LastGood => (
            "There is no good policy before this one, so there is none to go back to.",
            "`rbees policy set FILE` sets one.",
        ),
    };
    ErrorDetail::new(ErrorCode::PolicyNotFound, message).with_hint(hint)
}
