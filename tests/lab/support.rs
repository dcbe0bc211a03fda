//! A case: a lab of its own, and what is kept of it when it fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use farrier::cli::client::Client;
use farrier::cli::error::CommandError;
use farrier::lab::config::{LabConfig, LabFirmware, MachineConfig};
use farrier::lab::plan::ProgramPlan;
use farrier::lab::process;
use farrier::lab::state::StateDir;
use farrier::lab::{Lab, LabOptions, Services, prepare};
use farrier::node::timeline::Boot;
use farrier::operator::api::NodeDetail;
use indicatif::ProgressBar;
use nix::sys::signal::Signal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::dissect;

/// A machine that has not come where it should by then never will: four at once in TCG on two busy cores take 60 s.
pub const BOOTS_WITHIN: Duration = Duration::from_secs(240);

/// One lab at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other lab runs.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Case {
    name: &'static str,
    pub state: StateDir,
    pub lab: Option<Lab>,
    pub config: LabConfig,
    pub runtime: Runtime,
    _turn: MutexGuard<'static, ()>,
}

/// `farrier` and `farrier-agent` to test: those named by the environment, else the ones cargo built for this test.
pub fn binaries() -> PathBuf {
    match std::env::var_os("FARRIER_BINARIES") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_BIN_EXE_farrier")).parent().unwrap().to_owned(),
    }
}

pub fn farrier() -> PathBuf {
    binaries().join("farrier")
}

/// Deploy image and loaders, made once and shared by all cases.
pub fn images() -> &'static Path {
    static IMAGES: OnceLock<PathBuf> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab-images");
        let agent = binaries().join("farrier-agent");
        prepare::prepare(&directory, &agent, &ProgressBar::hidden(), &mut |line| eprintln!("{line}"))
            .unwrap();
        directory
    })
}

/// The built-in machines of these kinds, and this over the appliance's configuration.
pub fn config(firmware: &[LabFirmware], appliance: &str) -> LabConfig {
    let mut config = LabConfig::built_in().unwrap();
    config.machines.retain(|machine| firmware.contains(&machine.firmware));
    config.appliance = toml::from_str(appliance).unwrap();
    config.operator.set_port(0);
    config
}

impl Case {
    /// A case with an empty state directory; its lab is started by [`Case::start`].
    pub fn new(name: &'static str, config: LabConfig) -> Case {
        let turn = turn();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/output/lab").join(name);
        let _ = fs::remove_dir_all(&root);
        let state = StateDir::open(&root).unwrap();
        prepare::share(images(), &state.appliance_state()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Case { name, state, lab: None, config, runtime, _turn: turn }
    }

    /// Loaders of this case's own, to be added to and changed: a copy of the shared ones. The folder they are in.
    pub fn own_loaders(&self) -> PathBuf {
        let folder = self.state.appliance_state().join("loaders");
        let shared = fs::canonicalize(&folder).unwrap();
        fs::remove_file(&folder).unwrap();
        let copied = Command::new("cp").arg("-r").args([&shared, &folder]).status().unwrap();
        assert!(copied.success());
        folder
    }

    /// What the appliance would answer at that time, by its API.
    pub fn ask<T: DeserializeOwned>(&self, path: &str) -> T {
        let socket = self.state.short_operator_socket().unwrap();
        self.runtime.block_on(Client::new(socket.path()).get(path)).unwrap()
    }

    /// What a change answers, by the API.
    pub fn change<T: DeserializeOwned>(&self, method: &str, path: &str, body: &impl Serialize) -> T {
        let socket = self.state.short_operator_socket().unwrap();
        let client = Client::new(socket.path());
        let changed = async {
            match method {
                "PATCH" => client.patch(path, body).await,
                _ => client.post(path, body).await,
            }
        };
        self.runtime.block_on(changed).unwrap()
    }

    /// The command line, at this case's appliance.
    pub fn farrier(&self, arguments: &[&str]) -> Output {
        let socket = self.state.short_operator_socket().unwrap();
        Command::new(farrier()).arg("--socket").arg(socket.path()).args(arguments).output().unwrap()
    }

    /// What a machine has said on its serial line, from this byte on.
    pub fn serial(&self, machine: &MachineConfig, from: usize) -> String {
        let log = self.state.machine(machine.name.as_str()).serial_log();
        let said = fs::read(log).unwrap_or_default();
        String::from_utf8_lossy(said.get(from..).unwrap_or_default()).into_owned()
    }

    pub fn start(self) -> Case {
        self.start_with(Vec::new())
    }

    /// With these programs beside the appliance, in the lab's namespace.
    pub fn start_with(mut self, programs: Vec<ProgramPlan>) -> Case {
        let observers = [vec![self.capture()], programs].concat();
        let lab = Lab::start(LabOptions {
            state: self.state.root().to_owned(),
            config: self.config.clone(),
            farrier: farrier(),
            fresh: true,
            ends_with_launcher: true,
            services: Services::Appliance { observers },
        });
        self.lab = Some(lab.unwrap());
        self
    }

    /// Switches every machine on.
    pub fn power_on(self) -> Case {
        for machine in self.machines() {
            self.lab().power_on(machine.name.as_str()).unwrap();
        }
        self
    }

    pub fn lab(&self) -> &Lab {
        self.lab.as_ref().unwrap()
    }

    pub fn machines(&self) -> &[MachineConfig] {
        &self.config.machines
    }

    pub fn machine(&self, firmware: LabFirmware) -> &MachineConfig {
        self.machines().iter().find(|machine| machine.firmware == firmware).unwrap()
    }

    /// Headers of everything but bulk data: capturing whole packets costs machines in TCG more than booting does.
    fn capture(&self) -> ProgramPlan {
        let arguments = [
            "tcpdump",
            "-Z",
            "root",
            "-U",
            "-n",
            "-i",
            &self.config.bridge,
            "-w",
            "capture.pcap",
            "less 700",
        ];
        ProgramPlan {
            name: "capture".to_owned(),
            arguments: arguments.map(str::to_owned).to_vec(),
            directory: self.state.root().to_owned(),
            log: self.state.root().join("capture.log"),
            takes_listener: false,
            restarts: false,
        }
    }

    /// Asks the appliance until the answer is as wanted: after every event of the timeline, and now and then without
    /// one, because the appliance may have been restarted.
    pub fn await_node(
        &self,
        machine: &MachineConfig,
        what: &str,
        within: Duration,
        wanted: impl Fn(&NodeDetail, &Boot) -> bool,
    ) -> (NodeDetail, Boot) {
        const ASK_AGAIN: Duration = Duration::from_secs(1);
        let asking = async {
            let socket = self.state.short_operator_socket().unwrap();
            let client = Client::new(socket.path());
            let mut events = client.events().await.ok();
            loop {
                if let Ok((node, Some(boot))) = node(&client, machine).await
                    && wanted(&node, &boot)
                {
                    return (node, boot);
                }
                let next = async {
                    match &mut events {
                        Some(events) => events.next().await.is_ok_and(|event| event.is_some()),
                        None => std::future::pending().await,
                    }
                };
                // Without events, or with a stream that ended: look again a little later.
                if !timeout(ASK_AGAIN, next).await.unwrap_or(true) || events.is_none() {
                    tokio::time::sleep(ASK_AGAIN / 10).await;
                    events = client.events().await.ok();
                }
            }
        };
        match self.runtime.block_on(async { timeout(within, asking).await }) {
            Ok(found) => found,
            Err(_) => panic!("{}: not within {} s: {what}", machine.name, within.as_secs()),
        }
    }

    pub fn await_enrolled(&self, machine: &MachineConfig) -> (NodeDetail, Boot) {
        self.await_node(machine, "enrolled", BOOTS_WITHIN, |_, boot| boot.enrolled)
    }

    /// Waits until a text that grows has these words in it.
    pub fn await_words(&self, wanted: &str, within: Duration, text: impl Fn() -> String) {
        let until = Instant::now() + within;
        while !text().contains(wanted) {
            assert!(Instant::now() < until, "`{wanted}` not within {within:?} in:\n{}", text());
            process::look_again();
        }
    }

    pub fn signal_appliance(&self, signal: Signal) {
        let record = self.lab().run_record().unwrap();
        let appliance = record.programs.iter().find(|program| program.name == "appliance").unwrap();
        appliance.process.unwrap().signal(signal).unwrap();
    }

    /// Insists that tshark finds no fault with what the appliance sent.
    fn dissect(&self) {
        let capture = self.state.root().join("capture.pcap");
        if !capture.exists() {
            return;
        }
        let sent =
            ["-Y", &format!("ip.src == {}", self.config.address.ip()), "-T", "fields", "-e", "eth.src"];
        let told = Command::new("tshark").args(["-n", "-r"]).arg(&capture).args(sent).output();
        let told = told.expect("tshark (.ci/packages.txt names the Debian package)");
        let told = String::from_utf8_lossy(&told.stdout);
        let senders = told.lines().filter_map(|line| line.parse().ok()).collect();
        // Of HTTP only small packets are kept.
        match dissect::dissect(&capture, &senders, "not tcp") {
            Ok(frames) => eprintln!("case {}: tshark finds no fault with {frames} frames", self.name),
            Err(fault) => panic!("case {}: {fault}\nkept in {}", self.name, self.state.root().display()),
        }
    }

    /// Everything the appliance recorded of the machines, for whoever looks into a failure.
    fn write_timelines(&self) {
        let Ok(socket) = self.state.short_operator_socket() else { return };
        let client = Client::new(socket.path());
        for machine in self.machines() {
            let boots: Result<serde_json::Value, CommandError> =
                self.runtime.block_on(client.get(&format!("/api/v1/nodes/{}/boots", machine.mac)));
            if let Ok(boots) = boots {
                let path = self.state.root().join(format!("timeline-{}.json", machine.name));
                let _ = fs::write(path, serde_json::to_vec_pretty(&boots).unwrap_or_default());
            }
        }
    }
}

async fn node(client: &Client, machine: &MachineConfig) -> Result<(NodeDetail, Option<Boot>), CommandError> {
    let path = format!("/api/v1/nodes/{}", machine.mac);
    // The boots first: a node asked before them may still be in the state its newest boot has left.
    let boots: Vec<Boot> = client.list(&format!("{path}/boots")).await?;
    let node: NodeDetail = client.get(&path).await?;
    let newest = boots.into_iter().filter(|boot| boot.number > 0).max_by_key(|boot| boot.number);
    Ok((node, newest))
}

impl Drop for Case {
    fn drop(&mut self) {
        let failed = thread::panicking();
        if failed {
            self.write_timelines();
        }
        drop(self.lab.take());
        if failed {
            eprintln!("case {} failed; kept in {}:", self.name, self.state.root().display());
            eprintln!("  machines/*/serial.log  capture.pcap  timeline-*.json  appliance.log  lab.log");
        } else {
            self.dissect();
            fs::remove_dir_all(self.state.root()).unwrap();
        }
    }
}
