//! The list of tensors, and whether all of them lie inside the file.

use super::Problem;
use super::cursor::Cursor;

const MAX_NAME_BYTES: u64 = 1024;
const MAX_DIMENSIONS: u32 = 4;

pub(super) struct Info {
    /// Where the entry stands in the header.
    at: u64,
    /// Values it holds.
    values: u64,
    kind: u32,
    /// Where its data lies, from the start of all data.
    offset: u64,
}

pub(super) fn read_infos(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Info>, Problem> {
    (0..count).map(|_| read_info(cursor)).collect()
}

fn read_info(cursor: &mut Cursor<'_>) -> Result<Info, Problem> {
    let at = cursor.offset();
    cursor.text(MAX_NAME_BYTES)?;
    let dimensions = cursor.u32()?;
    if dimensions > MAX_DIMENSIONS {
        return Err(
            cursor.corrupt(format!("a tensor of {dimensions} dimensions; at most {MAX_DIMENSIONS} can be"))
        );
    }
    let mut values = 1u64;
    for _ in 0..dimensions {
        let size = cursor.u64()?;
        values = values
            .checked_mul(size)
            .ok_or_else(|| cursor.corrupt("a tensor has more values than 64 bits count"))?;
    }
    Ok(Info { at, values, kind: cursor.u32()?, offset: cursor.u64()? })
}

pub(super) fn check_extents(
    infos: &[Info],
    data_offset: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), Problem> {
    for info in infos {
        let wrong = |reason: String| Problem::Corrupt { offset: info.at, reason };
        if !info.offset.is_multiple_of(alignment) {
            return Err(wrong(format!(
                "a tensor lies at {}, which is not aligned to {alignment}",
                info.offset
            )));
        }
        let size = size_of(info).map_err(wrong)?;
        let end = data_offset.checked_add(info.offset).and_then(|start| start.checked_add(size));
        if end.is_none_or(|end| end > file_bytes) {
            let end = end.map_or_else(|| "beyond 64 bits".to_owned(), |end| format!("at byte {end}"));
            return Err(wrong(format!(
                "a tensor ends {end}, but the file has {file_bytes} bytes; it was cut off"
            )));
        }
    }
    Ok(())
}

/// Bytes of a tensor; 0 for kinds that are not known here, whose start alone is checked.
fn size_of(info: &Info) -> Result<u64, String> {
    let Some((_, block, bytes)) = KINDS.iter().find(|(kind, _, _)| *kind == info.kind) else { return Ok(0) };
    if !info.values.is_multiple_of(*block) {
        return Err(format!("a tensor of {} values is no whole number of blocks of {block}", info.values));
    }
    (info.values / block)
        .checked_mul(*bytes)
        .ok_or_else(|| "a tensor has more bytes than 64 bits count".to_owned())
}

/// Kinds of tensors: number, values in a block, bytes of a block.
const KINDS: &[(u32, u64, u64)] = &[
    (0, 1, 4),
    (1, 1, 2),
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (9, 32, 36),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (15, 256, 292),
    (16, 256, 66),
    (17, 256, 74),
    (18, 256, 98),
    (19, 256, 50),
    (20, 32, 18),
    (21, 256, 110),
    (22, 256, 82),
    (23, 256, 136),
    (24, 1, 1),
    (25, 1, 2),
    (26, 1, 4),
    (27, 1, 8),
    (28, 1, 8),
    (29, 256, 56),
    (30, 1, 2),
    (34, 256, 54),
    (35, 256, 66),
    (39, 32, 17),
];
