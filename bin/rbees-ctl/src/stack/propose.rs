//! Which model a machine gets when nobody names one.

use api_types::pool::{CatalogModel, Hardware, PoolStatus};
use api_types::{ErrorCode, ErrorDetail};

/// What every machine can run.
const SMALLEST: &str = "smollm2-135m";
/// Share of the free memory that is left alone.
const MARGIN: f64 = 0.2;
/// KV cache and buffers on top of the weights, as a share of them; the spawn checks exactly.
const ON_TOP: f64 = 0.3;

/// A model and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Its catalog id.
    pub model: String,
    /// The reason, for people.
    pub because: String,
}

/// Proposes a model: with a GPU the largest of known size that fits its free memory with the
/// margin; without one a model that is downloaded already, else the smallest, because a processor
/// alone is slow with anything larger.
pub fn propose(status: &PoolStatus) -> Result<Proposal, ErrorDetail> {
    let found = match gpu_memory(&status.hardware) {
        Some(free) => largest_that_fits(&status.models, free, "GPU"),
        None => None,
    };
    found.or_else(|| downloaded(status)).or_else(|| smallest(&status.models)).ok_or_else(|| {
        ErrorDetail::new(ErrorCode::ModelNotFound, "no model of the catalog fits this machine")
            .with_hint("name one: rbees up --model MODEL; rbees pool models catalog lists them")
    })
}

fn gpu_memory(hardware: &Hardware) -> Option<u64> {
    hardware.gpus.iter().map(|gpu| gpu.memory_free_bytes).max()
}

fn fits(model: &CatalogModel, free: u64) -> bool {
    model.size_bytes > 0 && model.size_bytes as f64 * (1.0 + ON_TOP) <= free as f64 * (1.0 - MARGIN)
}

fn largest_that_fits(models: &[CatalogModel], free: u64, device: &str) -> Option<Proposal> {
    let model = models.iter().filter(|model| fits(model, free)).max_by_key(|model| model.size_bytes)?;
    let because = format!(
        "the largest of known size that fits the {device}'s {} with the margin",
        cli_kit::human_bytes(free)
    );
    Some(Proposal { model: model.id.clone(), because })
}

/// The smallest of the downloaded ones that fits.
fn downloaded(status: &PoolStatus) -> Option<Proposal> {
    let free = status.hardware.ram_available_bytes;
    let there = status.models.iter().filter(|model| model.downloaded && fits(model, free));
    let model = there.min_by_key(|model| model.size_bytes)?;
    Some(Proposal { model: model.id.clone(), because: "downloaded already, and it fits".into() })
}

fn smallest(models: &[CatalogModel]) -> Option<Proposal> {
    let model = models.iter().find(|model| model.id == SMALLEST)?;
    Some(Proposal { model: model.id.clone(), because: "small enough for any machine".into() })
}

#[cfg(test)]
mod tests {
    use api_types::pool::Gpu;

    use super::*;

    fn model(id: &str, megabytes: u64, downloaded: bool) -> CatalogModel {
        CatalogModel {
            id: id.into(),
            name: id.into(),
            aliases: Vec::new(),
            repo: String::new(),
            revision: None,
            files: Vec::new(),
            architecture: "llama".into(),
            format: "gguf".into(),
            quantization: None,
            context_length: None,
            downloaded,
            size_bytes: megabytes * 1_000_000,
            sources: Vec::new(),
        }
    }

    fn machine(ram_gb: u64, gpu_gb: Option<u64>, models: Vec<CatalogModel>) -> PoolStatus {
        let gpu = |gb: u64| Gpu {
            index: 0,
            uuid: "GPU-1".into(),
            name: "a GPU".into(),
            backend: "cuda".into(),
            memory_total_bytes: gb * 1_000_000_000,
            memory_free_bytes: gb * 1_000_000_000,
            temperature_c: None,
            power_w: None,
            processes: Vec::new(),
        };
        PoolStatus {
            version: "0".into(),
            protocol: 1,
            host: "h".into(),
            home: "/h".into(),
            binary: "/b".into(),
            hardware: Hardware {
                ram_available_bytes: ram_gb * 1_000_000_000,
                gpus: gpu_gb.map(gpu).into_iter().collect(),
                ..Hardware::default()
            },
            models,
            workers: Vec::new(),
            fits: Vec::new(),
        }
    }

    fn proposed(status: &PoolStatus) -> String {
        propose(status).expect("a proposal").model
    }

    #[test]
    fn a_bare_machine_gets_the_smallest() {
        let models = vec![model("llama3-8b", 0, false), model(SMALLEST, 98, false)];
        assert_eq!(proposed(&machine(4, None, models)), SMALLEST);
    }

    #[test]
    fn what_is_downloaded_and_fits_is_kept() {
        let models = vec![model(SMALLEST, 98, false), model("mine", 700, true), model("huge", 90_000, true)];
        assert_eq!(proposed(&machine(8, None, models)), "mine");
    }

    #[test]
    fn a_gpu_gets_the_largest_that_fits_with_the_margin() {
        let models =
            vec![model(SMALLEST, 98, true), model("eight", 8_000, false), model("twenty", 20_000, false)];
        assert_eq!(proposed(&machine(64, Some(24), models.clone())), "eight");
        assert_eq!(proposed(&machine(64, Some(80), models)), "twenty");
    }

    #[test]
    fn an_empty_catalog_is_said() {
        assert_eq!(
            propose(&machine(8, None, Vec::new())).map_err(|error| error.code),
            Err(ErrorCode::ModelNotFound)
        );
    }
}
