//! The process that *is* the lab: it lives in the namespace, and everything else in there is its child.
//!
//! ```text
//!   farrier demo | lab up | a test        (outside)
//!     └─ unshare --net ─ farrier lab supervise
//!          ├─ farrier serve               restarted when it dies
//!          └─ qemu-system-x86_64 …        one per machine, started switched off
//! ```
//!
//! Every child dies with us (`PR_SET_PDEATHSIG`), so that even `kill -9` leaves nothing: with the last process goes
//! the namespace, and with the namespace bridge and taps. Children are spawned from the main thread, the one whose
//! end the kernel watches. Standard input is the operator's listening socket, standard output a socket to the
//! launcher: one line of report goes out, and its end tells us that the launcher has gone.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::lab::plan::{Plan, ProgramPlan, Report};
use crate::lab::process::{self, ProcessId};
use crate::lab::state::{ProgramRecord, RunRecord, StateDir};
use crate::lab::topology;
use crate::net::sys::die_with_parent;

/// An ended program is started again after this long, as systemd's `RestartSec` would.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// Restarts of one program before we leave it dead: by then its log says the same thing over and over.
const RESTARTS_MAX: u32 = 10;

/// The appliance drains within 2 s of SIGTERM; QEMU ends at once.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// Runs the lab planned in `state` until it is told to end. Returns when every child has ended.
pub fn run(state: &Path) -> anyhow::Result<()> {
    let state = StateDir::open(state)?;
    let Some(_lock) = state.try_lock()? else {
        bail!("a lab runs in {} already", state.root().display());
    };
    // A session of its own: the terminal's Ctrl-C is the launcher's business. Fails only if we lead one already.
    let _ = nix::unistd::setsid();
    let launcher = io::stdout().as_fd().try_clone_to_owned().map(UnixStream::from)?;
    let plan = state.read_plan()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The future runs on this thread: `block_on` of a current-thread runtime moves it nowhere.
    runtime.block_on(supervise(&state, &plan, launcher))
}

async fn supervise(state: &StateDir, plan: &Plan, mut launcher: UnixStream) -> anyhow::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut supervisor = match Supervisor::start(state, plan) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            report(&mut launcher, &Report::Failed { message: format!("{error:#}") });
            return Err(error);
        }
    };
    report(&mut launcher, &Report::Ready);
    launcher.set_nonblocking(true)?;
    let mut launcher = tokio::net::UnixStream::from_std(launcher)?;
    let mut launcher_alive = plan.ends_with_launcher;
    loop {
        let mut byte = [0];
        let restart_at = supervisor.restarts.front().map(|(at, _)| *at);
        tokio::select! {
            _ = ended.recv() => supervisor.reap()?,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // The launcher never writes: whatever arrives is its end.
            _ = launcher.read(&mut byte), if launcher_alive => { launcher_alive = false; break; }
            () = sleep_until(restart_at.unwrap_or_else(Instant::now)), if restart_at.is_some() => {
                supervisor.restart_due()?;
            }
        }
    }
    if plan.ends_with_launcher && !launcher_alive {
        eprintln!("the launcher has gone");
    }
    supervisor.stop(&mut ended).await?;
    state.remove_runtime_files()?;
    Ok(())
}

/// A launcher that has gone needs no report; its end is noticed in the main loop.
fn report(launcher: &mut UnixStream, report: &Report) {
    if let Ok(text) = serde_json::to_string(report) {
        let _ = writeln!(launcher, "{text}");
    }
}

struct Supervisor<'a> {
    state: &'a StateDir,
    plan: &'a Plan,
    /// One per program of the plan.
    children: Vec<Option<Child>>,
    record: RunRecord,
    /// Programs to start again, soonest first.
    restarts: VecDeque<(Instant, usize)>,
}

impl<'a> Supervisor<'a> {
    fn start(state: &'a StateDir, plan: &'a Plan) -> anyhow::Result<Self> {
        topology::build(&plan.network)?;
        let own = std::process::id();
        let record = RunRecord {
            supervisor: ProcessId::of(own).context("/proc is not readable")?,
            namespace: process::own_namespace().context("/proc/self/ns/net is not readable")?,
            bridge: plan.network.bridge.clone(),
            operator: listener_address(),
            programs: Vec::new(),
        };
        let mut supervisor =
            Supervisor { state, plan, children: Vec::new(), record, restarts: VecDeque::new() };
        for program in &plan.programs {
            let record = ProgramRecord { name: program.name.clone(), process: None, ended: None, starts: 0 };
            supervisor.record.programs.push(record);
            supervisor.children.push(None);
        }
        for (index, program) in plan.programs.iter().enumerate() {
            File::create(&program.log)
                .with_context(|| format!("{} cannot be made", program.log.display()))?;
            supervisor.launch(index)?;
        }
        supervisor.write()?;
        Ok(supervisor)
    }

    fn launch(&mut self, index: usize) -> anyhow::Result<()> {
        let program = &self.plan.programs[index];
        let child = spawn(program)
            .with_context(|| format!("{}: `{}` cannot be run", program.name, program.arguments[0]))?;
        let record = &mut self.record.programs[index];
        record.process = ProcessId::of(child.id());
        record.starts += 1;
        eprintln!("{}: started, process {}", program.name, child.id());
        self.children[index] = Some(child);
        Ok(())
    }

    fn write(&self) -> anyhow::Result<()> {
        Ok(self.state.write_run_record(&self.record)?)
    }

    /// Notes every child that has ended and plans its restart.
    fn reap(&mut self) -> anyhow::Result<()> {
        for (index, slot) in self.children.iter_mut().enumerate() {
            let Some(status) = slot.as_mut().and_then(|child| child.try_wait().ok().flatten()) else {
                continue;
            };
            *slot = None;
            let record = &mut self.record.programs[index];
            eprintln!("{}: ended, {status}", record.name);
            record.process = None;
            record.ended = Some(status.to_string());
            if self.plan.programs[index].restarts && record.starts <= RESTARTS_MAX {
                self.restarts.push_back((Instant::now() + RESTART_AFTER, index));
            }
        }
        self.write()
    }

    fn restart_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        while self.restarts.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, index)) = self.restarts.pop_front() {
                self.launch(index)?;
            }
        }
        self.write()
    }

    /// Ends every child: asks, waits, insists.
    async fn stop(&mut self, ended: &mut tokio::signal::unix::Signal) -> anyhow::Result<()> {
        self.signal_all(Signal::SIGTERM);
        let deadline = Instant::now() + ENDS_WITHIN;
        self.restarts.clear();
        self.reap()?;
        while self.children.iter().any(Option::is_some) {
            tokio::select! {
                _ = ended.recv() => {}
                () = sleep_until(deadline) => break,
            }
            self.reap()?;
            self.restarts.clear();
        }
        self.signal_all(Signal::SIGKILL);
        for child in self.children.iter_mut().flatten() {
            child.wait()?;
        }
        Ok(())
    }

    fn signal_all(&self, signal: Signal) {
        for process in self.record.programs.iter().filter_map(|record| record.process) {
            // It may have ended by itself.
            let _ = process.signal(signal);
        }
    }
}

fn spawn(program: &ProgramPlan) -> io::Result<Child> {
    let log = File::options().append(true).open(&program.log)?;
    let stdin =
        if program.takes_listener { io::stdin().as_fd().try_clone_to_owned()?.into() } else { Stdio::null() };
    let mut command = Command::new(&program.arguments[0]);
    command
        .args(&program.arguments[1..])
        .current_dir(&program.directory)
        .stdin(stdin)
        .stdout(log.try_clone()?)
        .stderr(log);
    die_with_parent(&mut command).spawn()
}

/// The address of the listening socket we have as standard input, if it is one.
fn listener_address() -> Option<std::net::SocketAddr> {
    let listener: std::net::TcpListener = io::stdin().as_fd().try_clone_to_owned().ok()?.into();
    listener.local_addr().ok()
}
