//! A modelled fleet in model time: workers prefill one prompt after another, decode side by side,
//! and keep the KV cache of the last prompts, of which they tell in their heartbeats.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use api_types::JobId;
use api_types::prefix::{BLOCK_BYTES, PrefixChain, RetainedPrefix};
use api_types::worker::HEARTBEAT_MS;
use orchestrator_core::{Event, OpenStream, Run, RunKey, Time};

use super::brain::{Brain, worker_id};
use super::load::{Load, Rng, Talk};
use super::policies::Routing;

const WORKERS: usize = 8;
const SLOTS: u32 = 4;
/// Prompts whose cache a worker keeps.
const KEPT: usize = 16;
/// Prompt bytes that a worker prefills in a millisecond: about 1,500 tokens a second.
const PREFILL_BYTES_PER_MS: u64 = 6;
/// Milliseconds from the end of the prefill to the first token, and between tokens.
const DECODE_MS: u64 = 20;
const BYTES_PER_TOKEN: u64 = 4;
/// Mean pause of a person between an answer and the next question.
const THINK_MS: f64 = 6_000.0;
/// Mean pause between prompts of all people together where nobody asks twice.
const ARRIVAL_MS: f64 = 330.0;

/// What was seen of one load under one policy.
#[derive(Default)]
pub struct Seen {
    ttft_ms: Vec<u64>,
    prompt_bytes: u64,
    cached_bytes: u64,
    /// Jobs refused.
    pub refused: usize,
}

impl Seen {
    /// Mean time to the first token, from submission.
    pub fn mean_ms(&self) -> f64 {
        self.ttft_ms.iter().sum::<u64>() as f64 / self.ttft_ms.len().max(1) as f64
    }

    /// A percentile of it.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.ttft_ms.clone();
        sorted.sort_unstable();
        sorted
            .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
            .map_or(0.0, |ms| *ms as f64)
    }

    /// The share of all prompts that was not prefilled again.
    pub fn cached_percent(&self) -> f64 {
        100.0 * self.cached_bytes as f64 / self.prompt_bytes.max(1) as f64
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Ask(usize),
    FirstToken(JobId),
    End(JobId),
    Beat(usize),
}

/// A job that was handed in.
struct Asked {
    talk: usize,
    at: Time,
    bytes: u64,
    chain: PrefixChain,
    run: Option<(RunKey, usize)>,
    tokens: u64,
    first_at: u64,
}

#[derive(Default)]
struct Worker {
    prefill_free_at: u64,
    kept: VecDeque<PrefixChain>,
    running: Vec<Run>,
}

impl Worker {
    /// Bytes of a prompt that need no prefill; the prompt is kept from now on.
    fn take(&mut self, chain: &PrefixChain) -> u64 {
        let common = |kept: &PrefixChain| {
            kept.blocks().iter().zip(chain.blocks()).take_while(|(one, other)| one == other).count()
        };
        let blocks = self.kept.iter().map(common).max().unwrap_or(0);
        self.kept.retain(|kept| !chain.blocks().starts_with(kept.blocks()));
        self.kept.push_back(chain.clone());
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
        (blocks * BLOCK_BYTES) as u64
    }

    fn report(&self) -> Vec<RetainedPrefix> {
        let told = |kept: &PrefixChain| {
            let blocks = u32::try_from(kept.blocks().len()).ok()?;
            Some(RetainedPrefix { deepest: *kept.blocks().last()?, blocks })
        };
        self.kept.iter().filter_map(told).collect()
    }
}

struct World {
    brain: Brain,
    agenda: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    happened: u64,
    workers: Vec<Worker>,
    talks: Vec<(Talk, usize)>,
    asked: BTreeMap<JobId, Asked>,
    rng: Rng,
    load: Load,
    seen: Seen,
    open: usize,
}

/// Runs a load of this size to its end.
pub fn run(load: Load, routing: Routing, size: usize) -> Seen {
    let mut rng = Rng(42);
    let talks: Vec<_> =
        (0..size * load.per_unit()).map(|n| (Talk::begin(load, n, &mut rng), load.turns())).collect();
    let open = talks.len() * load.turns();
    let mut world = World {
        brain: Brain::new(WORKERS, SLOTS, routing),
        agenda: BinaryHeap::new(),
        happened: 0,
        workers: (0..WORKERS).map(|_| Worker::default()).collect(),
        talks,
        asked: BTreeMap::new(),
        rng,
        load,
        seen: Seen::default(),
        open,
    };
    world.begin();
    while world.open > 0 {
        world.next();
    }
    Seen { refused: world.brain.refused, ..world.seen }
}

impl World {
    fn begin(&mut self) {
        let mut at = 0;
        // Conversations overlap so that as many prompts come in a second as in the other loads.
        let mean = ARRIVAL_MS * self.load.turns() as f64;
        for talk in 0..self.talks.len() {
            at += self.rng.pause(mean);
            self.after(at, Happening::Ask(talk));
        }
        (0..WORKERS).for_each(|n| self.after(HEARTBEAT_MS * n as u64 / WORKERS as u64, Happening::Beat(n)));
    }

    fn after(&mut self, ms: u64, what: Happening) {
        self.happened += 1;
        self.agenda.push(Reverse((self.brain.now.0 + ms, self.happened, what)));
    }

    fn next(&mut self) {
        let due = self.agenda.peek().map(|Reverse((at, ..))| *at);
        let begun = match (self.brain.alarm(), due) {
            (Some(alarm), Some(due)) if alarm.0 < due => {
                self.brain.now = alarm.max(self.brain.now);
                self.brain.wake()
            }
            _ => {
                let Some(Reverse((at, _, what))) = self.agenda.pop() else { return };
                self.brain.now = Time(at);
                self.happen(what)
            }
        };
        begun.into_iter().for_each(|open| self.start(open));
    }

    fn happen(&mut self, what: Happening) -> Vec<OpenStream> {
        match what {
            Happening::Ask(talk) => self.ask(talk),
            Happening::FirstToken(job_id) => self.first_token(job_id),
            Happening::End(job_id) => self.end(job_id),
            Happening::Beat(n) => {
                self.after(HEARTBEAT_MS, Happening::Beat(n));
                let (running, kept) = (self.workers[n].running.clone(), self.workers[n].report());
                self.brain.beat(n, running, kept)
            }
        }
    }

    fn ask(&mut self, talk: usize) -> Vec<OpenStream> {
        let (bytes, chain) = (self.talks[talk].0.bytes, self.talks[talk].0.chain());
        let at = self.brain.now;
        let (job_id, begun) = self.brain.submit(bytes, chain.clone());
        self.seen.prompt_bytes += bytes;
        let tokens = self.rng.between(40, 160);
        self.asked.insert(job_id, Asked { talk, at, bytes, chain, run: None, tokens, first_at: 0 });
        begun
    }

    fn start(&mut self, open: OpenStream) {
        let Some(n) = (0..WORKERS).find(|n| worker_id(*n) == open.run.worker_id) else { return };
        let job_id = open.run.job_id;
        let Some(asked) = self.asked.get_mut(&job_id) else { return };
        let worker = &mut self.workers[n];
        let cached = worker.take(&asked.chain).min(asked.bytes);
        self.seen.cached_bytes += cached;
        let begin = worker.prefill_free_at.max(self.brain.now.0);
        worker.prefill_free_at = begin + (asked.bytes - cached) / PREFILL_BYTES_PER_MS;
        worker.running.push(Run { job_id, attempt: open.run.attempt, ended: false });
        asked.first_at = worker.prefill_free_at + DECODE_MS;
        asked.run = Some((open.run, n));
        let wait = asked.first_at - self.brain.now.0;
        self.after(wait, Happening::FirstToken(job_id));
    }

    fn first_token(&mut self, job_id: JobId) -> Vec<OpenStream> {
        let Some(asked) = self.asked.get(&job_id) else { return Vec::new() };
        let Some((run, _)) = asked.run.clone() else { return Vec::new() };
        self.seen.ttft_ms.push(self.brain.now.since(asked.at));
        let decode_ms = asked.tokens * DECODE_MS;
        self.after(decode_ms, Happening::End(job_id));
        self.brain.tell(Event::FirstToken(run))
    }

    fn end(&mut self, job_id: JobId) -> Vec<OpenStream> {
        let Some(asked) = self.asked.remove(&job_id) else { return Vec::new() };
        let Some((run, n)) = asked.run else { return Vec::new() };
        self.open -= 1;
        self.workers[n].running.retain(|run| run.job_id != job_id);
        let (talk, left) = &mut self.talks[asked.talk];
        *left -= 1;
        if *left > 0 {
            talk.say(asked.tokens * BYTES_PER_TOKEN);
            let question = self.rng.between(200, 1_200);
            self.talks[asked.talk].0.say(question);
            let pause = self.rng.pause(THINK_MS);
            self.after(pause, Happening::Ask(asked.talk));
        }
        let prefill_ms = asked.first_at.saturating_sub(asked.at.0);
        self.brain.end(run, prefill_ms, u32::try_from(asked.tokens).unwrap_or(0), asked.tokens * DECODE_MS)
    }
}
