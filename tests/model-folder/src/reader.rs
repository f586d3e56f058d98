//! A GGUF file with all its keys, arrays included.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

use crate::dequantise;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any whole number.
    Int(i64),
    /// Any number of floating point.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type.
    Array(Vec<Self>),
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The length of a row first.
    pub shape: Vec<usize>,
    /// The number of its type.
    pub kind: u32,
    offset: usize,
}

/// A file in memory.
pub struct Gguf {
    bytes: Vec<u8>,
    data: usize,
    /// In their order.
    pub keys: Vec<(String, Value)>,
    /// By name.
    pub tensors: BTreeMap<String, Tensor>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> anyhow::Result<[u8; N]> {
        let bytes = self.bytes.get(self.at..self.at + N).context("the file ends")?;
        self.at += N;
        Ok(bytes.try_into()?)
    }

    fn u32(&mut self) -> anyhow::Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> anyhow::Result<usize> {
        Ok(usize::try_from(self.take().map(u64::from_le_bytes)?)?)
    }

    fn text(&mut self) -> anyhow::Result<String> {
        let length = self.length()?;
        let bytes = self.bytes.get(self.at..self.at + length).context("the file ends")?;
        self.at += length;
        Ok(String::from_utf8(bytes.to_vec())?)
    }

    fn value(&mut self, kind: u32) -> anyhow::Result<Value> {
        Ok(match kind {
            0 => Value::Int(u8::from_le_bytes(self.take()?).into()),
            1 => Value::Int(i8::from_le_bytes(self.take()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.take()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.take()?).into()),
            4 => Value::Int(self.u32()?.into()),
            5 => Value::Int(i32::from_le_bytes(self.take()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.take()?).into()),
            7 => Value::Bool(self.take::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => {
                let (kind, length) = (self.u32()?, self.length()?);
                Value::Array((0..length).map(|_| self.value(kind)).collect::<anyhow::Result<_>>()?)
            }
            10 | 11 => Value::Int(i64::from_le_bytes(self.take()?)),
            12 => Value::Float(f64::from_le_bytes(self.take()?)),
            other => bail!("metadata type {other}"),
        })
    }
}

impl Gguf {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let mut cursor = Cursor { bytes: &bytes, at: 8 };
        let (tensor_count, key_count) = (cursor.length()?, cursor.length()?);
        let mut keys = Vec::new();
        for _ in 0..key_count {
            let (key, kind) = (cursor.text()?, cursor.u32()?);
            keys.push((key, cursor.value(kind)?));
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = cursor.text()?;
            let dimensions = cursor.u32()?;
            let shape = (0..dimensions).map(|_| cursor.length()).collect::<anyhow::Result<_>>()?;
            tensors.insert(name, Tensor { shape, kind: cursor.u32()?, offset: cursor.length()? });
        }
        let data = cursor.at.next_multiple_of(32);
        Ok(Self { bytes, data, keys, tensors })
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Text of a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The architecture.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// A key of the architecture, as a number.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(&format!("{}.{key}", self.architecture()))? {
            Value::Int(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    /// A key of the architecture, as a count.
    ///
    /// # Errors
    /// When it is missing.
    pub fn count(&self, key: &str) -> anyhow::Result<usize> {
        self.number(key).map(|number| number as usize).with_context(|| format!("{key} is missing"))
    }

    /// Values of an array of texts.
    pub fn texts(&self, key: &str) -> Vec<&str> {
        let Some(Value::Array(values)) = self.get(key) else { return Vec::new() };
        values
            .iter()
            .filter_map(|value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
            .collect()
    }

    /// Values of an array of numbers.
    pub fn numbers(&self, key: &str) -> Vec<f64> {
        let Some(Value::Array(values)) = self.get(key) else { return Vec::new() };
        let number = |value: &Value| match value {
            Value::Int(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        };
        values.iter().filter_map(number).collect()
    }

    /// The weights of a tensor.
    ///
    /// # Errors
    /// When there is none, or its type is not known here.
    pub fn weights(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        let tensor = self.tensors.get(name).with_context(|| format!("{name} is missing"))?;
        let elements = tensor.shape.iter().product();
        dequantise::all(tensor.kind, &self.bytes[self.data + tensor.offset..], elements)
    }
}
