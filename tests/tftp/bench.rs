//! The workbench: a network namespace with a bridge and the server, joined by a veth pair to one with the clients.
//!
//! A test starts itself again under `unshare`, with user namespaces where it is not root already; nothing of it
//! reaches the machine's own network, and nothing needs to be cleaned up. When it is done, tshark dissects what the
//! server sent.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farrier::config::BridgeName;
use farrier::net::bridge::Bridge;
use farrier::telemetry::Tally;
use farrier::tftp::network::{Doors, TftpHandle, start};
use farrier::tftp::{FileSource, NotServed, Opened, Restraint, TransferReport};
use nix::sched::{CloneFlags, setns};

use crate::dissect::{Capture, Keep};

pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 100);
const INSIDE: &str = "FARRIER_TEST_NAMESPACE";
/// What any one wait in these tests may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `body` in a fresh network namespace; `test` is the path of the calling test.
pub fn in_namespace(test: &str, body: impl FnOnce(&mut Bench)) {
    if std::env::var_os(INSIDE).is_some() {
        return body(&mut Bench::new());
    }
    let flags = if nix::unistd::geteuid().is_root() { "-n" } else { "-rn" };
    let program = std::env::current_exe().expect("our own path");
    let status = Command::new(package("unshare", "util-linux"))
        .arg(flags)
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare starts");
    assert!(status.success(), "{test} failed in its namespace");
}

/// The name of a program that must be installed; the Debian package to install if it is not.
pub fn package(program: &'static str, package: &str) -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|directory| directory.join(program).is_file());
    assert!(found, "`{program}` is not installed; this test needs the Debian package `{package}`");
    program
}

/// Files in memory, and what became of them.
#[derive(Default)]
pub struct Memory {
    files: BTreeMap<Vec<u8>, Bytes>,
    reports: Mutex<Vec<TransferReport>>,
    reported: Condvar,
}

impl FileSource for Memory {
    fn open(&self, _peer: SocketAddrV4, name: &[u8]) -> Result<Opened, NotServed> {
        let bytes = self.files.get(name).cloned().ok_or(NotServed::NotFound)?;
        Ok(Opened { bytes, ticket: name.len() as u64, restraint: Restraint::default() })
    }

    fn finished(&self, report: TransferReport) {
        self.reports.lock().unwrap().push(report);
        self.reported.notify_all();
    }
}

impl Memory {
    /// Waits for the report `wanted` picks.
    pub fn report(&self, wanted: impl Fn(&TransferReport) -> bool) -> TransferReport {
        let deadline = Instant::now() + PATIENCE;
        let mut reports = self.reports.lock().unwrap();
        loop {
            if let Some(report) = reports.iter().find(|report| wanted(report)) {
                return report.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no such report among {reports:#?}");
            reports = self.reported.wait_timeout(reports, left).unwrap().0;
        }
    }

    pub fn reports(&self) -> usize {
        self.reports.lock().unwrap().len()
    }
}

pub struct Bench {
    pub bridge: Bridge,
    pub tally: Arc<Tally>,
    pub directory: tempfile::TempDir,
    /// Keeps the clients' namespace alive until its standard input closes.
    holder: Child,
    server: Option<TftpHandle>,
    capture: Option<Capture>,
}

impl Bench {
    fn new() -> Self {
        ip(&["link", "set", "lo", "up"]);
        let mut holder = Command::new(package("unshare", "util-linux"))
            .args(["-n", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the clients' namespace");
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        let pid = holder.id().to_string();
        ip(&["link", "add", "bench0", "type", "bridge"]);
        ip(&["addr", "add", "192.168.2.2/24", "dev", "bench0"]);
        ip(&["link", "set", "bench0", "up"]);
        ip(&["link", "add", "port0", "type", "veth", "peer", "name", "nic0", "netns", &pid]);
        ip(&["link", "set", "port0", "master", "bench0", "up"]);
        let directory = tempfile::tempdir().unwrap();
        let capture = Capture::start("bench0", &directory.path().join("bench.pcap"), Keep::Beginnings);
        let bench = Self {
            bridge: Bridge::find(&BridgeName("bench0".to_owned()), "192.168.2.2/24".parse().unwrap())
                .unwrap(),
            tally: Arc::default(),
            directory,
            holder,
            server: None,
            capture: Some(capture),
        };
        for arguments in ["addr add 192.168.2.100/24 dev nic0", "link set nic0 up", "link set lo up"] {
            bench.client("ip", "iproute2", &arguments.split(' ').collect::<Vec<_>>());
        }
        bench
    }

    pub fn serve(&mut self, files: impl IntoIterator<Item = (String, Bytes)>) -> Arc<Memory> {
        let files = files.into_iter().map(|(name, bytes)| (name.into_bytes(), bytes)).collect();
        let memory = Arc::new(Memory { files, ..Default::default() });
        let source: Arc<dyn FileSource> = memory.clone();
        let doors = Doors::open(&self.bridge).expect("port 69");
        self.server =
            Some(start(self.bridge.clone(), doors, source, Arc::clone(&self.tally)).expect("port 69"));
        memory
    }

    pub fn stop(&mut self) {
        self.server.take().expect("running").stop();
    }

    /// A command that will run in the clients' namespace, in the scratch directory.
    pub fn client_command(&self, program: &'static str, of_package: &str) -> Command {
        let mut command = Command::new(package("nsenter", "util-linux"));
        command.arg(format!("--net={}", self.client_namespace().display()));
        command.arg(package(program, of_package)).current_dir(self.directory.path());
        command
    }

    pub fn client(&self, program: &'static str, of_package: &str, arguments: &[&str]) -> Output {
        let output = self.client_command(program, of_package).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
        output
    }

    fn client_namespace(&self) -> PathBuf {
        Path::new("/proc").join(self.holder.id().to_string()).join("ns/net")
    }

    /// Runs `body` on a thread that lives in the clients' namespace.
    pub fn as_client<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.client_namespace()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("the clients' namespace");
                body()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A UDP socket of the client, bound to `address`; receiving from it fails after a while.
    pub fn socket(&self, address: Ipv4Addr) -> UdpSocket {
        self.as_client(|| {
            let socket = UdpSocket::bind((address, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }

    pub fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.directory.path().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        if let Some(capture) = self.capture.take()
            && !std::thread::panicking()
        {
            capture.insist();
        }
    }
}

pub fn ip(arguments: &[&str]) {
    let output = Command::new(package("ip", "iproute2")).args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
}

/// Bytes that differ from block to block, whatever the block's size.
pub fn content(size: usize) -> Bytes {
    (0..size).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect::<Vec<_>>().into()
}
