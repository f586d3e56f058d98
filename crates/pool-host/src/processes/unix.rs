//! What the kernel knows of a process, and signals that cannot hit another one.

use std::os::fd::OwnedFd;

use api_types::pool::ProcessIdentity;
use rustix::process::{Pid, PidfdFlags, Signal};

/// A live process, pinned: its number can pass to another one, this handle cannot.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// The process of this identity, when it still lives.
    pub fn open(expected: &ProcessIdentity) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(expected.pid).ok()?)?;
        let pinned = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at after it was pinned: if it is ours now, the pinned one is ours.
        (identity(expected.pid).as_ref() == Some(expected)).then_some(Self(pinned))
    }

    /// Sends a signal; a process that has ended meanwhile gets none, nor does anybody else.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(&self.0, signal);
    }
}

/// Who a number is right now: number, start time and boot. `None` for none and for a zombie.
pub fn identity(pid: u32) -> Option<ProcessIdentity> {
    let stat = Stat::read(pid)?;
    let dead = matches!(stat.state, b'Z' | b'X' | b'x');
    (!dead).then_some(ProcessIdentity { pid, start_ticks: stat.start_ticks, boot_id: boot_id()? })
}

/// This boot of the machine.
pub(super) fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// Numbers of all processes that can be seen.
pub(super) fn pids() -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The session a process belongs to.
pub(super) fn session(pid: u32) -> Option<u32> {
    Stat::read(pid).map(|stat| stat.session)
}

pub(super) fn leads_its_session(pid: u32) -> bool {
    session(pid) == Some(pid)
}

/// The environment a process was started with; only its own user may read it.
pub(super) fn environment(pid: u32) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{pid}/environ")).ok()
}

pub(super) fn variable(environment: &[u8], name: &str) -> Option<String> {
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// The part of `/proc/PID/stat` that is used.
struct Stat {
    state: u8,
    session: u32,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command's name stands in parentheses and may hold any character, so what follows the
    /// last one is read.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let session = fields.nth(2)?.parse().ok()?;
        let start_ticks = fields.nth(15)?.parse().ok()?;
        Some(Self { state, session, start_ticks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_parentheses_and_spaces_does_not_confuse() {
        let text = "42 (a) b) S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11\n";
        let stat = Stat::parse(text).expect("readable");
        assert_eq!((stat.state, stat.session, stat.start_ticks), (b'S', 43, 987_654));
    }

    #[test]
    fn this_process_is_itself_and_no_other() {
        let me = identity(std::process::id()).expect("alive");
        assert!(Handle::open(&me).is_some());
        assert!(Handle::open(&ProcessIdentity { start_ticks: me.start_ticks + 1, ..me.clone() }).is_none());
        assert!(Handle::open(&ProcessIdentity { boot_id: "another".into(), ..me.clone() }).is_none());
        assert!(Handle::open(&ProcessIdentity { pid: 0, ..me }).is_none());
    }

    #[test]
    fn a_zombie_is_gone() {
        let mut child = std::process::Command::new("true").spawn().expect("true starts");
        let pid = child.id();
        while session(pid).is_some() && identity(pid).is_some() {
            std::thread::yield_now();
        }
        assert!(session(pid).is_some(), "it has not been reaped");
        assert_eq!(identity(pid), None);
        child.wait().expect("reaped");
    }
}
