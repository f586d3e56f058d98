//! The committed description is the one that the handlers give.

#[test]
fn the_committed_document_is_current() {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/orchestrator.json");
    let committed = std::fs::read_to_string(committed).unwrap_or_default();
    let current = rbees_orcd::http::openapi::text().expect("JSON");
    assert!(
        committed == current,
        "openapi/orchestrator.json is not current; run `cargo run -p rbees-orcd -- openapi > openapi/orchestrator.json`"
    );
}

#[test]
fn the_document_is_openapi_3_1_and_names_every_job_route() {
    let document: serde_json::Value =
        serde_json::from_str(&rbees_orcd::http::openapi::text().expect("JSON")).expect("JSON");
    assert_eq!(document["openapi"], "3.1.0");
    for path in [
        "/v2/tasks",
        "/v2/tasks/{id}",
        "/v2/tasks/{id}/events",
        "/v2/tasks/{id}/why",
        "/v2/pools/{id}/workers/spawn",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}
