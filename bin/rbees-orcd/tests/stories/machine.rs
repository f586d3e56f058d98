//! Another machine, as far as the network can tell.

use std::process::{Child, Command, Stdio};

/// A machine of its own on a cable of its own, as far as the network can tell.
pub struct Machine {
    name: String,
    /// Our address on its cable.
    pub here: String,
    /// Its own.
    pub there: String,
}

impl Machine {
    /// `None`, with the reason on stderr, where we may not make one.
    pub fn plug_in() -> Option<Self> {
        let pid = std::process::id();
        let net = format!("10.{}.{}", 100 + (pid >> 8) % 100, pid % 256);
        let machine = Self { name: format!("rb{pid}"), here: format!("{net}.1"), there: format!("{net}.2") };
        let (name, cable) = (&machine.name, machine.cable());
        let made = ip(&["netns", "add", name])
            && ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", name])
            && ip(&["addr", "add", &format!("{}/24", machine.here), "dev", &cable])
            && ip(&["link", "set", &cable, "up"])
            && ip(&["-n", name, "addr", "add", &format!("{}/24", machine.there), "dev", "eth0"])
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
    pub fn ask(&self, port: u16, request: &str) -> Child {
        let script =
            format!("exec 3<>/dev/tcp/{}/{port}; printf %s \"$0\" >&3; exec cat <&3 >/dev/null", self.here);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "bash", "-c", &script, request]);
        command.stdin(Stdio::null()).spawn().expect("a client")
    }

    /// Asks from there, with `Connection: close`, and gives the answer.
    pub fn answer(&self, port: u16, request: &str) -> String {
        let script = format!("exec 3<>/dev/tcp/{}/{port}; printf %s \"$0\" >&3; exec cat <&3", self.here);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "bash", "-c", &script, request]);
        let output = command.stdin(Stdio::null()).output().expect("a client");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn pull_the_plug(&self) {
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
