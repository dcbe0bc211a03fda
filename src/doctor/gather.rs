//! Looks at the machine; judges nothing.
//!
//! Links and sockets are asked of iproute2 (`ip`, `ss`), rules of `nft` and `iptables-save`: the programs an operator
//! would ask, and the mends are theirs as well. Nothing is changed, but for a file in the state directory that is
//! gone again, and one DISCOVER where that was asked for.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use super::facts::{Facts, FirewallFact, ImageFact, LabFact, LoadersFact, Seen, Wanted};
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
use crate::net::{Bridge, neighbours, sys};
use crate::storm::ground;

mod disk;
mod doors;
mod links;

/// What is looked at beyond what always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Send one DISCOVER and hear who answers.
    pub ask_for_rivals: bool,
    /// Try KVM and look for what `farrier lab` needs.
    pub lab: bool,
}

pub fn gather(config: &Config, scope: Scope) -> Facts {
    let wanted = Wanted {
        bridge: config.network.bridge.0.clone(),
        address: config.network.address,
        pool: config.dhcp.pool,
        state: config.store.path.clone(),
        profile: config.boot.profile.clone(),
    };
    let bridge = Bridge::find(&config.network.bridge, config.network.address);
    let rivals = scope.ask_for_rivals.then(|| match &bridge {
        Ok(bridge) => rivals::ask(bridge).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    });
    Facts {
        links: links::read(),
        default_routes: ground::default_route_devices(),
        bridge_netfilter: setting("bridge/bridge-nf-call-iptables").map(|value| value != 0),
        firewall: firewall(),
        rivals,
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
        lab: if scope.lab { lab() } else { LabFact::default() },
        wanted,
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
