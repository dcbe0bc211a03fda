//! The test bed: a namespace with the bridge and the servers, and machines on veth ports, each in one of its own.
//!
//! The benchmark starts itself again under `unshare`; nothing of it reaches the machine's own network, and the kernel
//! takes all of it down with the processes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use farrier::config::BridgeName;
use farrier::net::{Bridge, sys};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};

pub const BRIDGE: &str = "bench0";
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 32, 0, 2);
pub const SUBNET: &str = "10.32.0.0/12";
pub const PREFIX: u8 = 12;
pub const NETMASK: &str = "255.240.0.0";
/// Room for half a million leases, and for the clients beside them.
pub const POOL_FIRST: Ipv4Addr = Ipv4Addr::new(10, 33, 0, 0);
pub const POOL_LAST: Ipv4Addr = Ipv4Addr::new(10, 46, 255, 255);
const INSIDE: &str = "FARRIER_BENCH_NAMESPACE";
/// What any one wait may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// True in the benchmark's own namespace; otherwise runs the benchmark there and ends with its status.
pub fn isolated() {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return;
    }
    let flags = if nix::unistd::geteuid().is_root() { "-n" } else { "-rn" };
    let mut command = Command::new("unshare");
    command.arg(flags).arg(std::env::current_exe().expect("our own path")).args(std::env::args_os().skip(1));
    // Whatever ends this process ends the one inside, and that one's servers are bound to it in the same way.
    let mut inside =
        sys::die_with_parent(command.env(INSIDE, "1")).spawn().expect("unshare (package util-linux)");
    let status = inside.wait().expect("our own child");
    std::process::exit(status.code().unwrap_or(1));
}

/// Waits until no other benchmark runs on this machine: they would measure each other. Ends with the file's handle.
pub fn take_turn() -> File {
    let path = std::env::temp_dir().join("farrier-bench.lock");
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    if file.try_lock().is_err() {
        println!("another benchmark runs on this machine (it holds {}): waiting for it", path.display());
        file.lock().expect("a lock can be waited for");
    }
    file
}

/// Runs a command that has to succeed; its output.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} does not start: {error}; see .ci/packages.txt"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Waits for something that must happen.
#[track_caller]
pub fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a UDP socket of this namespace is bound to the port.
pub fn udp_port_is_bound(port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    let sockets = fs::read_to_string("/proc/self/net/udp").unwrap_or_default();
    sockets.lines().skip(1).any(|line| line.split_whitespace().nth(1).is_some_and(|at| at.ends_with(&wanted)))
}

pub struct Bed {
    pub scratch: PathBuf,
    pub machines: Vec<Machine>,
}

/// A network namespace with one NIC on the bridge.
pub struct Machine {
    /// Keeps the namespace alive until its standard input closes.
    holder: Child,
    pub address: Ipv4Addr,
    nic: String,
}

impl Bed {
    /// The bridge with our address, and `machines` ports.
    pub fn new(machines: u8) -> Bed {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("versus");
        fs::create_dir_all(&scratch).expect("a scratch directory below target/");
        let scratch = scratch.canonicalize().expect("it is there");
        run("ip", &["link", "add", BRIDGE, "type", "bridge"]);
        run("ip", &["addr", "add", &format!("{SERVER}/{PREFIX}"), "dev", BRIDGE]);
        run("ip", &["link", "set", BRIDGE, "up"]);
        Bed { scratch, machines: (0..machines).map(Machine::plug_in).collect() }
    }

    pub fn bridge() -> Bridge {
        let address = format!("{SERVER}/{PREFIX}").parse().expect("an address");
        Bridge::find(&BridgeName(BRIDGE.to_owned()), address).expect("the bridge is there")
    }

    pub fn first(&self) -> &Machine {
        &self.machines[0]
    }

    /// An empty directory below the scratch directory.
    pub fn fresh(&self, name: &str) -> PathBuf {
        let path = self.scratch.join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a fresh directory");
        path
    }
}

impl Machine {
    fn plug_in(number: u8) -> Machine {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "echo ready; exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = sys::die_with_parent(&mut command).spawn().expect("a machine's namespace");
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut ready).expect("it says so");
        let pid = holder.id().to_string();
        let (port, nic) = (format!("port{number}"), format!("nic{number}"));
        let veth = ["link", "add", &port, "type", "veth", "peer", "name", &nic, "netns", &pid];
        run("ip", &veth);
        run("ip", &["link", "set", &port, "master", BRIDGE, "up"]);
        let address = Ipv4Addr::new(10, 32, 0, 10 + number);
        let machine = Machine { holder, address, nic: nic.clone() };
        for words in [format!("addr add {address}/{PREFIX} dev {nic}"), format!("link set {nic} up")] {
            machine.run("ip", &words.split(' ').collect::<Vec<_>>());
        }
        machine
    }

    pub fn nic(&self) -> &str {
        &self.nic
    }

    /// A command that will run in this namespace, as this process's child.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg("--").arg(program);
        sys::die_with_parent(&mut command);
        command
    }

    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().expect("nsenter starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {errors}{text}");
        text
    }

    /// More addresses on the same NIC: one machine stands for many.
    pub fn add_addresses(&self, addresses: impl Iterator<Item = Ipv4Addr>) {
        let mut command = self.command("ip");
        let mut child = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip starts");
        let mut stdin = child.stdin.take().expect("piped");
        for address in addresses {
            writeln!(stdin, "addr replace {address}/32 dev {}", self.nic).expect("ip reads");
        }
        drop(stdin);
        assert!(child.wait().expect("ip ends").success(), "addresses on {}", self.nic);
    }

    /// Drops this share of what the machine sends and of what it receives.
    pub fn lose(&self, percent: u32) {
        self.run("nft", &["flush", "ruleset"]);
        if percent == 0 {
            return;
        }
        let rule = format!("ip protocol udp numgen random mod 1000 < {} drop", percent * 10);
        let chain =
            |name, hook| format!("chain {name} {{\n type filter hook {hook} priority 0\n {rule}\n }}\n");
        let rules = format!("table ip loss {{\n{}{}}}\n", chain("there", "output"), chain("back", "input"));
        let mut child = self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
        child.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("nft reads");
        assert!(child.wait().expect("nft ends").success(), "nft refuses:\n{rules}");
    }

    /// Runs `body` on a thread that is in this namespace; sockets it makes stay there.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.holder.id());
        thread::scope(|scope| {
            let there = scope.spawn(move || {
                let namespace = File::open(&path).expect("the namespace is there");
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("we may enter it");
                body()
            });
            there.join().expect("what runs inside does not panic")
        })
    }

    /// What a relay agent on this machine talks with.
    pub fn agent_socket(&self) -> UdpSocket {
        self.udp_socket(self.address, 67)
    }

    pub fn udp_socket(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        self.inside(|| {
            let socket = UdpSocket::bind(SocketAddrV4::new(address, port)).expect("a free port");
            socket.set_nonblocking(true).expect("it can");
            if port != 0 {
                // It stands for a whole subnet. What stands for one machine has a machine's queue.
                setsockopt(&socket, sockopt::RcvBufForce, &(8 * 1024 * 1024)).expect("we are root here");
            }
            socket
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
