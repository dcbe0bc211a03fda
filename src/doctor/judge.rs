//! Facts → findings. Nothing is looked at here, so that every judgement can be tried without making the fault.

use std::time::Duration;

use super::facts::{Facts, ImageFact, StateFact};
use super::{Check, Finding, Mend};
use crate::clock::Timestamp;
use crate::net::neighbours;

mod bridge;
mod doors;
mod firewall;
#[cfg(test)]
mod tests;

/// 2025-01-01: a clock before that was never set.
const SANE: Timestamp = Timestamp::from_millis(1_735_689_600_000);
/// A lease is on disk before it is acknowledged; with a disk this slow, a rack's worth of them is late …
const SYNC_SLOW: Duration = Duration::from_millis(250);
/// … and with this one each is: firmware asks again after 4 s, and takes the second answer for the first's echo.
const SYNC_TOO_SLOW: Duration = Duration::from_secs(3);
/// Leases and timelines need little; images of a rack need more.
const SPACE_SMALL: u64 = 512 * 1024 * 1024;
/// SQLite's log of one busy hour.
const SPACE_TOO_SMALL: u64 = 16 * 1024 * 1024;

/// Capabilities by their bits, see capabilities(7).
const BIND_SERVICE: (u32, &str) = (10, "CAP_NET_BIND_SERVICE");
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const NET_RAW: (u32, &str) = (13, "CAP_NET_RAW");
/// The lowest port we serve.
const LOWEST_PORT: u16 = 67;

/// Everything there is to say, in the order of [`Check`].
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = bridge::judge(facts);
    findings.extend(firewall::judge(facts));
    findings.extend(rivals(facts));
    findings.extend(doors::judge(facts));
    findings.extend([capabilities(facts), neighbour_table(facts)]);
    findings.extend(state(facts));
    findings.extend([loaders(facts), image(facts), clock(facts)]);
    findings.extend(lab(facts));
    findings.sort_by_key(|finding| finding.check);
    findings
}

fn rivals(facts: &Facts) -> Vec<Finding> {
    let bridge = &facts.wanted.bridge;
    match &facts.rivals {
        None => vec![Finding::ok(Check::OtherDhcp, bridge, "nobody was asked; --probe sends one DISCOVER")],
        Some(Err(error)) => vec![Finding::warning(
            Check::OtherDhcp,
            bridge,
            format!("the bridge could not be asked for other DHCP servers: {error}"),
            "a machine takes the first offer it gets, whoever makes it",
        )],
        Some(Ok(rivals)) if rivals.is_empty() => {
            vec![Finding::ok(Check::OtherDhcp, bridge, "no other DHCP server answers")]
        }
        Some(Ok(rivals)) => {
            let finding = |rival: &super::facts::Rival| {
                Finding::would_not_boot(
                    Check::OtherDhcp,
                    rival.server,
                    format!("another DHCP server answers: {} at {}, offering {}", rival.server, rival.mac, rival.offered),
                    "a machine takes the first offer it gets; from there it is told of no loader, or of another's",
                )
                .mended_by([Mend::advice("stop that server, or keep its network off the bridge")])
            };
            rivals.iter().map(finding).collect()
        }
    }
}

fn capabilities(facts: &Facts) -> Finding {
    let held = match &facts.capabilities {
        Ok(held) => *held,
        Err(error) => {
            return Finding::warning(
                Check::Capabilities,
                "farrier",
                format!("the capabilities of this process are not known: {error}"),
                "without the right to open ports below 1024 and raw sockets nothing is served",
            );
        }
    };
    let lacks = |capability: &(u32, &'static str)| held & (1 << capability.0) == 0;
    let needs_bind = facts.unprivileged_ports > LOWEST_PORT;
    let needed = [needs_bind.then_some(BIND_SERVICE), Some(NET_RAW)];
    let missing: Vec<&str> = needed.into_iter().flatten().filter(lacks).map(|found| found.1).collect();
    let mends = [Mend::advice("run it as root, or by the systemd unit, which gives these capabilities")];
    if !missing.is_empty() {
        return Finding::would_not_boot(
            Check::Capabilities,
            "farrier",
            format!("this user lacks {}", missing.join(" and ")),
            "ports below 1024 and frames to machines without an address take these",
        )
        .mended_by(mends);
    }
    if lacks(&NET_ADMIN) {
        return Finding::warning(
            Check::Capabilities,
            "farrier",
            format!("this user lacks {}", NET_ADMIN.1),
            "receive queues stay as small as the system has them: a rack at once loses requests",
        )
        .mended_by(mends);
    }
    Finding::ok(Check::Capabilities, "farrier", "this user may open the ports and send frames")
}

fn neighbour_table(facts: &Facts) -> Finding {
    let pool = facts.wanted.pool.size();
    match facts.neighbour_limit {
        Some(limit) if limit < pool => {
            let setting = format!("net.ipv4.neigh.default.gc_thresh3={}", neighbours::wanted(pool));
            Finding::warning(
                Check::Neighbours,
                "gc_thresh3",
                format!("the kernel knows at most {limit} neighbours, the pool has {pool} addresses"),
                "machines beyond it get an address and then no files",
            )
            .mended_by([Mend::command(&["sysctl", "-w", &setting])])
        }
        Some(limit) => Finding::ok(Check::Neighbours, "gc_thresh3", format!("room for {limit} neighbours")),
        None => {
            Finding::ok(Check::Neighbours, "gc_thresh3", "the table of neighbours is the host's to limit")
        }
    }
}

fn state(facts: &Facts) -> Vec<Finding> {
    let path = facts.wanted.state.display();
    let StateFact { unusable, free_bytes, sync } = &facts.state;
    if let Some(reason) = unusable {
        let finding = Finding::would_not_boot(
            Check::State,
            path,
            format!("the state directory cannot be used: {reason}"),
            "no lease is acknowledged that is not on disk",
        );
        let advice =
            "name another directory as store.path, or make this one writable for the appliance's user";
        return vec![finding.mended_by([Mend::advice(advice)])];
    }
    let space = match free_bytes {
        Ok(free) if *free >= SPACE_SMALL => {
            Finding::ok(Check::State, &path, format!("{} MiB free", free / (1024 * 1024)))
        }
        Ok(free) => {
            let what = format!("only {} MiB are free", free / (1024 * 1024));
            let why = "when the disk is full no lease is acknowledged: nothing boots";
            let finding = if *free < SPACE_TOO_SMALL { Finding::would_not_boot } else { Finding::warning };
            let advice = "make room there, or name a directory with more of it as store.path";
            finding(Check::State, path.to_string(), what, why).mended_by([Mend::advice(advice)])
        }
        Err(error) => {
            let what = format!("the room there is not known: {error}");
            Finding::warning(Check::State, &path, what, "when the disk is full nothing boots")
        }
    };
    let speed = match sync {
        Ok(took) if *took < SYNC_SLOW => Finding::ok(
            Check::State,
            &path,
            format!("a synced write takes {:.1} ms", took.as_secs_f64() * 1e3),
        ),
        Ok(took) => {
            let what = format!("a synced write takes {} ms", took.as_millis());
            let why = "every lease waits for one; firmware asks again after a second to four";
            let too_slow = *took >= SYNC_TOO_SLOW;
            let finding = if too_slow { Finding::would_not_boot } else { Finding::warning };
            let advice = "name a directory on a faster disk as store.path";
            finding(Check::State, path.to_string(), what, why).mended_by([Mend::advice(advice)])
        }
        Err(error) => {
            let what = format!("how long a synced write takes is not known: {error}");
            Finding::warning(Check::State, &path, what, "every lease waits for one")
        }
    };
    vec![space, speed]
}

fn loaders(facts: &Facts) -> Finding {
    let state = facts.wanted.state.display().to_string();
    let fetch = Mend::command(&["farrier", "image", "build", "loaders", "--state", &state]);
    let found = &facts.loaders;
    if found.served.is_empty() {
        let missing = found.wanting.first().map_or("", |(_, missing)| missing.as_str());
        return Finding::would_not_boot(
            Check::Loaders,
            "loaders",
            format!("there is no boot loader for any firmware; {missing}"),
            "a machine gets an address and then nothing to load",
        )
        .mended_by([fetch]);
    }
    if !found.wanting.is_empty() {
        let names: Vec<&str> = found.wanting.iter().map(|(firmware, _)| firmware.as_str()).collect();
        return Finding::warning(
            Check::Loaders,
            "loaders",
            format!("there is no boot loader for {}", names.join(", ")),
            "machines with that firmware get an address and nothing to load",
        )
        .mended_by([fetch]);
    }
    let mut what = format!("served: {}", found.served.join(", "));
    if !found.lacking.is_empty() {
        what.push_str(&format!("; not installed: {}", found.lacking.join(", ")));
    }
    Finding::ok(Check::Loaders, "loaders", what)
}

fn image(facts: &Facts) -> Finding {
    let (profile, state) = (&facts.wanted.profile, facts.wanted.state.display().to_string());
    let build =
        Mend::command(&["farrier", "image", "build", "deploy", "--profile", profile, "--state", &state]);
    let why = "a machine gets its loader and its script, and then no kernel";
    match &facts.image {
        ImageFact::Served { kernel_bytes, ramdisk_bytes } => Finding::ok(
            Check::Image,
            profile,
            format!(
                "kernel {:.1} MB, ramdisk {:.1} MB",
                *kernel_bytes as f64 / 1e6,
                *ramdisk_bytes as f64 / 1e6
            ),
        ),
        ImageFact::Missing { others } => {
            let others = match others.as_slice() {
                [] => String::new(),
                others => format!("; there is {}", others.join(", ")),
            };
            let what = format!("no kernel and ramdisk of profile {profile}{others}");
            Finding::would_not_boot(Check::Image, profile, what, why).mended_by([build])
        }
        ImageFact::Damaged(damage) => {
            let what = format!("kernel and ramdisk of profile {profile} cannot be served: {damage}");
            Finding::would_not_boot(Check::Image, profile, what, why).mended_by([build])
        }
    }
}

fn clock(facts: &Facts) -> Finding {
    let keep = Mend::command(&["timedatectl", "set-ntp", "true"]);
    if facts.now < SANE {
        let what = format!("the clock says {}: it was never set", facts.now);
        let why = "once it is set right, every lease and token of the time before has expired";
        return Finding::warning(Check::Clock, "clock", what, why).mended_by([keep]);
    }
    match &facts.synchronised {
        Ok(true) => Finding::ok(Check::Clock, "clock", "kept by a time service"),
        Ok(false) => {
            let why =
                "leases, tokens and certificates depend on it, and timelines are compared with other logs";
            Finding::warning(Check::Clock, "clock", "no time service keeps the clock", why).mended_by([keep])
        }
        Err(error) => Finding::ok(Check::Clock, "clock", format!("whether it is kept is not known: {error}")),
    }
}

fn lab(facts: &Facts) -> Vec<Finding> {
    let kvm = facts.lab.kvm.as_ref().map(|kvm| match kvm {
        Ok(reason) => Finding::ok(Check::Lab, "/dev/kvm", format!("KVM works: {reason}")),
        Err(reason) => Finding::warning(
            Check::Lab,
            "/dev/kvm",
            reason,
            "the lab's machines are emulated, ten times as slow; real machines do not care",
        ),
    });
    let missing = facts.lab.missing.as_ref().map(|missing| {
        Finding::warning(
            Check::Lab,
            "programs",
            missing,
            "`farrier lab` and `farrier demo` do not start; real machines do not care",
        )
    });
    kvm.into_iter().chain(missing).collect()
}
