//! The header of a safetensors file, checked before anything in it is followed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::ConvertError;

/// The format's own bound for a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_TENSORS: usize = 131_072;
const MAX_NAME_BYTES: usize = 4096;
const MAX_DIMENSIONS: usize = 8;

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    /// Of this many bytes per element, and of no use here.
    Other(u64),
}

impl Dtype {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Self::Other(1),
            "U16" | "I16" => Self::Other(2),
            "U32" | "I32" => Self::Other(4),
            "U64" | "I64" | "F64" => Self::Other(8),
            _ => return None,
        })
    }

    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(bytes) => bytes,
        }
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    /// From the beginning of the file, in bytes.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// Reads and checks the header of `file`, which has `length` bytes and is called `name`.
pub(crate) fn read(
    file: &mut File,
    length: u64,
    name: &str,
) -> Result<BTreeMap<String, Tensor>, ConvertError> {
    let wrong = |problem: &str, allowed: &str| ConvertError::malformed(name, problem, allowed);
    let unreadable = |_| wrong("it ends in the middle of its header", "a whole safetensors file");
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(unreadable)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        let allowed = format!("at most {MAX_HEADER_BYTES} bytes");
        return Err(wrong(&format!("its header claims {header_bytes} bytes"), &allowed));
    }
    if header_bytes > length.saturating_sub(8) {
        return Err(wrong("its header is longer than the file", "a whole safetensors file"));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let Header(listed) = serde_json::from_slice(&header).map_err(|error| {
        wrong(&format!("its header is not what it must be: {error}"), "the JSON of the format")
    })?;
    check(listed, 8 + header_bytes, length, name)
}

fn check(
    listed: Vec<(String, Listed)>,
    data_offset: u64,
    length: u64,
    file: &str,
) -> Result<BTreeMap<String, Tensor>, ConvertError> {
    let mut tensors = BTreeMap::new();
    let mut extents = Vec::new();
    for (name, listed) in listed {
        let tensor = checked(&name, &listed, data_offset, length)
            .map_err(|(problem, allowed)| ConvertError::malformed(file, problem, allowed))?;
        extents.push((tensor.offset, tensor.offset + tensor.bytes));
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(ConvertError::malformed(file, format!("{name:?} appears twice"), "each tensor once"));
        }
    }
    extents.sort_unstable();
    let mut at = data_offset;
    for (from, to) in extents {
        if from != at {
            let problem = if from < at { "two tensors share bytes" } else { "bytes belong to no tensor" };
            let problem = format!("at byte {}: {problem}", from.min(at));
            return Err(ConvertError::malformed(
                file,
                problem,
                "tensors that follow each other without a gap",
            ));
        }
        at = to;
    }
    if at != length {
        let problem = format!("its tensors end at byte {at}, the file at {length}");
        return Err(ConvertError::malformed(file, problem, "a file that ends with its last tensor"));
    }
    Ok(tensors)
}

fn checked(name: &str, listed: &Listed, data_offset: u64, length: u64) -> Result<Tensor, (String, String)> {
    let say = |problem: &str, allowed: &str| (format!("tensor {name:?} {problem}"), allowed.to_owned());
    let Some(dtype) = Dtype::parse(&listed.dtype) else {
        return Err(say(&format!("has the type {:?}", listed.dtype), "F32, F16 or BF16"));
    };
    if listed.shape.len() > MAX_DIMENSIONS {
        return Err(say("has too many dimensions", "at most 8"));
    }
    let elements = listed.shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length));
    let bytes = elements.and_then(|elements| elements.checked_mul(dtype.bytes()));
    let [from, to] = listed.data_offsets;
    let Some(bytes) = bytes.filter(|bytes| to.checked_sub(from) == Some(*bytes)) else {
        return Err(say("has offsets that do not fit its shape", "end - begin = elements x bytes of one"));
    };
    let offset = data_offset.checked_add(from);
    let end = offset.and_then(|offset| offset.checked_add(bytes));
    match (offset, end) {
        (Some(offset), Some(end)) if end <= length => {
            Ok(Tensor { dtype, shape: listed.shape.clone(), offset, bytes })
        }
        _ => Err(say("ends past the end of the file", "offsets within the file (is the download complete?)")),
    }
}

#[derive(Deserialize)]
struct Listed {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The tensors of a header in their order, doubles and all.
struct Header(Vec<(String, Listed)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if name.is_empty() || name.len() > MAX_NAME_BYTES || tensors.len() >= MAX_TENSORS {
                return Err(serde::de::Error::custom("a name is empty or too long, or there are too many"));
            }
            tensors.push((name, map.next_value()?));
        }
        Ok(Header(tensors))
    }
}
