//! What this machine has.

use std::path::Path;

use api_types::pool::Hardware;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::{files, gpu};

/// Looks at processor, memory, disk and GPUs. `models` is the folder whose disk counts, `ours`
/// the process numbers of the pool's workers.
pub fn hardware(models: &Path, ours: &[u32]) -> Hardware {
    let (ram_total_bytes, ram_available_bytes) = memory();
    let (gpus, notes) = gpu::probe(ours, (ram_total_bytes, ram_available_bytes));
    Hardware {
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        cpu: cpu_name(),
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        cpu_features: cpu_features(),
        ram_total_bytes,
        ram_available_bytes,
        disk_free_bytes: files::free_bytes(models).unwrap_or(0),
        gpus,
        notes,
    }
}

/// This machine's name.
pub fn host_name() -> String {
    System::host_name().unwrap_or_else(|_| "this machine".to_owned())
}

/// Total and available memory, within the container's limit where there is one.
fn memory() -> (u64, u64) {
    let kinds = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let Ok(system) = System::new_with_specifics(kinds) else { return (0, 0) };
    let (total, available) = (system.total_memory(), system.available_memory());
    match system.cgroup_limits() {
        // Caches count as used in a cgroup's own figure, so it is a bound and no more.
        Some(limits) if limits.total_memory < total => {
            (limits.total_memory, available.min(limits.total_memory.saturating_sub(limits.rss)))
        }
        _ => (total, available),
    }
}

fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    field("model name").or_else(|| field("Model")).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<String> {
    let rows = [
        ("sse4.2", std::is_x86_feature_detected!("sse4.2")),
        ("avx", std::is_x86_feature_detected!("avx")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("f16c", std::is_x86_feature_detected!("f16c")),
        ("bmi2", std::is_x86_feature_detected!("bmi2")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::is_x86_feature_detected!("avx512bw")),
        ("avx512vl", std::is_x86_feature_detected!("avx512vl")),
        ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
        ("avxvnni", std::is_x86_feature_detected!("avxvnni")),
    ];
    rows.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<String> {
    let rows = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    rows.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<String> {
    Vec::new()
}
