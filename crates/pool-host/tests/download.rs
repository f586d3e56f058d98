//! Downloads against a server that misbehaves in every way known to us.

mod support;

use api_types::ErrorCode;
use pool_host::download::Wanted;
use support::{Reply, Request, Server, body, correct, downloader, reply, sha256};

const LEN: usize = 300_000;
const TAG: &str = "\"one\"";

struct Case {
    folder: tempfile::TempDir,
    server: Server,
}

impl Case {
    fn new(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), server: Server::start(answer) }
    }

    fn wanted(&self) -> Wanted {
        let bytes = body(LEN);
        Wanted {
            url: format!("{}/file", self.server.url),
            bearer: None,
            name: "file".into(),
            size: Some(LEN as u64),
            sha256: Some(sha256(&bytes)),
            to: self.folder.path().join("deep/file"),
        }
    }

    /// The download succeeds with the right bytes, and nothing is left beside them.
    async fn succeeds(&self, wanted: Wanted) {
        let fetched = downloader().fetch(&wanted).await.expect("fetched");
        assert_eq!(fetched.sha256, sha256(&body(LEN)));
        assert_eq!(std::fs::read(&wanted.to).expect("there"), body(LEN));
        let left: Vec<_> = std::fs::read_dir(wanted.to.parent().expect("a folder"))
            .expect("readable")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
            .filter(|name| !name.ends_with("-lock"))
            .collect();
        assert_eq!(left, ["file"]);
    }

    async fn fails(&self, wanted: Wanted) -> api_types::ErrorDetail {
        let error = downloader().fetch(&wanted).await.expect_err("refused");
        assert!(!wanted.to.exists(), "an unverified file must not have its name");
        error
    }

    /// Where each request began.
    fn starts(&self) -> Vec<Option<u64>> {
        self.server.requests().iter().map(|request| request.from).collect()
    }
}

#[tokio::test]
async fn a_whole_file_comes_in_one_request_and_is_not_fetched_again() {
    let case = Case::new(|request, _| correct(request, &body(LEN), TAG));
    case.succeeds(case.wanted()).await;
    case.succeeds(case.wanted()).await;
    assert_eq!(case.starts(), [None]);
}

#[tokio::test]
async fn a_dropped_connection_is_resumed_where_it_ended() {
    let case = Case::new(|request, number| match number {
        0 => correct(request, &body(LEN), TAG).cut(100_000),
        1 => correct(request, &body(LEN), TAG).cut(50_000),
        _ => correct(request, &body(LEN), TAG),
    });
    case.succeeds(case.wanted()).await;
    assert_eq!(case.starts(), [None, Some(100_000), Some(150_000)]);
    assert_eq!(case.server.requests()[1].if_range.as_deref(), Some(TAG));
}

#[tokio::test]
async fn silence_is_ended_and_resumed() {
    let case = Case::new(|request, number| match number {
        0 => correct(request, &body(LEN), TAG).cut(100_000).stalled(),
        _ => correct(request, &body(LEN), TAG),
    });
    case.succeeds(case.wanted()).await;
    assert_eq!(case.starts(), [None, Some(100_000)]);
}

#[tokio::test]
async fn a_file_that_changed_half_way_is_fetched_anew() {
    let case = Case::new(|request, number| match number {
        0 => correct(request, &vec![7; LEN], "\"old\"").cut(100_000),
        _ => correct(request, &body(LEN), TAG),
    });
    case.succeeds(case.wanted()).await;
    assert_eq!(case.server.requests()[1].if_range.as_deref(), Some("\"old\""));
}

#[tokio::test]
async fn a_server_that_ignores_the_tag_is_caught_by_the_hash() {
    let case = Case::new(|request, number| match number {
        0 => correct(request, &vec![7; LEN], TAG).cut(100_000),
        _ => correct(request, &body(LEN), TAG),
    });
    // The first process dies with a part of another file.
    std::fs::create_dir_all(case.folder.path().join("deep")).expect("made");
    std::fs::write(case.folder.path().join("deep/file.rbees-part"), vec![7; 100_000]).expect("written");
    let version = format!(r#"{{"etag":{TAG:?},"total":{LEN}}}"#);
    std::fs::write(case.folder.path().join("deep/file.rbees-part.json"), version).expect("written");
    let wanted = case.wanted();
    let good = Server::start(|request, _| correct(request, &body(LEN), TAG));
    case.succeeds(Wanted { url: format!("{}/file", good.url), ..wanted }).await;
    let starts: Vec<_> = good.requests().iter().map(|request| request.from).collect();
    assert_eq!(starts, [Some(100_000), None]);
}

#[tokio::test]
async fn a_part_longer_than_the_file_begins_anew() {
    let case = Case::new(|request, _| correct(request, &body(LEN), TAG));
    std::fs::create_dir_all(case.folder.path().join("deep")).expect("made");
    std::fs::write(case.folder.path().join("deep/file.rbees-part"), vec![7; LEN + 5]).expect("written");
    std::fs::write(case.folder.path().join("deep/file.rbees-part.json"), r#"{"etag":null,"total":null}"#)
        .expect("written");
    case.succeeds(case.wanted()).await;
    assert_eq!(case.starts(), [Some(LEN as u64 + 5), None]);
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_begins_anew() {
    let case = Case::new(|request, number| match number {
        0 => correct(request, &body(LEN), TAG).cut(100_000),
        1 => correct(&Request { from: Some(5), ..request.clone() }, &body(LEN), TAG),
        _ => correct(request, &body(LEN), TAG),
    });
    case.succeeds(case.wanted()).await;
    assert_eq!(case.starts(), [None, Some(100_000), None]);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_thrown_away() {
    let case = Case::new(|request, _| correct(request, &vec![7; LEN], TAG));
    let error = case.fails(case.wanted()).await;
    assert_eq!(error.code, ErrorCode::ChecksumMismatch);
    assert!(error.message.contains(&sha256(&body(LEN))), "{}", error.message);
    assert!(!case.folder.path().join("deep/file.rbees-part").exists());
}

#[tokio::test]
async fn another_length_is_refused_before_its_bytes() {
    let case = Case::new(|request, _| correct(request, &body(LEN + 1), TAG));
    assert_eq!(case.fails(case.wanted()).await.code, ErrorCode::ChecksumMismatch);
}

#[tokio::test]
async fn statuses_mean_what_they_say() {
    for (status, code) in [
        ("401 Unauthorized", ErrorCode::GatedModel),
        ("403 Forbidden", ErrorCode::GatedModel),
        ("404 Not Found", ErrorCode::ModelNotFound),
        ("418 I'm a teapot", ErrorCode::DownloadFailed),
        ("500 Oops", ErrorCode::DownloadFailed),
    ] {
        let case = Case::new(move |_, _| reply(status, &[], b"no"));
        assert_eq!(case.fails(case.wanted()).await.code, code, "{status}");
        let tries = if status.starts_with('5') { 4 } else { 1 };
        assert_eq!(case.starts().len(), tries, "{status}");
    }
}

#[tokio::test]
async fn a_busy_server_is_waited_for_as_long_as_it_says() {
    let case = Case::new(|request, number| match number {
        0 => reply("429 Too Many Requests", &[("Retry-After", "1")], b""),
        1 => reply("503 Service Unavailable", &[], b""),
        _ => correct(request, &body(LEN), TAG),
    });
    let begun = std::time::Instant::now();
    case.succeeds(case.wanted()).await;
    assert!(begun.elapsed() >= std::time::Duration::from_secs(1), "it did not wait");
    assert_eq!(case.starts().len(), 3);
}

#[tokio::test]
async fn a_redirect_to_another_server_gets_no_token() {
    let files = std::sync::Arc::new(Server::start(|request, _| correct(request, &body(LEN), TAG)));
    let target = format!("{}/blob", files.url);
    let case = Case::new(move |_, _| reply("302 Found", &[("Location", &target)], b""));
    case.succeeds(Wanted { bearer: Some("hf_secret".into()), ..case.wanted() }).await;
    assert_eq!(case.server.requests()[0].auth.as_deref(), Some("Bearer hf_secret"));
    assert_eq!(files.requests()[0].auth, None);
}

#[tokio::test]
async fn what_arrived_is_kept_when_the_server_gives_up() {
    let case = Case::new(|request, number| match number {
        0 => correct(request, &body(LEN), TAG).cut(100_000),
        1..=10 => reply("500 Oops", &[], b""),
        _ => correct(request, &body(LEN), TAG),
    });
    let error = case.fails(case.wanted()).await;
    assert_eq!(error.code, ErrorCode::DownloadFailed);
    assert!(error.message.contains("100000 bytes are kept"), "{}", error.message);
    let part = case.folder.path().join("deep/file.rbees-part");
    assert_eq!(part.metadata().expect("kept").len(), 100_000);
}

#[tokio::test]
async fn a_disk_without_room_is_told_before_the_first_byte() {
    let case = Case::new(|request, _| correct(request, &body(LEN), TAG));
    let error = case.fails(Wanted { size: Some(1 << 60), ..case.wanted() }).await;
    assert_eq!(error.code, ErrorCode::StorageFull);
    assert!(case.starts().is_empty());
}
