//! What is wrong with a file, and where.

use std::fmt;

/// Damage at an offset of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Bytes from the beginning of the file to the part that is wrong.
    pub offset: u64,
    /// What is wrong there.
    pub reason: Reason,
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.reason.meaning())
    }
}

/// Why the beginning of a file gave no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partial {
    /// The header goes on behind what was given.
    NeedMore,
    /// The content is wrong.
    Damaged(Problem),
}

/// The kinds of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Not a GGUF file.
    BadMagic,
    /// A version this reader does not know, or another byte order.
    UnknownVersion,
    /// The file ends inside this part.
    Truncated,
    /// A count larger than any real model has.
    CountTooLarge,
    /// A name is empty, too long or not UTF-8.
    BadName,
    /// A name appears twice.
    DuplicateName,
    /// A value type that does not exist.
    UnknownValueType,
    /// A tensor type that does not exist.
    UnknownTensorType,
    /// Alignment is not a power of two.
    BadAlignment,
    /// A tensor has no dimension, too many, or a size that does not fit its type.
    BadShape,
    /// A tensor does not begin on an aligned offset.
    Misaligned,
    /// A tensor ends past the end of the file.
    PastEnd,
    /// Two tensors share bytes.
    Overlap,
    /// A required key is missing.
    MissingKey,
}

impl Reason {
    /// A stable word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadMagic => "bad_magic",
            Self::UnknownVersion => "unknown_version",
            Self::Truncated => "truncated",
            Self::CountTooLarge => "count_too_large",
            Self::BadName => "bad_name",
            Self::DuplicateName => "duplicate_name",
            Self::UnknownValueType => "unknown_value_type",
            Self::UnknownTensorType => "unknown_tensor_type",
            Self::BadAlignment => "bad_alignment",
            Self::BadShape => "bad_shape",
            Self::Misaligned => "misaligned",
            Self::PastEnd => "past_end",
            Self::Overlap => "overlap",
            Self::MissingKey => "missing_key",
        }
    }

    /// The meaning, for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::BadMagic => "this is not a GGUF file (it does not begin with the letters GGUF)",
            Self::UnknownVersion => "the GGUF version is not 2 or 3, or the byte order is another",
            Self::Truncated => "the file ends in the middle of its header",
            Self::CountTooLarge => "a count is larger than any model has",
            Self::BadName => "a name is empty, too long or not UTF-8",
            Self::DuplicateName => "a name appears twice",
            Self::UnknownValueType => "a metadata value has a type that does not exist",
            Self::UnknownTensorType => "a tensor has a type that this build does not know",
            Self::BadAlignment => "the alignment is not a power of two",
            Self::BadShape => "a tensor's dimensions do not fit its type",
            Self::Misaligned => "a tensor does not begin on an aligned offset",
            Self::PastEnd => "a tensor ends past the end of the file (is the download complete?)",
            Self::Overlap => "two tensors share bytes",
            Self::MissingKey => "the key general.architecture is missing",
        }
    }
}
