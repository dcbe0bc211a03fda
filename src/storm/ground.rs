//! Where a storm takes place: a network namespace of the machines' own, and a cable from it into a bridge.
//!
//! ```text
//!   namespace of the bridge              namespace of the storm (one thread of ours)
//!     bridge ── stormNNNN ─────────────────── storm0  promiscuous, no address, everything on link
//! ```
//! The namespace belongs to the thread that runs the storm and ends with it; with it goes the cable, so that nothing
//! is left on a foreign bridge however we end.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Pid, gettid};

use crate::net::link::Link;
use crate::storm::engine::{Engine, Progress, Stop};
use crate::storm::report::Report;
use crate::storm::schedule::Order;

const OUR_END: &str = "storm0";
/// Of our port. A bridge that was given no address of its own has the lowest of its ports', and with it every client's notion
/// of where the server is: this one is the highest that can be. Two storms share it, so that neither takes it along.
const PORT_ADDRESS: &str = "fe:ff:ff:ff:ff:ff";
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

/// Bridges of the calling thread's namespace no longer ask its firewall about every frame: in a namespace made for a
/// storm it has no rules, and the asking alone took a tenth of the storm's time.
pub fn keep_firewall_off_bridges() {
    for family in ["ip", "ip6", "arp"] {
        // Without the module nobody asks; without the right to, it only takes longer.
        let _ = fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), "0");
    }
}

/// The bridge that is stormed, in the namespace we are in.
#[derive(Clone, Debug)]
pub struct Ground {
    pub bridge: String,
    /// An address that the storm's end of the cable holds, for the server's host to route the machines by.
    pub gateway: Option<Ipv4Addr>,
}

/// Why a bridge is not stormed.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    #[error(
        "there is no interface `{0}` here: `ip link show type bridge` lists the bridges that can be stormed"
    )]
    Missing(String),
    #[error(
        "`{0}` is not a bridge: a storm plugs its machines into a bridge, `ip link show type bridge` lists them"
    )]
    NotABridge(String),
    #[error(
        "the default route leaves by `{0}`: a storm there would reach more than the boot network; name a bridge that \
         has none, or leave --bridge out for a lab of its own"
    )]
    WayOut(String),
}

/// What must be true of a bridge before any of our frames reaches it.
pub fn check(bridge: &str) -> anyhow::Result<()> {
    let link = Link::find(bridge)?.ok_or_else(|| GroundError::Missing(bridge.to_owned()))?;
    if !link.is_bridge {
        bail!(GroundError::NotABridge(bridge.to_owned()));
    }
    if default_route_devices().iter().any(|interface| interface == bridge) {
        bail!(GroundError::WayOut(bridge.to_owned()));
    }
    Ok(())
}

/// The devices that default routes leave by, in the calling thread's namespace.
pub fn default_route_devices() -> Vec<String> {
    let routes = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
    ways_out(&routes("route"), &routes("ipv6_route"))
}

/// Interfaces of default routes, as /proc/net/route and /proc/net/ipv6_route tell them. `lo` is IPv6's "unreachable".
fn ways_out(ipv4: &str, ipv6: &str) -> Vec<String> {
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let first = ipv4.lines().map(words).filter_map(|words| match &words[..] {
        // Destination and mask, both nothing.
        [interface, destination, _, _, _, _, _, mask, ..]
            if destination == "00000000" && mask == "00000000" =>
        {
            Some(interface.clone())
        }
        _ => None,
    });
    let second = ipv6.lines().map(words).filter_map(|words| match &words[..] {
        // Destination of length nothing.
        [_, length, .., interface] if length == "00" && interface != "lo" => Some(interface.clone()),
        _ => None,
    });
    first.chain(second).collect()
}

/// Runs a storm over a port of this bridge.
pub fn run(
    ground: &Ground,
    order: Order,
    tell: impl FnMut(&Progress) + Send + 'static,
) -> anyhow::Result<Report> {
    check(&ground.bridge)?;
    allow_descriptors(order.machines.len() as u64 + DESCRIPTORS_SPARE)?;
    let stop = Stop::listen().context("signals cannot be read")?;
    let gateway = ground.gateway;
    let (arrived, arrivals) = channel();
    let (plugged, plugs) = channel();
    let storm = thread::Builder::new()
        .name("storm".to_owned())
        .spawn(move || inside(&order, gateway, stop, &arrived, &plugs, tell))?;
    // A thread that could not start says why when it is joined.
    let cable = arrivals.recv().ok().map(|thread| plug(&ground.bridge, thread));
    let _ = plugged.send(matches!(cable, Some(Ok(()))));
    let report = storm.join().map_err(|_| anyhow!("the storm's thread panicked"))?;
    cable.transpose()?;
    report
}

/// The thread of the storm: its namespace, its end of the cable, its loop.
fn inside(
    order: &Order,
    gateway: Option<Ipv4Addr>,
    stop: Stop,
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
    let cable = "the storm cannot open its end of the cable";
    let mut engine = Engine::open(OUR_END, order, stop).context(cable)?;
    if let Some(gateway) = gateway {
        engine.hold(gateway).context(cable)?;
    }
    engine.run(order, &mut tell).context("the storm broke off")
}

/// A veth pair: one end on the bridge, the other in the thread's namespace.
fn plug(bridge: &str, thread: Pid) -> anyhow::Result<()> {
    let process = std::process::id();
    // Names end at 15 bytes; two storms on one bridge have two process ids.
    let (port, far) = (format!("storm{}", process % 100_000), format!("stormf{}", process % 100_000));
    ip_batch(&format!(
        "link add {port} address {PORT_ADDRESS} type veth peer name {far}\n\
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_told_from_others() {
        let ipv4 = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                    eth0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\n\
                    br0 0002A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        let zero = "0".repeat(32);
        let ipv6 = format!(
            "fe80{} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 br0\n\
             {zero} 00 {zero} 00 fe80{} 00000400 00000001 00000000 00000003 br6\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n",
            "0".repeat(28),
            "0".repeat(28)
        );
        assert_eq!(ways_out(ipv4, &ipv6), ["eth0", "br6"]);
    }
}
