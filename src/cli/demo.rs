//! `farrier demo`: the main job before your eyes. Four machines, one per firmware, netboot and enroll.
//!
//! Ctrl-C ends it at any moment and leaves nothing but the state directory: the lab's supervisor ends with us, however
//! we end, and everything else ends with the supervisor.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;

use super::error::CommandError;
use super::lab::{UpArgs, failed, hints, page_link, print, read_config};
use super::text::{Style, counted};
use crate::cli::view::View;
use crate::image::build::progress_bar;
use crate::lab::config::LabConfig;
use crate::lab::follow::{Following, boot_all, where_it_stopped};
use crate::lab::progress::{MachineProgress, closing_table};
use crate::lab::state::StateDir;
use crate::lab::{Lab, LabOptions, Services, needs, prepare};

mod install;

/// Four machines in TCG on two busy cores need 30 to 60 s.
const ENROLLED_WITHIN: Duration = Duration::from_secs(240);

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End when the machines have enrolled; exit code 0 only if all have
    #[arg(long)]
    once: bool,
    /// Then install a small system on each, and wait until it has booted from its disk
    #[arg(long)]
    install: bool,
    #[command(flatten)]
    lab: UpArgs,
}

pub(super) fn run(arguments: &DemoArgs, style: Style) -> Result<String, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Failed(format!("no runtime: {error}")))?;
    let shown = runtime.block_on(demo(arguments, style));
    // An interrupted image build is not waited for.
    runtime.shutdown_background();
    shown.map(|()| String::new())
}

async fn demo(arguments: &DemoArgs, style: Style) -> Result<(), CommandError> {
    let mut interrupts = Interrupts::open()?;
    let config = read_config(arguments.lab.config.as_deref())?;
    needs::check(&config).map_err(|error| failed(error.into()))?;
    let state = StateDir::open(&arguments.lab.state.state).map_err(|error| failed(error.into()))?;
    let farrier = std::env::current_exe().map_err(|error| failed(error.into()))?;

    let images = {
        let (state, agent) = (state.clone(), farrier.with_file_name("farrier-agent"));
        spawn_blocking(move || {
            prepare::images(&state, &agent, &progress_bar(), &mut |line| eprintln!("{line}"))
        })
    };
    tokio::select! {
        made = images => made.map_err(|error| CommandError::Failed(error.to_string()))?.map_err(failed)?,
        () = interrupts.wait() => return Err(interrupted()),
    }

    if arguments.install {
        eprintln!("making the small system that is installed");
        let appliance = state.appliance_state();
        tokio::select! {
            made = install::make_image(&farrier, &appliance) => made.map_err(failed)?,
            () = interrupts.wait() => return Err(interrupted()),
        }
    }
    let lab = start(&state, config, farrier, &mut interrupts).await?;
    let shown = tokio::select! {
        shown = show(&lab, style) => shown,
        () = interrupts.wait() => Err(interrupted()),
    };
    let shown = match shown {
        Ok(true) if arguments.install => {
            print("\ninstalling:\n");
            tokio::select! {
                installed = install::run(&lab) => installed.map_err(failed).map(|all| Shown { enrolled: true, installed: all }),
                () = interrupts.wait() => Err(interrupted()),
            }
        }
        shown => shown.map(|enrolled| Shown { enrolled, installed: !arguments.install }),
    };
    if arguments.install && shown.as_ref().is_ok_and(|shown| shown.installed) {
        print("every machine runs from its disk\n");
    }
    if shown.is_ok() && !arguments.once {
        if let Some(machine) = lab.machines().first() {
            let page = page_link(&state, lab.operator()).await;
            print(&hints(&state, page, machine.name.as_str(), machine.mac));
        }
        print("\nthe lab stays up; Ctrl-C ends it\n");
        interrupts.wait().await;
        print("\n");
    }
    let stopped = lab.stop().map_err(failed);
    let shown = shown?;
    stopped?;
    if arguments.once && !shown.enrolled {
        return Err(CommandError::Failed("not every machine has enrolled".to_owned()));
    }
    if arguments.once && !shown.installed {
        return Err(CommandError::Failed("not every machine was installed".to_owned()));
    }
    Ok(())
}

/// What came of it.
struct Shown {
    enrolled: bool,
    installed: bool,
}

fn interrupted() -> CommandError {
    CommandError::Failed("interrupted; nothing is left running".to_owned())
}

/// Starts the lab. Interrupted meanwhile, it is ended again as soon as it stands: a second Ctrl-C need not wait for that.
async fn start(
    state: &StateDir,
    config: LabConfig,
    farrier: PathBuf,
    interrupts: &mut Interrupts,
) -> Result<Lab, CommandError> {
    let options = LabOptions {
        state: state.root().to_owned(),
        config,
        farrier,
        fresh: true,
        ends_with_launcher: true,
        services: Services::Appliance { observers: Vec::new() },
    };
    let mut starting = spawn_blocking(move || Lab::start(options));
    let joined = |outcome: Result<anyhow::Result<Lab>, tokio::task::JoinError>| {
        outcome.map_err(|error| CommandError::Failed(error.to_string()))?.map_err(failed)
    };
    tokio::select! {
        outcome = &mut starting => return joined(outcome),
        () = interrupts.wait() => {}
    }
    tokio::select! {
        outcome = starting => joined(outcome)?.stop().map_err(failed)?,
        () = interrupts.wait() => {}
    }
    Err(interrupted())
}

/// The live view and the closing table; true if every machine has enrolled.
async fn show(lab: &Lab, style: Style) -> Result<bool, CommandError> {
    let mut view = View::of_stdout();
    let accel = lab.accel();
    view.say(&format!(
        "{} with {} ({}), appliance {} on bridge {}",
        counted(lab.machines().len() as u64, "machine"),
        accel.accel.as_str(),
        accel.reason,
        lab.address(),
        lab.bridge(),
    ));
    let mut machines: Vec<MachineProgress> = lab.machines().iter().map(MachineProgress::new).collect();
    let following = Following { style, at_once: lab.at_once(), within: ENROLLED_WITHIN };
    let booted = boot_all(lab, &mut machines, &mut view, &following).await;
    view.clear();
    booted.map_err(failed)?;
    print("\nfrom power-on:\n");
    print(&closing_table(&machines).render(style));
    for machine in machines.iter().filter(|machine| !machine.is_enrolled()) {
        let serial_log = lab.state().machine(&machine.name).serial_log();
        print(&format!("{}\n", where_it_stopped(machine, &serial_log)));
    }
    Ok(machines.iter().all(MachineProgress::is_enrolled))
}

/// Ctrl-C, a closed terminal, and a supervisor's request to end.
struct Interrupts {
    signals: [Signal; 3],
}

impl Interrupts {
    fn open() -> Result<Interrupts, CommandError> {
        let open = |kind| signal(kind).map_err(|error| CommandError::Failed(format!("signals: {error}")));
        Ok(Interrupts {
            signals: [
                open(SignalKind::interrupt())?,
                open(SignalKind::terminate())?,
                open(SignalKind::hangup())?,
            ],
        })
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hang_up] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}
