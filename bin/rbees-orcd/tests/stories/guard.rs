//! Who may speak to the daemon at all.

use rbees_orcd::config::{Config, Layers};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::daemon::{Daemon, answer, until};

/// Sends bytes as they are, reads until the daemon closes the connection.
async fn raw(daemon: &Daemon, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(daemon.server.address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("read");
    text
}

#[tokio::test]
async fn only_our_own_names_are_taken_as_host() {
    let daemon = Daemon::start_with(|config| config.allowed_hosts = vec!["bees.home.arpa".to_owned()]).await;
    let port = daemon.server.address.port();
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 200),
        ("localhost".to_owned(), 200),
        (format!("LOCALHOST:{port}"), 200),
        ("[::1]:9".to_owned(), 200),
        ("bees.home.arpa".to_owned(), 200),
        ("evil.example".to_owned(), 421),
        ("localhost.evil.example".to_owned(), 421),
        ("192.168.1.1".to_owned(), 421),
        ("user@localhost".to_owned(), 421),
        (String::new(), 421),
    ] {
        let text =
            raw(&daemon, &format!("GET /healthz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
                .await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{host:?}: {text}");
        assert_eq!(status == 421, text.contains("HOST_NOT_ALLOWED"), "{host:?}: {text}");
    }
    for request in [
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n",
        "GET http://evil.example/healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    ] {
        assert!(raw(&daemon, request).await.contains("421"), "{request}");
    }
}

#[tokio::test]
async fn pages_of_other_sites_are_refused() {
    let daemon = Daemon::start().await;
    for (header, value, status) in [
        ("origin", "http://localhost:5173", 404),
        ("origin", "http://evil.example", 403),
        ("origin", "null", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "same-origin", 404),
    ] {
        let request = daemon.http.post(daemon.url("/v2/tasks/x/cancel")).header(header, value);
        assert_eq!(answer(request).await.0, status, "{header}: {value}");
    }
}

#[tokio::test]
async fn a_credential_is_asked_for_everywhere_but_on_health() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "0123456789abcdef-token\n").expect("written");
    let mut layers = Layers::defaults();
    layers.set_flag("token_file", &file.to_string_lossy());
    layers.set_flag("home", &folder.path().to_string_lossy());
    let token = Config::from_layers(&layers).expect("a valid configuration").token;
    let daemon = Daemon::start_with(|config| config.token = token).await;
    for (path, bearer, status) in [
        ("/health", None, 200),
        ("/healthz", None, 200),
        ("/readyz", None, 200),
        ("/v2/tasks", None, 401),
        ("/metrics", None, 401),
        ("/v1/models", Some("wrong"), 401),
        ("/v2/tasks", Some("0123456789abcdef-token"), 200),
    ] {
        let mut request = daemon.http.get(daemon.url(path));
        if let Some(token) = bearer {
            request = request.bearer_auth(token);
        }
        assert_eq!(answer(request).await.0, status, "{path} with {bearer:?}");
    }
}

#[test]
fn other_machines_are_not_let_in_by_accident() {
    let mut layers = Layers::defaults();
    layers.set_flag("bind", "0.0.0.0:8080");
    layers.set_flag("home", "/nowhere");
    let problems = Config::from_layers(&layers).expect_err("refused");
    let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 2, "{text:?}");
    assert!(text[0].contains("credential") && text[0].contains("flag --bind"), "{text:?}");
    assert!(text[1].contains("TLS"), "{text:?}");
}

#[tokio::test]
async fn a_correlation_id_is_taken_or_made() {
    let daemon = Daemon::start().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (header, value, expected) in [
        ("x-correlation-id", "my-id-7", Some("my-id-7")),
        ("x-correlation-id", "not/an id", None),
        ("traceparent", trace, Some("0af7651916cd43dd8448eb211c80319c")),
    ] {
        let request = daemon.http.post(daemon.url("/v2/tasks")).header(header, value);
        let answer = request.body(json!({}).to_string()).send().await.expect("an answer");
        let given = answer.headers()["x-correlation-id"].to_str().expect("text").to_owned();
        let body: serde_json::Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"]["correlation_id"], given);
        match expected {
            Some(expected) => assert_eq!(given, expected),
            None => assert!(given.len() == 32 && given != value),
        }
    }
}

#[tokio::test]
async fn one_orchestrator_per_folder() {
    let daemon = Daemon::start().await;
    let error =
        rbees_orcd::server::Server::start(Config::for_tests(daemon.folder())).await.expect_err("in use");
    let text = error.to_string();
    assert!(text.contains(&format!("http://{}", daemon.server.address)), "{text}");
}

#[tokio::test]
async fn slow_headers_are_given_up() {
    let change = |config: &mut Config| config.limits.header_time = std::time::Duration::from_millis(50);
    let daemon = Daemon::start_with(change).await;
    // Returns only because the daemon closes the connection.
    let text = raw(&daemon, "GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await;
    assert!(!text.contains("200 OK"), "{text}");
}

#[tokio::test]
async fn more_connections_than_allowed_are_turned_away_until_there_is_a_place() {
    let daemon = Daemon::start_with(|config| config.limits.connections = 1).await;
    let first = tokio::net::TcpStream::connect(daemon.server.address).await.expect("connected");
    let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let second = raw(&daemon, request).await;
    assert!(second.starts_with("HTTP/1.1 503") && second.contains("TOO_MANY_STREAMS"), "{second}");
    drop(first);
    until("there is a place", || async {
        raw(&daemon, request).await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    assert!(daemon.metric("rbees_orcd_connections_refused_total").await >= 1);
}

#[tokio::test]
async fn made_up_methods_make_one_metric_and_not_one_each() {
    let daemon = Daemon::start().await;
    for method in ["BREW", "STEEP", "POUR"] {
        let text = raw(
            &daemon,
            &format!("{method} /v2/tasks HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert!(text.starts_with("HTTP/1.1 405 "), "{text}");
    }
    let metrics = raw(&daemon, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(metrics.contains("route=\"other /v2/tasks\",status=\"405\"} 3"), "{metrics}");
    assert!(!metrics.contains("BREW"), "{metrics}");
}
