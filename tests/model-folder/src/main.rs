//! `model-folder MODEL.gguf FOLDER`: a Hugging Face folder with the weights of a GGUF file.

use std::path::PathBuf;

use clap::Parser;
use model_folder::{Dtype, Gguf, Options};

/// Writes a Hugging Face folder with the dequantised weights and the tokenizer of a GGUF file.
#[derive(Parser)]
struct Args {
    /// The file to read: a model of the Llama or Gemma 3 family.
    model: PathBuf,
    /// The folder to write.
    folder: PathBuf,
    /// Type of the weights.
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    /// Files to spread the weights over.
    #[arg(long, default_value_t = 1)]
    shards: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let model = Gguf::open(&args.model)?;
    model_folder::write(&model, &args.folder, Options { dtype: args.dtype, shards: args.shards })
}
