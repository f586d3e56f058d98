use api_types::pool::Gpu;

use super::*;

fn gpu(index: u32, backend: &str) -> Gpu {
    Gpu {
        index,
        uuid: format!("GPU-{index}"),
        name: format!("Card {index}"),
        backend: backend.into(),
        memory_total_bytes: 1 << 34,
        memory_free_bytes: 1 << 34,
        temperature_c: None,
        power_w: None,
        processes: vec![],
    }
}

fn facts(gpus: Vec<Gpu>, backends: &[&str], model: &str) -> Facts {
    Facts {
        home: "/home".into(),
        program: "/bin/rbees-workerd".into(),
        capabilities: WorkerCapabilities {
            version: "0".into(),
            protocol: 1,
            engines: vec![],
            backends: backends.iter().map(|backend| (*backend).to_owned()).collect(),
            formats: vec![],
            missing_cpu_features: vec![],
        },
        hardware: Hardware { gpus, ..Hardware::default() },
        model: ModelChoice::fake(model).unwrap_or(ModelChoice {
            name: model.into(),
            argument: "/m.gguf".into(),
            reference: Some("hf:a/b".into()),
            trained_context: Some(2048),
        }),
        fresh: "0123456789ab".into(),
    }
}

fn ask(backend: Option<&str>, device: Option<&str>, gpu_id: Option<u32>) -> SpawnRequest {
    SpawnRequest {
        backend: backend.map(Into::into),
        device: device.map(Into::into),
        gpu_id,
        ..SpawnRequest::default()
    }
}

#[test]
fn devices_are_chosen_or_refused_as_promised() {
    use ErrorCode::{BackendNotBuilt, DeviceNotFound, InvalidField};
    let cards = || vec![gpu(0, "cuda"), gpu(1, "cuda")];
    let both = &["cpu", "cuda", "fake"][..];
    let rows = [
        (ask(None, None, None), facts(vec![], both, "m"), Ok("cpu")),
        (ask(None, None, None), facts(cards(), both, "m"), Ok("cuda:0")),
        (ask(None, None, None), facts(cards(), &["cpu"], "m"), Ok("cpu")),
        (ask(None, None, Some(1)), facts(cards(), both, "m"), Ok("cuda:1")),
        (ask(Some("cuda"), None, Some(1)), facts(cards(), both, "m"), Ok("cuda:1")),
        (ask(None, Some("cuda:1"), None), facts(cards(), both, "m"), Ok("cuda:1")),
        (ask(Some("cpu"), None, None), facts(cards(), both, "m"), Ok("cpu")),
        (ask(None, None, None), facts(cards(), both, "fake:bee?seed=1"), Ok("fake")),
        (ask(Some("fake"), None, None), facts(vec![], both, "fake:bee"), Ok("fake")),
        (ask(Some("cuda"), None, None), facts(vec![], both, "m"), Err(DeviceNotFound)),
        (ask(Some("cuda"), None, Some(2)), facts(cards(), both, "m"), Err(DeviceNotFound)),
        (ask(None, None, Some(0)), facts(vec![], both, "m"), Err(DeviceNotFound)),
        (ask(Some("metal"), None, None), facts(cards(), both, "m"), Err(DeviceNotFound)),
        (ask(Some("cuda"), None, None), facts(cards(), &["cpu"], "m"), Err(BackendNotBuilt)),
        (ask(Some("cpu"), None, Some(0)), facts(cards(), both, "m"), Err(InvalidField)),
        (ask(Some("tpu"), None, None), facts(cards(), both, "m"), Err(InvalidField)),
        (ask(Some("cpu"), Some("cuda:0"), None), facts(cards(), both, "m"), Err(InvalidField)),
        (ask(None, Some("cuda:0"), Some(1)), facts(cards(), both, "m"), Err(InvalidField)),
        (ask(None, Some("cuda:x"), None), facts(cards(), both, "m"), Err(InvalidField)),
        (ask(Some("fake"), None, None), facts(vec![], both, "m"), Err(InvalidField)),
        (ask(Some("cpu"), None, None), facts(vec![], both, "fake:bee"), Err(InvalidField)),
    ];
    for (request, facts, expected) in rows {
        let device = plan(&request, &facts).map(|plan| plan.device.to_string()).map_err(|error| error.code);
        assert_eq!(device, expected.map(str::to_owned), "{request:?}");
    }
}

#[test]
fn the_command_is_complete() {
    let request = SpawnRequest {
        slots: Some(2),
        orchestrator: Some("http://127.0.0.1:8080".into()),
        ..ask(None, None, None)
    };
    let plan = plan(&request, &facts(vec![gpu(0, "cuda")], &["cpu", "cuda"], "m")).expect("a plan");
    let expected = "--worker-id worker-cuda-0123456789ab --model /m.gguf --model-name m --model-ref hf:a/b \
        --backend cuda --gpu 0 --port 8001-8999 --slots 2 --context 2048 --orchestrator http://127.0.0.1:8080 \
        --report /home/runtime/workers/worker-cuda-0123456789ab.report.json";
    assert_eq!(plan.args, expected.split_whitespace().collect::<Vec<_>>());
    assert!(plan.env.contains(&("CUDA_DEVICE_ORDER".into(), "PCI_BUS_ID".into())));
    assert!(plan.env.contains(&(ENV_WORKER_ID.into(), "worker-cuda-0123456789ab".into())));
    assert_eq!(plan.log, "logs/worker-cuda-0123456789ab.log");
}

#[test]
fn numbers_out_of_range_and_addresses_with_secrets_are_refused() {
    let facts = facts(vec![], &["cpu"], "m");
    for (request, field) in [
        (SpawnRequest { slots: Some(0), ..SpawnRequest::default() }, "slots"),
        (SpawnRequest { context: Some(1), ..SpawnRequest::default() }, "context"),
        (SpawnRequest { threads: Some(0), ..SpawnRequest::default() }, "threads"),
        (SpawnRequest { port: Some(0), ..SpawnRequest::default() }, "port"),
        (
            SpawnRequest { orchestrator: Some("http://u:p@h".into()), ..SpawnRequest::default() },
            "orchestrator",
        ),
    ] {
        assert_eq!(plan(&request, &facts).expect_err(field).field.as_deref(), Some(field));
    }
}

#[test]
fn a_positional_backend_and_the_flag_must_agree() {
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(agree(text("cpu"), text("cpu")), Ok(text("cpu")));
    assert_eq!(agree(None, text("cuda")), Ok(text("cuda")));
    assert_eq!(agree(None, None), Ok(None));
    assert_eq!(agree(text("cpu"), text("cuda")).expect_err("differ").code, ErrorCode::InvalidField);
}
