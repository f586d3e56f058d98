//! Accept a task or refuse it with the reason.

use api_types::task::{Placement, TaskStatus};
use api_types::{ErrorCode, ErrorDetail, JobId, PoolId, TaskEvent, TenantId, WorkerId};
use serde_json::json;

use crate::context::at_least;
use crate::event::{Idempotency, RequestId, Submission};
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::row::JobRow;
use crate::settings::FullPolicy;
use crate::step::{Action, Answer, Write};
use crate::time::Time;
use crate::turn::{Submitted, Turn};

/// Names of pools that a refusal lists.
const LISTED_POOLS: usize = 20;

impl Orchestrator {
    /// Takes a task in, answers with the first job of its idempotency key, or refuses it.
    pub(crate) fn submit(&mut self, submission: Submission, turn: &mut Turn) {
        let replayed = submission.idempotency.as_ref().and_then(|key| self.replay(&submission.tenant, key));
        if let Some(answer) = replayed {
            return turn.answer(submission.request, answer);
        }
        let request = submission.request;
        self.registry.refresh(&self.settings, turn.now);
        match self.check(submission, turn.now) {
            Ok(mut row) => match self.let_in(&mut row, turn) {
                Ok(()) => self.admit(request, row, turn),
                Err(error) => turn.refuse(request, error),
            },
            Err(error) => turn.refuse(request, error),
        }
    }

    /// What the policy and the queue say of a job that every other rule lets in.
    fn let_in(&mut self, row: &mut JobRow, turn: &mut Turn) -> Result<(), ErrorDetail> {
        self.ask_admission(row, turn)?;
        if row.not_before.is_some() {
            let binds = row.eta.is_none_or(|forecast| forecast.binding);
            row.eta = self.forecast(row, turn.now);
            if let Some(forecast) = &mut row.eta {
                forecast.binding &= binds;
            }
            self.check_deadline(row, turn.now)?;
        }
        self.make_room(row, turn)
    }

    /// The answer to a submission whose key was used before.
    fn replay(&self, tenant: &TenantId, idempotency: &Idempotency) -> Option<Answer> {
        let record = self.memory.key(tenant, &idempotency.key)?;
        if record.digest != idempotency.digest {
            return Some(Answer::Refused(conflict(&record.job_id.to_string())));
        }
        let job = self.jobs.get(&record.job_id);
        Some(Answer::Accepted {
            job_id: record.job_id,
            status: record.ended.or(job.map(|job| job.row.status)).unwrap_or(TaskStatus::Queued),
            queue_position: job.filter(|job| job.is_queued()).map_or(0, |job| self.queue.position(&job.row)),
            eta: self.eta(record.job_id, self.seen),
            replayed: true,
            model: record.model.clone(),
        })
    }

    /// Turns a submission into a row, or says why it can never run.
    fn check(&mut self, submission: Submission, now: Time) -> Result<JobRow, ErrorDetail> {
        if submission.deadline_ms == Some(0) {
            return Err(no_time());
        }
        let model = self.resolve_model(submission.model.as_deref())?;
        self.check_pool(&submission.placement)?;
        if submission.chat {
            self.check_chat(&model)?;
        }
        if self.jobs.contains_key(&submission.job_id) || self.memory.job(submission.job_id).is_some() {
            return Err(ErrorDetail::new(ErrorCode::Internal, "The drawn job id is in use already."));
        }
        let mut row = new_row(submission, model, self.last_number + 1, now);
        let tokens = self.worst_case_tokens(&row);
        self.tenants.check(&self.settings.quotas, &row.tenant, tokens, spread_ms(row.job_id), now)?;
        self.check_capacity(&row, now)?;
        self.sessions.check(&self.settings.sessions, &row, tokens, now)?;
        row.eta = self.forecast(&row, now);
        self.check_least(&row, now)?;
        self.check_deadline(&mut row, now)?;
        Ok(row)
    }

    /// A conversation needs a chat template: refused when every ready worker of the model lacks one.
    fn check_chat(&self, model: &str) -> Result<(), ErrorDetail> {
        if !self.registry.openings().lacks_chat(model) {
            return Ok(());
        }
        Err(ErrorDetail::new(
            ErrorCode::NoChatTemplate,
            format!(
                "The model `{model}` has no chat template, so `messages` cannot be turned into a prompt."
            ),
        )
        .with_field("messages")
        .with_hint("Send the text as `prompt`, or use a model with a chat template."))
    }

    /// A pool comes only by an operator's hand, so what names none would wait for ever. A worker may
    /// come by itself at any time.
    fn check_pool(&self, placement: &Placement) -> Result<(), ErrorDetail> {
        let Some(pool) = &placement.pool else { return Ok(()) };
        if self.pools.contains_key(pool) || self.registry.openings().has_pool(pool) {
            return Ok(());
        }
        let known: Vec<&str> = self.pools.keys().take(LISTED_POOLS).map(PoolId::as_str).collect();
        let known_text = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(ErrorDetail::new(
            ErrorCode::InvalidField,
            format!("No pool has the name `{pool}`, and no worker belongs to one of that name. Known are: {known_text}."),
        )
        .with_field("placement.pool")
        .with_details(json!({ "reason": "unknown_pool", "known": known }))
        .with_hint("`rbees pool list` shows the pools; `rbees pool add NAME` adds one."))
    }

    /// Refuses when the queue is full, or makes room, as configured. A job that can start at once
    /// needs no room, as long as every living job could wait or run.
    fn make_room(&mut self, row: &JobRow, turn: &mut Turn) -> Result<(), ErrorDetail> {
        let Some(capacity) = self.settings.queue_capacity else { return Ok(()) };
        if self.queue.len() < capacity || self.starts_beside(capacity, row, turn.now) {
            return Ok(());
        }
        let oldest = match self.settings.full_policy {
            FullPolicy::Reject => None,
            FullPolicy::DropOldestBatch => self.queue.oldest_batch(),
        };
        let Some(oldest) = oldest else { return Err(queue_full(row, self.queue.len())) };
        self.fail_job(oldest, dropped_for_room(capacity), turn);
        Ok(())
    }

    fn starts_beside(&self, capacity: u64, row: &JobRow, now: Time) -> bool {
        if row.not_before.is_some() || !self.queue.is_open_to(&row.tenant) {
            return false;
        }
        let slots = self.registry.openings().totals().living_slots;
        (self.jobs.len() as u64) < capacity.saturating_add(slots)
            && !self.queue.has(&row.model)
            && self.has_opening_for(row, now)
    }

    fn admit(&mut self, request: RequestId, row: JobRow, turn: &mut Turn) {
        self.last_number = row.number;
        let (job_id, row_eta) = (row.job_id, row.eta.map(|forecast| forecast.eta));
        self.note_arrival(&row, turn.now);
        self.memory.admit(&row);
        self.budget.admit(&self.settings.retry);
        let mut job = Job { reserved: self.reserve_tokens(&row, turn.now), ..Job::new(row) };
        job.resting = job.row.not_before.is_some();
        job.is_read = job.row.had_reader;
        if job.is_durable() {
            turn.write(Write::InsertJob(job.row.clone()));
        }
        self.open_session(&job, turn);
        turn.jobs_touched.insert(job_id);
        turn.to_place.insert(job.row.model.clone());
        self.jobs.insert(job_id, Box::new(job));
        self.join_queue(job_id, turn);
        let queue_position = self.jobs.get(&job_id).map_or(0, |job| self.queue.position(&job.row));
        turn.act(Action::Publish {
            job_id,
            event: TaskEvent::Queued { job_id, queue_position, eta_ms: row_eta },
        });
        turn.submitted = Some(Submitted { request, job_id, queue_position });
    }
}

fn new_row(submission: Submission, model: String, number: u64, now: Time) -> JobRow {
    JobRow {
        job_id: submission.job_id,
        number,
        status: TaskStatus::Queued,
        model,
        chat: submission.chat,
        tenant: submission.tenant,
        session_id: submission.session_id,
        prompt_bytes: submission.prompt_bytes,
        tokens_at_least: submission.prompt_tokens.map_or(0, at_least),
        prefix: submission.prefix,
        max_tokens: submission.max_tokens,
        priority: submission.priority,
        submitted_at: now,
        deadline: submission.deadline_ms.map(|ms| now + ms),
        on_disconnect: submission.on_disconnect,
        retry: submission.retry,
        placement: submission.placement,
        durability: submission.durability,
        eta: None,
        idempotency: submission.idempotency,
        correlation_id: submission.correlation_id,
        attempt: None,
        not_before: None,
        tries_failed: 0,
        workers_lost: Vec::<WorkerId>::new(),
        carried: None,
        had_reader: submission.is_read,
        cancel_requested_at: None,
        ended_at: None,
        end: None,
        error: None,
    }
}

fn conflict(job_id: &str) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::IdempotencyConflict,
        format!("This idempotency key was used with another request, which became {job_id}."),
    )
    .with_field("idempotency_key")
    .with_details(json!({ "job_id": job_id }))
    .with_hint("Send a new key with a new request; send the same request to get the same job.")
}

fn no_time() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::DeadlineUnmet, "A deadline of 0 ms has passed before the job could start.")
        .with_field("deadline_ms")
        .with_hint("Give at least 1 ms, or leave `deadline_ms` out.")
}

/// What a pause differs by from caller to caller, so that those refused together do not return
/// together.
fn spread_ms(job_id: JobId) -> u64 {
    u64::try_from(job_id.uuid().as_u128() % 2_000).unwrap_or_default()
}

fn queue_full(row: &JobRow, waiting: u64) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::QueueFull,
        format!("{waiting} jobs wait already, which is as many as the queue holds."),
    )
    .with_details(json!({ "queue_depth": waiting }))
    .with_hint("Try again later, start more workers, or raise `queue_capacity`.")
    .with_retry_after_ms(1_000 + spread_ms(row.job_id))
}

fn dropped_for_room(capacity: u64) -> ErrorDetail {
    ErrorDetail::new(
        ErrorCode::QueueFull,
        format!("The queue holds {capacity} jobs and was full; this was its oldest batch job and made room."),
    )
    .with_hint("Submit it again when the queue is shorter.")
}
