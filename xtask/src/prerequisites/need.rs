//! The single things a machine must have.

use std::process::Command;

use crate::prerequisites::{BuildEnv, libclang};
use crate::process;
use crate::python::Venv;
use crate::workspace::Workspace;

/// Something that cargo does not bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A C and C++ compiler: the engine, SQLite and the TLS library are built from source.
    Compiler,
    /// The build system of the engine.
    Cmake,
    /// What cmake drives.
    Make,
    /// Reads the engine's headers.
    Libclang,
    /// Fetches models that ship as Python packages.
    Pip,
    /// Makes environments for tests and benches.
    Venv,
    /// The other end of the SSH tests.
    Sshd,
    /// The client of the SSH tests.
    Ssh,
    /// Records what the orchestrator writes, and lets its disk fail.
    Strace,
    /// A proxy to compare with.
    Haproxy,
}

impl Need {
    /// For a release build with the native engine, and for the first model.
    pub const FOR_BUILD: [Self; 5] = [Self::Compiler, Self::Cmake, Self::Make, Self::Libclang, Self::Pip];

    /// For tests without the native engine.
    pub const FOR_FAST_TESTS: [Self; 5] = [Self::Compiler, Self::Pip, Self::Sshd, Self::Ssh, Self::Strace];

    /// For every test.
    pub const FOR_TESTS: [Self; 9] = [
        Self::Compiler,
        Self::Cmake,
        Self::Make,
        Self::Libclang,
        Self::Pip,
        Self::Venv,
        Self::Sshd,
        Self::Ssh,
        Self::Strace,
    ];

    /// Whether the machine has it.
    pub fn is_met(self) -> bool {
        match self {
            Self::Compiler => process::find("c++").is_some() && process::find("cc").is_some(),
            Self::Cmake => process::find("cmake").is_some(),
            Self::Make => process::find("make").is_some(),
            Self::Libclang => libclang::is_there(),
            Self::Pip => python_has("pip"),
            Self::Venv => python_has("venv, ensurepip"),
            Self::Sshd => process::find("sshd").is_some(),
            Self::Ssh => process::find("ssh").is_some(),
            Self::Strace => process::find("strace").is_some(),
            Self::Haproxy => process::find("haproxy").is_some(),
        }
    }

    /// What gives it on Debian.
    pub const fn debian_packages(self) -> &'static [&'static str] {
        match self {
            Self::Compiler => &["g++", "libc6-dev"],
            Self::Cmake => &["cmake"],
            Self::Make => &["make"],
            Self::Libclang => &["libclang-dev"],
            Self::Pip => &["python3", "python3-pip"],
            Self::Venv => &["python3", "python3-venv"],
            Self::Sshd => &["openssh-server"],
            Self::Ssh => &["openssh-client"],
            Self::Strace => &["strace"],
            Self::Haproxy => &["haproxy"],
        }
    }

    /// Takes it from a Python package, into the cache. `false` when there is no such package.
    pub fn take_from_python(self, workspace: &Workspace, env: &mut BuildEnv) -> anyhow::Result<bool> {
        if !Self::Venv.is_met() {
            return Ok(false);
        }
        match self {
            Self::Cmake => env.add_folder(Venv::with(workspace, "cmake", &["cmake==4.4.4"])?.bin()),
            Self::Make => {
                env.add_folder(Venv::with(workspace, "ninja", &["ninja==1.13.2"])?.bin());
                env.set("CMAKE_GENERATOR", "Ninja");
            }
            Self::Libclang => {
                let venv = Venv::with(workspace, "libclang", &["libclang==18.1.1"])?;
                env.set("LIBCLANG_PATH", venv.packages()?.join("clang/native"));
            }
            Self::Compiler
            | Self::Pip
            | Self::Venv
            | Self::Sshd
            | Self::Ssh
            | Self::Strace
            | Self::Haproxy => {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is missing, and the command that installs it here.
    pub fn advice(self) -> String {
        format!("{}: {}", self.what(), self.command())
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Compiler => "a C++ compiler",
            Self::Cmake => "cmake",
            Self::Make => "make",
            Self::Libclang => "libclang",
            Self::Pip => "Python 3 with pip",
            Self::Venv => "Python's venv",
            Self::Sshd => "an SSH server",
            Self::Ssh => "an SSH client",
            Self::Strace => "strace",
            Self::Haproxy => "HAProxy",
        }
    }

    fn command(self) -> String {
        if cfg!(target_os = "macos") {
            return match self {
                Self::Cmake => "brew install cmake".into(),
                Self::Pip | Self::Venv => "brew install python".into(),
                Self::Haproxy => "brew install haproxy".into(),
                Self::Strace => "strace, which only Linux has".into(),
                Self::Compiler | Self::Make | Self::Libclang | Self::Sshd | Self::Ssh => {
                    "xcode-select --install".into()
                }
            };
        }
        let packages = self.debian_packages().join(" ");
        for (manager, line) in
            [("apt-get", "apt-get install -y"), ("dnf", "dnf install -y"), ("pacman", "pacman -S")]
        {
            if process::find(manager).is_some() {
                return format!(
                    "sudo {line} {}",
                    if manager == "apt-get" { &packages } else { self.elsewhere() }
                );
            }
        }
        format!("the packages that Debian calls {packages}, with this system's package manager")
    }

    /// Package names that Fedora and Arch share or that are closest there.
    const fn elsewhere(self) -> &'static str {
        match self {
            Self::Compiler => "gcc gcc-c++",
            Self::Cmake => "cmake",
            Self::Make => "make",
            Self::Libclang => "clang",
            Self::Pip | Self::Venv => "python3 python3-pip",
            Self::Sshd | Self::Ssh => "openssh",
            Self::Strace => "strace",
            Self::Haproxy => "haproxy",
        }
    }
}

fn python_has(modules: &str) -> bool {
    process::find("python3").is_some()
        && process::succeeds(Command::new("python3").args(["-c", &format!("import {modules}")]))
}
