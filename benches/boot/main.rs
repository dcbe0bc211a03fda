//! Power-on to enrolled: farrier beside dnsmasq + nginx as people run them, in one run and in turns.
//!
//! Both boot the same kernel and ramdisk on the same QEMU machine, one machine at a time, from fresh firmware. The clock
//! starts when the machine is switched on. It ends for us with the `enrolled` stage of the timeline, for the peer with
//! the log line of the agent's inventory call. `ROUNDS=n` sets the rounds, `FARRIER_BINARIES` the binaries. Writes its
//! section of `benches/RESULTS.md`.

mod farrier_run;
mod peer_run;
#[path = "../versus/report.rs"]
#[allow(dead_code, reason = "shared with the other benches, which need all of it")]
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use farrier::image::build::progress_bar;
use farrier::lab::accel;
use farrier::lab::config::{LabConfig, LabFirmware};
use farrier::lab::{needs, prepare};

use report::{Figure, Section, ratio};

/// Fewer say nothing about the spread.
const ROUNDS_MIN: usize = 3;

/// The peer's BIOS machine alone needs 22 s here; a stuck one is noticed this late.
const ENROLLED_WITHIN: Duration = Duration::from_secs(180);

/// How much of the peer's time we may take.
const TARGETS: [(LabFirmware, f64); 2] = [(LabFirmware::Bios, 0.5), (LabFirmware::UefiSecure, 1.0)];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    Farrier,
    Pile,
}

impl Contender {
    const ALL: [Contender; 2] = [Contender::Farrier, Contender::Pile];

    fn name(self) -> &'static str {
        match self {
            Contender::Farrier => "farrier",
            Contender::Pile => "dnsmasq + nginx",
        }
    }
}

/// What the report wants to know of a run.
struct Plan {
    /// The machine, in a line.
    machine: String,
}

impl Plan {
    /// All servers take part.
    fn is_partial(&self) -> bool {
        false
    }
}

/// Where everything is.
struct Bench {
    farrier: PathBuf,
    /// Images and loaders, as in an appliance's state directory.
    images: PathBuf,
    /// Emptied before every run.
    scratch: PathBuf,
    config: LabConfig,
    accelerator: &'static str,
}

impl Bench {
    fn prepare() -> anyhow::Result<Bench> {
        let binaries = match std::env::var_os("FARRIER_BINARIES") {
            Some(directory) => PathBuf::from(directory),
            None => std::env::current_exe()?.ancestors().nth(2).context("no target directory")?.to_owned(),
        };
        let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let images = temporary.join("lab-images");
        let scratch = temporary.join("bench-boot");
        std::fs::create_dir_all(&scratch)?;
        let mut config = LabConfig::built_in()?;
        config.operator.set_port(0);
        needs::check(&config)?;
        peer_run::check_needs()?;
        let agent = binaries.join("farrier-agent");
        prepare::prepare(&images, &agent, &progress_bar(), &mut |line| println!("{line}"))?;
        // Tried once; a probe before every run would only make the bench longer.
        let choice = accel::choose(config.accel, &scratch);
        println!("machines run with {} ({})", choice.accel.as_str(), choice.reason);
        config.accel = choice.accel.into();
        let accelerator = choice.accel.as_str();
        Ok(Bench { farrier: binaries.join("farrier"), images, scratch, config, accelerator })
    }

    /// The lab with only the machine of this firmware.
    fn config(&self, firmware: LabFirmware) -> LabConfig {
        let mut config = self.config.clone();
        config.machines.retain(|machine| machine.firmware == firmware);
        config
    }

    fn run(&self, contender: Contender, firmware: LabFirmware) -> anyhow::Result<Duration> {
        let state = self.scratch.join("run");
        if state.exists() {
            std::fs::remove_dir_all(&state)?;
        }
        match contender {
            Contender::Farrier => farrier_run::power_on_to_enrolled(self, firmware, &state),
            Contender::Pile => peer_run::power_on_to_enrolled(self, firmware, &state),
        }
    }
}

fn main() -> ExitCode {
    // `cargo test --all-targets` starts benches as well, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    match compare() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench boot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every target is met.
fn compare() -> anyhow::Result<bool> {
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS_MIN);
    let rounds = rounds.max(ROUNDS_MIN);
    let bench = Bench::prepare()?;
    let run = format!("{rounds} rounds; machines run with {}", bench.accelerator);
    let plan = Plan { machine: report::machine(&run) };
    let mut taken: BTreeMap<(LabFirmware, Contender), Figure> = BTreeMap::new();
    for round in 1..=rounds {
        for (firmware, _) in TARGETS {
            for contender in Contender::ALL {
                let took = bench
                    .run(contender, firmware)
                    .with_context(|| format!("{} with {firmware}", contender.name()))?;
                println!(
                    "round {round} of {rounds}  {firmware:<11}  {:<15}  {:5.2} s",
                    contender.name(),
                    took.as_secs_f64()
                );
                taken.entry((firmware, contender)).or_default().push(took.as_secs_f64());
            }
        }
    }
    std::fs::remove_dir_all(&bench.scratch)?;
    Ok(tell(&taken, &plan))
}

/// True if every target is met.
fn tell(taken: &BTreeMap<(LabFirmware, Contender), Figure>, plan: &Plan) -> bool {
    let mut section = Section::new(
        "Boot",
        "Power-on to enrolled: the same kernel and ramdisk on the same virtual machine, one at a time and from fresh \
         firmware. The clock ends with the `enrolled` stage of farrier's timeline, and with the log line of the agent's \
         last call where dnsmasq + nginx serve it.",
    );
    let peer = Contender::Pile.name();
    let (mut rows, mut all_met) = (Vec::new(), true);
    for (firmware, bound) in TARGETS {
        let [ours, theirs] = Contender::ALL.map(|contender| &taken[&(firmware, contender)]);
        let (our_time, their_time) = (ours.median(), theirs.median());
        rows.push(vec![firmware.to_string(), ours.show(), theirs.show(), ratio(our_time, their_time)]);
        section.at_most(&format!("{firmware}, seconds"), our_time, bound, their_time, peer);
        all_met &= our_time <= bound * their_time;
    }
    section.table(&["firmware", "farrier, s", &format!("{peer}, s"), "ratio"], &rows);
    section.write(plan);
    all_met
}
