//! One input of the brain on its way to disk and back.

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::journal::Unreadable;
use crate::journal::hot::{Hot, from_cbor, to_cbor};
use crate::time::Time;

/// Something the brain was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When.
    pub at: Time,
    /// What.
    pub input: Input,
}

/// The ways to speak to the brain.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly every input is an event")]
pub enum Input {
    /// `handle_event`.
    Event(Event),
    /// `handle_timeout`.
    Timeout,
    /// `cut_next`, for the input that follows: what [`crate::Step::interrupted`] said of it.
    Cut(Vec<u32>),
}

/// An entry as it is written.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    at: u64,
    #[serde(borrow)]
    input: Hot<'a>,
}

/// Adds an event to a piece of journal.
pub(super) fn write_event(out: &mut Vec<u8>, event: &Event, at: Time) -> Result<(), Unreadable> {
    if let Some(input) = Hot::of(event)? {
        return write_line(out, at, input);
    }
    write_line(out, at, Hot::Rare(&to_cbor(event)?))
}

/// Adds a timeout to a piece of journal.
pub(super) fn write_timeout(out: &mut Vec<u8>, at: Time) -> Result<(), Unreadable> {
    write_line(out, at, Hot::Timeout)
}

/// Adds, before the entry that begins at `before`, what the watchdog cut while it was handled.
pub(super) fn insert_cut(out: &mut Vec<u8>, before: usize, cut: &[u32], at: Time) -> Result<(), Unreadable> {
    let entry = out.split_off(before.min(out.len()));
    write_line(out, at, Hot::Cut(cut.to_vec()))?;
    out.extend(entry);
    Ok(())
}

fn write_line(out: &mut Vec<u8>, at: Time, input: Hot<'_>) -> Result<(), Unreadable> {
    let filled =
        postcard::to_extend(&Line { at: at.0, input }, std::mem::take(out)).map_err(Unreadable::new)?;
    *out = filled;
    Ok(())
}

/// The entries of a piece of journal, in order. Ends after the first that cannot be read.
pub fn entries(mut bytes: &[u8]) -> impl Iterator<Item = Result<Entry, Unreadable>> + '_ {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let read = read_entry(bytes);
        bytes = read.as_ref().map_or(&[], |(_, rest)| *rest);
        Some(read.map(|(entry, _)| entry))
    })
}

fn read_entry(bytes: &[u8]) -> Result<(Entry, &[u8]), Unreadable> {
    let (line, rest) = postcard::take_from_bytes::<Line<'_>>(bytes).map_err(Unreadable::new)?;
    let input = match line.input {
        Hot::Timeout => Input::Timeout,
        Hot::Cut(cut) => Input::Cut(cut),
        Hot::Rare(event) => Input::Event(from_cbor(event)?),
        hot @ (Hot::Submit(_) | Hot::FirstToken(_) | Hot::StreamEnded(..) | Hot::Readers(..)) => {
            Input::Event(hot.into_event()?)
        }
    };
    Ok((Entry { at: Time(line.at), input }, rest))
}
