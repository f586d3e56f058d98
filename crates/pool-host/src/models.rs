//! Fetching, checking and deleting the files of the catalog's models.

use std::path::{Path, PathBuf};

use api_types::pool::{CatalogModel, ModelFile};
use api_types::{ErrorCode, ErrorDetail};
use gguf::Header;
use pool_core::catalog::{Downloaded, STAND_IN};
use pool_core::{ModelRef, choose};

use crate::catalog_file;
use crate::download::{Downloader, Fetched, Wanted, hash_file, mismatch};
use crate::errors::{blocking, storage};
use crate::files;
use crate::home::Home;
use crate::hub::{self, HubSettings};
use crate::pypi;

/// Files of a source, verified.
struct Found {
    revision: Option<String>,
    format: &'static str,
    files: Vec<(PathBuf, Fetched)>,
}

/// Fetches a model from the first of its sources that gives it, and records it as downloaded.
///
/// # Errors
/// `OFFLINE`, or the error of the last source with the reasons of all of them.
pub async fn download(
    home: &Home,
    downloader: &Downloader,
    hub: &HubSettings,
    id: &str,
) -> Result<CatalogModel, ErrorDetail> {
    let model = catalog_file::load(home)?.find(id)?.clone();
    if is_here(home, &model) {
        downloader
            .note(format!("{id} is here and was verified; rbees-pool models verify {id} hashes it again"));
        return Ok(model);
    }
    let mut failures: Vec<(String, ErrorDetail)> = Vec::new();
    for source in &model.sources {
        let outcome = match from_source(home, downloader, hub, &model, source).await {
            Ok(found) => describe(home, found).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(found) => return record(home, &model.id, found),
            Err(error) => {
                downloader.note(format!("{source}: {}", error.message));
                failures.push((source.clone(), error));
            }
        }
    }
    Err(none_worked(&model.id, failures))
}

/// Whether a model was verified once and every file still lies there with its size.
pub(crate) fn is_here(home: &Home, model: &CatalogModel) -> bool {
    let there = |file: &ModelFile| {
        let found = home.model_file(&file.path).metadata();
        found.is_ok_and(|found| file.size.is_none_or(|size| size == found.len()))
    };
    let is_stand_in = model.format == STAND_IN;
    model.downloaded && (is_stand_in || (!model.files.is_empty() && model.files.iter().all(there)))
}

fn record(home: &Home, id: &str, found: Downloaded) -> Result<CatalogModel, ErrorDetail> {
    catalog_file::edit(home, |catalog| catalog.mark_downloaded(id, found).cloned())
}

fn none_worked(id: &str, mut failures: Vec<(String, ErrorDetail)>) -> ErrorDetail {
    if failures.len() == 1
        && let Some((_, only)) = failures.pop()
    {
        return only;
    }
    let reasons: Vec<String> =
        failures.iter().map(|(source, error)| format!("{source}: {}", error.message)).collect();
    let (code, hint) =
        failures.pop().map_or((ErrorCode::DownloadFailed, None), |(_, last)| (last.code, last.hint));
    let message = match reasons.is_empty() {
        true => format!("`{id}` has no source to fetch it from"),
        false => format!("no source gave `{id}`: {}", reasons.join("; ")),
    };
    let error = ErrorDetail::new(code, message);
    hint.into_iter().fold(error, ErrorDetail::with_hint)
}

async fn from_source(
    home: &Home,
    downloader: &Downloader,
    hub: &HubSettings,
    model: &CatalogModel,
    source: &str,
) -> Result<Found, ErrorDetail> {
    let pinned = model.files.first();
    let sha256 = pinned.and_then(|file| file.sha256.as_deref());
    let reference: ModelRef = source.parse()?;
    if hub.offline && !matches!(reference, ModelRef::File { .. }) {
        return Err(ErrorDetail::new(ErrorCode::Offline, "downloads are switched off by HF_HUB_OFFLINE")
            .with_hint(
                "unset HF_HUB_OFFLINE, or register a file: rbees-pool models register --repo file:/path …",
            ));
    }
    match reference {
        ModelRef::Hub { repo, revision, file } => {
            let request =
                hub::Request { repo: &repo, revision: revision.as_deref(), file: file.as_deref(), sha256 };
            let found = hub::fetch(downloader, hub, home, request).await?;
            let files = found
                .files
                .into_iter()
                .map(|(path, size, sha256)| (path, Fetched { size, sha256 }))
                .collect();
            Ok(Found { revision: Some(found.commit), format: found.format, files })
        }
        ModelRef::Https { url, sha256 } => https(home, downloader, &url, &sha256).await.map(single),
        ModelRef::Pypi(pypi) => {
            let size = pinned.and_then(|file| file.size);
            pypi::fetch(downloader, home, &pypi, size, sha256).await.map(single)
        }
        ModelRef::File { path } => local(downloader, path, sha256).await.map(single),
        ModelRef::Fake(_) => Err(ErrorDetail::new(
            ErrorCode::UnsupportedModel,
            "a stand-in is built in; there is nothing to fetch",
        )),
        ModelRef::Catalog(id) => Err(ErrorDetail::new(
            ErrorCode::InvalidModelRef,
            format!("`{id}` is an id, and an id is no place to fetch from"),
        )),
    }
}

fn single((path, fetched): (PathBuf, Fetched)) -> Found {
    let format =
        if path.extension().is_some_and(|ext| ext == "safetensors") { "safetensors" } else { "gguf" };
    Found { revision: None, format, files: vec![(path, fetched)] }
}

async fn https(
    home: &Home,
    downloader: &Downloader,
    url: &str,
    sha256: &str,
) -> Result<(PathBuf, Fetched), ErrorDetail> {
    let path = url.split('?').next().unwrap_or(url);
    let name = path.rsplit('/').next().unwrap_or("model.gguf").to_owned();
    let short: String = sha256.chars().take(16).collect();
    let to = home.models().join(format!("https--{short}")).join(&name);
    let wanted = Wanted {
        url: url.to_owned(),
        bearer: None,
        name,
        size: None,
        sha256: Some(sha256.to_owned()),
        to: to.clone(),
    };
    Ok((to, downloader.fetch(&wanted).await?))
}

/// A file of this machine is hashed where it lies.
async fn local(
    downloader: &Downloader,
    path: String,
    sha256: Option<&str>,
) -> Result<(PathBuf, Fetched), ErrorDetail> {
    let place = PathBuf::from(&path);
    if !place.is_file() {
        return Err(ErrorDetail::new(
            ErrorCode::ModelNotFound,
            format!("{path} is not a file of this machine"),
        )
        .with_field("model"));
    }
    let progress = downloader.progress().clone();
    let fetched =
        blocking(move || hash_file(&place, &path, &progress).map(|fetched| (place, fetched))).await?;
    match sha256 {
        Some(expected) if expected != fetched.1.sha256 => {
            Err(mismatch(&fetched.0.display().to_string(), expected, &fetched.1.sha256))
        }
        _ => Ok(fetched),
    }
}

/// What the catalog keeps of found files; a GGUF is believed only once its header was read.
async fn describe(home: &Home, found: Found) -> Result<Downloaded, ErrorDetail> {
    let header = match found.files.first().filter(|_| found.format == "gguf") {
        Some((path, _)) => {
            let path = path.clone();
            Some(blocking(move || read_header(&path)).await?)
        }
        None => None,
    };
    let name_of = |path: &Path| choose::quantization(&path.to_string_lossy()).map(str::to_owned);
    let quantization = header.as_ref().and_then(|header| header.quantization());
    Ok(Downloaded {
        quantization: quantization.or_else(|| name_of(&found.files.first()?.0)),
        architecture: header.as_ref().map(|header| header.architecture().to_owned()),
        context_length: header.and_then(|header| header.context_length()),
        revision: found.revision,
        format: found.format.to_owned(),
        files: found.files.iter().map(|(path, fetched)| kept(home, path, fetched)).collect(),
    })
}

fn kept(home: &Home, path: &Path, fetched: &Fetched) -> ModelFile {
    ModelFile {
        path: home.catalog_path(path),
        size: Some(fetched.size),
        sha256: Some(fetched.sha256.clone()),
    }
}

/// The header of a GGUF file; memory stays within its limit whatever the file says.
///
/// # Errors
/// `CORRUPT_MODEL` with offset and reason, `STORAGE_FAILED`.
pub fn read_header(path: &Path) -> Result<Header, ErrorDetail> {
    let failed = |error: std::io::Error| storage("read", path, &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    gguf::read(file, length).map_err(|problem| damaged(path, problem))
}

fn damaged(path: &Path, problem: gguf::Problem) -> ErrorDetail {
    ErrorDetail::new(ErrorCode::CorruptModel, format!("{} is damaged {problem}", path.display()))
        .with_details(serde_json::json!({ "offset": problem.offset, "reason": problem.reason.as_str() }))
        .with_hint("fetch it again: rbees-pool models download ID")
}

/// What `models verify` found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// The model.
    pub id: String,
    /// Whether every file is there with its size and sha256.
    pub ok: bool,
    /// What is wrong, one line a file.
    pub problems: Vec<String>,
}

/// Hashes every file of a model and records the outcome.
///
/// # Errors
/// `MODEL_NOT_FOUND`, `STORAGE_FAILED`.
pub async fn verify(home: &Home, downloader: &Downloader, id: &str) -> Result<Verified, ErrorDetail> {
    let model = catalog_file::load(home)?.find(id)?.clone();
    let mut problems = Vec::new();
    if model.files.is_empty() {
        problems.push("it has not been downloaded".to_owned());
    }
    for file in &model.files {
        let path = home.model_file(&file.path);
        let (name, progress) = (file.path.clone(), downloader.progress().clone());
        let found = blocking(move || hash_file(&path, &name, &progress)).await;
        problems.extend(problem(file, found.ok().as_ref()));
    }
    let ok = problems.is_empty();
    catalog_file::edit(home, |catalog| {
        if !ok {
            catalog.mark_missing(&model.id)?;
        } else if !model.downloaded {
            let as_found = Downloaded {
                revision: model.revision.clone(),
                files: model.files.clone(),
                format: model.format.clone(),
                architecture: None,
                quantization: None,
                context_length: None,
            };
            catalog.mark_downloaded(&model.id, as_found)?;
        }
        Ok(())
    })?;
    Ok(Verified { id: model.id, ok, problems })
}

fn problem(file: &ModelFile, found: Option<&Fetched>) -> Option<String> {
    let path = &file.path;
    match (found, file.size, &file.sha256) {
        (None, _, _) => Some(format!("{path}: it is not there")),
        (Some(found), Some(size), _) if found.size != size => {
            Some(format!("{path}: it has {} bytes and should have {size}", found.size))
        }
        (Some(found), _, Some(sha256)) if found.sha256 != *sha256 => {
            Some(format!("{path}: its sha256 is {} and should be {sha256}", found.sha256))
        }
        (Some(_), _, None) => Some(format!("{path}: nothing is known that it could be compared with")),
        (Some(_), _, Some(_)) => None,
    }
}

/// Removes a model's files from the disk; the entry stays in the catalog, not downloaded.
/// Gives the bytes that were freed; a `file:` model's file belongs to somebody else and stays.
///
/// # Errors
/// `MODEL_NOT_FOUND`, `STORAGE_FAILED`.
pub fn delete(home: &Home, id: &str) -> Result<(CatalogModel, u64), ErrorDetail> {
    catalog_file::edit(home, |catalog| {
        let model = catalog.mark_missing(id)?.clone();
        let external = model.sources.iter().any(|source| source.starts_with("file:"));
        let shared = |path: &str| {
            catalog
                .models
                .iter()
                .any(|other| other.id != model.id && other.files.iter().any(|f| f.path == path))
        };
        let mut freed = 0;
        for file in model.files.iter().filter(|file| !external && !shared(&file.path)) {
            freed += delete_file(&home.model_file(&file.path))?;
        }
        Ok((model, freed))
    })
}

/// Removes a file, and the blob behind it when it is a link of the cache.
fn delete_file(path: &Path) -> Result<u64, ErrorDetail> {
    let blob = std::fs::read_link(path).ok().and_then(|_| std::fs::canonicalize(path).ok());
    let freed = path.metadata().map_or(0, |found| found.len());
    if let Some(blob) = blob {
        files::remove(&blob)?;
    }
    files::remove(path)?;
    Ok(freed)
}
