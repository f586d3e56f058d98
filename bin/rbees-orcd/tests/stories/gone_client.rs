//! A client whose machine vanishes: no packet comes from it any more, not even a goodbye.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::daemon::{Daemon, until};
use crate::worker::Worker;

const HERE: &str = "10.213.77.1";
const THERE: &str = "10.213.77.2";

/// A machine of its own on a cable of its own, as far as the network can tell.
struct Machine {
    name: String,
}

impl Machine {
    /// `None`, with the reason on stderr, where we may not make one.
    fn plug_in() -> Option<Self> {
        let machine = Self { name: format!("rb{}", std::process::id()) };
        let (name, cable) = (&machine.name, machine.cable());
        let made = ip(&["netns", "add", name])
            && ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", name])
            && ip(&["addr", "add", &format!("{HERE}/24"), "dev", &cable])
            && ip(&["link", "set", &cable, "up"])
            && ip(&["-n", name, "addr", "add", &format!("{THERE}/24"), "dev", "eth0"])
            && ip(&["-n", name, "link", "set", "eth0", "up"]);
        if !made {
            eprintln!("SKIPPED: a network namespace cannot be made here; run as root with iproute2");
            return None;
        }
        Some(machine)
    }

    /// Our end of its cable.
    fn cable(&self) -> String {
        format!("{}h", self.name)
    }

    /// Asks from there, and reads nothing until it is ended.
    fn ask(&self, port: u16, request: &str) -> Child {
        let script = format!("exec 3<>/dev/tcp/{HERE}/{port}; printf %s \"$0\" >&3; exec cat <&3 >/dev/null");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "bash", "-c", &script, request]);
        command.stdin(Stdio::null()).spawn().expect("a client")
    }

    fn pull_the_plug(&self) {
        assert!(ip(&["-n", &self.name, "link", "set", "eth0", "down"]), "the cable is out");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        ip(&["link", "del", &self.cable()]);
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Ends a client when a test is over, however it ends.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A request that makes a job and reads its stream.
fn requests(port: u16) -> [String; 2] {
    let stream = json!({ "stream": true, "messages": [{ "role": "user", "content": "x" }] }).to_string();
    let task = json!({ "prompt": "x", "on_disconnect": "cancel" }).to_string();
    [("/v1/chat/completions", stream), ("/v2/tasks?stream=true", task)].map(|(path, body)| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nHost: {HERE}:{port}\r\nContent-Length: {length}\r\n\r\n{body}")
    })
}

#[tokio::test]
async fn a_client_whose_machine_vanished_counts_as_gone() {
    for which in [0, 1] {
        let Some(machine) = Machine::plug_in() else { return };
        let daemon = Daemon::start_with(|config| {
            config.bind = format!("{HERE}:0").parse().expect("an address");
            config.limits.silent_time = Duration::from_secs(1);
            config.settings.disconnect_grace_ms = 50;
        })
        .await;
        let worker = Worker::start(&daemon.url(""), &["a", "b"]).await;
        worker.allow(3);
        let port = daemon.server.address.port();
        let _client = Client(machine.ask(port, &requests(port)[which]));
        let job = until("the run began", || async { Some(worker.executed().first()?.job_id.clone()) }).await;
        daemon.until_status(&job, "running").await;
        machine.pull_the_plug();
        daemon.until_status(&job, "cancelled").await;
    }
}
