//! The batch on the fake engine, step by step and without a thread.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use api_types::event::StopReason;
use api_types::sampling::Sampling;
use api_types::{Attempt, ErrorCode};
use engine::{Backend, Engine, LoadOptions, StepOutcome};

use super::*;
use crate::generation::Job;
use crate::replay::Replay;
use crate::run_log::Page;
use crate::runs::{Admission, Claim, Run, Runs};

struct World {
    engine: Box<dyn Engine>,
    batch: Batch,
    runs: Runs,
}

impl World {
    fn new(slots: u32) -> Self {
        Self::with_logs(slots, usize::MAX)
    }

    fn with_logs(slots: u32, log_bytes: usize) -> Self {
        let options =
            LoadOptions { backend: Backend::Fake, gpus: Vec::new(), slots, context: None, threads: None };
        let engine = engine::open("fake:bee", &options, Box::new(|_| true)).expect("loads");
        Self { engine, batch: Batch::new(slots as usize), runs: Runs::new(slots + 1, log_bytes) }
    }

    fn job(&self, name: &str, prompt: usize, max_tokens: u32) -> (Job, Arc<Run>) {
        let claim = Claim { job_id: name, attempt: Some(Attempt(1)), digest: 0, first_event_id: 0 };
        let Ok(Admission::Started(run)) = self.runs.admit(&claim) else { panic!("admitted") };
        let job = Job {
            run: Arc::clone(&run),
            prompt: vec![u32::from(b'x'); prompt],
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            max_tokens,
            seed: 1,
            deadline: None,
            accepted: Instant::now(),
            correlation_id: None,
            token_ids: false,
            prefix: None,
            replay: Replay::default(),
            constraint: None,
        };
        (job, run)
    }

    fn generation(&self, job: Job) -> Generation {
        Generation::new(job, &*self.engine.tokenizer())
    }

    fn join(&mut self, name: &str, prompt: usize, max_tokens: u32) -> Arc<Run> {
        let (job, run) = self.job(name, prompt, max_tokens);
        let generation = self.generation(job);
        let slot = self.free();
        self.batch.join(slot, generation).expect("a free slot");
        run
    }

    fn free(&self) -> usize {
        (0..).find(|slot| self.batch.generation(*slot).is_none()).expect("slots")
    }

    /// One step as the decode thread takes it; its plan, and the slots that were left.
    fn step(&mut self) -> (Plan, Vec<Left>) {
        let plan = self.batch.plan();
        let outcome = self.engine.step(&plan.rows, &AtomicBool::new(false)).expect("sound rows");
        assert_eq!(outcome, StepOutcome::Done);
        let (engine, ends) = (&self.engine, self.engine.info().end_tokens.clone());
        let tokenizer = engine.tokenizer();
        let left = self.batch.apply(&plan, |row| engine.logits(row), &*tokenizer, &ends, Instant::now());
        self.forget(&left);
        (plan, left)
    }

    fn forget(&mut self, left: &[Left]) {
        for left in left {
            self.engine.seq_remove(left.slot as u32, 0).expect("a sequence");
        }
    }
}

fn events(run: &Run) -> u64 {
    let mut from = 0;
    while let Page::Frames { next, .. } = run.log.read(from, 0) {
        from = next;
    }
    from
}

#[test]
fn a_long_prompt_goes_in_chunks_and_only_its_last_row_is_scored() {
    let mut world = World::new(2);
    world.join("a", 2 * PREFILL_CHUNK + 3, 5);
    for count in [PREFILL_CHUNK, PREFILL_CHUNK] {
        let (plan, _) = world.step();
        assert_eq!((plan.prefills.as_slice(), plan.scored.len()), (&[(0, count)][..], 0));
    }
    let (plan, _) = world.step();
    assert_eq!((plan.prefills, plan.scored), (vec![(0, 3)], vec![(0, 2)]));
    assert_eq!(plan.rows.iter().map(|row| row.logits).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(plan.rows.iter().map(|row| row.pos).collect::<Vec<_>>(), [256, 257, 258]);
}

#[test]
fn every_generating_slot_has_one_row_and_a_newcomer_gets_the_small_chunk() {
    let mut world = World::new(4);
    for name in ["a", "b", "c"] {
        world.join(name, 2, 50);
    }
    let (plan, _) = world.step();
    assert_eq!((plan.decode_rows, plan.prefills.len()), (0, 3), "three prompts share a step");
    world.join("d", 100, 50);
    let (plan, _) = world.step();
    assert_eq!((plan.decode_rows, plan.prefills), (3, vec![(3, PREFILL_CHUNK_BESIDE_DECODE)]));
    let (plan, _) = world.step();
    assert_eq!((plan.decode_rows, plan.prefills), (3, vec![(3, 100 - PREFILL_CHUNK_BESIDE_DECODE)]));
    let (plan, _) = world.step();
    assert_eq!((plan.decode_rows, plan.rows.len()), (4, 4));
    let mut slots: Vec<u32> = plan.rows.iter().map(|row| row.seq).collect();
    slots.sort_unstable();
    assert_eq!(slots, [0, 1, 2, 3]);
}

#[test]
fn the_oldest_prompt_is_processed_first_whatever_its_slot() {
    let mut world = World::new(2);
    world.join("short", 1, 1);
    world.join("old", 3 * PREFILL_CHUNK, 5);
    let (plan, left) = world.step();
    assert_eq!(plan.prefills, [(0, 1), (1, PREFILL_CHUNK - 1)]);
    assert_eq!(left.len(), 1, "one token was wanted");
    world.join("new", 5, 5);
    let (plan, _) = world.step();
    assert_eq!(plan.prefills, [(1, PREFILL_CHUNK)], "slot 0 is lower, and younger");
    let (plan, _) = world.step();
    assert_eq!(plan.prefills, [(1, PREFILL_CHUNK)]);
    let (plan, _) = world.step();
    assert_eq!(plan.prefills, [(1, 1), (0, 5)], "what the oldest leaves is the next one's");
}

#[test]
fn short_prompts_that_come_together_begin_their_answers_together() {
    let mut world = World::new(8);
    for name in ["a", "b", "c", "d", "e", "f"] {
        world.join(name, 50, 5);
    }
    let mut plans = Vec::new();
    while plans.last().is_none_or(|plan: &Plan| plan.scored.is_empty()) {
        plans.push(world.step().0);
    }
    let rows: Vec<usize> = plans.iter().map(|plan| plan.rows.len()).collect();
    assert_eq!(rows, [PREFILL_CHUNK, PREFILL_CHUNK, 300 - 2 * PREFILL_CHUNK]);
    assert_eq!(plans.last().map(|plan| plan.scored.len()), Some(6), "all begin in the same step");
    world.join("late", 50, 5);
    world.join("later", 50, 5);
    assert_eq!(world.step().0.scored.len(), 7, "beside more running answers nobody waits");
}

#[test]
fn nobody_waits_for_a_stream_of_newcomers() {
    let mut world = World::new(64);
    world.join("first", 60, 5);
    world.join("second", 60, 5);
    world.join("third", 60, 5);
    let mut processed = 0;
    for number in 0.. {
        let (plan, _) = world.step();
        processed += plan.rows.len();
        if plan.scored.iter().any(|(slot, _)| *slot == 0) {
            break;
        }
        assert!(processed <= TOGETHER, "the first waits for ever");
        world.join(&format!("{number} a"), 60, 5);
        world.join(&format!("{number} b"), 60, 5);
    }
}

#[test]
fn slots_are_left_and_taken_again_between_steps() {
    let mut world = World::new(1);
    let run = world.join("a", 2, 2);
    let (job, _) = world.job("b", 2, 1);
    let refused = world.batch.join(0, world.generation(job)).expect_err("no slot is free");
    assert_eq!(refused.run().job_id, "b");
    assert!(world.step().1.is_empty());
    let (_, left) = world.step();
    assert!(matches!(
        left.as_slice(),
        [Left { slot: 0, finish: Finish::Stopped(StopReason::MaxTokens), .. }]
    ));
    assert!(world.batch.is_empty() && world.batch.plan() == Plan::default());
    assert_eq!(events(&run), 2, "both tokens were logged");
    assert!(world.batch.join(0, *refused).is_ok());
    assert_eq!(world.step().1.len(), 1, "the sequence begins at 0 again");
}

#[test]
fn a_cancelled_run_leaves_before_the_next_step_also_inside_its_prompt() {
    let mut world = World::new(2);
    let (reading, speaking) = (world.join("a", 2 * PREFILL_CHUNK, 5), world.join("b", 1, 5));
    world.step();
    speaking.cancel();
    reading.cancel();
    let left = world.batch.interrupt(Instant::now());
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|left| left.finish == Finish::Stopped(StopReason::Cancelled)));
    world.forget(&left);
    assert!(world.batch.is_empty() && world.batch.plan().rows.is_empty());
}

#[test]
fn a_run_past_its_deadline_leaves_with_that_reason() {
    let mut world = World::new(1);
    let (mut job, _) = world.job("a", 1, 5);
    let deadline = Instant::now() + Duration::from_secs(3600);
    job.deadline = Some(deadline);
    world.batch.join(0, world.generation(job)).expect("a free slot");
    assert!(world.batch.interrupt(deadline - Duration::from_millis(1)).is_empty());
    let left = world.batch.interrupt(deadline);
    assert!(
        matches!(left.as_slice(), [Left { finish: Finish::Failed(error), .. }] if error.code == ErrorCode::DeadlineExceeded)
    );
}

#[test]
fn a_full_log_pauses_its_own_run_only_and_can_still_be_cancelled() {
    let mut world = World::with_logs(2, 1);
    let first = world.join("a", 1, 50);
    world.step();
    assert!(first.log.is_full());
    let second = world.join("b", 1, 50);
    let (plan, _) = world.step();
    assert_eq!((plan.decode_rows, plan.prefills), (0, vec![(1, 1)]));
    assert!(world.batch.plan().rows.is_empty(), "both are paused");
    second.log.acknowledge(1);
    assert_eq!(world.batch.plan().rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [1]);
    first.cancel();
    assert_eq!(world.batch.interrupt(Instant::now()).len(), 1);
}

#[test]
fn a_failed_step_ends_the_runs_that_had_rows_in_it() {
    let mut world = World::with_logs(2, 1);
    world.join("paused", 1, 50);
    world.step();
    world.join("hit", 1, 50);
    let plan = world.batch.plan();
    let reason = Finish::Failed(api_types::ErrorDetail::new(ErrorCode::EngineFailed, "broken"));
    let left = world.batch.fail(&plan, &reason);
    assert_eq!(left.iter().map(|left| left.generation.run().job_id.as_str()).collect::<Vec<_>>(), ["hit"]);
    assert_eq!(world.batch.fail_all(&reason).len(), 1);
    assert!(world.batch.is_empty());
}
