//! farrier and the servers it replaces, side by side: `make bench`.
//!
//! One part per argument (`dhcp`, `tftp`, `http`, `mixed`, `footprint`; all of them without one). Environment:
//! - `FARRIER_BINARIES`: directory of the release binaries
//! - `ROUNDS`: rounds, 5 by default; each round lets every server have its turn
//! - `MEASURE_SECONDS`: length of one measurement, 3 by default (`SECONDS` is bash's own)
//! - `ONLY`: comma-separated names of servers, to look at some of them; their section is not complete then
//! - `STEPS`: comma-separated steps of the parts that have some (`dhcp`: `rate`, `steady`, `restart`, `sync`; `tftp`: `one`,
//!   `crowd`, `loss`), to look at some of them; likewise
//! - `VERBOSE`: every single measurement
//!
//! A part that is complete writes its section of `benches/RESULTS.md`. `bed` is the wire, `server` starts and weighs the servers,
//! `state` is what they find on disk, the `*_client`s are load generators where the field has none that is lean
//! enough, and `proof` reads strace.

#![allow(
    clippy::disallowed_methods,
    reason = "a load keeps to a schedule; nothing here waits for a condition by sleeping long enough"
)]

mod bed;
mod dhcp;
mod dhcp_client;
mod footprint;
mod http;
mod mixed;
mod null_server;
mod proof;
mod report;
mod server;
mod state;
mod tftp;
mod tftp_client;

use std::time::Duration;

use server::Kind;

/// What `STEPS` can name.
const STEPS: [&str; 7] = ["rate", "steady", "restart", "sync", "one", "crowd", "loss"];

/// What the environment asks for.
pub struct Plan {
    pub rounds: u32,
    pub seconds: u64,
    pub verbose: bool,
    only: Option<Vec<String>>,
    steps: Option<Vec<String>>,
    /// The machine, in a line.
    machine: String,
}

impl Plan {
    fn from_environment() -> Plan {
        let number = |name: &str, default| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number is wanted")),
            Err(_) => default,
        };
        let rounds = number("ROUNDS", 5);
        let seconds = number("MEASURE_SECONDS", 3);
        let names = |variable| {
            let names = std::env::var(variable).ok()?;
            Some(names.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>())
        };
        let steps = names("STEPS");
        if let Some(unknown) = steps.iter().flatten().find(|step| !STEPS.contains(&step.as_str())) {
            panic!("STEPS: no step is called {unknown:?}; there are {}", STEPS.join(", "));
        }
        Plan {
            rounds: u32::try_from(rounds).unwrap_or(u32::MAX).max(1),
            seconds: seconds.max(1),
            verbose: std::env::var_os("VERBOSE").is_some(),
            only: names("ONLY"),
            steps,
            machine: report::machine(&format!("{rounds} rounds of {seconds} s")),
        }
    }

    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    pub fn skips(&self, kind: Kind) -> bool {
        self.only.as_ref().is_some_and(|only| !only.iter().any(|name| name == kind.name()))
    }

    /// Whether this step of a part is to run.
    pub fn takes(&self, step: &str) -> bool {
        assert!(STEPS.contains(&step), "{step} cannot be asked for");
        self.steps.as_ref().is_none_or(|steps| steps.iter().any(|name| name == step))
    }

    /// Whether some servers or steps are left out.
    pub fn is_partial(&self) -> bool {
        self.only.is_some() || self.steps.is_some()
    }

    /// Versions of what is compared, in a line.
    pub fn versions(&self, kinds: &[Kind]) -> String {
        let versions: Vec<String> = kinds.iter().map(|kind| kind.version()).collect();
        format!("Compared: {}.", versions.join(", "))
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if arguments.first().is_some_and(|word| word == null_server::ARGUMENT) {
        null_server::run(arguments.get(1).map(String::as_str));
    }
    const PARTS: [&str; 5] = ["dhcp", "tftp", "http", "mixed", "footprint"];
    if let Some(unknown) = arguments.iter().find(|word| !PARTS.contains(&word.as_str())) {
        eprintln!("farrier bench: no part is called {unknown}; there are {}", PARTS.join(", "));
        std::process::exit(2);
    }
    bed::isolated();
    let _turn = bed::take_turn();
    let plan = Plan::from_environment();
    let wanted = |part: &&str| arguments.is_empty() || arguments.iter().any(|word| word == part);
    let bed = bed::Bed::new(http::MACHINES);
    for part in PARTS.iter().filter(|part| wanted(part)) {
        match *part {
            "dhcp" => dhcp::run(&bed, &plan),
            "tftp" => tftp::run(&bed, &plan),
            "http" => http::run(&bed, &plan),
            "mixed" => mixed::run(&bed, &plan),
            "footprint" => footprint::run(&bed, &plan),
            other => unreachable!("{other} is not among the parts"),
        }
    }
}
