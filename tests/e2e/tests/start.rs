//! Starting the programs wrongly: the port that is taken, the model that is damaged, the address
//! that would be open to strangers.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use e2e::binaries::{binary, real_model};
use e2e::{Cluster, Engine};

fn output(command: &mut Command) -> Output {
    command.output().expect("the program starts")
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let home = tempfile::tempdir().expect("a folder");
    let mut orchestrator = Command::new(binary("rbees-orcd"));
    let result = output(orchestrator.args(["--bind", &address.to_string(), "--home"]).arg(home.path()));
    assert!(!result.status.success());
    assert!(
        words(&result).contains("PORT_TAKEN") && words(&result).contains(&address.port().to_string()),
        "{}",
        words(&result)
    );

    let mut worker = Command::new(binary("rbees-workerd"));
    worker.args([
        "--worker-id",
        "w",
        "--model",
        "fake:bee",
        "--backend",
        "fake",
        "--port",
        &address.port().to_string(),
    ]);
    let result = output(&mut worker);
    assert!(!result.status.success());
    assert!(words(&result).contains("PORT_TAKEN"), "{}", words(&result));
}

#[tokio::test]
async fn a_second_orchestrator_on_one_folder_is_refused() {
    let mut cluster = Cluster::without_workers(Engine::Fake).await;
    let mut second = Command::new(binary("rbees-orcd"));
    let result = output(second.args(["--bind", "127.0.0.1:0", "--home"]).arg(cluster.folder()));
    assert_eq!(result.status.code(), Some(73), "{}", words(&result));
    assert!(
        words(&result).contains(&cluster.orchestrator.pid().to_string()),
        "the holder is named: {}",
        words(&result)
    );
    cluster.get("/health").await.expect("the first is undisturbed");
    cluster.kill_orchestrator();
}

#[tokio::test]
async fn an_open_address_needs_a_credential() {
    let home = tempfile::tempdir().expect("a folder");
    let mut orchestrator = Command::new(binary("rbees-orcd"));
    let result = output(orchestrator.args(["--bind", "0.0.0.0:0", "--home"]).arg(home.path()));
    assert!(!result.status.success());
    assert!(words(&result).contains("0.0.0.0"), "{}", words(&result));
    let mut worker = Command::new(binary("rbees-workerd"));
    worker.args([
        "--worker-id",
        "w",
        "--model",
        "fake:bee",
        "--backend",
        "fake",
        "--bind",
        "0.0.0.0",
        "--port",
        "0",
    ]);
    worker.env_remove("RBEES_WORKER_SECRET");
    let result = output(&mut worker);
    assert!(!result.status.success(), "{}", words(&result));
}

#[tokio::test]
async fn a_damaged_model_is_refused_with_the_place_and_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = std::fs::read(real_model()).expect("the model");
    let cases: [(&str, Vec<u8>); 3] = [
        ("magic", [b"NOPE".as_slice(), &whole[4..4096]].concat()),
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("count", [&whole[..8], [0xff; 8].as_slice(), &whole[16..65536]].concat()),
    ];
    for (name, bytes) in cases {
        let path = folder.path().join(format!("{name}.gguf"));
        std::fs::File::create(&path).and_then(|mut file| file.write_all(&bytes)).expect("written");
        let words = load(&path);
        assert!(words.contains("CORRUPT_MODEL") && words.contains("at byte"), "{name}: {words}");
    }
}

/// What a worker says while it fails to load a model.
fn load(model: &Path) -> String {
    let mut worker = Command::new(binary("rbees-workerd"));
    let result =
        output(worker.args(["--worker-id", "w", "--backend", "cpu", "--port", "0", "--model"]).arg(model));
    assert!(!result.status.success(), "a damaged model is not loaded");
    words(&result)
}
