//! Starting and ending a lab from the outside.
//!
//! [`Lab::start`] writes the plan, opens the operator's loopback listener in *this* network namespace, and starts
//! the supervisor in a fresh one. Nothing has to be cleaned up afterwards that [`end`] does not clean up, and
//! after a crash the next start or end does it.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ipnetwork::Ipv4Network;
use nix::sys::signal::Signal;

use crate::clock::{Clock, Timestamp};
use crate::lab::accel::{self, Accel, Choice};
use crate::lab::appliance;
use crate::lab::config::{LabConfig, MachineConfig};
use crate::lab::machine;
use crate::lab::needs;
use crate::lab::plan::{MachinePlan, NetworkPlan, Plan, ProgramPlan, Report};
use crate::lab::process::{self, ProcessId};
use crate::lab::qmp::{Qmp, QmpError};
use crate::lab::state::{RunRecord, StateDir, write_json};
use crate::net::MacAddr;

/// Building the network and starting the programs; a loaded machine with 32 VMs stays below.
const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// The appliance opens its store and images before it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// The supervisor gives its children 3 s.
const ENDS_WITHIN: Duration = Duration::from_secs(6);

/// QEMU opens its sockets after its memory and firmware are set up.
const QMP_WITHIN: Duration = Duration::from_secs(15);

/// The bridge's own MAC, above every machine's in `lab.toml`.
const BRIDGE_MAC: MacAddr = MacAddr([0x52, 0x54, 0x00, 0x00, 0x02, 0xfe]);

/// What runs in the lab beside the machines.
#[derive(Clone, Debug)]
pub enum Services {
    /// `farrier serve`, and perhaps a capture or another observer.
    Appliance { observers: Vec<ProgramPlan> },
    /// Somebody else's servers, for comparison.
    Others(Vec<ProgramPlan>),
}

#[derive(Clone, Debug)]
pub struct LabOptions {
    pub state: PathBuf,
    pub config: LabConfig,
    /// The `farrier` binary that supervises and serves.
    pub farrier: PathBuf,
    /// Forget nodes, leases, disks and firmware variables of earlier runs; images stay.
    pub fresh: bool,
    pub ends_with_launcher: bool,
    pub services: Services,
}

/// A running lab. Dropping it ends the lab, unless it was started to outlive its launcher.
pub struct Lab {
    state: StateDir,
    config: LabConfig,
    choice: Choice,
    supervisor: Option<(ProcessId, Child)>,
    /// Its end tells the supervisor that we have gone.
    _lifeline: UnixStream,
    operator: Option<SocketAddr>,
    ends_with_launcher: bool,
    clock: Clock,
}

impl Lab {
    /// Starts everything; machines are switched off until [`Lab::power_on`].
    pub fn start(options: LabOptions) -> anyhow::Result<Lab> {
        needs::check(&options.config)?;
        let state = StateDir::open(&options.state)?;
        match state.try_lock()? {
            None => bail!(
                "a lab runs in {} already; `farrier lab down --state {0}` ends it",
                state.root().display()
            ),
            Some(_lock) => clean_up(&state)?,
        }
        if options.fresh {
            forget(&state)?;
        }
        let choice = accel::choose(options.config.accel, state.root());
        let listener = match &options.services {
            Services::Appliance { .. } => Some(open_listener(options.config.operator)?),
            Services::Others(_) => None,
        };
        let operator = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let plan = plan(&options, &state, choice.accel, operator)?;
        write_json(&state.plan(), &plan)?;
        let (child, lifeline) = spawn_supervisor(&options.farrier, &state, listener)?;
        let lifeline = await_report(child, lifeline, &state)?;
        let mut lab = Lab {
            state,
            config: options.config,
            choice,
            supervisor: Some(lifeline.1),
            _lifeline: lifeline.0,
            operator,
            ends_with_launcher: options.ends_with_launcher,
            clock: Clock::start(),
        };
        if let Err(error) = lab.await_serving(&options.services) {
            lab.end_supervisor();
            return Err(error);
        }
        Ok(lab)
    }

    pub fn state(&self) -> &StateDir {
        &self.state
    }

    pub fn machines(&self) -> &[MachineConfig] {
        &self.config.machines
    }

    /// Machines to boot at the same time.
    pub fn at_once(&self) -> usize {
        self.config.at_once.unwrap_or(self.config.machines.len())
    }

    pub fn bridge(&self) -> &str {
        &self.config.bridge
    }

    /// The appliance's address.
    pub fn address(&self) -> std::net::Ipv4Addr {
        self.config.address.ip()
    }

    pub fn accel(&self) -> &Choice {
        &self.choice
    }

    /// Where the operator's page appears on the host.
    pub fn operator(&self) -> Option<SocketAddr> {
        self.operator
    }

    pub fn run_record(&self) -> anyhow::Result<RunRecord> {
        self.state.read_run_record()?.context("the lab has ended")
    }

    /// Switches a machine on and tells when.
    pub fn power_on(&self, name: &str) -> Result<Timestamp, QmpError> {
        let mut qmp = self.qmp(name)?;
        let at = self.clock.now();
        qmp.power_on()?;
        Ok(at)
    }

    pub fn qmp(&self, name: &str) -> Result<Qmp, QmpError> {
        await_qmp(&self.state, name)
    }

    /// Ends the lab and makes sure that nothing of it is left.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.ends_with_launcher = false;
        end(&self.state)?;
        if let Some((_, mut child)) = self.supervisor.take() {
            child.wait()?;
        }
        Ok(())
    }

    fn end_supervisor(&mut self) {
        // Errors have no one left to be told: the next start cleans up.
        let _ = end(&self.state);
        if let Some((_, mut child)) = self.supervisor.take() {
            let _ = child.wait();
        }
    }

    fn await_serving(&self, services: &Services) -> anyhow::Result<()> {
        if matches!(services, Services::Appliance { .. }) {
            appliance::await_serving(&self.state, READY_WITHIN)?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.ends_with_launcher {
            self.end_supervisor();
        }
    }
}

/// Connects to a machine's QMP socket, which appears a moment after its process.
pub fn await_qmp(state: &StateDir, name: &str) -> Result<Qmp, QmpError> {
    let socket = state.machine(name).qmp_socket();
    let deadline = Instant::now() + QMP_WITHIN;
    loop {
        match Qmp::connect(&socket) {
            Err(QmpError::Io(_)) if Instant::now() < deadline => process::look_again(),
            outcome => return outcome,
        }
    }
}

/// Ends the lab of a state directory, whoever started it, and removes what a crashed one left. Fails if something
/// outlives it all.
pub fn end(state: &StateDir) -> anyhow::Result<()> {
    if let Some(record) = state.read_run_record()?
        && record.supervisor.signal(Signal::SIGTERM).is_ok()
        && !record.supervisor.wait_ended(ENDS_WITHIN)
    {
        // Its children die with it.
        let _ = record.supervisor.signal(Signal::SIGKILL);
        record.supervisor.wait_ended(ENDS_WITHIN);
    }
    match state.try_lock()? {
        Some(_lock) => clean_up(state),
        None => bail!("the lab's supervisor does not end; see {}", state.log().display()),
    }
}

/// Makes sure that nothing of an earlier lab is left. The caller holds the lock, so no supervisor lives.
fn clean_up(state: &StateDir) -> anyhow::Result<()> {
    if let Some(record) = state.read_run_record()? {
        let children: Vec<(&str, ProcessId)> = record
            .programs
            .iter()
            .filter_map(|program| Some((program.name.as_str(), program.process?)))
            .collect();
        for (name, process) in children {
            if process.is_alive() && !process.wait_ended(Duration::from_millis(500)) {
                let _ = process.signal(Signal::SIGKILL);
                if !process.wait_ended(ENDS_WITHIN) {
                    bail!("{name} (process {}) does not end", process.pid);
                }
            }
        }
        // Inodes are used again, so a foreign namespace may have this one; ours went with its last process.
        let left = process::in_namespace(record.namespace);
        if !left.is_empty() && process::own_namespace() != Some(record.namespace) {
            bail!("processes {left:?} are still in the lab's network namespace; they are not the lab's own");
        }
    }
    state.remove_runtime_files()?;
    Ok(())
}

fn forget(state: &StateDir) -> anyhow::Result<()> {
    let mut paths = vec![state.root().join("machines")];
    paths.extend(appliance::database_files(state));
    for path in paths {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{} cannot be removed", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The wished-for loopback port, or any free one if that is taken.
fn open_listener(wished: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(wished) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::new(wished.ip(), 0)).context("no loopback port is free")
        }
        outcome => outcome.with_context(|| format!("{wished} cannot be listened on")),
    }
}

fn plan(
    options: &LabOptions,
    state: &StateDir,
    accel: Accel,
    operator: Option<SocketAddr>,
) -> anyhow::Result<Plan> {
    let config = &options.config;
    let mut programs = match &options.services {
        Services::Appliance { observers } => {
            let mut programs = observers.clone();
            programs.push(appliance::program(&options.farrier, config, state, operator)?);
            programs
        }
        Services::Others(programs) => programs.clone(),
    };
    let mut taps = Vec::new();
    let mut machines = Vec::new();
    for (index, machine) in config.machines.iter().enumerate() {
        let directory = state.machine(machine.name.as_str());
        machine::prepare(machine, &directory)?;
        state.show_console(machine.mac, &directory)?;
        taps.push(format!("tap{index}"));
        programs.push(machine::program(machine, &directory, &taps[index], accel));
        machines.push(MachinePlan {
            name: machine.name.to_string(),
            firmware: machine.firmware,
            mac: machine.mac,
        });
    }
    let network = NetworkPlan {
        bridge: config.bridge.clone(),
        bridge_mac: BRIDGE_MAC,
        addresses: vec![config.address, Ipv4Network::from(config.host)],
        taps,
    };
    Ok(Plan { network, programs, machines, ends_with_launcher: options.ends_with_launcher })
}

fn spawn_supervisor(
    farrier: &Path,
    state: &StateDir,
    listener: Option<TcpListener>,
) -> anyhow::Result<(Child, UnixStream)> {
    let entrance = entrance()?;
    let (ours, theirs) = UnixStream::pair()?;
    let log = fs::File::create(state.log()).context("the lab's log cannot be made")?;
    let child = Command::new("unshare")
        .args(entrance)
        .arg("--")
        .arg(farrier)
        .args(["lab", "supervise", "--state"])
        .arg(state.root())
        .stdin(listener.map_or_else(Stdio::null, |listener| OwnedFd::from(listener).into()))
        .stdout(OwnedFd::from(theirs))
        .stderr(log)
        .spawn()
        .context("`unshare` cannot be run")?;
    Ok((child, ours))
}

/// How we get a network namespace: as root directly, otherwise (or in a container that forbids it) by way of a
/// user namespace.
fn entrance() -> anyhow::Result<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
    let mut said = String::new();
    for way in WAYS {
        let output = Command::new("unshare").args(way).args(["--", "true"]).stdin(Stdio::null()).output();
        let output = output.context("`unshare` (Debian package util-linux) cannot be run")?;
        if output.status.success() {
            return Ok(way);
        }
        said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    }
    Err(anyhow!(
        "no network namespace can be made here ({said}): run as root, or allow user namespaces \
         (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
    ))
}

/// Waits for the supervisor's line; on anything else but [`Report::Ready`] the supervisor has ended when this returns.
fn await_report(
    mut child: Child,
    lifeline: UnixStream,
    state: &StateDir,
) -> anyhow::Result<(UnixStream, (ProcessId, Child))> {
    lifeline.set_read_timeout(Some(STARTS_WITHIN))?;
    let mut line = String::new();
    let read = BufReader::new(&lifeline).read_line(&mut line);
    let report = read.map_err(anyhow::Error::from).and_then(|_| Ok(serde_json::from_str(&line)?));
    let message = match (report, ProcessId::of(child.id())) {
        (Ok(Report::Ready), Some(process)) => return Ok((lifeline, (process, child))),
        (Ok(Report::Failed { message }), _) => message,
        (Ok(Report::Ready), None) | (Err(_), _) => last_lines(&state.log()),
    };
    drop(lifeline);
    let _ = child.kill();
    child.wait()?;
    bail!("the lab does not start: {message}")
}

/// The end of a log, for an error message.
pub fn last_lines(log: &Path) -> String {
    const LINES: usize = 5;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let said = lines[lines.len().saturating_sub(LINES)..].join("\n  ");
    if said.is_empty() {
        format!("{} is empty", log.display())
    } else {
        format!("{}:\n  {said}", log.display())
    }
}
