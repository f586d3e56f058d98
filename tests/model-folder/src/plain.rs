//! The same model with plain weights of single precision.

use std::io::Write;
use std::path::Path;

use gguf::{Document, Entry, TensorType, padding};

use crate::reader::{Gguf, Value};

/// Writes `model` to `target` with every tensor as F32.
///
/// # Errors
/// When a tensor's type is not known here, or the file cannot be written.
pub fn write(model: &Gguf, target: &Path) -> anyhow::Result<()> {
    let mut document = Document::new();
    for (key, value) in &model.keys {
        let entry = if key == "general.file_type" { Some(Entry::U32(0)) } else { entry(value) };
        if let Some(entry) = entry {
            document.put(key, entry);
        }
    }
    for (name, tensor) in &model.tensors {
        let shape: Vec<u64> = tensor.shape.iter().map(|length| *length as u64).collect();
        document.tensor(name, &shape, TensorType::F32);
    }
    let mut file = std::io::BufWriter::new(std::fs::File::create(target)?);
    file.write_all(&document.header())?;
    for name in model.tensors.keys() {
        let bytes: Vec<u8> = model.weights(name)?.into_iter().flat_map(f32::to_le_bytes).collect();
        file.write_all(&bytes)?;
        file.write_all(&vec![0; padding(bytes.len() as u64) as usize])?;
    }
    Ok(file.flush()?)
}

/// Arrays keep the types that the tokenizer's have.
fn entry(value: &Value) -> Option<Entry> {
    Some(match value {
        Value::Int(number) => Entry::U32(u32::try_from(*number).ok()?),
        Value::Float(number) => Entry::F32(*number as f32),
        Value::Bool(truth) => Entry::Bool(*truth),
        Value::Text(text) => Entry::Text(text.clone()),
        Value::Array(values) => match values.first()? {
            Value::Text(_) => Entry::Texts(values.iter().filter_map(text).collect()),
            Value::Float(_) => Entry::F32s(values.iter().filter_map(number).map(|n| n as f32).collect()),
            Value::Int(_) => Entry::I32s(values.iter().filter_map(number).map(|n| n as i32).collect()),
            Value::Bool(_) | Value::Array(_) => return None,
        },
    })
}

fn text(value: &Value) -> Option<String> {
    if let Value::Text(text) = value { Some(text.clone()) } else { None }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    }
}
