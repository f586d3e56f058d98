//! Opening, resuming, passing and dropping the streams of runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api_types::task::RetryMode;
use api_types::worker::{CancelRequest, Continuation, ExecuteRequest};
use api_types::{ErrorCode, ErrorDetail};
use clients::WorkerClient;
use orchestrator_core::{Event, GoOn, JobRow, OpenStream, RunKey};

use super::{Actions, RunningRelay};
use crate::driver::requests::RequestBody;
use crate::relay::{Relay, Source};
use crate::turns::step_back;

/// How often a worker is told to stop a run or to forget its log before we give up; it drops
/// both by itself later, and its heartbeat is answered with the same.
const TELL_TRIES: u32 = 3;

impl Actions {
    /// Calls `/execute` and relays what comes, held back until the run is committed as running.
    pub fn open_stream(&self, open: OpenStream, request: Option<RequestBody>, row: Option<&JobRow>) {
        let (Some(request), Some(row)) = (request, row) else {
            let error =
                ErrorDetail::new(ErrorCode::StorageFailed, "the request of this job is not in the database");
            self.handle.report(Event::StreamFailed { run: open.run, error });
            return;
        };
        let mut head = ExecuteRequest {
            job_id: open.run.job_id.to_string(),
            attempt: Some(open.run.attempt),
            incarnation: Some(open.run.incarnation),
            first_event_id: Some(open.first_event_id),
            model: Some(row.model.clone()),
            time_limit_ms: Some(open.time_limit_ms),
            prefix: open.prefix,
            token_ids: (row.retry == RetryMode::Continue).then_some(true),
            ..ExecuteRequest::default()
        };
        if let Some(goes_on) = open.goes_on {
            head.continuation = self.continuation(&open.run, goes_on);
            if head.continuation.is_none() {
                let error =
                    ErrorDetail::new(ErrorCode::Internal, "the tokens of this job are not in its log");
                self.handle.report(Event::StreamFailed { run: open.run, error });
                return;
            }
        }
        let worker = self
            .workers
            .at(&open.uri, open.secret.as_deref())
            .with_correlation(&row.correlation_id)
            .with_acknowledged(&self.acknowledgements.for_run(&open.uri));
        let (front, tail) = request.with_head(&head);
        self.start_relay(open.run, worker, false, Duration::ZERO, |_| Source::Execute(front, tail));
    }

    /// What a run goes on with: the tokens in the job's log.
    fn continuation(&self, run: &RunKey, goes_on: GoOn) -> Option<Continuation> {
        let tokens = self.subscribers.log(run.job_id)?.token_ids()?;
        let complete = u32::try_from(tokens.len()) == Ok(goes_on.tokens);
        complete.then_some(Continuation { tokens, seams: goes_on.seams })
    }

    /// Takes a run up again from the worker's own log, unless its stream is open or has given its
    /// last event.
    pub fn resume_stream(&self, run: RunKey, uri: &str, secret: Option<&str>, delay_ms: u64, passed: bool) {
        if self.is_relayed(&run) {
            return;
        }
        let (job, attempt) = (run.job_id.to_string(), run.attempt);
        let worker = self.workers.at(uri, secret);
        self.start_relay(run, worker, passed, Duration::from_millis(delay_ms), |from| Source::Resume {
            job,
            attempt,
            from,
        });
    }

    /// The run is committed as running: readers may see it.
    pub fn pass_stream(&self, run: &RunKey) {
        if let Some(log) = self.subscribers.log(run.job_id) {
            log.pass();
        }
    }

    /// Stops relaying a run. What it held back was dropped with the commit.
    pub fn drop_stream(&self, run: &RunKey) {
        let mut relays = self.lock_relays();
        if relays.get(&run.job_id).is_some_and(|relay| relay.run == *run)
            && let Some(relay) = relays.remove(&run.job_id)
        {
            relay.task.abort();
        }
    }

    /// Tells a worker to stop a run; its `end` still comes through the relay.
    pub fn stop_run(&self, run: RunKey, uri: &str, secret: Option<&str>) {
        let worker = self.workers.at(uri, secret);
        self.runtime.spawn(async move {
            let request = CancelRequest { job_id: run.job_id.to_string(), attempt: Some(run.attempt) };
            tell("cancel", &run, || worker.cancel(&request)).await;
        });
    }

    /// Whether a relay for the run is open or has told of its last event.
    fn is_relayed(&self, run: &RunKey) -> bool {
        let relays = self.lock_relays();
        let relay = relays.get(&run.job_id).filter(|relay| relay.run == *run);
        relay.is_some_and(|relay| !relay.broken.load(Ordering::Relaxed))
    }

    fn start_relay(
        &self,
        run: RunKey,
        worker: WorkerClient,
        passed: bool,
        delay: Duration,
        source: impl FnOnce(u64) -> Source,
    ) {
        let job_id = run.job_id;
        let Some(log) = self.subscribers.log(job_id) else { return };
        let (writer, next) = log.begin_run(passed);
        let source = source(next);
        let relay = Relay {
            run: run.clone(),
            log,
            writer,
            limits: self.limits,
            // A run whose events are passed on is `running`: its first token is committed.
            had_token: passed,
            metrics: self.metrics.clone(),
        };
        let handle = self.handle.clone();
        let broken = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&broken);
        let task = self.runtime.spawn(async move {
            if delay.is_zero() {
                step_back().await;
            } else {
                tokio::time::sleep(delay).await;
            }
            let report = |event| {
                mark.store(matches!(event, Event::StreamBroken { .. }), Ordering::Relaxed);
                handle.report(event);
            };
            relay.run(worker, source, report).await;
        });
        let started = RunningRelay { run, task: task.abort_handle(), broken };
        if let Some(before) = self.lock_relays().insert(job_id, started) {
            before.task.abort();
        }
    }
}

/// Tells a worker something that it may hear twice; a worker that does not know the run is fine.
pub(super) async fn tell<F>(what: &'static str, run: &RunKey, call: impl Fn() -> F)
where
    F: Future<Output = Result<(), clients::ClientError>>,
{
    for pause in (0..TELL_TRIES).map(|tried| Duration::from_millis(200 << tried)) {
        match call().await {
            Ok(()) | Err(clients::ClientError::Answered { .. } | clients::ClientError::Refused { .. }) => {
                return;
            }
            Err(error) => {
                tracing::debug!(code = "WORKER_NOT_TOLD", what, job_id = %run.job_id, %error, "trying again");
            }
        }
        tokio::time::sleep(pause).await;
    }
}
