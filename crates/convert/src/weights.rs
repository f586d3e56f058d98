//! Which tensors go where, and their way from shard to file.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use gguf::{Document, TensorType, padding};
use half::{bf16, f16};

use crate::architecture::{Change, Part, Size};
use crate::config::Config;
use crate::error::ConvertError;
use crate::folder::{Folder, Found};
use crate::safetensors::Dtype;

/// What passes through memory at once, unless the rows of one head take more.
const PIECE_BYTES: u64 = 1024 * 1024;
const MAX_VOCABULARY: u64 = 1 << 22;
/// Before the names of the model's own tensors; which one depends on what the folder was saved from.
const PREFIXES: [&str; 3] = ["model.", "language_model.model.", "model.language_model."];
/// Parts of the model that text does not use, or that follow from the configuration.
const IGNORED: [&str; 6] = [
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
    "rotary_emb.inv_freq",
    "masked_bias",
];

enum Source<'a> {
    Folder(&'a Found),
    Numbers(&'a [f32]),
}

/// A tensor on its way.
struct Move<'a> {
    to: String,
    /// The length of a row first.
    shape: Vec<u64>,
    kind: TensorType,
    change: Change,
    source: Source<'a>,
}

impl Move<'_> {
    fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.kind.element_bytes()
    }
}

/// All tensors of the new file in their order.
pub(crate) struct Plan<'a> {
    folder: &'a Folder,
    config: &'a Config,
    moves: Vec<Move<'a>>,
    vocabulary: u64,
}

impl<'a> Plan<'a> {
    /// Finds every tensor that the architecture has.
    pub(crate) fn make(folder: &'a Folder, config: &'a Config) -> Result<Self, ConvertError> {
        let mut planner = Planner { folder, config, prefix: prefix(folder)?, used: BTreeSet::new() };
        let mut moves = Vec::new();
        for (to, numbers) in config.rope.tensors() {
            let shape = vec![numbers.len() as u64];
            let (kind, change) = (TensorType::F32, Change::Nothing);
            moves.push(Move { to: to.to_owned(), shape, kind, change, source: Source::Numbers(numbers) });
        }
        let embedding = planner.embedding()?;
        let vocabulary = embedding.shape[1];
        moves.push(embedding);
        for layer in 0..config.layers {
            for part in config.family.layer() {
                moves.extend(planner.part(layer, part)?);
            }
        }
        moves.push(planner.last_norm()?);
        moves.extend(planner.head(vocabulary)?);
        planner.nothing_left()?;
        Ok(Self { folder, config, moves, vocabulary })
    }

    /// Rows of the embedding.
    pub(crate) const fn vocabulary(&self) -> u64 {
        self.vocabulary
    }

    /// The `general.file_type`: what most of the matrices are.
    pub(crate) fn file_type(&self) -> u32 {
        let bytes = |kind| {
            let matrices = self.moves.iter().filter(|m| m.kind == kind && m.shape.len() > 1);
            matrices.map(Move::bytes).sum::<u64>()
        };
        [TensorType::Bf16, TensorType::F16, TensorType::F32]
            .into_iter()
            .max_by_key(|kind| bytes(*kind))
            .unwrap_or(TensorType::F32)
            .file_type()
    }

    /// Adds the tensors to the header.
    pub(crate) fn describe(&self, document: &mut Document) {
        for each in &self.moves {
            document.tensor(&each.to, &each.shape, each.kind);
        }
    }

    /// Writes the file beside its place and moves it there when it is whole and on the disk.
    pub(crate) fn write(
        &self,
        header: &[u8],
        target: &Path,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(), ConvertError> {
        let data: u64 = self.moves.iter().map(|each| each.bytes() + padding(each.bytes())).sum();
        let needed = header.len() as u64 + data;
        let partial = Partial::beside(target);
        let failed = |error: std::io::Error| ConvertError::write(&partial.0, &error, needed);
        let file = File::options().write(true).create_new(true).open(&partial.0).map_err(failed)?;
        let mut out = Out { file: BufWriter::new(file), path: &partial.0, needed, written: 0, progress };
        out.put(header)?;
        for each in &self.moves {
            self.pass(each, &mut out)?;
            out.put(&[0; 32][..padding(each.bytes()) as usize])?;
        }
        out.finish()?;
        std::fs::rename(&partial.0, target).map_err(failed)?;
        sync_folder_of(target).map_err(failed)
    }

    fn pass(&self, each: &Move<'_>, out: &mut Out<'_>) -> Result<(), ConvertError> {
        match each.source {
            Source::Numbers(numbers) => {
                out.put(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
            }
            Source::Folder(found) => self.pass_found(each, found, out),
        }
    }

    fn pass_found(&self, each: &Move<'_>, found: &Found, out: &mut Out<'_>) -> Result<(), ConvertError> {
        let shard = self.folder.shard_of(found);
        let cut = |_| ConvertError::malformed(shard, "it became shorter while it was read", "a file at rest");
        let mut file = self.folder.open_shard(found.shard)?;
        file.seek(SeekFrom::Start(found.tensor.offset)).map_err(cut)?;
        let row = if each.shape.len() > 1 {
            each.shape[0] * found.tensor.dtype.bytes()
        } else {
            found.tensor.dtype.bytes()
        };
        let piece = match each.change {
            Change::PairQueryHeads | Change::PairKeyHeads => row * self.config.head,
            Change::Nothing | Change::AddOne => (PIECE_BYTES / row).max(1) * row,
        };
        let mut left = found.tensor.bytes;
        let mut bytes = vec![0; piece.min(left) as usize];
        while left > 0 {
            bytes.truncate(left.min(piece) as usize);
            file.read_exact(&mut bytes).map_err(cut)?;
            left -= bytes.len() as u64;
            let paired;
            let ordered = match each.change {
                Change::PairQueryHeads | Change::PairKeyHeads => {
                    paired = pair_rows(&bytes, row as usize);
                    &paired
                }
                Change::Nothing | Change::AddOne => &bytes,
            };
            if each.shape.len() > 1 {
                out.put(ordered)?;
            } else {
                let add = if each.change == Change::AddOne { 1.0 } else { 0.0 };
                out.put(&to_f32(ordered, found.tensor.dtype, add))?;
            }
        }
        Ok(())
    }
}

/// The rows of one head with its halves dealt out in turn.
fn pair_rows(bytes: &[u8], row: usize) -> Vec<u8> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    first.chunks(row).zip(second.chunks(row)).flat_map(|(a, b)| [a, b]).flatten().copied().collect()
}

fn to_f32(bytes: &[u8], dtype: Dtype, add: f32) -> Vec<u8> {
    let two = || bytes.as_chunks::<2>().0.iter();
    let numbers: Vec<f32> = match dtype {
        Dtype::F16 => two().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::Bf16 => two().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F32 | Dtype::Other(_) => {
            bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        }
    };
    numbers.into_iter().flat_map(|number| (number + add).to_le_bytes()).collect()
}

/// The file that is being written, with what was promised about it.
struct Out<'p> {
    file: BufWriter<File>,
    path: &'p Path,
    needed: u64,
    written: u64,
    progress: &'p mut dyn FnMut(f32) -> bool,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        self.file.write_all(bytes).map_err(|error| ConvertError::write(self.path, &error, self.needed))?;
        self.written += bytes.len() as u64;
        let share = self.written as f32 / self.needed as f32;
        if (self.progress)(share.min(1.0)) { Ok(()) } else { Err(ConvertError::Abandoned) }
    }

    fn finish(mut self) -> Result<(), ConvertError> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        flushed.map_err(|error| ConvertError::write(self.path, &error, self.needed))
    }
}

/// The name of an unfinished file; the file goes when this is dropped.
struct Partial(PathBuf);

impl Partial {
    fn beside(target: &Path) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}-{number}.partial", std::process::id()));
        Self(PathBuf::from(name))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already where the file was moved to its place.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(unix)]
fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder_of(_: &Path) -> std::io::Result<()> {
    Ok(())
}

fn prefix(folder: &Folder) -> Result<&'static str, ConvertError> {
    let holds = |prefix: &&str| folder.tensors.contains_key(&format!("{prefix}embed_tokens.weight"));
    PREFIXES.into_iter().find(holds).ok_or_else(|| {
        ConvertError::malformed(
            &folder.shards[0],
            "it lacks \"model.embed_tokens.weight\"",
            "all tensors of the architecture",
        )
    })
}

struct Planner<'a> {
    folder: &'a Folder,
    config: &'a Config,
    prefix: &'static str,
    used: BTreeSet<String>,
}

impl<'a> Planner<'a> {
    fn find(&mut self, name: &str) -> Option<&'a Found> {
        let found = self.folder.tensors.get(name)?;
        self.used.insert(name.to_owned());
        Some(found)
    }

    fn needed(&mut self, name: &str) -> Result<&'a Found, ConvertError> {
        let file = if self.folder.shards.len() == 1 { &self.folder.shards[0] } else { "the shards" };
        self.find(name).ok_or_else(|| {
            ConvertError::malformed(file, format!("{name:?} is missing"), "all tensors of the architecture")
        })
    }

    /// `shape` as the folder has it: rows first.
    fn moving(
        &self,
        name: &str,
        found: &'a Found,
        to: String,
        shape: &[u64],
        change: Change,
    ) -> Result<Move<'a>, ConvertError> {
        let wrong = |problem: String, allowed: String| {
            Err(ConvertError::malformed(self.folder.shard_of(found), problem, allowed))
        };
        if found.tensor.shape != shape {
            let problem = format!("{name:?} has the shape {:?}", found.tensor.shape);
            return wrong(problem, format!("{shape:?}, as config.json says"));
        }
        let kind = match found.tensor.dtype {
            Dtype::F32 => TensorType::F32,
            Dtype::F16 => TensorType::F16,
            Dtype::Bf16 => TensorType::Bf16,
            Dtype::Other(_) => {
                return wrong(format!("{name:?} is not of floats"), "F32, F16 or BF16".to_owned());
            }
        };
        let kind = if shape.len() == 1 { TensorType::F32 } else { kind };
        let shape = shape.iter().rev().copied().collect();
        Ok(Move { to, shape, kind, change, source: Source::Folder(found) })
    }

    fn embedding(&mut self) -> Result<Move<'a>, ConvertError> {
        let name = format!("{}embed_tokens.weight", self.prefix);
        let found = self.needed(&name)?;
        let rows = found.tensor.shape.first().copied().unwrap_or(0);
        if !(1..=MAX_VOCABULARY).contains(&rows) {
            let allowed = format!("1 to {MAX_VOCABULARY} rows");
            return Err(ConvertError::malformed(
                self.folder.shard_of(found),
                format!("{name:?} has {rows} rows"),
                allowed,
            ));
        }
        let shape = [rows, self.config.length(Size::Hidden)];
        self.moving(&name, found, "token_embd.weight".to_owned(), &shape, Change::Nothing)
    }

    fn part(&mut self, layer: u64, part: &Part) -> Result<Option<Move<'a>>, ConvertError> {
        let name = format!("{}layers.{layer}.{}", self.prefix, part.from);
        let found = match self.find(&name) {
            Some(found) => found,
            None if part.optional => return Ok(None),
            None => self.needed(&name)?,
        };
        let mut shape = vec![self.config.length(part.rows)];
        shape.extend(part.columns.map(|columns| self.config.length(columns)));
        self.moving(&name, found, format!("blk.{layer}.{}", part.to), &shape, part.change).map(Some)
    }

    fn last_norm(&mut self) -> Result<Move<'a>, ConvertError> {
        let name = format!("{}norm.weight", self.prefix);
        let found = self.needed(&name)?;
        let change = if self.config.family.is_gemma() { Change::AddOne } else { Change::Nothing };
        let shape = [self.config.length(Size::Hidden)];
        self.moving(&name, found, "output_norm.weight".to_owned(), &shape, change)
    }

    /// The output matrix, unless it is the embedding once more.
    fn head(&mut self, vocabulary: u64) -> Result<Option<Move<'a>>, ConvertError> {
        let names = ["lm_head.weight", "language_model.lm_head.weight"];
        let found = names.into_iter().find_map(|name| Some((name, self.find(name)?)));
        match found {
            _ if self.config.tied => Ok(None),
            None => self.needed(names[0]).map(|_| None),
            Some((name, found)) => {
                let shape = [vocabulary, self.config.length(Size::Hidden)];
                self.moving(name, found, "output.weight".to_owned(), &shape, Change::Nothing).map(Some)
            }
        }
    }

    /// A tensor without a place means that the model is not what its configuration says.
    fn nothing_left(&self) -> Result<(), ConvertError> {
        let has_place = |name: &str| {
            self.used.contains(name)
                || IGNORED.iter().any(|part| name.starts_with(part) || name.ends_with(part))
        };
        match self.folder.tensors.iter().find(|(name, _)| !has_place(name)) {
            None => Ok(()),
            Some((name, found)) => Err(ConvertError::malformed(
                self.folder.shard_of(found),
                format!("{name:?} has no place in this architecture"),
                "the tensors of the architecture",
            )),
        }
    }
}
