//! A real SSH server on loopback with keys of its own, for this test only.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running `sshd`, ended with the value.
pub struct Sshd {
    dir: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Sshd {
    /// Starts a server whose users have an empty home folder.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("rb").tempdir().expect("a temporary folder");
        make_key(&dir.path().join("host_key"));
        make_key(&dir.path().join("user_key"));
        let path = |name: &str| dir.path().join(name);
        std::fs::copy(path("user_key.pub"), path("authorized_keys")).expect("copied");
        std::fs::create_dir(path("home")).expect("created");
        let (port, process) = start_server(dir.path());
        let sshd = Self { dir, port, process };
        sshd.trust_host_key();
        sshd.write_client_config();
        sshd
    }

    /// The folder of this server.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The home folder that a login gets.
    pub fn home(&self) -> PathBuf {
        self.dir().join("home")
    }

    /// A client configuration in which `testhost` is this server.
    pub fn client_config(&self) -> PathBuf {
        self.dir().join("ssh_config")
    }

    /// Lets clients know this server's host key.
    pub fn trust_host_key(&self) {
        let key = std::fs::read_to_string(self.dir().join("host_key.pub")).expect("a key");
        self.write_known_hosts(&key);
    }

    /// Lets clients remember another host key than this server has.
    pub fn trust_another_key(&self) {
        let other = self.dir().join("other_key");
        make_key(&other);
        self.write_known_hosts(&std::fs::read_to_string(other.with_extension("pub")).expect("a key"));
    }

    /// Lets clients know no host key.
    pub fn forget_host_key(&self) {
        std::fs::write(self.dir().join("known_hosts"), "").expect("written");
    }

    /// Takes away the right to log in.
    pub fn refuse_logins(&self) {
        std::fs::write(self.dir().join("authorized_keys"), "").expect("written");
    }

    fn write_known_hosts(&self, key: &str) {
        let line = format!("[127.0.0.1]:{} {key}", self.port);
        std::fs::write(self.dir().join("known_hosts"), line).expect("written");
    }

    fn write_client_config(&self) {
        let dir = self.dir().display();
        let config = format!(
            "Host testhost\n HostName 127.0.0.1\n Port {}\n IdentityFile {dir}/user_key\n IdentitiesOnly yes\n \
             UserKnownHostsFile {dir}/known_hosts\n GlobalKnownHostsFile /dev/null\n\
             Host closedhost\n HostName 127.0.0.1\n Port 1\n\
             Host namelesshost\n HostName does-not-exist.invalid\n",
            self.port
        );
        std::fs::write(self.client_config(), config).expect("written");
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn make_key(path: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
    assert!(made.expect("ssh-keygen of the OpenSSH client is installed").success());
}

/// Starts the server on a free port; another one is tried when somebody takes it meanwhile.
fn start_server(dir: &Path) -> (u16, Child) {
    // Run by root, sshd insists on its own empty folder.
    let _ = std::fs::create_dir_all("/run/sshd");
    for _ in 0..20 {
        let port = free_port();
        let mut process = Command::new(sshd_program())
            .args(["-D", "-e", "-f"])
            .arg(write_server_config(dir, port))
            .stderr(Stdio::piped())
            .spawn()
            .expect("sshd of the package openssh-server is installed");
        if listens(&mut process) {
            return (port, process);
        }
        let _ = process.wait();
    }
    panic!("sshd did not start");
}

fn sshd_program() -> PathBuf {
    let found =
        ["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"].into_iter().find(|path| Path::new(path).exists());
    found.expect("sshd of the package openssh-server is installed").into()
}

fn write_server_config(dir: &Path, port: u16) -> PathBuf {
    let shown = dir.display();
    let config = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {shown}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n\
         AuthorizedKeysFile {shown}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PermitRootLogin yes\nSetEnv HOME={shown}/home\nMaxStartups 100\n"
    );
    let path = dir.join("sshd_config");
    std::fs::write(&path, config).expect("written");
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Waits for the line that says the server listens, then keeps its log flowing.
fn listens(process: &mut Child) -> bool {
    let mut log = BufReader::new(process.stderr.take().expect("piped"));
    let mut line = String::new();
    loop {
        line.clear();
        if log.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        if line.contains("Server listening") {
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return true;
        }
    }
}

/// Writes a program that may be run.
pub fn write_program(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("executable");
}
