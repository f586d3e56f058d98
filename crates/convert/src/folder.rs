//! What lies in a folder, and where each tensor is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ConvertError;
use crate::safetensors::{self, Tensor};

pub(crate) const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_JSON_BYTES: u64 = 256 * 1024 * 1024;
const MAX_SHARDS: usize = 4096;

/// A tensor and the shard it lies in.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) shard: usize,
    pub(crate) tensor: Tensor,
}

/// A folder whose weights have been looked through.
pub(crate) struct Folder {
    path: PathBuf,
    /// Names of the files with weights.
    pub(crate) shards: Vec<String>,
    pub(crate) tensors: BTreeMap<String, Found>,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self, ConvertError> {
        let index = if path.join(SINGLE).is_file() { None } else { read_index(path)? };
        let shards = shard_names(path, index.as_ref())?;
        let mut tensors: BTreeMap<String, Found> = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            let (mut file, length) = open_file(path, shard)?;
            for (name, tensor) in safetensors::read(&mut file, length, shard)? {
                if let Some(other) = tensors.get(&name) {
                    let problem = format!("{name:?} is also in {}", shards[other.shard]);
                    return Err(ConvertError::malformed(shard, problem, "each tensor in one file"));
                }
                tensors.insert(name, Found { shard: number, tensor });
            }
        }
        check_index(index.as_ref(), &shards, &tensors)?;
        Ok(Self { path: path.to_owned(), shards, tensors })
    }

    /// What the model is called: the folder's own name.
    pub(crate) fn name(&self) -> String {
        name_of(&self.path)
    }

    /// The name of the file that a tensor lies in.
    pub(crate) fn shard_of(&self, found: &Found) -> &str {
        &self.shards[found.shard]
    }

    pub(crate) fn open_shard(&self, shard: usize) -> Result<File, ConvertError> {
        open_file(&self.path, &self.shards[shard]).map(|(file, _)| file)
    }

    /// The object in the file `name`; `None` when there is no such file.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Map<String, Value>>, ConvertError> {
        self.parse(name)
    }

    /// What the JSON file `name` holds; `None` when there is no such file.
    pub(crate) fn parse<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ConvertError> {
        parse(&self.path, name)
    }

    /// The text of the file `name`; `None` when there is no such file.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, ConvertError> {
        let Some(bytes) = read_small(&self.path, name)? else { return Ok(None) };
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| ConvertError::malformed(name, "it is not UTF-8", "text in UTF-8"))
    }
}

pub(crate) fn name_of(folder: &Path) -> String {
    let full = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    full.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn parse<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, ConvertError> {
    let Some(bytes) = read_small(folder, name)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        ConvertError::malformed(
            name,
            format!("it cannot be understood: {error}"),
            "the JSON of a model folder",
        )
    })
}

fn read_small(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, ConvertError> {
    if !folder.join(name).exists() {
        return Ok(None);
    }
    let (file, length) = open_file(folder, name)?;
    let too_long = || {
        let allowed = format!("at most {MAX_JSON_BYTES} bytes");
        ConvertError::malformed(name, format!("it has {length} bytes"), allowed)
    };
    if length > MAX_JSON_BYTES {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| ConvertError::io(&folder.join(name), &error))?;
    if bytes.len() as u64 > MAX_JSON_BYTES { Err(too_long()) } else { Ok(Some(bytes)) }
}

/// Opens a regular file; asks first, because opening a pipe would wait for its other end.
pub(crate) fn open_file(folder: &Path, name: &str) -> Result<(File, u64), ConvertError> {
    let path = folder.join(name);
    let failed = |error: std::io::Error| ConvertError::io(&path, &error);
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(ConvertError::malformed(name, "it is not a regular file", "a file"));
    }
    let file = File::open(&path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    Ok((file, length))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn read_index(folder: &Path) -> Result<Option<Index>, ConvertError> {
    let index: Option<Index> = parse(folder, INDEX)?;
    for shard in index.iter().flat_map(|index| index.weight_map.values()) {
        let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain || shard.contains(['/', '\\', '\0']) || !shard.ends_with(".safetensors") {
            let problem = format!("it names the file {shard:?}");
            return Err(ConvertError::malformed(
                INDEX,
                problem,
                "names of safetensors files in the same folder",
            ));
        }
    }
    Ok(index)
}

/// The files with weights: those of the index, else the one there is.
fn shard_names(folder: &Path, index: Option<&Index>) -> Result<Vec<String>, ConvertError> {
    let Some(index) = index else {
        return single_name(folder).map(|name| vec![name]);
    };
    let mut names: Vec<String> = index.weight_map.values().cloned().collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() || names.len() > MAX_SHARDS {
        let allowed = format!("1 to {MAX_SHARDS}");
        return Err(ConvertError::malformed(INDEX, format!("it names {} files", names.len()), allowed));
    }
    match names.iter().find(|name| !folder.join(name).exists()) {
        Some(missing) => {
            let problem = format!("it names {missing}, which is not there");
            Err(ConvertError::malformed(
                INDEX,
                problem,
                "files that are in the folder (is the download complete?)",
            ))
        }
        None => Ok(names),
    }
}

fn single_name(folder: &Path) -> Result<String, ConvertError> {
    let failed = |error: std::io::Error| ConvertError::io(folder, &error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    if names.iter().any(|name| name == SINGLE) {
        return Ok(SINGLE.to_owned());
    }
    let count = names.len();
    names.pop().filter(|_| count == 1).ok_or_else(|| {
        let problem = format!("there are {count} safetensors files and no index");
        ConvertError::malformed(SINGLE, problem, format!("{SINGLE}, or shards with {INDEX}"))
    })
}

/// The index and the shards say the same.
fn check_index(
    index: Option<&Index>,
    shards: &[String],
    tensors: &BTreeMap<String, Found>,
) -> Result<(), ConvertError> {
    let Some(index) = index else { return Ok(()) };
    for (name, shard) in &index.weight_map {
        if tensors.get(name).is_none_or(|found| shards[found.shard] != *shard) {
            let problem = format!("it says that {name:?} lies in {shard}, where it is not");
            return Err(ConvertError::malformed(INDEX, problem, "what the shards hold"));
        }
    }
    match tensors.keys().find(|name| !index.weight_map.contains_key(*name)) {
        Some(name) => {
            Err(ConvertError::malformed(INDEX, format!("it lacks {name:?}"), "what the shards hold"))
        }
        None => Ok(()),
    }
}
