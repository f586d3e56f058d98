//! What this binary can do, without loading anything.

use api_types::PROTOCOL;
use api_types::worker::WorkerCapabilities;
use engine::Backend;

/// The answer to `--capabilities`.
pub fn capabilities() -> WorkerCapabilities {
    let native = cfg!(feature = "llama_cpp");
    let mut engines = vec!["fake".to_owned()];
    engines.extend(native.then(|| "llama.cpp".to_owned()));
    WorkerCapabilities {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        engines,
        backends: Backend::built().iter().map(ToString::to_string).collect(),
        formats: if native { vec!["gguf".to_owned()] } else { Vec::new() },
        missing_cpu_features: engine::cpu::missing_features(),
    }
}

/// The same for people.
pub fn as_text(can: &WorkerCapabilities) -> String {
    let list = |items: &[String]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    format!(
        "rbees-workerd {} (protocol {})\nengines: {}\nbackends: {}\nformats: {}\nmissing CPU features: {}\n",
        can.version,
        can.protocol,
        list(&can.engines),
        list(&can.backends),
        list(&can.formats),
        list(&can.missing_cpu_features)
    )
}
