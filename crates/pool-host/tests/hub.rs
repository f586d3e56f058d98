//! The Hub's listing and the standard cache, against a local server.

mod support;

use std::path::Path;

use api_types::{ErrorCode, ErrorDetail};
use pool_host::Home;
use pool_host::hub::{HubModel, HubSettings, Request as Ask, fetch};
use support::{Reply, Request, Server, body, correct, downloader, reply, sha256};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const README: &str = "89abcdef0123456789abcdef0123456789abcdef";

fn listing() -> String {
    let model = body(5000);
    serde_json::json!({
        "sha": COMMIT,
        "siblings": [
            { "rfilename": "README.md", "size": 3, "blobId": README },
            { "rfilename": "sub/m.Q8_0.gguf", "size": 9, "lfs": { "sha256": "c".repeat(64) } },
            { "rfilename": "sub/m.Q4_1.gguf", "size": model.len(), "lfs": { "sha256": sha256(&model) } },
        ],
    })
    .to_string()
}

fn hub(request: &Request) -> Reply {
    match request.path.as_str() {
        "/api/models/org/repo/revision/main?blobs=true" => reply("200 OK", &[], listing().as_bytes()),
        path if path == format!("/org/repo/resolve/{COMMIT}/sub/m.Q4_1.gguf") => {
            correct(request, &body(5000), "\"x\"")
        }
        _ => reply("404 Not Found", &[], b""),
    }
}

fn settings(server: &Server, token: Option<&str>, cache: Option<&Path>) -> HubSettings {
    HubSettings {
        endpoint: server.url.clone(),
        token: token.map(Into::into),
        offline: false,
        cache: cache.map(Into::into),
    }
}

async fn get(
    server: &Server,
    token: Option<&str>,
    home: &Home,
    ask: Ask<'_>,
) -> Result<HubModel, ErrorDetail> {
    fetch(&downloader(), &settings(server, token, None), home, ask).await
}

fn ask(file: Option<&'static str>) -> Ask<'static> {
    Ask { repo: "org/repo", revision: None, file, sha256: None }
}

#[tokio::test]
async fn a_model_lands_in_the_standard_cache_layout() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::at(folder.path()).expect("a home");
    let server = Server::start(|request, _| hub(request));
    let model = get(&server, Some("hf_x"), &home, ask(None)).await.expect("fetched");
    assert_eq!((model.commit.as_str(), model.format), (COMMIT, "gguf"));
    let repo = home.models().join("models--org--repo");
    let link = repo.join("snapshots").join(COMMIT).join("sub/m.Q4_1.gguf");
    assert_eq!(model.files, [(link.clone(), 5000, sha256(&body(5000)))]);
    assert_eq!(
        std::fs::canonicalize(&link).expect("a link"),
        repo.canonicalize().expect("there").join("blobs").join(sha256(&body(5000)))
    );
    assert_eq!(std::fs::read(&link).expect("readable"), body(5000));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).expect("noted"), COMMIT);
    assert!(server.requests().iter().all(|request| request.auth.as_deref() == Some("Bearer hf_x")));
    get(&server, None, &home, ask(None)).await.expect("found again");
    let fetches = server.requests().iter().filter(|request| request.path.contains("resolve")).count();
    assert_eq!(fetches, 1);
}

#[tokio::test]
async fn another_hash_than_the_pinned_one_costs_no_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::at(folder.path()).expect("a home");
    let server = Server::start(|request, _| hub(request));
    let pinned = "d".repeat(64);
    let wanted = Ask { sha256: Some(&pinned), ..ask(Some("sub/m.Q4_1.gguf")) };
    let error = get(&server, None, &home, wanted).await.expect_err("another file");
    assert_eq!(error.code, ErrorCode::ChecksumMismatch);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::at(folder.path()).expect("a home");
    for (status, token, code, words) in [
        ("401 Unauthorized", None, ErrorCode::GatedModel, "HF_TOKEN is not set"),
        ("403 Forbidden", Some("hf_x"), ErrorCode::GatedModel, "may not read it"),
        ("404 Not Found", None, ErrorCode::ModelNotFound, "no repository org/repo"),
        ("500 Oops", None, ErrorCode::DownloadFailed, "500"),
    ] {
        let server = Server::start(move |_, _| reply(status, &[], b""));
        let error = get(&server, token, &home, ask(None)).await.expect_err(status);
        assert_eq!(error.code, code, "{status}");
        assert!(error.message.contains(words), "{}", error.message);
        assert!(!format!("{error:?}").contains("hf_x"), "the token is shown");
    }
}

#[tokio::test]
async fn a_busy_hub_is_asked_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::at(folder.path()).expect("a home");
    let server = Server::start(|request, number| match number {
        0 => reply("429 Too Many Requests", &[("Retry-After", "0")], b""),
        _ => hub(request),
    });
    get(&server, None, &home, ask(None)).await.expect("fetched");
}

#[tokio::test]
async fn a_hostile_listing_writes_nothing_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::at(&folder.path().join("home")).expect("a home");
    for (path, blob) in [("../../../evil.gguf", "c".repeat(64)), ("m.gguf", "../../../evil".to_owned())] {
        let listing = serde_json::json!({ "sha": COMMIT, "siblings": [
            { "rfilename": path, "size": 3, "lfs": { "sha256": blob } },
        ] });
        let server = Server::start(move |_, _| reply("200 OK", &[], listing.to_string().as_bytes()));
        let error = get(&server, None, &home, ask(None)).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::DownloadFailed);
    }
    assert!(!folder.path().join("evil.gguf").exists() && !folder.path().join("evil").exists());
}
