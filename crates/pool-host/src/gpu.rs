//! NVIDIA GPUs through NVML, loaded when it is asked for: a machine without it is a fact.

use std::ffi::OsStr;

use api_types::pool::{Gpu, GpuProcess};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// The GPUs, and notes about what could not be looked at. `ours` are the workers' numbers.
pub fn probe(ours: &[u32], unified_memory: (u64, u64)) -> (Vec<Gpu>, Vec<String>) {
    // Distributions ship the library under its versioned name alone.
    let found = Nvml::init().or_else(|_| Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init());
    let nvml = match found {
        Ok(nvml) => nvml,
        Err(error) => return (Vec::new(), vec![absence(&error)]),
    };
    let mut notes = Vec::new();
    let mut gpus = Vec::new();
    for index in 0..nvml.device_count().unwrap_or(0) {
        match nvml.device_by_index(index).and_then(|device| describe(&device, index, ours, unified_memory)) {
            Ok(gpu) => gpus.push(gpu),
            Err(error) => notes.push(format!("NVIDIA GPU {index} cannot be read: {error}")),
        }
    }
    (gpus, notes)
}

fn absence(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            "no NVIDIA driver library (NVML) on this machine".to_owned()
        }
        NvmlError::DriverNotLoaded => "the NVIDIA driver is installed but not loaded".to_owned(),
        other => format!("NVIDIA GPUs cannot be looked at: {other}"),
    }
}

fn describe(device: &Device<'_>, index: u32, ours: &[u32], unified: (u64, u64)) -> Result<Gpu, NvmlError> {
    // A chip that shares the machine's memory has none of its own to report.
    let (total, free) = match device.memory_info() {
        Ok(memory) => (memory.total, memory.free),
        Err(NvmlError::NotSupported) => unified,
        Err(error) => return Err(error),
    };
    Ok(Gpu {
        index,
        uuid: device.uuid()?,
        name: device.name()?,
        backend: "cuda".to_owned(),
        memory_total_bytes: total,
        memory_free_bytes: free,
        temperature_c: device.temperature(nvml_wrapper::enum_wrappers::device::TemperatureSensor::Gpu).ok(),
        power_w: device.power_usage().ok().map(|milliwatts| milliwatts as f32 / 1000.0),
        processes: processes(device, ours),
    })
}

fn processes(device: &Device<'_>, ours: &[u32]) -> Vec<GpuProcess> {
    let running = device.running_compute_processes().unwrap_or_default();
    let mut seen: Vec<GpuProcess> = running
        .into_iter()
        .map(|process| GpuProcess {
            pid: process.pid,
            name: std::fs::read_to_string(format!("/proc/{}/comm", process.pid))
                .ok()
                .map(|n| n.trim().to_owned()),
            memory_bytes: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
            ours: ours.contains(&process.pid),
        })
        .collect();
    seen.sort_by_key(|process| process.pid);
    seen
}
