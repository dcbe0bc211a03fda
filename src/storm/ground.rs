//! Where a storm takes place: a network namespace of the machines' own, and a cable from it into a bridge.
//!
//! ```text
//!   namespace of the bridge              namespace of the storm (one thread of ours)
//!     bridge ── stormNNNN ─────────────────── storm0  promiscuous, no address, everything on link
//! ```
//! The namespace belongs to the thread that runs the storm and ends with it; with it goes the cable, so that nothing
//! is left on a foreign bridge however we end.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, gettid};

use crate::storm::engine::{Engine, Order, Progress};
use crate::storm::report::Report;

const OUR_END: &str = "storm0";
/// A machine has one socket at a time, and there is the odd one besides.
const DESCRIPTORS_SPARE: u64 = 256;

/// Runs `ip -batch` on these lines; namespace and rights are those of the calling thread.
pub fn ip_batch(lines: &str) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("`ip` (Debian package iproute2) cannot be run")?;
    if let Some(mut stdin) = child.stdin.take() {
        // An `ip` that stopped reading says why below.
        let _ = stdin.write_all(lines.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    bail!("ip: {}", String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
}

/// Runs a storm over a port of this bridge, which must be in the namespace we are in.
pub fn run(
    bridge: &str,
    order: Order,
    tell: impl FnMut(&Progress) + Send + 'static,
) -> anyhow::Result<Report> {
    allow_descriptors(order.machines.len() as u64 + DESCRIPTORS_SPARE)?;
    let (arrived, arrivals) = channel();
    let (plugged, plugs) = channel();
    let storm = thread::Builder::new()
        .name("storm".to_owned())
        .spawn(move || inside(&order, &arrived, &plugs, tell))?;
    // A thread that could not start says why when it is joined.
    let cable = arrivals.recv().ok().map(|thread| plug(bridge, thread));
    let _ = plugged.send(matches!(cable, Some(Ok(()))));
    let report = storm.join().map_err(|_| anyhow!("the storm's thread panicked"))?;
    cable.transpose()?;
    report
}

/// The thread of the storm: its namespace, its end of the cable, its loop.
fn inside(
    order: &Order,
    arrived: &Sender<Pid>,
    plugs: &Receiver<bool>,
    mut tell: impl FnMut(&Progress),
) -> anyhow::Result<Report> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from).context(
        "no network namespace can be made for the machines: run as root, or leave --bridge out for a lab of its own",
    )?;
    arrived.send(gettid())?;
    if !plugs.recv().unwrap_or(false) {
        bail!("there is no cable");
    }
    ip_batch(&format!(
        "link set lo up\n\
         link set {OUR_END} addrgenmode none promisc on up\n\
         route add default dev {OUR_END} scope link\n"
    ))?;
    let engine = Engine::open(OUR_END, order).context("the storm cannot open its end of the cable")?;
    engine.run(order, &mut tell).context("the storm broke off")
}

/// A veth pair: one end on the bridge, the other in the thread's namespace.
fn plug(bridge: &str, thread: Pid) -> anyhow::Result<()> {
    let process = std::process::id();
    // Names end at 15 bytes; two storms on one bridge have two process ids.
    let (port, far) = (format!("storm{}", process % 100_000), format!("stormf{}", process % 100_000));
    ip_batch(&format!(
        "link add {port} type veth peer name {far}\n\
         link set {far} netns /proc/{process}/task/{thread}/ns/net name {OUR_END}\n\
         link set {port} master {bridge} addrgenmode none up\n"
    ))
    .with_context(|| format!("no cable can be plugged into bridge `{bridge}`"))
}

fn allow_descriptors(wanted: u64) -> anyhow::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(());
    }
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard)?;
    }
    if hard < wanted && getrlimit(Resource::RLIMIT_NOFILE)?.0 < wanted {
        bail!(
            "{wanted} open files are needed and {hard} allowed: raise the limit (`ulimit -Hn`) or take fewer nodes"
        );
    }
    Ok(())
}
