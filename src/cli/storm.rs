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
use crate::storm::engine::{Order, Progress, identity};
use crate::storm::firmware::Kind;
use crate::storm::ground;
use crate::storm::machine::{Goal, Stage};
use crate::storm::report::{Report, Setback, Spread};
use crate::storm::rig::{self, ImageSize, Rig};

#[derive(Debug, Args)]
pub struct StormArgs {
    /// Machines
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=i64::try_from(rig::NODES_MAX).unwrap_or(i64::MAX)))]
    nodes: u32,

    /// Their firmware; `mix` is a third of each
    #[arg(long, value_enum, default_value = "mix")]
    profile: StormProfile,

    /// Share of DHCP and TFTP datagrams lost each way, from 0 to 1
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_loss)]
    loss: f64,

    /// Existing bridge to storm, whatever serves there; without it, our appliance in a lab of its own
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,

    /// How far the machines are to come
    #[arg(long, value_enum, default_value = "enroll")]
    until: Goal,

    /// All machines are switched on within this time
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    over: Duration,

    /// Machines not home after this long are lost
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    patience: Duration,

    /// The same seed gives the same machines, timing and losses
    #[arg(long, default_value = "1")]
    seed: u64,

    /// Besides, DISCOVERs a second from strangers that never come again
    #[arg(long, value_name = "RATE", default_value = "0")]
    strangers: u32,

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StormProfile {
    Bios,
    Uefi,
    UefiHttp,
    Mix,
}

impl StormProfile {
    fn machine(self, number: usize) -> Kind {
        match self {
            StormProfile::Bios => Kind::Bios,
            StormProfile::Uefi => Kind::Uefi,
            StormProfile::UefiHttp => Kind::UefiHttp,
            StormProfile::Mix => Kind::ALL[number % Kind::ALL.len()],
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

/// Linux forgets neighbours beyond this, and then cannot send to them. Seen only outside of namespaces.
const NEIGHBOURS_MAX: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";

/// A server that cannot remember its machines' MACs fails for a reason of its host's.
fn warn_of_neighbours(nodes: u32) {
    let limit = std::fs::read_to_string(NEIGHBOURS_MAX).ok().and_then(|text| text.trim().parse::<u32>().ok());
    if let Some(limit) = limit.filter(|limit| *limit <= nodes) {
        eprintln!(
            "farrier: this kernel's ARP table ends at {limit} neighbours (net.ipv4.neigh.default.gc_thresh3): a server \
             on it may not reach {nodes} machines at once"
        );
    }
}

pub(super) fn run(arguments: &StormArgs, json: bool, style: Style) -> Result<String, CommandError> {
    warn_of_neighbours(arguments.nodes);
    let order = Order {
        machines: (0..arguments.nodes as usize).map(|number| arguments.profile.machine(number)).collect(),
        goal: arguments.until,
        seed: arguments.seed,
        loss: arguments.loss,
        over: arguments.over,
        patience: arguments.patience,
        strangers: arguments.strangers,
    };
    let mut report = match &arguments.bridge {
        Some(bridge) => ground::run(bridge, order, progress_bar(arguments.nodes)).map_err(failed)?,
        None => {
            let farrier = std::env::current_exe().map_err(|error| failed(error.into()))?;
            let kib = |kib: u32| kib as usize * 1024;
            let image = ImageSize { kernel: kib(arguments.kernel), ramdisk: kib(arguments.ramdisk) };
            let known = if arguments.registered { arguments.nodes as usize } else { 0 };
            let known: Vec<_> = (0..known).map(|number| identity(arguments.seed, number).mac).collect();
            let rig = Rig::build(&arguments.state, &farrier, image, &known).map_err(failed)?;
            let mut report =
                ground::run(rig::BRIDGE, order, progress_bar(arguments.nodes)).map_err(failed)?;
            report.server = rig.server_use();
            report
        }
    };
    report.slowest.retain(|slow| slow.total_secs > 0.0);
    let text = if json { json_text(&report) } else { render(&report, style) };
    if report.lost > 0 || report.address_conflicts > 0 {
        super::lab::print(&text);
        return Err(CommandError::Failed(format!("{} of {} machines were lost", report.lost, report.nodes)));
    }
    Ok(text)
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
    text.push_str(&format!(
        "\nDHCP resends {}, TFTP resends {}, told to wait {} times, {} downloaded, address conflicts {}, \
         own drops {}, strangers {}\n",
        report.dhcp.resends,
        report.tftp_resends,
        report.told_to_wait,
        bytes(report.downloaded_bytes),
        report.address_conflicts,
        report.own_drops,
        report.strangers,
    ));
    text.push_str(&format!("CPU: storm {}", secs(report.storm_cpu_secs)));
    if let Some(server) = report.server {
        text.push_str(&format!(
            ", server {}; server memory at most {}",
            secs(server.cpu_secs),
            bytes(server.peak_memory_bytes)
        ));
    }
    text.push('\n');
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

fn troubles(text: &mut String, heading: &str, troubles: &[Setback]) {
    for trouble in troubles {
        text.push_str(&format!("{heading}: {} × {} in {}\n", trouble.count, trouble.reason, trouble.stage));
    }
}
