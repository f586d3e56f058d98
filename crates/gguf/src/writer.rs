//! The header of a new file: keys and tensors in, bytes out. The caller appends the tensors' data.

use crate::types;

/// What data begins on a multiple of, in bytes; the format's own default.
pub const ALIGNMENT: u64 = 32;

/// A metadata value to be written.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A whole number of 32 bits.
    U32(u32),
    /// A number of single precision.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Texts, for example a vocabulary.
    Texts(Vec<String>),
    /// Numbers of single precision, for example the scores of tokens.
    F32s(Vec<f32>),
    /// Signed whole numbers, for example the types of tokens.
    I32s(Vec<i32>),
}

/// The tensor types that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorType {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
}

impl TensorType {
    /// Bytes of one element.
    pub const fn element_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The `general.file_type` of a file whose matrices are of this type.
    pub const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 32,
        }
    }

    const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 30,
        }
    }
}

/// A header in the making. Tensors lie in the file in the order in which they were added.
#[derive(Debug, Clone, Default)]
pub struct Document {
    keys: Vec<(String, Entry)>,
    tensors: Vec<(String, Vec<u64>, TensorType)>,
}

impl Document {
    /// Without keys and tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key. Each key is added once.
    pub fn put(&mut self, key: impl Into<String>, entry: Entry) {
        self.keys.push((key.into(), entry));
    }

    /// Adds a tensor; `shape` begins with the length of a row.
    pub fn tensor(&mut self, name: impl Into<String>, shape: &[u64], kind: TensorType) {
        self.tensors.push((name.into(), shape.to_vec(), kind));
    }

    /// The header, padded so that the data of the first tensor follows. Each tensor's data is padded
    /// with [`padding`] bytes.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, entry) in &self.keys {
            put_text(&mut out, key);
            put_entry(&mut out, entry);
        }
        let mut offset = 0;
        for (name, shape, kind) in &self.tensors {
            put_text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().flat_map(|length| length.to_le_bytes()));
            out.extend(kind.id().to_le_bytes());
            out.extend(u64::to_le_bytes(offset));
            let bytes = shape.iter().product::<u64>() * kind.element_bytes();
            offset += bytes + padding(bytes);
        }
        out.resize(out.len() + padding(out.len() as u64) as usize, 0);
        out
    }
}

/// Bytes of padding behind `bytes` bytes.
pub const fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT) - bytes
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_array(out: &mut Vec<u8>, kind: u32, length: usize) {
    out.extend(types::ARRAY.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((length as u64).to_le_bytes());
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::U32(number) => {
            out.extend(4u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Entry::F32(number) => {
            out.extend(6u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Entry::Bool(truth) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*truth));
        }
        Entry::Text(text) => {
            out.extend(types::STRING.to_le_bytes());
            put_text(out, text);
        }
        Entry::Texts(texts) => {
            put_array(out, types::STRING, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Entry::F32s(numbers) => {
            put_array(out, 6, numbers.len());
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        Entry::I32s(numbers) => {
            put_array(out, 5, numbers.len());
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
}
