//! The log of a job that goes on elsewhere when its worker is lost: its tokens come with their ids,
//! and what readers see is never far ahead of what is on disk.
//!
//! When the orchestrator and the worker are lost together, the tokens after the last checkpoint are
//! made again. A reader may have had them, so they get the ids they had, and the `seam` event comes
//! behind the last that anybody can have had. [`AHEAD`] is how many that are.

use api_types::TaskEvent;
use api_types::sse::FrameDecoder;
use orchestrator_core::Kept;

use super::{JobLog, MAX_LOG_BYTES, State};

/// Events that readers may see before they are on disk. Between two checkpoints, which are a second
/// apart, no worker of today makes as many for one job.
pub const AHEAD: usize = 512;

/// How a carried log stands on disk.
#[derive(Debug)]
pub(super) struct Carried {
    /// Events on disk; `None` for a job that is in memory only.
    saved: Option<usize>,
    /// Events that readers may have had before the orchestrator was started.
    reach: usize,
}

impl Carried {
    /// How many events readers may see at most.
    pub fn bound(&self) -> usize {
        self.saved.map_or(usize::MAX, |saved| saved.saturating_add(AHEAD))
    }
}

/// Events that are not on disk yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsaved {
    /// The id of the first.
    pub first_event: u64,
    /// The id after the last.
    pub next_event: u64,
    /// Their frames.
    pub frames: Vec<u8>,
}

impl JobLog {
    /// Makes this the log of a job that can go on elsewhere. `reach`: events that readers may have
    /// had before this start of the orchestrator.
    pub fn carry(&self, durable: bool, reach: u64) {
        let mut state = self.lock();
        let saved = durable.then_some(state.ends.len());
        state.carried = Some(Carried { saved, reach: usize::try_from(reach).unwrap_or(usize::MAX) });
    }

    /// What belongs to the log and is not on disk; `None` when there is nothing to save.
    pub fn unsaved(&self) -> Option<Unsaved> {
        let state = self.lock();
        let saved = state.carried.as_ref()?.saved?;
        let settled = state.settled();
        if state.sealed || settled <= saved {
            return None;
        }
        Some(Unsaved {
            first_event: saved as u64,
            next_event: settled as u64,
            frames: state.slice(saved, settled).to_vec(),
        })
    }

    /// The events before `next_event` are on disk now; readers may see further.
    pub fn saved(&self, next_event: u64) {
        let mut state = self.lock();
        let next_event = usize::try_from(next_event).unwrap_or(usize::MAX);
        if let Some(saved) = state.carried.as_mut().and_then(|carried| carried.saved.as_mut()) {
            *saved = next_event.max(*saved);
        }
        if !state.sealed {
            state.visible = state.shown().max(state.visible);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// What a lost run has left here.
    pub fn tally(&self) -> Kept {
        let state = self.lock();
        let events = state.settled();
        let reach = state.carried.as_ref().map_or(0, |carried| carried.reach);
        let unsure = u32::try_from(reach.saturating_sub(events)).unwrap_or(u32::MAX);
        let mut kept = Kept { events: events as u64, tokens: 0, seams: 0, unsure, ids_known: true };
        for event in state.settled_events() {
            match event {
                TaskEvent::Token { k, .. } => {
                    kept.tokens += 1;
                    kept.ids_known &= k.is_some();
                }
                TaskEvent::Seam { .. } => kept.seams += 1,
                _ => {}
            }
        }
        kept
    }

    /// The ids of the tokens; `None` when a token came without.
    pub fn token_ids(&self) -> Option<Vec<u32>> {
        let state = self.lock();
        state
            .settled_events()
            .filter_map(|event| if let TaskEvent::Token { k, .. } = event { Some(k) } else { None })
            .collect()
    }
}

impl State {
    /// Events that belong to the log whatever becomes of the current run.
    pub(super) fn settled(&self) -> usize {
        self.held_from.unwrap_or(self.ends.len())
    }

    /// Events that readers may see now.
    pub(super) fn shown(&self) -> usize {
        let bound = self.carried.as_ref().map_or(usize::MAX, Carried::bound);
        self.settled().min(bound)
    }

    fn settled_events(&self) -> impl Iterator<Item = TaskEvent> + use<> {
        let mut decoder = FrameDecoder::with_limit(MAX_LOG_BYTES);
        decoder.push(&self.slice(0, self.settled()));
        std::iter::from_fn(move || decoder.next_frame().ok().flatten())
            .filter_map(|frame| frame.task_event().ok())
    }
}
