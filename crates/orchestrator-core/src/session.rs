//! Sessions: what jobs under one name have used and where the last one ran.

use std::collections::{BTreeMap, BTreeSet};

use api_types::session::SessionView;
use api_types::task::TaskStatus;
use api_types::{ErrorCode, ErrorDetail, SessionId, TenantId, WorkerId};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::event::RequestId;
use crate::job::Job;
use crate::orchestrator::Orchestrator;
use crate::row::{JobRow, SessionRow};
use crate::settings::SessionSettings;
use crate::step::{Answer, Write};
use crate::time::Time;
use crate::turn::Turn;

/// Sessions that one submission lets go of at most, so that it never pays for a whole crowd.
const FORGOTTEN_AT_ONCE: usize = 16;

type Name = (TenantId, SessionId);

/// Every session, bounded in time and number. One that has open jobs is never forgotten.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sessions {
    by_name: BTreeMap<Name, Session>,
    /// Those without open jobs, by their last use.
    idle: BTreeSet<(Time, Name)>,
    /// Those whose rows are still on disk although they were forgotten.
    forgotten: BTreeSet<Name>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Session {
    row: SessionRow,
    /// Jobs that have not ended.
    open: u64,
    /// What these may take at most.
    reserved: u64,
    on_disk: bool,
}

impl Session {
    fn expires_in_ms(&self, settings: &SessionSettings, now: Time) -> u64 {
        let idle_ms = if self.open > 0 { 0 } else { now.since(self.row.last_used_at) };
        settings.ttl_ms.saturating_sub(idle_ms)
    }

    fn is_of(&self, row: &JobRow) -> bool {
        row.number >= self.row.first_job
    }
}

impl Sessions {
    /// Refuses a job of `tokens` that may take its session over the budget.
    pub fn check(
        &self,
        settings: &SessionSettings,
        row: &JobRow,
        tokens: u64,
        now: Time,
    ) -> Result<(), ErrorDetail> {
        let (Some(id), Some(budget)) = (&row.session_id, settings.token_budget) else { return Ok(()) };
        let session = self.get(settings, &row.tenant, id, now);
        let (used, reserved) = session.map_or((0, 0), |session| (session.row.tokens_used, session.reserved));
        if used.saturating_add(reserved).saturating_add(tokens) <= budget {
            return Ok(());
        }
        Err(over_budget(id, [budget, used, reserved, tokens]).with_retry_after_ms(settings.ttl_ms))
    }

    /// A job of `tokens` at most was admitted: its session is made or used.
    pub fn open(&mut self, settings: &SessionSettings, row: &JobRow, tokens: u64, now: Time) {
        let Some(name) = name_of(row) else { return };
        if self.get(settings, &row.tenant, &name.1, now).is_none() {
            self.forget(&name);
        }
        self.take_in(&name, || SessionRow::new(row, name.1.clone(), now));
        self.add_job(&name, tokens);
        if let Some(session) = self.by_name.get_mut(&name) {
            session.row.last_used_at = now;
        }
        self.make_room(settings, now);
    }

    /// A session as it stood on disk, before its open jobs are added.
    pub fn recover(&mut self, row: SessionRow) {
        let name = (row.tenant.clone(), row.session_id.clone());
        self.take_in(&name, || row);
        if let Some(session) = self.by_name.get_mut(&name) {
            session.on_disk = true;
        }
    }

    /// A job that was open before a restart is open again.
    pub fn reopen(&mut self, row: &JobRow, tokens: u64) {
        if let Some(name) = name_of(row)
            && self.by_name.get(&name).is_some_and(|session| session.is_of(row))
        {
            self.add_job(&name, tokens);
        }
    }

    /// A job ended that was taken to need `reserved` tokens and took `spent`.
    pub fn close(&mut self, row: &JobRow, reserved: u64, spent: u64, now: Time) {
        let Some(name) = name_of(row) else { return };
        let Some(session) = self.by_name.get_mut(&name).filter(|session| session.is_of(row)) else { return };
        session.open = session.open.saturating_sub(1);
        session.reserved = session.reserved.saturating_sub(reserved);
        session.row.tokens_used = session.row.tokens_used.saturating_add(spent);
        if row.status == TaskStatus::Completed {
            session.row.turns += 1;
            session.row.worker = row.attempt.as_ref().map(|attempt| attempt.worker_id.clone());
        }
        session.row.last_used_at = now;
        if session.open == 0 {
            self.idle.insert((now, name));
        }
    }

    /// A worker generates for a job, so it holds the session's text now.
    pub fn served_by(&mut self, row: &JobRow, worker_id: &WorkerId) {
        let session = name_of(row).and_then(|name| self.by_name.get_mut(&name));
        if let Some(session) = session.filter(|session| session.is_of(row)) {
            session.row.worker = Some(worker_id.clone());
        }
    }

    /// What is to be written with a durable job's own row: its session, and those that are gone.
    pub fn writes(&mut self, row: &JobRow) -> Vec<Write> {
        let gone = std::mem::take(&mut self.forgotten).into_iter();
        let mut writes: Vec<Write> =
            gone.map(|(tenant, session_id)| Write::DeleteSession { tenant, session_id }).collect();
        let session = name_of(row).and_then(|name| self.by_name.get_mut(&name));
        if let Some(session) = session.filter(|session| session.is_of(row)) {
            session.on_disk = true;
            writes.push(Write::PutSession(session.row.clone()));
        }
        writes
    }

    /// The worker that last generated for this session.
    pub fn worker(&self, tenant: &TenantId, session_id: &SessionId) -> Option<&WorkerId> {
        let session = self.by_name.get(&(tenant.clone(), session_id.clone()))?;
        session.row.worker.as_ref()
    }

    fn get(
        &self,
        settings: &SessionSettings,
        tenant: &TenantId,
        session_id: &SessionId,
        now: Time,
    ) -> Option<&Session> {
        let session = self.by_name.get(&(tenant.clone(), session_id.clone()));
        session.filter(|session| session.expires_in_ms(settings, now) > 0)
    }

    fn take_in(&mut self, name: &Name, row: impl FnOnce() -> SessionRow) {
        if !self.by_name.contains_key(name) {
            let session = Session { row: row(), open: 0, reserved: 0, on_disk: false };
            self.idle.insert((session.row.last_used_at, name.clone()));
            self.by_name.insert(name.clone(), session);
        }
    }

    fn add_job(&mut self, name: &Name, tokens: u64) {
        let Some(session) = self.by_name.get_mut(name) else { return };
        self.idle.remove(&(session.row.last_used_at, name.clone()));
        session.open += 1;
        session.reserved = session.reserved.saturating_add(tokens);
    }

    /// Lets go of what has expired, and of the least recently used while there are too many.
    fn make_room(&mut self, settings: &SessionSettings, now: Time) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some((last_used_at, name)) = self.idle.first().cloned() else { return };
            if now.since(last_used_at) < settings.ttl_ms && self.by_name.len() <= settings.capacity {
                return;
            }
            self.forget(&name);
        }
    }

    /// Returns whether there was such a session.
    fn forget(&mut self, name: &Name) -> bool {
        let Some(session) = self.by_name.remove(name) else { return false };
        self.idle.remove(&(session.row.last_used_at, name.clone()));
        if session.on_disk {
            self.forgotten.insert(name.clone());
        }
        true
    }
}

impl Orchestrator {
    /// The worker that last generated for this session, which may still hold its text.
    pub(crate) fn session_worker(&self, tenant: &TenantId, session_id: &SessionId) -> Option<&WorkerId> {
        self.sessions.worker(tenant, session_id)
    }

    /// Where a session stands; `None` when it is not known or has expired.
    pub fn session(&self, tenant: &TenantId, session_id: &SessionId, now: Time) -> Option<SessionView> {
        let settings = &self.settings.sessions;
        let session = self.sessions.get(settings, tenant, session_id, now)?;
        let row = &session.row;
        Some(SessionView {
            session_id: row.session_id.clone(),
            tokens_used: row.tokens_used,
            tokens_reserved: session.reserved,
            token_budget: settings.token_budget,
            tokens_remaining: settings
                .token_budget
                .map(|budget| budget.saturating_sub(row.tokens_used.saturating_add(session.reserved))),
            turns: row.turns,
            jobs_open: session.open,
            worker: row.worker.clone(),
            created_at: row.created_at.rfc3339(),
            last_used_at: row.last_used_at.rfc3339(),
            expires_in_ms: session.expires_in_ms(settings, now),
        })
    }

    /// Forgets a session: what it used and where it ran. Its open jobs go on and count for nobody.
    pub(crate) fn delete_session(
        &mut self,
        request: RequestId,
        tenant: TenantId,
        session_id: SessionId,
        turn: &mut Turn,
    ) {
        let known = self.sessions.get(&self.settings.sessions, &tenant, &session_id, turn.now).is_some();
        let name = (tenant, session_id);
        if !known || !self.sessions.forget(&name) {
            return turn.refuse(request, no_such_session(&name.1));
        }
        if self.sessions.forgotten.remove(&name) {
            turn.write(Write::DeleteSession { tenant: name.0, session_id: name.1 });
        }
        turn.answer(request, Answer::Done);
    }

    /// Books an admitted job on its session.
    pub(crate) fn open_session(&mut self, job: &Job, turn: &mut Turn) {
        self.sessions.open(&self.settings.sessions, &job.row, job.reserved, turn.now);
        self.save_session(job, turn);
    }

    /// Writes the session of a job with the job's own row.
    pub(crate) fn save_session(&mut self, job: &Job, turn: &mut Turn) {
        if job.is_durable() {
            turn.step.writes.extend(self.sessions.writes(&job.row));
        }
    }
}

fn name_of(row: &JobRow) -> Option<Name> {
    row.session_id.as_ref().map(|session_id| (row.tenant.clone(), session_id.clone()))
}

fn over_budget(session_id: &SessionId, tokens: [u64; 4]) -> ErrorDetail {
    let [budget, used, reserved, needed] = tokens;
    let message = format!(
        "The session `{session_id}` has used {used} of its {budget} tokens, its open jobs may take {reserved}, \
         and this job may take {needed}."
    );
    ErrorDetail::new(ErrorCode::QuotaExceeded, message)
        .with_field("session_id")
        .with_details(json!({
            "session_id": session_id, "budget": budget, "used": used, "reserved": reserved, "needed": needed
        }))
        .with_hint("Ask for fewer `max_tokens`, or begin another session; this one is forgotten when unused.")
}

fn no_such_session(session_id: &SessionId) -> ErrorDetail {
    let message = format!("No session has the id `{session_id}`, or it was not used for too long.");
    ErrorDetail::new(ErrorCode::SessionNotFound, message)
        .with_hint("A session is made by naming it in a task: `rbees jobs submit --session ID`.")
}
