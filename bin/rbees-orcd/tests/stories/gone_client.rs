//! A client whose machine vanishes: no packet comes from it any more, not even a goodbye.

use std::process::Child;
use std::time::Duration;

use serde_json::json;

use crate::daemon::{Daemon, until};
use crate::machine::Machine;
use crate::worker::Worker;

/// Ends a client when a test is over, however it ends.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A request that makes a job and reads its stream.
fn requests(here: &str, port: u16) -> [String; 2] {
    let stream = json!({ "stream": true, "messages": [{ "role": "user", "content": "x" }] }).to_string();
    let task = json!({ "prompt": "x", "on_disconnect": "cancel" }).to_string();
    [("/v1/chat/completions", stream), ("/v2/tasks?stream=true", task)].map(|(path, body)| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nHost: {here}:{port}\r\nContent-Length: {length}\r\n\r\n{body}")
    })
}

#[tokio::test]
async fn a_client_whose_machine_vanished_counts_as_gone() {
    for which in [0, 1] {
        let Some(machine) = Machine::plug_in() else { return };
        let daemon = Daemon::start_with(|config| {
            config.bind = format!("{}:0", machine.here).parse().expect("an address");
            config.limits.silent_time = Duration::from_secs(1);
            config.settings.disconnect_grace_ms = 50;
        })
        .await;
        let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
        worker.allow(3);
        let port = daemon.server.address.port();
        let _client = Client(machine.ask(port, &requests(&machine.here, port)[which]));
        let job = until("the run began", || async { Some(worker.executed().first()?.job_id.clone()) }).await;
        daemon.until_status(&job, "running").await;
        machine.pull_the_plug();
        daemon.until_status(&job, "cancelled").await;
    }
}
