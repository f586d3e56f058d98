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

fn document() -> serde_json::Value {
    serde_json::from_str(&rbees_orcd::http::openapi::text().expect("JSON")).expect("JSON")
}

/// Every route with its methods, as the router's page of contents has them.
fn routed() -> Vec<(&'static str, &'static str)> {
    let page = include_str!("../../src/http.rs");
    // One path has a name, because the connection looks for it too.
    let page = page.replace("workers::READY_PATH", "\"/v2/workers/ready\"").leak();
    let lines = page.lines().filter_map(|line| line.trim().strip_prefix(".route(\""));
    lines
        .flat_map(|line| {
            let (path, handlers) = line.split_once('"').expect("a closed path");
            let has = move |method: &&str| handlers.contains(&format!("{method}("));
            ["get", "post", "put", "delete", "patch"]
                .into_iter()
                .filter(has)
                .map(move |method| (path, method))
        })
        .collect()
}

#[test]
fn the_document_is_openapi_3_1_and_names_every_method_of_every_route_and_no_other() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let routed = routed();
    assert!(routed.len() >= 45, "{routed:?}");
    for (path, method) in &routed {
        assert!(document["paths"][path][method].is_object(), "{method} {path} is not described");
    }
    let described = document["paths"].as_object().expect("paths").values();
    let described: usize = described.map(|methods| methods.as_object().map_or(0, serde_json::Map::len)).sum();
    assert_eq!(described, routed.len());
}

#[test]
fn the_news_of_the_operator_are_all_named() {
    let document = document();
    let told = document["paths"]["/v2/events"]["get"]["responses"]["200"]["description"].to_string();
    let source = include_str!("../../src/http/events.rs");
    let names = source.split("\"type\": \"").skip(1).filter_map(|rest| rest.split('"').next());
    let missing: Vec<&str> = names.filter(|name| !told.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?} are not in: {told}");
}

#[tokio::test]
async fn the_page_for_people_holds_the_document_and_asks_nobody_for_anything() {
    let daemon = crate::daemon::Daemon::start().await;
    let answer = daemon.http.get(daemon.url("/docs")).send().await.expect("an answer");
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    assert!(
        answer.headers()["content-security-policy"].to_str().expect("text").contains("default-src 'none'")
    );
    let page = answer.text().await.expect("a page");
    let (_, rest) = page.split_once("id=\"openapi\">").expect("the document's element");
    let (held, _) = rest.split_once("</script>").expect("its end");
    assert_eq!(serde_json::from_str::<serde_json::Value>(held).expect("JSON"), document());
    let outside = ["src=", "http://", "https://", "@import", "fetch("];
    let shell = page.replace(held, "");
    assert!(outside.iter().all(|way| !shell.contains(way)), "{shell}");
}
