//! `farrier storm`: many simulated machines netboot at once, from our appliance or from any other server.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::error::CommandError;
use super::json_text;
use super::lab::failed;
use super::table::Table;
use super::text::{Style, Tone, bytes};
use crate::storm::engine::Progress;
use crate::storm::firmware::Kind;
use crate::storm::ground::{self, Ground, GroundError};
use crate::storm::machine::{Goal, Stage};
use crate::storm::report::{FloodReport, Report, Setback, Spread};
use crate::storm::rig::{self, Offering, Rig};
use crate::storm::schedule::{Flood, Order, identity};

#[derive(Debug, Args)]
pub struct StormArgs {
    /// Machines
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=i64::try_from(rig::NODES_MAX).unwrap_or(i64::MAX)))]
    nodes: u32,

    /// Their firmware; `mix` is a third each of bios, uefi and uefi-http
    #[arg(long, value_enum, default_value = "mix")]
    profile: StormProfile,

    /// Share of DHCP and TFTP datagrams lost each way, from 0 to 1
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_loss)]
    loss: f64,

    /// Existing bridge to storm, whatever serves there; without it, our appliance in a lab of its own
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,

    /// The storm's end of the cable holds this address, so that the server's host can have one route to all machines
    /// (`ip route add SUBNET via ADDRESS`) where its table of neighbours is too small for one entry each
    #[arg(long, value_name = "ADDRESS", requires = "bridge")]
    gateway: Option<std::net::Ipv4Addr>,

    /// How far the machines are to come
    #[arg(long, value_enum, default_value = "enroll")]
    until: Goal,

    /// All machines are switched on within this time [default: 1s, or as long as the flood lasts]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    over: Option<Duration>,

    /// Machines not home after this long are lost
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    patience: Duration,

    /// The same seed gives the same machines, timing and losses
    #[arg(long, default_value = "1")]
    seed: u64,

    /// Besides, this many DISCOVERs a second from strangers that never come again
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=FLOOD_RATE_MAX))]
    flood: Option<u32>,

    /// How long the flood lasts; as it ends, unknown machines are switched on and must get their addresses
    #[arg(long, value_name = "SECONDS", default_value = "60", requires = "flood", value_parser = clap::value_parser!(u32).range(1..=FLOOD_SECS_MAX))]
    flood_seconds: u32,

    /// The lab's operator has registered the machines, each with an address; strangers are told apart from them
    #[arg(long, conflicts_with = "bridge")]
    registered: bool,

    /// Size of the lab's kernel, in KiB
    #[arg(long, value_name = "KIB", default_value = "8192", conflicts_with = "bridge")]
    kernel: u32,

    /// Size of the lab's ramdisk, in KiB
    #[arg(long, value_name = "KIB", default_value = "24576", conflicts_with = "bridge")]
    ramdisk: u32,

    /// Directory for what the lab leaves on disk
    #[arg(long, value_name = "DIR", default_value = "state/storm", conflicts_with = "bridge")]
    state: PathBuf,
}

/// More than one core here makes, and more than any segment should be asked to carry.
const FLOOD_RATE_MAX: i64 = 100_000;
const FLOOD_SECS_MAX: i64 = 3600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StormProfile {
    Bios,
    Uefi,
    UefiHttp,
    UefiSecure,
    Mix,
}

impl StormProfile {
    fn machine(self, number: usize) -> Kind {
        match self {
            StormProfile::Bios => Kind::Bios,
            StormProfile::Uefi => Kind::Uefi,
            StormProfile::UefiHttp => Kind::UefiHttp,
            StormProfile::UefiSecure => Kind::UefiSecure,
            StormProfile::Mix => Kind::MIX[number % Kind::MIX.len()],
        }
    }
}

fn parse_loss(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "a number from 0 to 1 is wanted, as in 0.05".to_owned())?;
    if (0.0..1.0).contains(&share) {
        Ok(share)
    } else {
        Err("a share from 0 to below 1 is wanted".to_owned())
    }
}

const OVER_DEFAULT: Duration = Duration::from_secs(1);

/// Linux forgets neighbours beyond this, and then cannot send to them. Seen only outside of namespaces.
const NEIGHBOURS_MAX: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";

/// A server that cannot remember its machines' MACs fails for a reason of its host's.
fn warn_of_neighbours(nodes: u32) {
    let limit = std::fs::read_to_string(NEIGHBOURS_MAX).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if let Some(limit) = limit.filter(|limit| *limit <= nodes) {
        eprintln!(
            "farrier: this kernel's ARP table ends at {limit} neighbours (net.ipv4.neigh.default.gc_thresh3): a server \
             on it may not reach {nodes} machines at once; raise it, or see --gateway"
        );
    }
}

impl StormArgs {
    fn order(&self) -> Order {
        let flood = self.flood.map(|per_second| Flood {
            per_second,
            lasts: Duration::from_secs(u64::from(self.flood_seconds)),
        });
        let over = self.over.or(flood.map(|flood| flood.lasts)).unwrap_or(OVER_DEFAULT);
        Order {
            machines: (0..self.nodes as usize).map(|number| self.profile.machine(number)).collect(),
            goal: self.until,
            seed: self.seed,
            loss: self.loss,
            over,
            patience: self.patience,
            flood,
        }
    }

    fn offering(&self) -> Offering {
        let bytes = |kib: u32| kib as usize * 1024;
        let registered = if self.registered { self.nodes as usize } else { 0 };
        Offering {
            kernel: bytes(self.kernel),
            ramdisk: bytes(self.ramdisk),
            signed: self.profile == StormProfile::UefiSecure,
            registered: (0..registered).map(|number| identity(self.seed, number).mac).collect(),
        }
    }
}

pub(super) fn run(arguments: &StormArgs, json: bool, style: Style) -> Result<String, CommandError> {
    let order = arguments.order();
    let mut report = match &arguments.bridge {
        Some(bridge) => {
            if arguments.gateway.is_none() {
                warn_of_neighbours(arguments.nodes);
            }
            let ground = Ground { bridge: bridge.clone(), gateway: arguments.gateway };
            ground::run(&ground, order, progress_bar(arguments.nodes)).map_err(not_run)?
        }
        None => {
            let farrier = std::env::current_exe().map_err(|error| failed(error.into()))?;
            let rig = Rig::build(&arguments.state, &farrier, &arguments.offering()).map_err(failed)?;
            let before = rig.server_use();
            let report = ground::run(&rig.ground(), order, progress_bar(arguments.nodes)).map_err(failed)?;
            match before.zip(rig.server_use()) {
                Some((before, after)) => report.with_server(after.since(before)),
                None => report,
            }
        }
    };
    report.slowest.retain(|slow| slow.total_secs > 0.0);
    let text = if json { json_text(&report) } else { render(&report, style) };
    match verdict(&report) {
        Ok(()) => Ok(text),
        Err(verdict) => {
            super::lab::print(&text);
            Err(CommandError::Failed(verdict))
        }
    }
}

/// A bridge that cannot be stormed is a mistake of the command line.
fn not_run(error: anyhow::Error) -> CommandError {
    match error.downcast_ref::<GroundError>() {
        Some(wrong) => CommandError::Usage(wrong.to_string()),
        None => failed(error),
    }
}

fn verdict(report: &Report) -> Result<(), String> {
    if report.interrupted {
        return Err(format!("interrupted: {} of {} machines were through", report.completed, report.nodes));
    }
    if report.lost > 0 {
        return Err(format!("{} of {} machines were lost", report.lost, report.nodes));
    }
    if report.address_conflicts > 0 {
        return Err(format!("{} addresses were given to two machines", report.address_conflicts));
    }
    match &report.flood {
        Some(flood) if flood.recovery_secs.is_none() => Err(format!(
            "after the flood {} of {} newcomers got no address",
            flood.newcomers - flood.newcomers_served,
            flood.newcomers
        )),
        Some(_) | None => Ok(()),
    }
}

/// On standard error, and only where that is a terminal.
fn progress_bar(nodes: u32) -> impl FnMut(&Progress) + Send + 'static {
    let bar = ProgressBar::new(u64::from(nodes));
    let template = "{elapsed_precise} {bar:30} {pos}/{len} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    move |progress| {
        bar.set_position(progress.completed as u64);
        let mut told: Vec<String> = Stage::ALL
            .into_iter()
            .filter(|stage| progress.at[*stage as usize] > 0)
            .map(|stage| format!("{stage} {}", progress.at[stage as usize]))
            .collect();
        if progress.lost > 0 {
            told.push(format!("lost {}", progress.lost));
        }
        bar.set_message(told.join(", "));
        if progress.completed + progress.lost == nodes as usize {
            bar.finish_and_clear();
        }
    }
}

fn secs(secs: f64) -> String {
    if secs < 1.0 { format!("{:.1} ms", secs * 1000.0) } else { format!("{secs:.2} s") }
}

fn render(report: &Report, style: Style) -> String {
    let verdict = format!(
        "{} of {} machines completed ({}), {} lost, in {}",
        report.completed,
        report.nodes,
        report.goal,
        report.lost,
        secs(report.wall_secs)
    );
    let tone = if report.lost == 0 { Tone::Good } else { Tone::Bad };
    let mut text = format!("{}\n\n", style.paint(tone, &verdict));
    let mut table = Table::new(&["stage", ">machines", ">p50", ">p99", ">max"]);
    let mut row = |name: &str, spread: &Spread| {
        let cells = [
            name.to_owned(),
            spread.count.to_string(),
            secs(spread.p50_secs),
            secs(spread.p99_secs),
            secs(spread.max_secs),
        ];
        table.row(Tone::Plain, cells);
    };
    for stage in &report.stages {
        row(stage.stage.as_str(), &stage.spread);
    }
    row("power-on to end", &report.total);
    row("DHCP replies", &report.dhcp.reply);
    text.push_str(&table.render(style));
    text.push_str(&sums(report));
    troubles(&mut text, "lost", &report.losses);
    troubles(&mut text, "setbacks", &report.setbacks);
    if !report.slowest.is_empty() {
        let mut table = Table::new(&["slowest", "firmware", "address", ">took", "why"]);
        for slow in &report.slowest {
            let address = slow.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
            let why = format!("{} {}; {}", slow.stage, secs(slow.stage_secs), slow.why);
            table.row(
                Tone::Plain,
                [slow.mac.to_string(), slow.kind.as_str().to_owned(), address, secs(slow.total_secs), why],
            );
        }
        text.push('\n');
        text.push_str(&table.render(style));
    }
    text
}

/// What is counted over all machines, and what it cost.
fn sums(report: &Report) -> String {
    let mut text = format!(
        "\nDHCP resends {}, TFTP resends {}, transfers given up {}, told to wait {} times, {} downloaded, \
         address conflicts {}, own drops {}\n",
        report.dhcp.resends,
        report.tftp_resends,
        report.given_up_transfers,
        report.told_to_wait,
        bytes(report.downloaded_bytes),
        report.address_conflicts,
        report.own_drops,
    );
    if let Some(flood) = &report.flood {
        text.push_str(&flood_line(flood));
    }
    text.push_str(&format!("seed {}, schedule {}\n", report.seed, report.schedule));
    text.push_str(&format!("CPU: storm {}", secs(report.storm_cpu_secs)));
    if let Some(server) = report.server {
        text.push_str(&format!(
            ", server {}; server memory at most {}",
            secs(server.cpu_secs),
            bytes(server.peak_memory_bytes)
        ));
    }
    text.push('\n');
    if let Some(cost) = report.per_node {
        text.push_str(&format!(
            "each machine: {:.2} ms of the server's CPU, {:.0} packets and {} on the wire, {} written to disk\n",
            cost.server_cpu_ms,
            cost.packets,
            bytes(cost.bytes as u64),
            bytes(cost.disk_bytes as u64)
        ));
    }
    text
}

fn flood_line(flood: &FloodReport) -> String {
    let FloodReport { per_second, sent, newcomers, newcomers_served, recovery_secs } = flood;
    let recovery = recovery_secs
        .map_or_else(|| "not all of them".to_owned(), |took| format!("the last after {}", secs(took)));
    format!(
        "flood: {sent} DISCOVERs at {per_second} a second; after it {newcomers_served} of {newcomers} newcomers got addresses, \
         {recovery}\n"
    )
}

fn troubles(text: &mut String, heading: &str, troubles: &[Setback]) {
    for trouble in troubles {
        text.push_str(&format!("{heading}: {} × {} in {}\n", trouble.count, trouble.reason, trouble.stage));
    }
}
