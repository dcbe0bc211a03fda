//! A storm of simulated machines on farrier, and the same storm on dnsmasq + nginx: `make bench-storm`.
//!
//! One part per argument (`versus`, `scale`, `flood`; all of them without one). Environment:
//! - `FARRIER_BINARIES`: directory of the release binaries
//! - `ROUNDS`: rounds of `versus`, 5 by default; farrier and the peer take turns
//! - `ONLY`: `farrier` or `peer`, to look at one of them; its section is not complete then
//!
//! Each storm is `farrier storm --json`: on farrier in the lab it makes for itself, on the peer over a bridge made here,
//! in a namespace of this process's own. Same subnet, same loaders, kernel and ramdisk of the same size, same seed.

mod peer;
#[path = "../versus/report.rs"]
#[allow(dead_code, reason = "shared with the other bench, which needs all of it")]
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use report::{Figure, Section, digits, ratio};
use serde_json::Value;

/// Bytes of what each machine downloads at the end, KiB.
const KERNEL_KIB: usize = 8 * 1024;
const RAMDISK_KIB: usize = 24 * 1024;
const NODES: &str = "1000";
/// A machine that is not home by then is lost; for the peer, the storm is over then.
const PATIENCE: &str = "120s";

/// What the environment asks for.
pub struct Plan {
    rounds: u32,
    only: Option<String>,
    binaries: PathBuf,
    scratch: PathBuf,
    /// The machine, in a line.
    machine: String,
}

impl Plan {
    fn from_environment() -> Plan {
        let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
        let binaries = std::env::var_os("FARRIER_BINARIES").map(PathBuf::from);
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("storm");
        std::fs::create_dir_all(&scratch).expect("a scratch directory below target/");
        Plan {
            rounds,
            only: std::env::var("ONLY").ok(),
            binaries: binaries
                .expect("FARRIER_BINARIES names the release binaries; `make bench-storm` sets it"),
            scratch: scratch.canonicalize().expect("it is there"),
            machine: report::machine("shared by server and machines"),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == name)
    }

    /// Whether one of the two is left out.
    pub fn is_partial(&self) -> bool {
        self.only.is_some()
    }
}

/// Runs `farrier storm` with these arguments; its report, whether machines were lost or not.
fn storm(plan: &Plan, arguments: &[&str]) -> Value {
    let output = Command::new(plan.binaries.join("farrier"))
        .args(["--json", "storm"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("farrier starts");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The storm on farrier, in a lab of its own.
fn storm_on_farrier(plan: &Plan, arguments: &[&str]) -> Value {
    let state = plan.scratch.join("farrier");
    let (kernel, ramdisk) = (KERNEL_KIB.to_string(), RAMDISK_KIB.to_string());
    let mut all =
        vec!["--state", state.to_str().expect("a path of ours"), "--kernel", &kernel, "--ramdisk", &ramdisk];
    all.extend_from_slice(arguments);
    storm(plan, &all)
}

fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

fn stage<'a>(report: &'a Value, name: &str) -> Option<&'a Value> {
    report["stages"].as_array()?.iter().find(|stage| stage["stage"] == name)
}

fn mib(bytes: f64) -> f64 {
    bytes / 1024.0 / 1024.0
}

/// What came of one side's storms.
#[derive(Default)]
struct Side {
    completed: Figure,
    ramdisk_at: Figure,
    wall: Figure,
    p50: Figure,
    p99: Figure,
    dhcp_max_ms: Figure,
    given_up: Figure,
    cpu: Figure,
    memory: Figure,
    troubles: String,
}

impl Side {
    fn take(&mut self, report: &Value, cpu: f64, memory: f64) {
        self.completed.push(number(report, "/completed"));
        let ramdisk = stage(report, "ramdisk").map_or(f64::NAN, |stage| number(stage, "/last_at_secs"));
        self.ramdisk_at.push(ramdisk);
        self.wall.push(number(report, "/wall_secs"));
        self.p50.push(number(report, "/total/p50_secs"));
        self.p99.push(number(report, "/total/p99_secs"));
        self.dhcp_max_ms.push(1000.0 * number(report, "/dhcp/reply/max_secs"));
        self.given_up.push(number(report, "/given_up_transfers"));
        self.cpu.push(cpu);
        self.memory.push(memory);
        let lost =
            report["losses"].as_array().into_iter().flatten().map(|loss| {
                format!("{} × {} in {}", loss["count"], text(&loss["reason"]), text(&loss["stage"]))
            });
        self.troubles = lost.collect::<Vec<_>>().join(", ");
    }

    fn row(&self, name: &str) -> Vec<String> {
        let figures = [
            &self.completed,
            &self.ramdisk_at,
            &self.wall,
            &self.p50,
            &self.p99,
            &self.dhcp_max_ms,
            &self.given_up,
            &self.cpu,
            &self.memory,
        ];
        std::iter::once(name.to_owned()).chain(figures.iter().map(|figure| figure.show())).collect()
    }
}

/// Why machines were lost; nothing if none was.
fn losses(report: &Value) -> String {
    let lost = report["losses"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|loss| format!("{} × {} in {}", loss["count"], text(&loss["reason"]), text(&loss["stage"])));
    lost.collect::<Vec<_>>().join(", ")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn versus(plan: &Plan) {
    let mut section = Section::new(
        "Storm",
        &format!(
            "{NODES} machines, a third each of BIOS, UEFI and UEFI HTTP Boot, switched on within one second: DHCP, loader, \
             iPXE, script, kernel ({} MiB), ramdisk ({} MiB); on farrier each enrolls besides. Another server cannot \
             enroll them: there, a machine is through when it has its ramdisk. The storm ends after {PATIENCE}. \
             Compared: farrier {}, {}.",
            KERNEL_KIB / 1024,
            RAMDISK_KIB / 1024,
            env!("CARGO_PKG_VERSION"),
            peer::versions()
        ),
    );
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    let mut costs: [Figure; 4] = Default::default();
    for round in 0..plan.rounds {
        let seed = (round + 1).to_string();
        let arguments = ["--nodes", NODES, "--seed", &seed, "--patience", PATIENCE];
        if plan.wants("farrier") {
            let report = storm_on_farrier(plan, &arguments);
            let cpu = number(&report, "/server/cpu_secs");
            ours.take(&report, cpu, mib(number(&report, "/server/peak_memory_bytes")));
            let fields = ["server_cpu_ms", "packets", "bytes", "disk_bytes"];
            for (figure, field) in costs.iter_mut().zip(fields) {
                figure.push(number(&report, &format!("/per_node/{field}")));
            }
        }
        if plan.wants("peer") {
            let peer = peer::Peer::start(&plan.scratch.join("peer"));
            let mut all = vec!["--bridge", peer::BRIDGE, "--gateway", peer::GATEWAY];
            all.extend_from_slice(&arguments);
            let report = storm(plan, &all);
            let used = peer.used();
            theirs.take(&report, used.cpu_secs, mib(used.peak_memory_bytes));
        }
    }
    section.table(
        &[
            "server",
            "completed",
            "last ramdisk, s",
            "last machine, s",
            "p50, s",
            "p99, s",
            "slowest DHCP reply, ms",
            "transfers given up",
            "server CPU, s",
            "server memory, MiB",
        ],
        &[ours.row("farrier (enrolled)"), theirs.row("dnsmasq + nginx (ramdisk fetched)")],
    );
    section.say(
        "dnsmasq as usually set up sends no router advertisements, and iPXE waits 13 s for one; farrier sends them: that wait is in these \
         figures.",
    );
    if !theirs.troubles.is_empty() {
        section.say(&format!("Lost by dnsmasq + nginx in the last round: {}.", theirs.troubles));
    }
    say_costs(&mut section, &costs);
    judge(&mut section, &ours, &theirs);
    section.write(plan);
}

fn say_costs(section: &mut Section, costs: &[Figure; 4]) {
    let [cpu, packets, bytes, disk] = costs;
    section.say(&format!(
        "Each machine cost farrier {} ms of CPU, {} packets and {} MiB on the wire (segments of up to 64 KiB are handed \
         over whole and count as one), and {} KiB written to disk.",
        digits(cpu.median()),
        digits(packets.median()),
        digits(mib(bytes.median())),
        digits(disk.median() / 1024.0)
    ));
}

fn judge(section: &mut Section, ours: &Side, theirs: &Side) {
    let completed = ours.completed.median();
    section.target("1 000 machines enroll", "all", &digits(completed), completed >= 1000.0);
    let late = ours.dhcp_max_ms.median();
    section.target("slowest DHCP reply", "≤ 900 ms", &format!("{} ms", digits(late)), late <= 900.0);
    let given_up = ours.given_up.median();
    section.target("TFTP and HTTP transfers given up", "0", &digits(given_up), given_up == 0.0);
    let memory = ours.memory.median();
    section.target(
        "server memory",
        "≤ 150 MB",
        &format!("{} MiB", digits(memory)),
        memory * 1.048_576 <= 150.0,
    );
    let (wall, work) = (ours.wall.median(), "wall time, enrolled against ramdisk fetched");
    section.at_most(work, wall, 0.5, theirs.wall.median(), "dnsmasq + nginx");
    let ramdisk = ours.ramdisk_at.median();
    section.say(&format!(
        "To the ramdisk alone, which is as far as both come, farrier took {} s: {}. Behind it lies the start of a kernel, \
         up to 2.5 s.",
        digits(ramdisk),
        ratio(ramdisk, theirs.ramdisk_at.median())
    ));
}

/// Ten thousand machines as far as their script.
fn scale(plan: &Plan) {
    let mut section = Section::new(
        "Storm of 10 000",
        "10 000 machines, a third each of BIOS, UEFI and UEFI HTTP Boot, switched on within one second, as far as their \
         boot script: DHCP, loader by TFTP or HTTP, DHCP as iPXE, script.",
    );
    let report = storm_on_farrier(
        plan,
        &["--nodes", "10000", "--until", "script", "--patience", PATIENCE, "--seed", "1"],
    );
    section.table(&["stage", "machines", "p50, s", "p99, s", "max, s"], &stage_rows(&report));
    say_cost(&mut section, &report);
    let lost = number(&report, "/lost");
    section.target(
        "10 000 machines, DHCP + loader + script",
        "0 lost",
        &format!("{} lost", digits(lost)),
        lost == 0.0,
    );
    section.write(plan);
}

/// Registered machines while strangers ask ten thousand times a second.
fn flood(plan: &Plan) {
    let mut section = Section::new(
        "Storm of strangers",
        "10 000 DISCOVERs a second for 60 s from MACs that never come again, while 1 000 registered machines boot and \
         enroll; as the flood ends, ten unknown machines are switched on and must get their addresses.",
    );
    let report = storm_on_farrier(
        plan,
        &[
            "--nodes",
            NODES,
            "--registered",
            "--flood",
            "10000",
            "--flood-seconds",
            "60",
            "--patience",
            PATIENCE,
            "--seed",
            "1",
        ],
    );
    section.table(&["stage", "machines", "p50, s", "p99, s", "max, s"], &stage_rows(&report));
    section.say(&format!("Strangers sent {} DISCOVERs.", digits(number(&report, "/flood/sent"))));
    say_cost(&mut section, &report);
    let served = 100.0 * number(&report, "/completed") / number(&report, "/nodes");
    section.target("registered machines served", "≥ 99 %", &format!("{} %", digits(served)), served >= 99.0);
    let recovery = number(&report, "/flood/recovery_secs");
    section.target("recovery", "≤ 5 s", &format!("{} s", digits(recovery)), recovery <= 5.0);
    let memory = mib(number(&report, "/server/peak_memory_bytes"));
    section.target(
        "server memory",
        "≤ 150 MB",
        &format!("{} MiB", digits(memory)),
        memory * 1.048_576 <= 150.0,
    );
    section.write(plan);
}

fn stage_rows(report: &Value) -> Vec<Vec<String>> {
    let row = |name: &str, spread: &Value| {
        let figure = |field: &str| digits(number(spread, &format!("/{field}")));
        vec![name.to_owned(), figure("count"), figure("p50_secs"), figure("p99_secs"), figure("max_secs")]
    };
    let stages = report["stages"].as_array().into_iter().flatten();
    let mut rows: Vec<_> = stages.map(|stage| row(text(&stage["stage"]), stage)).collect();
    rows.push(row("power-on to end", &report["total"]));
    rows.push(row("DHCP replies", &report["dhcp"]["reply"]));
    rows
}

fn say_cost(section: &mut Section, report: &Value) {
    let losses = losses(report);
    if !losses.is_empty() {
        section.say(&format!("Lost: {losses}."));
    }
    section.say(&format!(
        "Server: {} s of CPU, at most {} MiB, {} MiB written to disk. The storm itself: {} s of CPU.",
        digits(number(report, "/server/cpu_secs")),
        digits(mib(number(report, "/server/peak_memory_bytes"))),
        digits(mib(number(report, "/server/written_bytes"))),
        digits(number(report, "/storm_cpu_secs"))
    ));
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    const PARTS: [&str; 3] = ["versus", "scale", "flood"];
    if let Some(unknown) = arguments.iter().find(|word| !PARTS.contains(&word.as_str())) {
        eprintln!("farrier bench: no part is called {unknown}; there are {}", PARTS.join(", "));
        std::process::exit(2);
    }
    peer::isolated();
    let plan = Plan::from_environment();
    let wanted = |part: &str| arguments.is_empty() || arguments.iter().any(|word| word == part);
    if wanted("versus") {
        versus(&plan);
    }
    if wanted("scale") {
        scale(&plan);
    }
    if wanted("flood") {
        flood(&plan);
    }
}
