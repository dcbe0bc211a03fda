//! Where the checks happen: an appliance on a bridge in a network namespace, shared by the checks of one module.
//!
//! The first check of a module that runs starts this test program again in a namespace, for all the module's checks
//! that were asked for; there they share one appliance, each with machines of its own, in parallel. The others, and
//! the first, then look up how they fared. Everything that crosses the bridge meanwhile is captured, and what the
//! appliance said is dissected by tshark in the end: see [`Group::dissect`].

use std::any::type_name;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use farrier::net::MacAddr;

use crate::station::{BRIDGE, Station};
use crate::support::dissect::{Capture, EVERYTHING, Keep, dissect};
use crate::support::{ClientMachine, TestBed, pattern, run};

const GROUP: &str = "FARRIER_TEST_GROUP";
const CAPTURE: &str = "FARRIER_TEST_CAPTURE";
/// Checks wait for the wire most of the time.
const CHECKS_AT_ONCE: &str = "8";
pub const SUBNET: &str = "192.168.77.2/16";

/// The checks of one module and what they have in common.
pub struct Group {
    /// The module.
    pub name: &'static str,
    pub configuration: &'static str,
    /// What is done before the appliance starts.
    pub prepare: fn(&TestBed),
    run: OnceLock<Run>,
    ground: OnceLock<Ground>,
}

/// How the checks of a group fared.
struct Run {
    said: String,
    marks: Result<usize, String>,
}

impl Group {
    pub const fn new(name: &'static str, configuration: &'static str, prepare: fn(&TestBed)) -> Group {
        Group { name, configuration, prepare, run: OnceLock::new(), ground: OnceLock::new() }
    }

    /// One check; `body` runs inside the namespace.
    pub fn check<F: FnOnce(&Ground)>(&self, body: F) {
        match std::env::var(GROUP) {
            Ok(group) if group == self.name => {
                body(self.ground.get_or_init(|| Ground::new(self.configuration, self.prepare)));
            }
            Ok(_) => {}
            Err(_) => self.run().insist(&test_name::<F>()),
        }
    }

    /// Insists that tshark finds no fault with anything the appliance sent.
    pub fn dissect(&self) {
        if std::env::var(GROUP).is_ok() {
            return;
        }
        match &self.run().marks {
            Ok(frames) => println!("{frames} frames of the appliance, all as they should be"),
            Err(text) => panic!("{text}"),
        }
    }

    fn run(&self) -> &Run {
        self.run.get_or_init(|| {
            let scratch = tempfile::tempdir().expect("a temporary directory");
            let capture = scratch.path().join("bridge.pcap");
            let said = run_inside(self.name, &selected(self.name), &capture);
            Run { said, marks: dissected(&capture) }
        })
    }
}

impl Run {
    fn insist(&self, name: &str) {
        let heading = format!("---- {name} stdout ----");
        let told = self.said.split_once(&heading).map(|(_, behind)| {
            let ends = ["\n---- ", "\nfailures:\n", "\nsuccesses:\n"];
            &behind[..ends.iter().filter_map(|end| behind.find(end)).min().unwrap_or(behind.len())]
        });
        if self.said.contains(&format!("test {name} ... ok\n")) {
            return told.into_iter().for_each(|told| println!("{}", told.trim()));
        }
        panic!("{name} failed in its namespace:\n{}", told.unwrap_or(&self.said));
    }
}

/// A check that needs an appliance of its own.
pub fn alone<F: FnOnce(&Ground)>(configuration: &str, prepare: fn(&TestBed), body: F) {
    let name = test_name::<F>();
    match std::env::var(GROUP) {
        Ok(group) if group == name => body(&Ground::new(configuration, prepare)),
        Ok(_) => {}
        Err(_) => {
            let scratch = tempfile::tempdir().expect("a temporary directory");
            let capture = scratch.path().join("bridge.pcap");
            let said = run_inside(&name, std::slice::from_ref(&name), &capture);
            Run { said, marks: Ok(0) }.insist(&name);
            dissected(&capture).unwrap_or_else(|text| panic!("{text}"));
        }
    }
}

/// The name libtest knows a check by, from the type of the closure that is its body.
fn test_name<F>() -> String {
    let path = type_name::<F>().trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_program, rest)| rest).to_owned()
}

/// The checks of a module among those that this run was asked for.
fn selected(module: &str) -> Vec<String> {
    let this = std::env::current_exe().expect("path of the test binary");
    let output = Command::new(this)
        .args(std::env::args().skip(1).filter(|word| !word.starts_with("--nocapture")))
        .args(["--list", "--format", "terse"])
        .output()
        .expect("the list of tests");
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    names.filter(|name| name.starts_with(&format!("{module}::"))).map(str::to_owned).collect()
}

fn run_inside(group: &str, names: &[String], capture: &Path) -> String {
    let mut command = Command::new("unshare");
    if !nix::unistd::Uid::effective().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    // `--kill-child` takes the whole of it down with this process, however it ends.
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let output = command
        .arg(std::env::current_exe().expect("path of the test binary"))
        .args(names)
        .args(["--exact", "--show-output", "--test-threads", CHECKS_AT_ONCE])
        .env(GROUP, group)
        .env(CAPTURE, capture)
        .stdin(Stdio::null())
        .output()
        .expect("unshare is part of util-linux");
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// How many frames the appliance sent, or what is wrong with them; nothing at all is wrong, too.
fn dissected(capture: &Path) -> Result<usize, String> {
    // Its MAC and not its address: it also sends from 169.254.169.254, by ARP and by IPv6.
    match dissect(capture, &BTreeSet::from([BRIDGE]), EVERYTHING)? {
        0 => Err("nothing that the appliance sent was captured".to_owned()),
        frames => Ok(frames),
    }
}

/// The appliance and its bridge, in this process's namespace.
pub struct Ground {
    bed: Mutex<TestBed>,
    macs: AtomicU16,
    stations: AtomicU32,
}

impl Ground {
    fn new(configuration: &str, prepare: fn(&TestBed)) -> Ground {
        run("ip", &["link", "set", "lo", "up"]);
        let mut bed = TestBed::on(SUBNET, configuration);
        run("ip", &["link", "set", "br0", "address", &BRIDGE.to_string()]);
        let into = PathBuf::from(std::env::var_os(CAPTURE).expect("a place for the capture"));
        // It ends with this process, and is dissected by the one that waits for it.
        drop(Capture::start("br0", &into, Keep::Everything));
        bed.is_captured = false;
        prepare(&bed);
        bed.start_server();
        Ground { bed: Mutex::new(bed), macs: AtomicU16::new(1), stations: AtomicU32::new(1) }
    }

    pub fn bed(&self) -> MutexGuard<'_, TestBed> {
        // A check that failed while it held the bed has left nothing half done.
        self.bed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A MAC nobody has used.
    pub fn mac(&self) -> MacAddr {
        let [high, low] = self.macs.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        MacAddr([0x52, 0x54, 0, 0xc0, high, low])
    }

    /// A port of the bridge, for raw frames.
    pub fn station(&self) -> Station {
        Station::plug("br0", self.stations.fetch_add(1, Ordering::Relaxed))
    }

    /// A machine with a network stack of its own, and this address.
    pub fn machine(&self, mac: MacAddr) -> ClientMachine {
        self.bed().plug(&mac.to_string())
    }

    /// The same, after DORA by udhcpc.
    pub fn booted(&self) -> ClientMachine {
        let machine = self.machine(self.mac());
        machine.boot_udhcpc();
        machine
    }

    pub fn leases(&self) -> Vec<serde_json::Value> {
        self.bed().farrier_json(&["lease", "list"]).as_array().expect("a list").clone()
    }

    /// The value of a counter, by service and outcome.
    pub fn counted(&self, service: &str, outcome: &str) -> u64 {
        let status = self.bed().farrier_json(&["status"]);
        let counters = status["counters"].as_array().expect("a list").iter();
        let mut found = counters.filter(|told| told["service"] == service && told["outcome"] == outcome);
        found.next().and_then(|told| told["count"].as_u64()).unwrap_or(0)
    }
}

/// Every loader in place, and a deploy image.
pub fn with_files(bed: &TestBed) {
    bed.install_loaders();
    bed.publish("metal", &pattern(300_000), &pattern(2_000_000));
}

pub fn with_nothing(_bed: &TestBed) {}
