//! The servers: how each is started, when it is ready, what it used, and how it ends.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use farrier::net::sys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::bed::{
    self, BRIDGE, Bed, NETMASK, POOL_FIRST, POOL_LAST, PREFIX, SERVER, SUBNET, udp_port_is_bound,
};
use crate::null_server;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Farrier,
    Null,
    Kea,
    Dnsmasq,
    TftpdHpa,
    Atftpd,
    Nginx,
}

/// What it is started for; some take a configuration for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    Dhcp,
    Tftp,
    Http,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Farrier => "farrier",
            Kind::Null => "null server",
            Kind::Kea => "Kea",
            Kind::Dnsmasq => "dnsmasq",
            Kind::TftpdHpa => "tftpd-hpa",
            Kind::Atftpd => "atftpd",
            Kind::Nginx => "nginx",
        }
    }

    /// nginx has a port of its own, so that both can be up at once.
    pub fn http_port(self) -> u16 {
        if self == Kind::Nginx { 8080 } else { 80 }
    }

    pub fn version(self) -> String {
        let package = match self {
            Kind::Farrier => return concat!("farrier ", env!("CARGO_PKG_VERSION")).to_owned(),
            Kind::Null => return "null server (benches/versus/null_server.rs)".to_owned(),
            Kind::Kea => "kea-dhcp4-server",
            Kind::Dnsmasq => "dnsmasq-base",
            Kind::TftpdHpa => "tftpd-hpa",
            Kind::Atftpd => {
                return format!(
                    "atftpd {}",
                    bed::run(atftpd().to_str().unwrap_or(""), &["--version"]).trim()
                );
            }
            Kind::Nginx => "nginx",
        };
        format!("{package} {}", bed::run("dpkg-query", &["-W", "-f=${Version}", package]))
    }
}

/// The binary under test: FARRIER_BINARIES, else what `make` has built.
pub fn farrier_binary() -> PathBuf {
    let directory = std::env::var_os("FARRIER_BINARIES").map_or_else(
        || panic!("FARRIER_BINARIES names the directory of the release binaries; `make bench` sets it"),
        PathBuf::from,
    );
    directory.join("farrier")
}

/// Debian lets one of tftpd-hpa and atftpd be installed; the other is unpacked below target/.
fn atftpd() -> PathBuf {
    let installed = Path::new("/usr/sbin/atftpd");
    if installed.is_file() {
        return installed.to_owned();
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("atftpd");
    let unpacked = directory.join("usr/sbin/atftpd");
    if !unpacked.is_file() {
        panic!("atftpd is missing: `make bench-tftp` unpacks it into {}", directory.display());
    }
    unpacked
}

/// A server that runs; ends when dropped.
pub struct Running {
    pub kind: Kind,
    child: Child,
    census: Option<Census>,
}

/// What a server has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub cpu: f64,
}

pub struct Start<'a> {
    pub bed: &'a Bed,
    pub job: Job,
    /// farrier's state directory.
    pub state: &'a Path,
    /// The peers' files.
    pub files: &'a Path,
}

impl Start<'_> {
    /// Starts the server and waits until it serves.
    pub fn run(&self, kind: Kind) -> Running {
        let mut running = self.launch(kind);
        let log = self.log(kind);
        bed::wait_for(&format!("{} to serve; see {}", kind.name(), log.display()), || {
            if let Ok(Some(status)) = running.child.try_wait() {
                panic!(
                    "{} ends with {status}:\n{}",
                    kind.name(),
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
            match self.job {
                Job::Dhcp => udp_port_is_bound(67),
                Job::Tftp => udp_port_is_bound(69),
                Job::Http => {
                    let address = SocketAddrV4::new(SERVER, kind.http_port()).into();
                    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
                }
            }
        });
        running
    }

    /// Starts it and returns at once.
    pub fn launch(&self, kind: Kind) -> Running {
        let mut command = self.command(kind);
        let log = File::create(self.log(kind)).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let child = sys::die_with_parent(&mut command)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}; see .ci/packages.txt", kind.name()));
        let census = (kind == Kind::TftpdHpa).then(|| Census::of(child.id()));
        Running { kind, child, census }
    }

    pub fn command(&self, kind: Kind) -> Command {
        match kind {
            Kind::Farrier => {
                let mut command = Command::new(farrier_binary());
                command.arg("serve").arg("--config").arg(self.farrier_config());
                command
            }
            Kind::Null => {
                let mut command = Command::new(std::env::current_exe().expect("our own path"));
                let which = match self.job {
                    Job::Dhcp => null_server::DHCP,
                    Job::Tftp => null_server::TFTP,
                    Job::Http => unreachable!("there is no null server for HTTP"),
                };
                command.args([null_server::ARGUMENT, which]);
                command
            }
            Kind::Kea => {
                let _ = fs::remove_file(self.bed.scratch.join("kea-leases4.csv"));
                let mut command = Command::new("kea-dhcp4");
                command.arg("-c").arg(self.filled("kea-dhcp4.json"));
                command.env("KEA_PIDFILE_DIR", &self.bed.scratch).env("KEA_LOCKFILE_DIR", &self.bed.scratch);
                command
            }
            Kind::Dnsmasq => {
                let _ = fs::remove_file(self.bed.scratch.join("dnsmasq.leases"));
                let mut command = Command::new("dnsmasq");
                let file = match self.job {
                    Job::Dhcp => "dnsmasq-dhcp.conf",
                    Job::Tftp | Job::Http => "dnsmasq-tftp.conf",
                };
                command.arg("--keep-in-foreground").arg("-C").arg(self.filled(file));
                command
            }
            Kind::TftpdHpa => {
                let mut command = Command::new("in.tftpd");
                command.args(["--foreground", "--listen", "--user", "root", "--secure", "--address"]);
                command.arg(format!("{SERVER}:69")).arg(self.files);
                command
            }
            Kind::Atftpd => {
                let mut command = Command::new(atftpd());
                command.args(["--daemon", "--no-fork", "--user", "root.root", "--maxthread", "2000"]);
                command.args([
                    "--bind-address",
                    &SERVER.to_string(),
                    "--verbose=3",
                    "--logfile",
                    "/dev/null",
                ]);
                command.arg(self.files);
                command
            }
            Kind::Nginx => {
                let mut command = Command::new("nginx");
                command.arg("-c").arg(self.filled("nginx-files.conf"));
                command
            }
        }
    }

    /// What the server says.
    fn log(&self, kind: Kind) -> PathBuf {
        self.bed.scratch.join(format!("{}.log", kind.name()))
    }

    fn farrier_config(&self) -> PathBuf {
        let path = self.bed.scratch.join("farrier.toml");
        let text = format!(
            "[network]\nbridge = \"{BRIDGE}\"\naddress = \"{SERVER}/{PREFIX}\"\n\
             [dhcp]\npool = \"{POOL_FIRST}-{POOL_LAST}\"\n\
             [dhcp.strangers]\nshare = \"100%\"\nper_second = 100000\n\
             [operator]\nsocket = \"{}\"\nlisten = \"off\"\n\
             [store]\npath = \"{}\"\n[boot]\nprofile = \"small\"\n",
            self.bed.scratch.join("operator.sock").display(),
            self.state.display()
        );
        fs::write(&path, text).expect("a configuration");
        path
    }

    /// A configuration of `benches/peers`, its places filled in.
    fn filled(&self, name: &str) -> PathBuf {
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name);
        let mut text = fs::read_to_string(&template).expect("a peer's configuration");
        let (scratch, files) = (self.bed.scratch.display().to_string(), self.files.display().to_string());
        let (server, first, last) = (SERVER.to_string(), POOL_FIRST.to_string(), POOL_LAST.to_string());
        for (place, value) in [
            ("@BRIDGE@", BRIDGE),
            ("@SUBNET@", SUBNET),
            ("@NETMASK@", NETMASK),
            ("@SERVER@", &server),
            ("@POOL_FIRST@", &first),
            ("@POOL_LAST@", &last),
            ("@SCRATCH@", &scratch),
            ("@FILES@", &files),
        ] {
            text = text.replace(place, value);
        }
        let path = self.bed.scratch.join(name);
        fs::write(&path, text).expect("a configuration");
        path
    }
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of the server with its threads, its workers, and the children it has waited for.
    pub fn used(&self) -> Used {
        let ticks = match (&self.census, self.kind) {
            (Some(census), _) => census.ticks(self.pid()),
            (None, Kind::Nginx) => family(self.pid()).into_iter().map(|(_, ticks)| ticks).sum(),
            (None, _) => stat(self.pid()).map_or(0, |(_, ticks)| ticks),
        };
        Used { cpu: ticks as f64 / ticks_per_second() }
    }

    /// Most memory ever resident, MiB, of all its processes.
    pub fn peak_memory(&self) -> f64 {
        let members = family(self.pid());
        members.into_iter().map(|(pid, _)| status_kib(pid, "VmHWM:")).sum::<u64>() as f64 / 1024.0
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let signal = if self.kind == Kind::Null { Signal::SIGKILL } else { Signal::SIGTERM };
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

impl Used {
    pub fn since(self, earlier: Used) -> f64 {
        self.cpu - earlier.cpu
    }
}

fn ticks_per_second() -> f64 {
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64
}

/// What /proc/<pid>/stat says: parent, and clock ticks of the process and of the children it has waited for.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces; what follows its parenthesis does not.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some((fields.get(1)?.parse().ok()?, ticks))
}

/// A process and its children, with their clock ticks.
fn family(root: u32) -> Vec<(u32, u64)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| stat(pid).map(|(parent, ticks)| (pid, parent, ticks)))
        .filter(|(pid, parent, _)| *pid == root || *parent == root)
        .map(|(pid, _, ticks)| (pid, ticks))
        .collect()
}

/// Watches a server that forks for each client and forgets what its children used: their ticks, as last seen.
struct Census {
    seen: Arc<Mutex<HashMap<u32, u64>>>,
    ends: Arc<AtomicBool>,
    watcher: Option<JoinHandle<()>>,
}

impl Census {
    /// Reading a thousand children takes milliseconds; the watcher takes no more than a twentieth of a core.
    const REST: u32 = 20;
    const REST_MIN: Duration = Duration::from_millis(20);

    fn of(root: u32) -> Census {
        let (seen, ends) = (Arc::<Mutex<HashMap<u32, u64>>>::default(), Arc::new(AtomicBool::new(false)));
        let (book, stop) = (Arc::clone(&seen), Arc::clone(&ends));
        let watcher = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let members = family(root);
                book.lock().unwrap_or_else(PoisonError::into_inner).extend(members);
                thread::sleep((began.elapsed() * Census::REST).max(Census::REST_MIN));
            }
        });
        Census { seen, ends, watcher: Some(watcher) }
    }

    fn ticks(&self, root: u32) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(family(root));
        seen.values().sum()
    }
}

impl Drop for Census {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

fn status_kib(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
