//! The Hub: which files a repository has, and where they lie in the standard cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::{ErrorCode, ErrorDetail};
use pool_core::choose::{RemoteFile, choose};
use reqwest::{StatusCode, header};
use serde::Deserialize;

use crate::download::{Downloader, Wanted, mismatch};
use crate::errors::storage;
use crate::files;
use crate::home::Home;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const MAX_LISTING: usize = 32 << 20;

/// How the Hub is reached: the environment that its own tools honour too.
#[derive(Clone)]
pub struct HubSettings {
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_TOKEN`, or the token file.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: nothing is fetched from anywhere.
    pub offline: bool,
    /// `HF_HUB_CACHE`, or `HF_HOME/hub`; the models folder of the home when neither is set.
    pub cache: Option<PathBuf>,
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoint, token, offline, cache } = self;
        let token = token.as_ref().map(|_| "hidden");
        f.debug_struct("HubSettings")
            .field("endpoint", endpoint)
            .field("token", &token)
            .field("offline", offline)
            .field("cache", cache)
            .finish()
    }
}

impl HubSettings {
    /// What the environment says.
    pub fn from_env() -> Self {
        let text =
            |name: &str| std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let home = text("HF_HOME").map(PathBuf::from);
        let token_file = text("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
            let user = std::env::home_dir().map(|user| user.join(".cache/huggingface"));
            home.clone().or(user).map(|folder| folder.join("token"))
        });
        let from_file = || {
            let token = std::fs::read_to_string(token_file?).ok()?;
            Some(token.trim().to_owned()).filter(|token| !token.is_empty())
        };
        let truthy =
            |value: String| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off");
        Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            token: text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")).or_else(from_file),
            offline: text("HF_HUB_OFFLINE").is_some_and(truthy),
            cache: text("HF_HUB_CACHE").map(PathBuf::from).or_else(|| home.map(|home| home.join("hub"))),
        }
    }
}

/// A model fetched from the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// The commit.
    pub commit: String,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// Its files in the cache, with size and sha256.
    pub files: Vec<(PathBuf, u64, String)>,
}

/// What is wanted from a repository.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `org/name`.
    pub repo: &'a str,
    /// Branch, tag or commit.
    pub revision: Option<&'a str>,
    /// One file of it.
    pub file: Option<&'a str>,
    /// What the first file must hash to.
    pub sha256: Option<&'a str>,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
}

/// Fetches a model into the cache: blobs by hash, a snapshot of links, the commit of the branch.
///
/// # Errors
/// Those of [`Downloader::fetch`], `UNSUPPORTED_MODEL`, and `CHECKSUM_MISMATCH` before the first
/// byte when the repository shows another hash than the one asked for.
pub async fn fetch(
    downloader: &Downloader,
    settings: &HubSettings,
    home: &Home,
    request: Request<'_>,
) -> Result<HubModel, ErrorDetail> {
    let listing = list(downloader, settings, request).await?;
    let remote: Vec<RemoteFile> = listing.siblings.iter().map(remote_file).collect();
    let choice = choose(&remote, request.file)?;
    downloader.note(format!("chosen from {}: {}", request.repo, choice.why));
    check_pin(&choice.files, request)?;
    let repo = settings.cache.clone().unwrap_or_else(|| home.models()).join(folder_name(request.repo));
    let mut files = Vec::new();
    for file in &choice.files {
        let sibling = listing.siblings.iter().find(|sibling| sibling.rfilename == file.path);
        let blob = blob_name(file, sibling)?;
        let wanted = Wanted {
            url: resolve_url(settings, request.repo, &listing.sha, &file.path),
            bearer: settings.token.clone(),
            name: file.path.clone(),
            size: file.size,
            sha256: file.sha256.clone(),
            to: repo.join("blobs").join(&blob),
        };
        let fetched =
            downloader.fetch(&wanted).await.map_err(|error| gated(error, settings, request.repo))?;
        let link = link(&repo, &listing.sha, &file.path, &blob)?;
        files.push((link, fetched.size, fetched.sha256));
    }
    note_branch(&repo, request.revision, &listing.sha)?;
    Ok(HubModel { commit: listing.sha, format: choice.format, files })
}

fn remote_file(sibling: &Sibling) -> RemoteFile {
    let sha256 = sibling.lfs.as_ref().and_then(|lfs| lfs.sha256.clone());
    RemoteFile { path: sibling.rfilename.clone(), size: sibling.size, sha256 }
}

/// A repository that shows another hash is not worth a single byte.
fn check_pin(files: &[RemoteFile], request: Request<'_>) -> Result<(), ErrorDetail> {
    let shown = files.first().and_then(|file| Some((&file.path, file.sha256.as_deref()?)));
    match (shown, request.sha256) {
        (Some((path, found)), Some(expected)) if found != expected => {
            Err(mismatch(&format!("{path} of {}", request.repo), expected, found))
        }
        _ => Ok(()),
    }
}

/// Blobs are named by what the Hub calls their content: sha256, or git's own hash.
fn blob_name(file: &RemoteFile, sibling: Option<&Sibling>) -> Result<String, ErrorDetail> {
    let name = file.sha256.clone().or_else(|| sibling?.blob_id.clone()).unwrap_or_default();
    let hex = (40..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let safe = hex && pool_core::reference::is_path(&file.path);
    if safe {
        return Ok(name);
    }
    let message =
        format!("the Hub's listing of {:?} cannot be used: its hash or path has a wrong form", file.path);
    Err(ErrorDetail::new(ErrorCode::DownloadFailed, message))
}

fn folder_name(repo: &str) -> String {
    format!("models--{}", repo.replace('/', "--"))
}

fn resolve_url(settings: &HubSettings, repo: &str, commit: &str, path: &str) -> String {
    let path: String = path.split('/').map(escape).collect::<Vec<_>>().join("/");
    format!("{}/{repo}/resolve/{commit}/{path}", settings.endpoint.trim_end_matches('/'))
}

/// One segment of an address, with everything escaped that has a meaning there.
fn escape(segment: &str) -> String {
    segment
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Puts the file into the snapshot of its commit, as a link to its blob.
fn link(repo: &Path, commit: &str, path: &str, blob: &str) -> Result<PathBuf, ErrorDetail> {
    let link = repo.join("snapshots").join(commit).join(path);
    let up = "../".repeat(path.split('/').count() + 1);
    let target = format!("{up}blobs/{blob}");
    if let Some(folder) = link.parent() {
        std::fs::create_dir_all(folder).map_err(|error| storage("made", folder, &error))?;
    }
    if std::fs::read_link(&link).is_ok_and(|found| found == Path::new(&target)) {
        return Ok(link);
    }
    files::remove(&link)?;
    std::os::unix::fs::symlink(&target, &link).map_err(|error| storage("linked", &link, &error))?;
    Ok(link)
}

fn note_branch(repo: &Path, revision: Option<&str>, commit: &str) -> Result<(), ErrorDetail> {
    let branch = revision.unwrap_or("main");
    if branch == commit {
        return Ok(());
    }
    let path = repo.join("refs").join(branch);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| storage("made", folder, &error))?;
    }
    files::replace(&path, commit.as_bytes())
}

async fn list(
    downloader: &Downloader,
    settings: &HubSettings,
    request: Request<'_>,
) -> Result<Listing, ErrorDetail> {
    let mut last = String::new();
    for pause in [0, 1, 2, 4] {
        tokio::time::sleep(downloader.limits().backoff * pause).await;
        match ask_listing(downloader, settings, request).await {
            Ok(listing) => return check_listing(listing),
            Err(Ask::Final(error)) => return Err(gated(error, settings, request.repo)),
            Err(Ask::Unreachable(reason)) => {
                last = reason;
                // A network without the Hub does not grow one in seconds.
                if pause > 0 {
                    break;
                }
            }
            Err(Ask::Busy(reason, after)) => {
                last = reason;
                tokio::time::sleep(after.unwrap_or_default().min(Duration::from_secs(60))).await;
            }
        }
    }
    let message = format!("the Hub did not list {}: {last}", request.repo);
    Err(ErrorDetail::new(ErrorCode::DownloadFailed, message))
}

fn check_listing(listing: Listing) -> Result<Listing, ErrorDetail> {
    if (7..=64).contains(&listing.sha.len()) && listing.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(listing);
    }
    Err(ErrorDetail::new(ErrorCode::DownloadFailed, "the Hub's listing names no commit"))
}

enum Ask {
    Final(ErrorDetail),
    Unreachable(String),
    Busy(String, Option<Duration>),
}

async fn ask_listing(
    downloader: &Downloader,
    settings: &HubSettings,
    request: Request<'_>,
) -> Result<Listing, Ask> {
    let revision = escape(request.revision.unwrap_or("main"));
    let url = format!(
        "{}/api/models/{}/revision/{revision}?blobs=true",
        settings.endpoint.trim_end_matches('/'),
        request.repo
    );
    let mut asked = downloader.client().get(url).timeout(downloader.limits().stall);
    if let Some(token) = &settings.token {
        asked = asked.bearer_auth(token);
    }
    let response = asked.send().await.map_err(|error| Ask::Unreachable(crate::download::plain(&error)))?;
    match response.status() {
        StatusCode::OK => read_listing(response).await,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let message = format!("{} needs a token that may read it", request.repo);
            Err(Ask::Final(ErrorDetail::new(ErrorCode::GatedModel, message)))
        }
        StatusCode::NOT_FOUND => {
            let revision = request.revision.unwrap_or("main");
            let message = format!("the Hub has no repository {} with a revision {revision}", request.repo);
            Err(Ask::Final(ErrorDetail::new(ErrorCode::ModelNotFound, message)))
        }
        status => {
            let after = response
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            Err(Ask::Busy(format!("it answered {status}"), after.map(Duration::from_secs)))
        }
    }
}

async fn read_listing(mut response: reqwest::Response) -> Result<Listing, Ask> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| Ask::Unreachable(crate::download::plain(&error)))?
    {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_LISTING {
            return Err(Ask::Final(ErrorDetail::new(
                ErrorCode::DownloadFailed,
                "the Hub's listing is too long",
            )));
        }
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        let message = format!("the Hub's listing cannot be read: {error}");
        Ask::Final(ErrorDetail::new(ErrorCode::DownloadFailed, message))
    })
}

/// Says which token was missing, or was not enough.
fn gated(error: ErrorDetail, settings: &HubSettings, repo: &str) -> ErrorDetail {
    if error.code != ErrorCode::GatedModel {
        return error;
    }
    let message = match settings.token {
        Some(_) => format!(
            "{repo} is gated or private, and the token in HF_TOKEN (or the token file) may not read it"
        ),
        None => format!("{repo} is gated, private or absent, and HF_TOKEN is not set"),
    };
    let hint = format!(
        "accept the terms at {}/{repo}, then give a token that may read it: HF_TOKEN=hf_…",
        settings.endpoint.trim_end_matches('/')
    );
    ErrorDetail::new(ErrorCode::GatedModel, message).with_hint(hint)
}
