//! A reader that knows where it is and never asks for more than the file holds.

use std::io::{self, BufRead, BufReader, Read, Seek};

use crate::problem::{Problem, Reason};

/// Why reading stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    Problem(Problem),
    /// The source ended although the file goes on.
    SourceEnded,
    /// The source could not be read.
    Unreadable,
}

impl From<io::Error> for Stop {
    fn from(_: io::Error) -> Self {
        Self::Unreadable
    }
}

/// Position-keeping reader over a file of known length.
pub(crate) struct Cursor<R> {
    inner: BufReader<R>,
    at: u64,
    length: u64,
}

impl<R: Read + Seek> Cursor<R> {
    pub(crate) fn new(inner: R, length: u64) -> Self {
        Self { inner: BufReader::with_capacity(64 * 1024, inner), at: 0, length }
    }

    pub(crate) const fn at(&self) -> u64 {
        self.at
    }

    pub(crate) const fn length(&self) -> u64 {
        self.length
    }

    /// Fails unless `bytes` more are there.
    pub(crate) fn need(&self, bytes: u64) -> Result<(), Stop> {
        if bytes > self.length.saturating_sub(self.at) {
            return Err(self.problem(Reason::Truncated));
        }
        Ok(())
    }

    /// A problem at the current position.
    pub(crate) const fn problem(&self, reason: Reason) -> Stop {
        Stop::Problem(Problem { offset: self.at, reason })
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        self.need(N as u64)?;
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Stop> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Stop> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// `length` bytes, which the caller has bounded.
    pub(crate) fn vec(&mut self, length: u64) -> Result<Vec<u8>, Stop> {
        self.need(length)?;
        let length = usize::try_from(length).map_err(|_| self.problem(Reason::CountTooLarge))?;
        let mut out = vec![0; length];
        self.fill(&mut out)?;
        Ok(out)
    }

    pub(crate) fn skip(&mut self, bytes: u64) -> Result<(), Stop> {
        self.need(bytes)?;
        if bytes <= self.inner.buffer().len() as u64 {
            self.inner.consume(bytes as usize);
        } else {
            let by = i64::try_from(bytes).map_err(|_| self.problem(Reason::CountTooLarge))?;
            self.inner.seek_relative(by)?;
        }
        self.at += bytes;
        Ok(())
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), Stop> {
        match self.inner.read_exact(out) {
            Ok(()) => {
                self.at += out.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Stop::SourceEnded),
            Err(error) => Err(error.into()),
        }
    }
}
