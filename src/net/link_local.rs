//! `169.254.169.254` on the bridge, and nowhere else.
//!
//! An address given to the bridge would be the whole host's: Linux answers ARP for any of its addresses on every interface,
//! and a host that is a virtual machine itself could not reach the metadata of its own cloud any more. So no interface
//! has the address. It is local for what *comes in from the bridge*, by a rule and a table of its own:
//!
//! ```text
//!  ip rule add pref 16925 iif BRIDGE to 169.254.169.254/32 lookup 16925
//!  ip route add local 169.254.169.254/32 dev lo table 16925
//! ```
//! Then ARP is answered there and packets are taken, from there alone. The listener is bound to the bridge's device as
//! all of ours are, and to that address by `IP_TRANSPARENT`, for which CAP_NET_RAW is enough. A bridge that is deleted and
//! made anew finds the rule again, which goes by its name.
//!
//! The rule takes CAP_NET_ADMIN, which is given up before we serve, and nothing else takes it away when we are gone: the
//! kernel ends rules and routes with an interface, not with a process, and a socket opened while we had the capability is
//! of no use to whoever has it no more. An interface that goes with its last descriptor (a tun device) would do for the
//! route, at the price of a device that everybody sees, of `/dev/net/tun`, and of a rule that stays all the same.
//! [`LinkLocal::put_on`] therefore leaves a process behind that does nothing but wait until we are gone, however that comes
//! about, and then takes the rule away. It is made as bare as that allows, and only then do we go on:
//! [`Keeper`](crate::privileges::Keeper).

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{close, setsid};

use crate::config::BridgeName;
use crate::net::link::{self, Link, Netlink};
use crate::net::sys;

/// Where EC2's instances look for their metadata, and cloud-init everywhere.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Of the rule and of the table: before the main table, which may lead elsewhere.
const NUMBER: u32 = 16_925;

/// `struct fib_rule_hdr` (linux/fib_rules.h) and its attributes.
const RULE_TO_TABLE: u8 = 1;
const RULE_DESTINATION: u16 = 1;
const RULE_COMES_IN: u16 = 3;
const RULE_PRIORITY: u16 = 6;
const RULE_TABLE: u16 = 15;

#[derive(Debug, thiserror::Error)]
pub enum LinkLocalError {
    #[error(
        "{ADDRESS} cannot be taken from {bridge}: {source} (it takes CAP_NET_ADMIN at the start and policy routing in the kernel)"
    )]
    Rule { bridge: BridgeName, source: io::Error },
    #[error("nobody would take the rule for {ADDRESS} away in the end: {source}")]
    Keeper { source: io::Error },
}

/// The address on one bridge.
#[derive(Debug)]
pub struct LinkLocal;

impl LinkLocal {
    /// Must be called while the process has one thread, and may make others. `confine` is carried out in the process that
    /// is left behind; it must leave it CAP_NET_ADMIN and the use of what is open.
    pub fn put_on<E: std::fmt::Display>(
        bridge: &BridgeName,
        confine: impl FnOnce() -> Result<(), E>,
    ) -> Result<LinkLocal, LinkLocalError> {
        let refused = |source| LinkLocalError::Rule { bridge: bridge.clone(), source };
        add_route().map_err(refused)?;
        add_rule(bridge).map_err(refused)?;
        match leave_behind(bridge, confine) {
            Ok(()) => Ok(LinkLocal),
            Err(source) => {
                // Rather none than one that stays.
                let _ = take_off(&Netlink::default(), bridge);
                Err(LinkLocalError::Keeper { source })
            }
        }
    }
}

/// What the process that is left behind says once it is confined; anything else is the reason why it is not.
const CONFINED: u8 = b'\n';

/// Makes the process that takes the rule away once this one is gone, however that comes about. It hears no signal but
/// SIGKILL and has no file of ours open. To be called while there is one thread.
fn leave_behind<E: std::fmt::Display>(
    bridge: &BridgeName,
    confine: impl FnOnce() -> Result<(), E>,
) -> io::Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    if sys::fork()? {
        keep(bridge, theirs, confine);
        std::process::exit(0)
    }
    drop(theirs);
    let mut said = [0];
    match ours.read(&mut said)? {
        1 if said == [CONFINED] => {
            // Closed by the kernel, with everything else we have.
            let _ = ours.into_raw_fd();
            Ok(())
        }
        told => {
            let mut reason = said[..told].to_vec();
            ours.read_to_end(&mut reason)?;
            Err(io::Error::other(String::from_utf8_lossy(&reason).into_owned()))
        }
    }
}

/// The life of that process. `them` is the one it waits for.
fn keep<E: std::fmt::Display>(
    bridge: &BridgeName,
    mut them: UnixStream,
    confine: impl FnOnce() -> Result<(), E>,
) {
    let _ = setsid();
    let deaf_to = SigSet::from_iter([Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM]);
    let _ = deaf_to.thread_block();
    for file in open_files().into_iter().filter(|file| *file != them.as_raw_fd()) {
        let _ = close(file);
    }
    let confined = Netlink::open().map_err(|error| error.to_string());
    let confined =
        confined.and_then(|netlink| confine().map(|()| netlink).map_err(|error| error.to_string()));
    match confined {
        Ok(netlink) => {
            let _ = them.write_all(&[CONFINED]);
            // Nothing is ever said; it ends when they do.
            let interrupted = |error: io::Error| error.kind() == io::ErrorKind::Interrupted;
            while them.read(&mut [0]).map_or_else(interrupted, |count| count > 0) {}
            let _ = take_off(&netlink, bridge);
        }
        // They take the rule away themselves.
        Err(reason) => drop(them.write_all(reason.as_bytes())),
    }
}

fn open_files() -> Vec<RawFd> {
    /// Where /proc is not to be had: more than anything has open that early.
    const NUMBERS: RawFd = 1024;
    let Ok(listed) = std::fs::read_dir("/proc/self/fd") else { return (0..NUMBERS).collect() };
    listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The table stays: another appliance's rule may lead there, and without one nothing does.
fn take_off(netlink: &Netlink, bridge: &BridgeName) -> io::Result<()> {
    netlink.ask(libc::RTM_DELRULE, libc::NLM_F_ACK, &rule(bridge)).map(drop)
}

fn add_rule(bridge: &BridgeName) -> io::Result<()> {
    ask(libc::RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &rule(bridge)).or_else(had)
}

fn add_route() -> io::Result<()> {
    let loopback = Link::find("lo")?.ok_or(io::ErrorKind::NotFound)?;
    ask(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &route(loopback.index)).or_else(had)
}

/// What is there already is ours: of a run whose keeper was killed with it, or of another appliance.
fn had(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::EEXIST) { Ok(()) } else { Err(error) }
}

fn ask(kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<()> {
    link::ask(kind, flags | libc::NLM_F_ACK, body).map(drop)
}

fn rule(bridge: &BridgeName) -> Vec<u8> {
    let mut body = vec![libc::AF_INET as u8, 32, 0, 0, 0, 0, 0, RULE_TO_TABLE, 0, 0, 0, 0];
    attribute(&mut body, RULE_DESTINATION, &ADDRESS.octets());
    attribute(&mut body, RULE_COMES_IN, &[bridge.0.as_bytes(), b"\0"].concat());
    attribute(&mut body, RULE_PRIORITY, &NUMBER.to_ne_bytes());
    attribute(&mut body, RULE_TABLE, &NUMBER.to_ne_bytes());
    body
}

/// `struct rtmsg` (linux/rtnetlink.h) and its attributes.
fn route(loopback: u32) -> Vec<u8> {
    let (family, own, kind) = (libc::AF_INET as u8, libc::RTPROT_STATIC, libc::RTN_LOCAL);
    let mut body = vec![family, 32, 0, 0, 0, own, libc::RT_SCOPE_HOST, kind, 0, 0, 0, 0];
    attribute(&mut body, libc::RTA_DST, &ADDRESS.octets());
    attribute(&mut body, libc::RTA_OIF, &loopback.to_ne_bytes());
    attribute(&mut body, libc::RTA_TABLE, &NUMBER.to_ne_bytes());
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
