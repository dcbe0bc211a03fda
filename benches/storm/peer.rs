//! The peer: dnsmasq for DHCP and TFTP, nginx for the rest, on a bridge of this process's own namespace.

use std::fs::{self, File};
use std::net::{SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use farrier::net::sys;
use farrier::storm::ground;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::{KERNEL_KIB, RAMDISK_KIB};

// As in the lab that `farrier storm` makes for itself.
pub const BRIDGE: &str = "storm";
pub const GATEWAY: &str = "10.77.0.3";
const SERVER: &str = "10.77.0.2";
const BEHIND_GATEWAY: [&str; 8] = [
    "10.77.1.0/24",
    "10.77.2.0/23",
    "10.77.4.0/22",
    "10.77.8.0/21",
    "10.77.16.0/20",
    "10.77.32.0/19",
    "10.77.64.0/18",
    "10.77.128.0/17",
];
const INSIDE: &str = "FARRIER_BENCH_NAMESPACE";
const LOADERS: [&str; 2] = ["/usr/lib/ipxe/undionly.kpxe", "/usr/lib/ipxe/ipxe.efi"];
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Returns in the benchmark's own namespace; otherwise runs the benchmark there and ends with its status.
pub fn isolated() {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        // As in the storm's own lab.
        ground::keep_firewall_off_bridges();
        return;
    }
    let flags = if nix::unistd::geteuid().is_root() { "-n" } else { "-rn" };
    let status = Command::new("unshare")
        .arg(flags)
        .arg(std::env::current_exe().expect("our own path"))
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .expect("unshare (package util-linux) starts");
    std::process::exit(status.code().unwrap_or(1));
}

/// Runs a command that has to succeed; its output.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} does not start: {error}; see .ci/packages.txt"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn versions() -> String {
    let version = |package| format!("{package} {}", run("dpkg-query", &["-W", "-f=${Version}", package]));
    format!("{}, {}", version("dnsmasq-base"), version("nginx"))
}

/// Runs; ends when dropped.
pub struct Peer {
    servers: [Child; 2],
}

/// What both have used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub cpu_secs: f64,
    pub peak_memory_bytes: f64,
}

impl Peer {
    /// A fresh bridge, fresh leases, the same files.
    pub fn start(root: &Path) -> Peer {
        prepare_files(&root.join("files"));
        let _ = fs::remove_file(root.join("dnsmasq.leases"));
        make_bridge();
        let dnsmasq = ["--keep-in-foreground", "-C"];
        let servers = [
            launch("dnsmasq", &dnsmasq, &filled(root, "dnsmasq-storm.conf"), &root.join("dnsmasq.log")),
            launch("nginx", &["-c"], &filled(root, "nginx-storm.conf"), &root.join("nginx.log")),
        ];
        let peer = Peer { servers };
        let until = Instant::now() + READY_WITHIN;
        while !is_ready() {
            assert!(
                Instant::now() < until,
                "dnsmasq + nginx do not serve; see the logs in {}",
                root.display()
            );
            look_again();
        }
        peer
    }

    pub fn used(&self) -> Used {
        let roots = self.servers.each_ref().map(Child::id);
        let mut used = Used::default();
        for pid in family(&roots) {
            used.cpu_secs +=
                ticks(pid) as f64 / sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
            used.peak_memory_bytes += peak_kib(pid) as f64 * 1024.0;
        }
        used
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = kill(Pid::from_raw(server.id().cast_signed()), Signal::SIGTERM);
            let _ = server.wait();
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "between two looks at whether it serves; bounded by READY_WITHIN"
)]
fn look_again() {
    thread::sleep(Duration::from_millis(20));
}

fn make_bridge() {
    for earlier in [BRIDGE, "uplink"] {
        // Not there yet, the first time.
        let _ = Command::new("ip").args(["link", "del", earlier]).stderr(Stdio::null()).status();
    }
    run(
        "ip",
        &[
            "link",
            "add",
            BRIDGE,
            "address",
            "02:00:00:00:00:01",
            "type",
            "bridge",
            "forward_delay",
            "0",
            "stp_state",
            "0",
        ],
    );
    run("ip", &["address", "add", &format!("{SERVER}/16"), "dev", BRIDGE]);
    run("ip", &["link", "set", BRIDGE, "up"]);
    // A bridge without a port that is up has no carrier.
    run("ip", &["link", "add", "uplink", "type", "veth", "peer", "name", "cable"]);
    run("ip", &["link", "set", "cable", "arp", "off", "addrgenmode", "none", "up"]);
    run("ip", &["link", "set", "uplink", "master", BRIDGE, "addrgenmode", "none", "up"]);
    for prefix in BEHIND_GATEWAY {
        run("ip", &["route", "add", prefix, "via", GATEWAY, "dev", BRIDGE]);
    }
}

/// Loaders as Debian has them, kernel and ramdisk of noise.
fn prepare_files(files: &Path) {
    fs::create_dir_all(files).expect("a directory below target/");
    for loader in LOADERS {
        let name = Path::new(loader).file_name().expect("it has one");
        fs::copy(loader, files.join(name))
            .unwrap_or_else(|error| panic!("{loader}: {error}; see .ci/packages.txt"));
    }
    for (name, kib) in [("vmlinuz", KERNEL_KIB), ("initrd.img", RAMDISK_KIB)] {
        let path = files.join(name);
        if fs::metadata(&path).map(|metadata| metadata.len()).ok() != Some(kib as u64 * 1024) {
            let noise: Vec<u8> =
                (0..kib * 1024).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
            fs::write(&path, noise).expect("room for a file");
        }
    }
    let script =
        format!("#!ipxe\nkernel http://{SERVER}/vmlinuz quiet\ninitrd http://{SERVER}/initrd.img\nboot\n");
    fs::write(files.join("boot.ipxe"), script).expect("room for a script");
}

/// A configuration of `benches/peers`, its places filled in.
fn filled(root: &Path, name: &str) -> PathBuf {
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name);
    let mut text = fs::read_to_string(&template).expect("a peer's configuration");
    for (place, value) in [
        ("@ROOT@", root.to_str().expect("a path of ours")),
        ("@BRIDGE@", BRIDGE),
        ("@SERVER@", SERVER),
        ("@NETMASK@", "255.255.0.0"),
        ("@POOL_FIRST@", "10.77.1.0"),
        ("@POOL_LAST@", "10.77.254.255"),
    ] {
        text = text.replace(place, value);
    }
    let path = root.join(name);
    fs::write(&path, text).expect("a configuration");
    path
}

fn launch(program: &str, arguments: &[&str], configuration: &Path, log: &Path) -> Child {
    let log = File::create(log).expect("a log");
    let mut command = Command::new(program);
    command.args(arguments).arg(configuration).stdin(Stdio::null());
    command.stdout(log.try_clone().expect("a log")).stderr(log);
    sys::die_with_parent(&mut command)
        .spawn()
        .unwrap_or_else(|error| panic!("{program} does not start: {error}; see .ci/packages.txt"))
}

fn is_ready() -> bool {
    let sockets = fs::read_to_string("/proc/self/net/udp").unwrap_or_default();
    let bound = |port: u16| {
        let wanted = format!(":{port:04X}");
        sockets
            .lines()
            .skip(1)
            .any(|line| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&wanted)))
    };
    let address = SocketAddrV4::new(SERVER.parse().expect("an address"), 80).into();
    bound(67) && bound(69) && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// The processes and their children.
fn family(roots: &[u32]) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let parent = fields(*pid).and_then(|fields| fields.get(1)?.parse::<u32>().ok());
        roots.contains(pid) || parent.is_some_and(|parent| roots.contains(&parent))
    })
    .collect()
}

/// /proc/<pid>/stat from the state on: the name before it may hold anything.
fn fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

/// Of user and system time.
fn ticks(pid: u32) -> u64 {
    let fields = fields(pid).unwrap_or_default();
    fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
