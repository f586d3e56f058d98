//! A place in a header; every step is checked.

use super::Problem;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    file_bytes: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], file_bytes: u64) -> Self {
        Self { bytes, at: 0, file_bytes }
    }

    pub(super) fn offset(&self) -> u64 {
        self.at as u64
    }

    pub(super) fn left_in_file(&self) -> u64 {
        self.file_bytes.saturating_sub(self.offset())
    }

    pub(super) fn corrupt(&self, reason: impl Into<String>) -> Problem {
        Problem::Corrupt { offset: self.offset(), reason: reason.into() }
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], Problem> {
        if count > self.left_in_file() {
            return Err(
                self.corrupt(format!("{count} bytes are promised and {} are left", self.left_in_file()))
            );
        }
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or(Problem::NeedMore)?;
        self.at += taken.len();
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let taken = self.take(N as u64)?;
        taken.try_into().map_err(|_| Problem::NeedMore)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Problem> {
        self.fixed().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Problem> {
        self.fixed().map(u64::from_le_bytes)
    }

    /// A count that may not be larger than `limit`.
    pub(super) fn count(&mut self, limit: u64, what: &str) -> Result<u64, Problem> {
        let at = self.offset();
        let count = self.u64()?;
        if count > limit {
            return Err(Problem::Corrupt {
                offset: at,
                reason: format!("{count} {what}; at most {limit} can be"),
            });
        }
        Ok(count)
    }

    /// A text with its length in front.
    pub(super) fn text(&mut self, limit: u64) -> Result<&'a [u8], Problem> {
        let length = self.count(limit.min(self.left_in_file()), "bytes of text")?;
        self.take(length)
    }

    /// A scalar; whole numbers that are not negative are kept.
    pub(super) fn number(&mut self, kind: u32) -> Result<Option<u64>, Problem> {
        Ok(match kind {
            0 | 7 => Some(u64::from(u8::from_le_bytes(self.fixed()?))),
            1 => u64::try_from(i8::from_le_bytes(self.fixed()?)).ok(),
            2 => Some(u64::from(u16::from_le_bytes(self.fixed()?))),
            3 => u64::try_from(i16::from_le_bytes(self.fixed()?)).ok(),
            4 => Some(u64::from(self.u32()?)),
            5 => u64::try_from(i32::from_le_bytes(self.fixed()?)).ok(),
            6 => self.fixed::<4>().map(|_| None)?,
            10 => Some(self.u64()?),
            11 => u64::try_from(i64::from_le_bytes(self.fixed()?)).ok(),
            12 => self.fixed::<8>().map(|_| None)?,
            _ => return Err(self.corrupt(format!("value type {kind} is unknown"))),
        })
    }
}
