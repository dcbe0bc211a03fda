//! Facts → findings. Nothing is looked at here, so that every judgement can be tried without making the fault.

use std::time::Duration;

use super::facts::{Facts, ImageFact, Rival, RivalsFact, StateFact};
use super::{Check, Finding, Mend};
use crate::clock::Timestamp;
use crate::config::DhcpMode;
use crate::guard::rivals::Kind;
use crate::net::neighbours;

mod bridge;
mod doors;
mod firewall;
mod ports;
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
const RIGHTS: &str = "run it as root, or by the systemd unit, which gives these capabilities";
/// The lowest port we serve.
const LOWEST_PORT: u16 = 67;

/// Everything there is to say, in the order of [`Check`].
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = bridge::judge(facts);
    findings.extend(firewall::judge(facts));
    findings.extend(mode(facts));
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
    let why = "a machine takes the first offer it gets, whoever makes it";
    let (heard, source) = match &facts.rivals {
        RivalsFact::NobodyAsked => {
            let what = "whether another DHCP server or router answers is not known: nobody was asked";
            let advice = match facts.refused {
                Some(_) => "mend the bridge, and ask again: farrier doctor",
                None => {
                    "leave out --no-probe: farrier doctor asks for them by one DISCOVER and one router solicitation"
                }
            };
            let finding = Finding::warning(Check::OtherDhcp, bridge, what, why);
            return vec![finding.mended_by([Mend::advice(advice)])];
        }
        RivalsFact::Unknown(error) => {
            let what = format!("the bridge could not be asked for other DHCP servers and routers: {error}");
            let advice =
                format!("ask again as root; or watch: tcpdump -eni {bridge} 'udp src port 67 or icmp6'");
            let finding = Finding::would_not_boot(Check::OtherDhcp, bridge, what, why);
            return vec![finding.mended_by([Mend::advice(advice)])];
        }
        RivalsFact::Answered(heard) => (heard, "answers"),
        RivalsFact::Told(heard) => {
            (heard, "is heard by the appliance that serves here, which asks every minute")
        }
    };
    let mut findings: Vec<Finding> =
        heard.iter().filter(|rival| rival.kind == Kind::RouterAdvertisement).map(foreign_router).collect();
    let mut servers = heard.iter().filter(|rival| rival.kind == Kind::Dhcp).peekable();
    match (facts.wanted.mode, servers.peek()) {
        (DhcpMode::Server | DhcpMode::Observe, Some(_)) => findings.extend(servers.map(second_server)),
        (DhcpMode::Server | DhcpMode::Observe, None) => {
            findings.push(Finding::ok(Check::OtherDhcp, bridge, format!("no other DHCP server {source}")));
        }
        (DhcpMode::Proxy, Some(server)) => {
            let what = format!("{} gives the addresses, as dhcp.mode = \"proxy\" has it", server.address);
            findings.push(Finding::ok(Check::OtherDhcp, bridge, what));
        }
        (DhcpMode::Proxy, None) => {
            let what = "no DHCP server answers, and dhcp.mode = \"proxy\" leaves the addresses to one";
            let finding = Finding::would_not_boot(
                Check::OtherDhcp,
                bridge,
                what,
                "a machine that gets no address asks nobody for a loader",
            );
            let advice = "start the server that gives the addresses, or write mode = \"server\" under [dhcp]";
            findings.push(finding.mended_by([Mend::advice(advice)]));
        }
    }
    findings
}

fn second_server(rival: &Rival) -> Finding {
    let offering = rival.offered.map(|offered| format!(", offering {offered}")).unwrap_or_default();
    let advice = rival.way_out.as_deref().unwrap_or("stop that server, or keep its network off the bridge");
    Finding::would_not_boot(
        Check::OtherDhcp,
        rival.address,
        format!("another DHCP server answers: {}{offering}", at(rival)),
        "a machine takes the first offer it gets; from there it is told of no loader, or of another's",
    )
    .mended_by([Mend::advice(advice)])
}

fn foreign_router(rival: &Rival) -> Finding {
    let advice = rival.way_out.as_deref();
    let advice = advice.unwrap_or("stop that router's advertisements, or keep its network off the bridge");
    Finding::warning(
        Check::OtherDhcp,
        rival.address,
        format!("a foreign IPv6 router advertises itself: {}", at(rival)),
        "machines boot by IPv4 all the same; what they run may leave by that router, or ask for a loader by DHCPv6",
    )
    .mended_by([Mend::advice(advice)])
}

fn at(rival: &Rival) -> String {
    let mac = rival.mac.map(|mac| format!(" at {mac}")).unwrap_or_default();
    format!("{}{mac}", rival.address)
}

/// Who only listens boots nobody.
fn mode(facts: &Facts) -> Option<Finding> {
    (facts.wanted.mode == DhcpMode::Observe).then(|| {
        let what = "dhcp.mode = \"observe\" answers nobody";
        let why = "it tells what a server would have answered, and machines get nothing";
        let advice =
            "write mode = \"server\" under [dhcp], or \"proxy\" beside a server that gives the addresses";
        Finding::would_not_boot(Check::OtherDhcp, "dhcp.mode", what, why).mended_by([Mend::advice(advice)])
    })
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
            )
            .mended_by([Mend::advice(RIGHTS)]);
        }
    };
    let lacks = |capability: &(u32, &'static str)| held & (1 << capability.0) == 0;
    let needs_bind = facts.unprivileged_ports > LOWEST_PORT;
    let needed = [needs_bind.then_some(BIND_SERVICE), Some(NET_RAW)];
    let missing: Vec<&str> = needed.into_iter().flatten().filter(lacks).map(|found| found.1).collect();
    let mends = [Mend::advice(RIGHTS)];
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
            let advice = format!("look yourself: df -h {path}");
            Finding::warning(Check::State, &path, what, "when the disk is full nothing boots")
                .mended_by([Mend::advice(advice)])
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
            let advice = "run the doctor as the appliance's user or as root, who may write there";
            Finding::warning(Check::State, &path, what, "every lease waits for one")
                .mended_by([Mend::advice(advice)])
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
        )
        .mended_by([Mend::advice(
            "be root or in the group kvm, with the module kvm_intel or kvm_amd loaded; within a virtual machine, let its \
             host pass virtualisation on to it",
        )]),
    });
    let missing = facts.lab.missing.as_ref().map(|missing| {
        Finding::warning(
            Check::Lab,
            "programs",
            missing,
            "`farrier lab` and `farrier demo` do not start; real machines do not care",
        )
        .mended_by([Mend::advice(
            "install or open what is named, or leave this out: farrier doctor --no-lab",
        )])
    });
    kvm.into_iter().chain(missing).collect()
}
