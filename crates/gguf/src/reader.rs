//! The walk through a header, from the magic to the last tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};

use crate::cursor::{Cursor, Stop};
use crate::header::{Header, TensorTotals, Value};
use crate::problem::{Partial, Problem, Reason};
use crate::types;

const MAX_KEYS: u64 = 65_536;
const MAX_TENSORS: u64 = 131_072;
const MAX_NAME_BYTES: u64 = 65_535;
const MAX_DIMENSIONS: u32 = 4;
/// Longer texts are skipped, not refused.
const MAX_KEPT_TEXT: u64 = 1024 * 1024;
/// All kept keys, texts and numbers together, in bytes.
const MAX_KEPT_BYTES: u64 = 32 * 1024 * 1024;
const MAX_KEPT_NUMBERS: u64 = 4096;

/// No header takes more bytes than this from the start of its file; the vocabulary is what fills it.
pub const MAX_HEADER_BYTES: u64 = 64 * 1024 * 1024;

/// Reads and checks a header from `source`, a whole file of `length` bytes.
///
/// # Errors
/// The offset and the reason of the first thing that is wrong; a source that cannot be read counts
/// as truncated.
pub fn read(source: impl Read + Seek, length: u64) -> Result<Header, Problem> {
    walk(source, length).map_err(|stop| match stop {
        Stop::Problem(problem) => problem,
        Stop::SourceEnded | Stop::Unreadable => truncated(0),
    })
}

/// Reads and checks a header from the first bytes of a file of `length` bytes, so that a model can
/// be judged before it is downloaded.
///
/// # Errors
/// [`Partial::NeedMore`] when `prefix` ends inside the header although the file goes on: come back
/// with more, up to [`MAX_HEADER_BYTES`].
pub fn read_prefix(prefix: &[u8], length: u64) -> Result<Header, Partial> {
    walk(std::io::Cursor::new(prefix), length).map_err(|stop| match stop {
        Stop::Problem(problem) => Partial::Damaged(problem),
        Stop::SourceEnded if (prefix.len() as u64) < length.min(MAX_HEADER_BYTES) => Partial::NeedMore,
        Stop::SourceEnded | Stop::Unreadable => Partial::Damaged(truncated(prefix.len() as u64)),
    })
}

const fn truncated(offset: u64) -> Problem {
    Problem { offset, reason: Reason::Truncated }
}

fn walk(source: impl Read + Seek, length: u64) -> Result<Header, Stop> {
    let mut cursor = Cursor::new(source, length);
    let version = magic_and_version(&mut cursor)?;
    let tensor_count = count(&mut cursor, MAX_TENSORS)?;
    let key_count = count(&mut cursor, MAX_KEYS)?;
    let metadata = read_metadata(&mut cursor, key_count)?;
    let alignment = alignment(&cursor, &metadata)?;
    let extents = read_tensors(&mut cursor, tensor_count, alignment)?;
    let data_offset = cursor.at().next_multiple_of(alignment);
    check_extents(&extents, data_offset, length)?;
    let header =
        Header { version, alignment, data_offset, file_bytes: length, metadata, tensors: totals(&extents) };
    if header.architecture().is_empty() {
        return Err(Stop::Problem(Problem { offset: 24, reason: Reason::MissingKey }));
    }
    Ok(header)
}

fn magic_and_version<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<u32, Stop> {
    if cursor.length() < 4 || cursor.bytes()? != *b"GGUF" {
        return Err(Stop::Problem(Problem { offset: 0, reason: Reason::BadMagic }));
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(Stop::Problem(Problem { offset: 4, reason: Reason::UnknownVersion }));
    }
    Ok(version)
}

fn count<R: Read + Seek>(cursor: &mut Cursor<R>, most: u64) -> Result<u64, Stop> {
    let offset = cursor.at();
    let count = cursor.u64()?;
    if count > most {
        return Err(Stop::Problem(Problem { offset, reason: Reason::CountTooLarge }));
    }
    Ok(count)
}

fn read_metadata<R: Read + Seek>(cursor: &mut Cursor<R>, keys: u64) -> Result<BTreeMap<String, Value>, Stop> {
    let mut metadata = BTreeMap::new();
    let mut kept = 0;
    for _ in 0..keys {
        let offset = cursor.at();
        let key = name(cursor)?;
        let kind = cursor.u32()?;
        let value = value(cursor, kind)?;
        kept += key.len() as u64 + size_of_value(&value);
        if kept > MAX_KEPT_BYTES {
            return Err(Stop::Problem(Problem { offset, reason: Reason::CountTooLarge }));
        }
        if metadata.insert(key, value).is_some() {
            return Err(Stop::Problem(Problem { offset, reason: Reason::DuplicateName }));
        }
    }
    Ok(metadata)
}

fn size_of_value(value: &Value) -> u64 {
    64 + match value {
        Value::Text(text) => text.len() as u64,
        Value::Uints(numbers) => numbers.len() as u64 * 8,
        Value::Uint(_) | Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Skipped(_) => 0,
    }
}

fn name<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<String, Stop> {
    let offset = cursor.at();
    let bad = Stop::Problem(Problem { offset, reason: Reason::BadName });
    let length = cursor.u64()?;
    if length == 0 || length > MAX_NAME_BYTES {
        return Err(bad);
    }
    String::from_utf8(cursor.vec(length)?).map_err(|_| bad)
}

fn value<R: Read + Seek>(cursor: &mut Cursor<R>, kind: u32) -> Result<Value, Stop> {
    match kind {
        types::STRING => text(cursor),
        types::ARRAY => array(cursor),
        _ => scalar(cursor, kind),
    }
}

fn scalar<R: Read + Seek>(cursor: &mut Cursor<R>, kind: u32) -> Result<Value, Stop> {
    Ok(match kind {
        0 => Value::Uint(u64::from(u8::from_le_bytes(cursor.bytes()?))),
        1 => Value::Int(i64::from(i8::from_le_bytes(cursor.bytes()?))),
        2 => Value::Uint(u64::from(u16::from_le_bytes(cursor.bytes()?))),
        3 => Value::Int(i64::from(i16::from_le_bytes(cursor.bytes()?))),
        4 => Value::Uint(u64::from(cursor.u32()?)),
        5 => Value::Int(i64::from(i32::from_le_bytes(cursor.bytes()?))),
        6 => Value::Float(f64::from(f32::from_le_bytes(cursor.bytes()?))),
        7 => Value::Bool(cursor.bytes::<1>()? != [0]),
        10 => Value::Uint(cursor.u64()?),
        11 => Value::Int(i64::from_le_bytes(cursor.bytes()?)),
        12 => Value::Float(f64::from_le_bytes(cursor.bytes()?)),
        _ => return Err(cursor.problem(Reason::UnknownValueType)),
    })
}

fn text<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<Value, Stop> {
    let length = cursor.u64()?;
    if length > MAX_KEPT_TEXT {
        cursor.skip(length)?;
        return Ok(Value::Skipped(length));
    }
    let bytes = cursor.vec(length)?;
    Ok(String::from_utf8(bytes).map_or(Value::Skipped(length), Value::Text))
}

fn array<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<Value, Stop> {
    let kind = cursor.u32()?;
    let length = cursor.u64()?;
    if kind == types::STRING {
        // Each text has a length of 8 bytes, so a count beyond the file is found without a walk.
        cursor.need(length.saturating_mul(8))?;
        for _ in 0..length {
            let bytes = cursor.u64()?;
            cursor.skip(bytes)?;
        }
        return Ok(Value::Skipped(length));
    }
    let Some(bytes) = types::scalar_bytes(kind) else {
        return Err(cursor.problem(Reason::UnknownValueType));
    };
    if length > MAX_KEPT_NUMBERS || !matches!(kind, 0 | 2 | 4 | 5 | 10) {
        cursor.skip(length.saturating_mul(bytes))?;
        return Ok(Value::Skipped(length));
    }
    let mut numbers = Vec::new();
    for _ in 0..length {
        match scalar(cursor, kind)? {
            Value::Uint(number) => numbers.push(number),
            Value::Int(number) => numbers.push(u64::try_from(number).unwrap_or(0)),
            _ => {}
        }
    }
    Ok(Value::Uints(numbers))
}

fn alignment<R: Read + Seek>(cursor: &Cursor<R>, metadata: &BTreeMap<String, Value>) -> Result<u64, Stop> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Uint(bytes)) if bytes.is_power_of_two() && *bytes <= 1 << 20 => Ok(*bytes),
        Some(_) => Err(cursor.problem(Reason::BadAlignment)),
    }
}

/// Where one tensor lies, relative to the start of the data.
struct Extent {
    /// Where its description stands in the header.
    described_at: u64,
    offset: u64,
    bytes: u64,
    kind: &'static str,
}

fn read_tensors<R: Read + Seek>(
    cursor: &mut Cursor<R>,
    tensors: u64,
    alignment: u64,
) -> Result<Vec<Extent>, Stop> {
    let mut names = BTreeSet::new();
    let mut kept = 0;
    let mut extents = Vec::new();
    for _ in 0..tensors {
        let described_at = cursor.at();
        let wrong = |reason| Stop::Problem(Problem { offset: described_at, reason });
        let name = name(cursor)?;
        kept += name.len() as u64 + 64;
        if kept > MAX_KEPT_BYTES {
            return Err(wrong(Reason::CountTooLarge));
        }
        if !names.insert(name) {
            return Err(wrong(Reason::DuplicateName));
        }
        let extent = read_extent(cursor, described_at)?;
        if !extent.offset.is_multiple_of(alignment) {
            return Err(wrong(Reason::Misaligned));
        }
        extents.push(extent);
    }
    Ok(extents)
}

fn read_extent<R: Read + Seek>(cursor: &mut Cursor<R>, described_at: u64) -> Result<Extent, Stop> {
    let wrong = |reason| Stop::Problem(Problem { offset: described_at, reason });
    let dimensions = cursor.u32()?;
    if dimensions == 0 || dimensions > MAX_DIMENSIONS {
        return Err(wrong(Reason::BadShape));
    }
    let first = cursor.u64()?;
    let mut elements = first;
    for _ in 1..dimensions {
        elements = elements.checked_mul(cursor.u64()?).ok_or_else(|| wrong(Reason::BadShape))?;
    }
    let (kind, block, block_bytes) =
        types::tensor_type(cursor.u32()?).ok_or_else(|| wrong(Reason::UnknownTensorType))?;
    if elements == 0 || !first.is_multiple_of(block) {
        return Err(wrong(Reason::BadShape));
    }
    let bytes = (elements / block).checked_mul(block_bytes).ok_or_else(|| wrong(Reason::BadShape))?;
    Ok(Extent { described_at, offset: cursor.u64()?, bytes, kind })
}

/// Every tensor lies inside the file, and no two share a byte.
fn check_extents(extents: &[Extent], data_offset: u64, length: u64) -> Result<(), Stop> {
    let mut by_offset: Vec<&Extent> = extents.iter().collect();
    by_offset.sort_by_key(|extent| extent.offset);
    let mut free_from = 0;
    for extent in by_offset {
        let wrong = |reason| Stop::Problem(Problem { offset: extent.described_at, reason });
        if extent.offset < free_from {
            return Err(wrong(Reason::Overlap));
        }
        free_from = extent.offset.checked_add(extent.bytes).ok_or_else(|| wrong(Reason::PastEnd))?;
        if data_offset.checked_add(free_from).is_none_or(|end| end > length) {
            return Err(wrong(Reason::PastEnd));
        }
    }
    Ok(())
}

fn totals(extents: &[Extent]) -> BTreeMap<&'static str, TensorTotals> {
    let mut totals: BTreeMap<&'static str, TensorTotals> = BTreeMap::new();
    for extent in extents {
        let total = totals.entry(extent.kind).or_default();
        total.tensors += 1;
        total.bytes += extent.bytes;
    }
    totals
}
