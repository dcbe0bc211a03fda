//! Looks at the machine; judges nothing.
//!
//! Links and sockets are asked of iproute2 (`ip`, `ss`), rules of `nft` and `iptables-save`: the programs an operator
//! would ask, and the mends are theirs as well. Nothing is changed, but for a file in the state directory that is
//! gone again; [`ask_for_rivals`] sends a question.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use super::facts::{Facts, FirewallFact, ImageFact, LabFact, LoadersFact, Refusal, RivalsFact, Seen, Wanted};
use super::firewall::{iptables, nft};
use super::rivals;
use crate::boot::client::Firmware;
use crate::boot::loader::LoaderTable;
use crate::clock::Clock;
use crate::config::Config;
use crate::image::library::Library;
use crate::image::loaders::{Loaders, USUAL};
use crate::lab::accel::{self, Accel};
use crate::lab::config::{AccelWish, LabConfig};
use crate::lab::needs;
use crate::net::bridge::BridgeError;
use crate::net::hazards::Hazard;
use crate::net::{Bridge, neighbours, sys};
use crate::storm::ground;

mod disk;
mod doors;
mod links;

/// Everything but who else answers on the bridge, which takes seconds ([`ask_for_rivals`]); with `lab`, what `farrier lab` needs
/// and whether KVM works as well.
pub fn gather(config: &Config, lab_too: bool) -> Facts {
    let network = &config.network;
    let wanted = Wanted {
        bridge: network.bridge.0.clone(),
        address: network.address,
        allowed: network.allow,
        mode: config.dhcp.mode,
        pool: config.dhcp.pool,
        state: config.store.path.clone(),
        profile: config.boot.profile.clone(),
    };
    // As `farrier serve` looks at it: what it would refuse is no place to boot from.
    let bridge = Bridge::admit(&network.bridge, network.address, network.allow);
    Facts {
        refused: bridge.as_ref().err().map(refusal),
        links: links::read(),
        default_routes: ground::default_route_devices(),
        bridge_netfilter: setting("bridge/bridge-nf-call-iptables").map(|value| value != 0),
        firewall: firewall(),
        rivals: RivalsFact::NobodyAsked,
        doors: doors::try_all(bridge.as_ref().ok()),
        capabilities: capabilities(),
        unprivileged_ports: setting("ipv4/ip_unprivileged_port_start").unwrap_or(1024),
        neighbour_limit: neighbours::limit(),
        state: disk::look(&wanted.state),
        loaders: loaders(config),
        image: image(&wanted),
        product: product(),
        now: Clock::start().now(),
        synchronised: sys::clock_is_kept().map_err(|error| error.to_string()),
        lab: if lab_too { lab() } else { LabFact::default() },
        wanted,
    }
}

fn refusal(error: &BridgeError) -> Refusal {
    match error {
        BridgeError::NotABridge { name } => Refusal::Hazard(Hazard::NotABridge, name.0.clone()),
        BridgeError::DefaultRoute { route, .. } => Refusal::Hazard(Hazard::DefaultRoute, route.clone()),
        BridgeError::Wireless { which, .. } => Refusal::Hazard(Hazard::Wireless, which.clone()),
        BridgeError::Missing { .. }
        | BridgeError::Down { .. }
        | BridgeError::NoAddress { .. }
        | BridgeError::Unreadable { .. } => Refusal::Other(error.to_string()),
    }
}

/// Asks on the bridge who else answers.
pub fn ask_for_rivals(config: &Config) -> RivalsFact {
    let network = &config.network;
    match Bridge::admit(&network.bridge, network.address, network.allow) {
        Ok(bridge) => match rivals::ask(&bridge) {
            Ok(found) => RivalsFact::Answered(found),
            Err(error) => RivalsFact::Unknown(error.to_string()),
        },
        // Why is a finding of its own; and where `serve` refuses to speak nothing is sent either.
        Err(_) => RivalsFact::NobodyAsked,
    }
}

/// Runs a program and gives what it printed, or why not.
fn printed(program: &str, arguments: &[&str]) -> Seen<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// A number below /proc/sys/net, of our network namespace.
fn setting(name: &str) -> Option<u16> {
    fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?.trim().parse().ok()
}

fn firewall() -> FirewallFact {
    let mut fact = FirewallFact::default();
    let nft_there = needs::is_there("nft");
    let mut opaque = false;
    if nft_there {
        match printed("nft", &["-j", "list", "ruleset"]).and_then(|text| nft::parse(&text)) {
            Ok(ruleset) => {
                opaque = ruleset.opaque;
                fact.chains.extend(ruleset.chains);
            }
            Err(error) => fact.unread.push(error),
        }
    }
    if needs::is_there("iptables-save") {
        match printed("iptables-save", &[]) {
            Ok(text) => fact.chains.extend(iptables::parse(&text)),
            Err(error) => fact.unread.push(error),
        }
    } else if opaque {
        fact.unread.push("some are of iptables' own kind, and iptables-save is not installed".to_owned());
    } else if fs::read_to_string("/proc/thread-self/net/ip_tables_names").is_ok_and(|names| !names.is_empty())
    {
        fact.unread.push("the kernel holds iptables rules, and iptables-save is not installed".to_owned());
    }
    if !nft_there && fs::read_to_string("/proc/modules").is_ok_and(|modules| modules.contains("nf_tables ")) {
        fact.unread.push("the kernel may hold nftables rules, and nft is not installed".to_owned());
    }
    fact
}

fn capabilities() -> Seen<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let line = line.ok_or("the kernel does not tell")?;
    u64::from_str_radix(line.trim(), 16).map_err(|error| error.to_string())
}

fn loaders(config: &Config) -> LoadersFact {
    // A name that is in no table is a mistake of the configuration, found when that was read.
    let table = LoaderTable::built_in().with_overrides(&config.boot.loaders);
    let Ok(table) = table else { return LoadersFact::default() };
    let loaders = Loaders::read(table, &config.store.path);
    // What the configuration names, and what machines usually have: the others are a choice.
    let wanting: BTreeSet<Firmware> = config.boot.loaders.keys().copied().chain(USUAL).collect();
    let lacking = loaders.lacking();
    let served = Firmware::ALL
        .iter()
        .filter(|firmware| loaders.table.for_firmware(**firmware).is_some())
        .filter(|firmware| !lacking.iter().any(|(lacking, _)| lacking == *firmware));
    let (wanted, others): (Vec<_>, Vec<_>) =
        lacking.iter().partition(|(firmware, _)| wanting.contains(firmware));
    let others = others.iter().filter(|(_, missing)| missing.packaged);
    LoadersFact {
        served: served.map(ToString::to_string).collect(),
        wanting: wanted
            .iter()
            .map(|(firmware, missing)| (firmware.to_string(), missing.to_string()))
            .collect(),
        lacking: others.map(|(firmware, _)| firmware.to_string()).collect(),
    }
}

fn image(wanted: &Wanted) -> ImageFact {
    if !Library::exists(&wanted.state) {
        return ImageFact::Missing { others: Vec::new() };
    }
    let library = match Library::open(&wanted.state) {
        Ok(library) => library,
        Err(error) => return ImageFact::Damaged(error.to_string()),
    };
    if let Some(profile) = library.profile(&wanted.profile) {
        return ImageFact::Served { kernel_bytes: profile.kernel.size, ramdisk_bytes: profile.ramdisk.size };
    }
    match library.damage().first() {
        Some(damage) => ImageFact::Damaged(format!("{}: {}", damage.path.display(), damage.reason)),
        None => ImageFact::Missing {
            others: library.profiles().iter().map(|profile| profile.manifest.profile.clone()).collect(),
        },
    }
}

/// What the firmware of this machine calls it.
fn product() -> Option<String> {
    let word = |name| fs::read_to_string(format!("/sys/class/dmi/id/{name}")).ok();
    Some(word("product_name")?.trim().to_owned())
}

fn lab() -> LabFact {
    let missing = LabConfig::built_in().ok().and_then(|config| needs::check(&config).err());
    LabFact { kvm: Some(kvm()), missing: missing.map(|missing| missing.to_string()) }
}

/// A present /dev/kvm proves little: firmware is run in it.
fn kvm() -> Result<String, String> {
    let scratch = disk::Scratch::make().map_err(|error| format!("KVM cannot be tried: {error}"))?;
    let choice = accel::choose(AccelWish::Auto, scratch.path());
    match choice.accel {
        Accel::Kvm => Ok(choice.reason),
        Accel::Tcg => Err(choice.reason),
    }
}
