//! The official `openai` Python client against the real programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Cluster, Engine};

/// A Python that has the client: `RBEES_TEST_PYTHON`.
fn python() -> PathBuf {
    std::env::var_os("RBEES_TEST_PYTHON").map(PathBuf::from).expect(
        "RBEES_TEST_PYTHON names no Python with the `openai` package; `cargo xtask test release` sets it",
    )
}

async fn conforms(engine: Engine) {
    let cluster = Cluster::start(engine, 1).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/openai_client.py");
    let tokenize = format!("{}/tokenize", cluster.workers[0].uri);
    let output = tokio::task::spawn_blocking({
        let base = cluster.url("/v1");
        let model = engine.model();
        move || {
            Command::new(python())
                .arg(script)
                .args([&base, model, &tokenize])
                .output()
                .expect("Python starts")
        }
    })
    .await
    .expect("joined");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn the_official_client_works_on_the_fake_engine() {
    conforms(Engine::Fake).await;
}

#[tokio::test]
async fn the_official_client_works_on_the_real_model() {
    conforms(Engine::Real).await;
}
