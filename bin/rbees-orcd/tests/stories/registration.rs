//! Workers that say what cannot be: refused by field, kept nowhere, called by nobody.

use serde_json::{Value, json};

use crate::daemon::Daemon;

fn call(field: &str, value: Value) -> Value {
    let mut call = json!({
        "facts": {
            "worker_id": "worker-fake-0123456789ab", "instance": "0191b2c3-0000-7000-8000-000000000000",
            "uri": "http://127.0.0.1:9", "model": "m", "backend": "fake", "devices": [], "slots": 1,
            "context_length": 10, "vram_bytes": 0, "ram_bytes": 0, "capabilities": [], "engine": "e",
            "version": "0", "protocol": api_types::PROTOCOL,
        },
        "status": "ready", "runs": [],
    });
    call["facts"][field] = value;
    call
}

fn lies() -> Vec<(&'static str, Value)> {
    let uris = [
        "http://169.254.169.254/",
        "http://[::ffff:169.254.169.254]:80",
        "http://[fe80::1]:8001",
        "http://[fd00:ec2::254]:80",
        "http://0.0.0.0:8001",
        "http://224.0.0.1:8001",
        "http://255.255.255.255:8001",
        // The same address in other notations.
        "http://2852039166:80",
        "http://0xa9fea9fe:80",
        "http://0xa9.0xfe.0xa9.0xfe:80",
        "http://169.254.43518:80",
        "http://user@10.0.0.1:8001",
        "http://10.0.0.1:8001/latest/meta-data",
        "http://10.0.0.1:8001/?x=y",
        "https://10.0.0.1:8001",
        "file:///etc/passwd",
        "10.0.0.1:8001",
        "http://",
        "",
    ];
    let long = "x".repeat(600);
    let mut lies: Vec<_> = uris.map(|uri| ("uri", json!(uri))).into();
    lies.extend([
        ("uri", json!(format!("http://{long}:80"))),
        ("model", json!("")),
        ("model", json!("x".repeat(7 << 20))),
        ("model", json!("a\nb")),
        ("model_ref", json!(long)),
        ("backend", json!(long)),
        ("quantization", json!(long)),
        ("tokenizer", json!(long)),
        ("engine", json!(long)),
        ("version", json!(long)),
        ("devices", json!(vec!["d"; 65])),
        ("devices", json!([long])),
        ("capabilities", json!(vec!["c"; 65])),
        ("capabilities", json!([long])),
        ("slots", json!(0)),
        ("slots", json!(4_294_967_295_u32)),
        ("context_length", json!(0)),
        ("vram_bytes", json!(-1)),
        ("worker_id", json!("../w")),
    ]);
    lies
}

#[tokio::test]
async fn b33_lies_are_refused_by_field_and_kept_nowhere() {
    let daemon = Daemon::start().await;
    for (field, value) in lies() {
        let (status, body) = daemon.post("/v2/workers/ready", call(field, value.clone()).to_string()).await;
        let said = body.to_string();
        assert_eq!((status, body["error"]["code"].as_str()), (422, Some("INVALID_FIELD")), "{field}: {said}");
        assert_eq!(body["error"]["field"], format!("facts.{field}"), "{said}");
        assert!(said.len() < 4_000, "the answer repeats what was sent");
    }
    let (status, body) =
        daemon.post("/v2/workers/ready", call("model", json!("x".repeat(10 << 20))).to_string()).await;
    assert_eq!((status, body["error"]["code"].as_str()), (413, Some("BODY_TOO_LARGE")));
    assert_eq!(daemon.get("/v2/workers").await.1, json!({ "workers": [] }));
    let (status, body) = daemon.post("/v2/workers/ready", call("slots", json!(1)).to_string()).await;
    assert_eq!(status, 200, "{body}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn b33_the_loopback_of_another_machine_is_not_ours() {
    use crate::machine::Machine;
    let Some(machine) = Machine::plug_in() else { return };
    let daemon =
        Daemon::start_with(|config| config.bind = format!("{}:0", machine.here).parse().expect("an address"))
            .await;
    let port = daemon.server.address.port();
    let register = |uri: &str| {
        let body = call("uri", json!(uri)).to_string();
        let length = body.len();
        machine.answer(
            port,
            &format!(
                "POST /v2/workers/ready HTTP/1.1\r\nHost: {}:{port}\r\nConnection: close\r\n\
                 Content-Length: {length}\r\n\r\n{body}",
                machine.here
            ),
        )
    };
    for uri in
        ["http://127.0.0.1:8001", "http://127.9.9.9:8001", "http://localhost:8001", "http://[::1]:8001"]
    {
        let answer = register(uri);
        assert!(answer.starts_with("HTTP/1.1 422") && answer.contains("facts.uri"), "{uri}: {answer}");
    }
    assert_eq!(daemon.get("/v2/workers").await.1, json!({ "workers": [] }));
    let answer = register(&format!("http://{}:8001", machine.there));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
