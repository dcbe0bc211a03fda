//! `farrier lab`: a bridge, the appliance and machines in a network namespace of their own.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::client::{Client, segment};
use super::error::CommandError;
use super::table::Table;
use super::text::{Style, Tone};
use super::timeline::stage_word;
use super::token::login_link;
use super::{ask, json_text};
use crate::image::build::progress_bar;
use crate::lab::config::{LabConfig, LabFirmware};
use crate::lab::qmp::Power;
use crate::lab::state::{SOCKET_PATH_MAX, StateDir};
use crate::lab::{Lab, LabOptions, Services, console, launch, needs, prepare, supervisor};
use crate::net::MacAddr;
use crate::operator::access::Role;
use crate::operator::api::NodeDetail;

/// Where a lab lives unless told otherwise; the demo's, so that `farrier lab` finds the machines of `make demo`.
pub(super) const STATE_DEFAULT: &str = "state/demo";

#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Start the lab and leave it running
    Up(UpArgs),
    /// End the lab, and make sure that nothing of it is left
    Down(StateArgs),
    /// Machines, their power and how far they have come
    Status(StateArgs),
    /// Serial console of a machine; Ctrl-] leaves it
    Console {
        /// Machine, by name
        machine: String,
        #[command(flatten)]
        state: StateArgs,
    },
    /// Switch a machine on or off, or reset it
    Power {
        /// Machine, by name
        machine: String,
        #[arg(value_enum)]
        action: PowerAction,
        #[command(flatten)]
        state: StateArgs,
    },
    /// What runs inside the namespace; started by `up` and `demo`
    #[command(hide = true)]
    Supervise(StateArgs),
}

#[derive(Debug, Args)]
pub struct UpArgs {
    /// What the lab is made of; config/lab.toml shows every key [default: its built-in copy]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub state: StateArgs,
}

#[derive(Debug, Args)]
pub struct StateArgs {
    /// Directory for everything the lab leaves on disk
    #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
    pub state: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PowerAction {
    On,
    Off,
    Reset,
}

pub(super) fn run(command: LabCommand, json: bool, style: Style) -> Result<String, CommandError> {
    match command {
        LabCommand::Up(arguments) => up(&arguments, json, style),
        LabCommand::Down(arguments) => down(&arguments.state),
        LabCommand::Status(arguments) => {
            let state = existing(&arguments.state)?;
            render_status(&status(&state).map_err(failed)?, json, style)
        }
        LabCommand::Console { machine, state } => {
            let state = existing(&state.state)?;
            known(&state, &machine)?;
            console::attach(&state.machine(&machine), &machine).map_err(failed)?;
            Ok(String::new())
        }
        LabCommand::Power { machine, action, state } => power(&existing(&state.state)?, &machine, action),
        LabCommand::Supervise(arguments) => {
            supervisor::run(&arguments.state).map_err(failed)?;
            Ok(String::new())
        }
    }
}

/// An error with its causes, one after the other.
pub(super) fn failed(error: anyhow::Error) -> CommandError {
    CommandError::Failed(format!("{error:#}"))
}

pub(super) fn read_config(path: Option<&Path>) -> Result<LabConfig, CommandError> {
    let Some(path) = path else {
        return LabConfig::built_in().map_err(|error| failed(error.into()));
    };
    std::fs::read_to_string(path)
        .map_err(anyhow::Error::from)
        .and_then(|text| Ok(LabConfig::parse(&text)?))
        .with_context(|| path.display().to_string())
        .map_err(|error| CommandError::Usage(format!("{error:#}")))
}

fn up(arguments: &UpArgs, json: bool, style: Style) -> Result<String, CommandError> {
    let config = read_config(arguments.config.as_deref())?;
    // Before an image is built for nothing.
    needs::check(&config).map_err(|error| failed(error.into()))?;
    let farrier = std::env::current_exe().map_err(|error| failed(error.into()))?;
    let agent = farrier.with_file_name("farrier-agent");
    let started = StateDir::open(&arguments.state.state)
        .map_err(anyhow::Error::from)
        .and_then(|state| prepare::images(&state, &agent, &progress_bar(), &mut |line| eprintln!("{line}")))
        .and_then(|()| {
            let lab = Lab::start(LabOptions {
                state: arguments.state.state.clone(),
                config,
                farrier,
                fresh: false,
                ends_with_launcher: false,
                services: Services::Appliance { observers: Vec::new() },
            })?;
            for machine in lab.machines() {
                lab.power_on(machine.name.as_str())?;
            }
            status(lab.state())
        });
    let status = started.map_err(failed)?;
    let mut text = render_status(&status, json, style)?;
    if let (false, Some(machine), Ok(state)) =
        (json, status.machines.first(), existing(&arguments.state.state))
    {
        let page = ask(async { Ok(page_link(&state, status.operator).await) })?;
        text.push_str(&hints(&state, page, &machine.name, machine.mac));
    }
    Ok(text)
}

fn down(state: &Path) -> Result<String, CommandError> {
    let state = existing(state)?;
    let ran = state.read_run_record().map_err(|error| failed(error.into()))?.is_some();
    launch::end(&state).map_err(failed)?;
    Ok(if ran { "the lab has ended; nothing of it is left running\n" } else { "no lab was running\n" }
        .to_owned())
}

fn power(state: &StateDir, machine: &str, action: PowerAction) -> Result<String, CommandError> {
    known(state, machine)?;
    let switched = launch::await_qmp(state, machine).and_then(|mut qmp| match action {
        PowerAction::On => qmp.power_on(),
        PowerAction::Off => qmp.power_off(),
        PowerAction::Reset => qmp.reset(),
    });
    switched.map_err(|error| failed(anyhow!(error).context(format!("machine `{machine}`"))))?;
    Ok(String::new())
}

/// A state directory is not made by a command that only looks.
fn existing(state: &Path) -> Result<StateDir, CommandError> {
    if !state.is_dir() {
        return Err(CommandError::NotFound(format!(
            "no lab has run in {}\n  way out: `farrier lab up`, or name another directory with --state",
            state.display()
        )));
    }
    StateDir::open(state).map_err(|error| failed(error.into()))
}

/// Fails unless a lab runs here and has this machine.
fn known(state: &StateDir, machine: &str) -> Result<(), CommandError> {
    let record = state.read_run_record().map_err(|error| failed(error.into()))?;
    if !record.is_some_and(|record| record.supervisor.is_alive()) {
        return Err(CommandError::NotFound(format!("no lab runs in {}", state.root().display())));
    }
    let plan = state.read_plan().map_err(|error| failed(error.into()))?;
    if plan.machines.iter().any(|planned| planned.name == machine) {
        return Ok(());
    }
    let names: Vec<&str> = plan.machines.iter().map(|planned| planned.name.as_str()).collect();
    let names = names.join(", ");
    Err(CommandError::NotFound(format!("the lab has no machine `{machine}`; it has {names}")))
}

/// `farrier lab status --json`
#[derive(Debug, Serialize)]
struct LabStatus {
    running: bool,
    bridge: Option<String>,
    operator: Option<std::net::SocketAddr>,
    socket: PathBuf,
    machines: Vec<MachineStatus>,
}

#[derive(Debug, Serialize)]
struct MachineStatus {
    name: String,
    firmware: LabFirmware,
    mac: MacAddr,
    power: &'static str,
    pid: Option<u32>,
    address: Option<std::net::Ipv4Addr>,
    stage: Option<&'static str>,
}

fn status(state: &StateDir) -> anyhow::Result<LabStatus> {
    let mut status = LabStatus {
        running: false,
        bridge: None,
        operator: None,
        socket: state.operator_socket(),
        machines: Vec::new(),
    };
    let Some(record) = state.read_run_record()?.filter(|record| record.supervisor.is_alive()) else {
        return Ok(status);
    };
    status.running = true;
    status.bridge = Some(record.bridge.clone());
    status.operator = record.operator;
    for machine in state.read_plan()?.machines {
        let process = record
            .programs
            .iter()
            .find(|program| program.name == machine.name)
            .and_then(|program| program.process)
            .filter(|process| process.is_alive());
        let power = match process {
            None => "ended",
            Some(_) => launch::await_qmp(state, &machine.name)
                .and_then(|mut qmp| qmp.power())
                .map_or("unknown", Power::as_str),
        };
        let node = node(state, machine.mac);
        status.machines.push(MachineStatus {
            power,
            pid: process.map(|process| process.pid),
            address: node.as_ref().and_then(|node| node.summary.ports.first()?.address),
            stage: node.and_then(|node| node.summary.boot?.stage).map(stage_word),
            name: machine.name,
            firmware: machine.firmware,
            mac: machine.mac,
        });
    }
    Ok(status)
}

/// The appliance may not know the machine yet, or be restarting: then there is nothing to tell.
fn node(state: &StateDir, mac: MacAddr) -> Option<NodeDetail> {
    let socket = state.short_operator_socket().ok()?;
    let client = Client::new(socket.path());
    ask(async { client.get(&format!("/api/v1/nodes/{}", segment(&mac.to_string()))).await }).ok()
}

fn render_status(status: &LabStatus, json: bool, style: Style) -> Result<String, CommandError> {
    if json {
        return Ok(json_text(status));
    }
    if !status.running {
        return Ok("no lab runs here\n".to_owned());
    }
    let mut table = Table::new(&["MACHINE", "FIRMWARE", "MAC", "POWER", "ADDRESS", "STAGE", ">PROCESS"]);
    for machine in &status.machines {
        let tone = match machine.stage {
            Some("enrolled") => Tone::Good,
            _ => Tone::Plain,
        };
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        table.row(
            tone,
            [
                machine.name.clone(),
                machine.firmware.to_string(),
                machine.mac.to_string(),
                machine.power.to_owned(),
                text(machine.address.map(|address| address.to_string())),
                text(machine.stage.map(str::to_owned)),
                text(machine.pid.map(|pid| pid.to_string())),
            ],
        );
    }
    Ok(table.render(style))
}

/// A link that logs a browser in to the lab's appliance, if operators are served by TCP; at worst the bare address.
pub(super) async fn page_link(state: &StateDir, operator: Option<std::net::SocketAddr>) -> Option<String> {
    let operator = operator?;
    let link = match state.short_operator_socket() {
        Ok(socket) => login_link(&Client::new(socket.path()), Role::Admin).await.ok(),
        Err(_) => None,
    };
    Some(link.map_or_else(|| format!("http://{operator}/"), |link| link.url))
}

/// What to try with a running lab.
pub(super) fn hints(state: &StateDir, page: Option<String>, machine: &str, mac: MacAddr) -> String {
    let farrier = relative(&std::env::current_exe().unwrap_or_else(|_| PathBuf::from("farrier")));
    let farrier = farrier.display();
    let root = relative(state.root());
    let mut text = String::from("\ntry next:\n");
    if let Some(page) = page {
        text.push_str(&format!("  {page}\n    (opens the page: once, within five minutes)\n"));
    }
    let socket = state.operator_socket();
    // The kernel takes no longer one; the directory's own name for it always fits.
    let appliance = if socket.as_os_str().len() > SOCKET_PATH_MAX {
        format!("(cd {} && {farrier} --socket farrier.sock", root.display())
    } else {
        format!("{farrier} --socket {}", relative(&socket).display())
    };
    let end = if appliance.starts_with('(') { ")" } else { "" };
    for question in ["node list", &format!("node show {mac}"), "watch"] {
        text.push_str(&format!("  {appliance} {question}{end}\n"));
    }
    let state =
        if root == Path::new(STATE_DEFAULT) { String::new() } else { format!(" --state {}", root.display()) };
    text.push_str(&format!("  {farrier} lab power {machine} reset{state}\n"));
    text.push_str(&format!("  {farrier} lab console {machine}{state}\n"));
    text
}

/// Shorter to read and to type, where it lies below the working directory.
fn relative(path: &Path) -> PathBuf {
    let here = std::env::current_dir().and_then(std::fs::canonicalize);
    match here {
        Ok(here) => path.strip_prefix(&here).unwrap_or(path).to_owned(),
        Err(_) => path.to_owned(),
    }
}

/// Printed at once, for commands that go on afterwards.
pub(super) fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}
