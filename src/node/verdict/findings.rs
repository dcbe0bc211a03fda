//! Event → what went wrong there. The newest problem since the boot last got on decides; what was overcome does not
//! matter any more, and loaders look for many files that need not be there.

use crate::boot::decision::{NothingToBoot, ScriptPlan};
use crate::node::install::event::InstallEvent;
use crate::node::timeline::{
    ADDRESS_ELSEWHERE, AgentCall, FileOutcome, Happening, Stage, TftpFacts, TimelineEvent, aborted,
};
use crate::node::verdict::chain::Chain;
use crate::node::verdict::{Cause, Evidence, Finding, Outcome, Surroundings, cite, silence, words};

/// A first data block that never arrives, where smaller packets do, is a matter of size from here on: below it fits
/// every tunnel in use (IPv6's minimum of 1280, less headers).
const LARGE_BLOCK: u16 = 1232;

/// The end the boot was to come to, if it did.
pub(super) fn success(chain: &Chain<'_>) -> Option<Finding> {
    let finding = |stage, cause, headline: &str, event| Finding {
        outcome: Outcome::Succeeded,
        stage,
        cause,
        headline: headline.to_owned(),
        evidence: vec![cite(event)],
    };
    let stored = chain.last(|happening| matches!(happening, Happening::Agent { call: AgentCall::Inventory }));
    if let Some(event) = stored {
        return Some(finding(Stage::Enrolled, Cause::Enrolled, "enrolled: its inventory is stored", event));
    }
    let (event, plan) = chain.script_plan()?;
    (plan == ScriptPlan::LocalDisk && chain.reached == Some(Stage::Script))
        .then(|| finding(Stage::Script, Cause::LocalDisk, "sent to its local disk, as ordered", event))
}

/// A boot profile, or an installer out of one, is no program of ours: once its files are out, nothing more is to come.
pub(super) fn handed_to_profile(chain: &Chain<'_>) -> Option<Finding> {
    let (cause, headline) = match chain.script_plan()? {
        (_, ScriptPlan::Profile) => (Cause::ProfileHandedOut, "handed over to its boot profile"),
        (_, ScriptPlan::Installer) => (
            Cause::InstallerHandedOut,
            "handed over to its installer; the task of its node tells how that is going",
        ),
        _ => return None,
    };
    let file = chain.file_of(Stage::Kernel).filter(|_| chain.reached == Some(Stage::Kernel))?;
    let which = chain.last(|happening| {
        matches!(
            happening,
            Happening::Profile { .. }
                | Happening::Install { install: InstallEvent::InstallerStarted { .. }, .. }
        )
    });
    Some(Finding {
        outcome: Outcome::Succeeded,
        stage: Stage::Kernel,
        cause,
        headline: headline.to_owned(),
        evidence: which.into_iter().chain([file]).map(cite).collect(),
    })
}

pub(super) fn problem(chain: &Chain<'_>, around: &Surroundings) -> Option<Finding> {
    let since = chain.since_last_step();
    let restart = since.iter().rposition(|event| event.happening == Happening::ApplianceStarted);
    let Some(restart) = restart else {
        return newest_problem(chain, since, around);
    };
    let after = newest_problem(chain, &since[restart + 1..], around);
    let before = newest_problem(chain, &since[..restart], around);
    // A boot that had ended before is not ended by a restart; one that broke off a transfer may well be.
    let broke_off = before.as_ref().is_none_or(|finding| is_broken_off(finding.cause));
    after
        .or_else(|| before.filter(|_| !broke_off))
        .or_else(|| silence::after_restart(chain, since[restart], around))
}

fn is_broken_off(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::ApplianceRestarted
            | Cause::DownloadCut
            | Cause::DownloadStalled
            | Cause::TransferLost
            | Cause::TransferMtu
            | Cause::TransferAborted
    )
}

fn newest_problem(chain: &Chain<'_>, since: &[&TimelineEvent], around: &Surroundings) -> Option<Finding> {
    since.iter().rev().find_map(|event| of_event(chain, event, around))
}

fn of_event(chain: &Chain<'_>, event: &TimelineEvent, around: &Surroundings) -> Option<Finding> {
    match &event.happening {
        Happening::Dhcp { .. } => of_dhcp(chain, event, around),
        Happening::File { stage, name, outcome, .. } => match outcome {
            FileOutcome::NotFound => missing(chain, event, *stage, name),
            FileOutcome::Aborted(reason) => broken_off(chain, event, reason),
            FileOutcome::Complete | FileOutcome::Probe | FileOutcome::Range => None,
        },
        Happening::AgentRefused { reason, token_issued_at } => {
            let refused = refused(reason);
            // Where the refused token came from: a script of this boot, or an earlier one's.
            let script = chain.last(|happening| {
                matches!(happening, Happening::Script { token_issued_at: issued @ Some(_), .. } if issued == token_issued_at)
            });
            Some(stopped(Stage::Agent, refused.0, refused.1, script.into_iter().chain([event])))
        }
        Happening::Agent { call: AgentCall::Failure { step, message } } => {
            let headline = format!("the agent failed in step {step}: {message}");
            Some(stopped(Stage::Agent, Cause::AgentFailed, headline, [event]))
        }
        Happening::BootLoop { loaders } => {
            let headline =
                format!("boot loop: its loader was fetched {loaders} times and never asked for a script");
            let fetched = chain.file_of(Stage::Loader);
            Some(stopped(Stage::Loader, Cause::BootLoop, headline, fetched.into_iter().chain([event])))
        }
        Happening::Agent { .. }
        | Happening::OtherServer { .. }
        | Happening::Script { .. }
        | Happening::Profile { .. }
        | Happening::OrderGiven { .. }
        | Happening::State { .. }
        | Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. }
        | Happening::PortConflict { .. }
        | Happening::Install { .. }
        | Happening::ApplianceStarted => None,
    }
}

fn stopped<'e>(
    stage: Stage,
    cause: Cause,
    headline: impl Into<String>,
    events: impl IntoIterator<Item = &'e TimelineEvent>,
) -> Finding {
    let evidence: Vec<Evidence> = events.into_iter().map(cite).collect();
    Finding { outcome: Outcome::Stopped, stage, cause, headline: headline.into(), evidence }
}

fn of_dhcp(chain: &Chain<'_>, event: &TimelineEvent, around: &Surroundings) -> Option<Finding> {
    let Happening::Dhcp { class, message, answer, address, boot_file, nothing_to_boot, other_server, .. } =
        &event.happening
    else {
        return None;
    };
    // What the ramdisk asks is judged with the agent's silence; an operating system's requests are no boot.
    if !class.wants_boot() {
        return None;
    }
    if let (Ok(_), None, Some(reason)) = (answer, boot_file, nothing_to_boot) {
        return nothing(event, *reason, around);
    }
    let found = |cause, headline: String| Some(stopped(Stage::Dhcp, cause, headline, [event]));
    match answer {
        Ok(kind) if kind == "nak" => found(
            Cause::AddressRefused,
            "it asked for an address it may not have, and was told so".to_owned(),
        ),
        Ok(_) => None,
        Err(reason) => match reason.as_str() {
            "unknown-mac" => found(
                Cause::UnknownMac,
                "its MAC is not registered, and dhcp.unknown = \"ignore\": it gets no answer".to_owned(),
            ),
            "pool-exhausted" => found(Cause::PoolExhausted, pool_headline(around)),
            "offer-limit" => found(
                Cause::StrangersLimit,
                "machines nobody registered hold as many addresses by offers as they may".to_owned(),
            ),
            "rival-on-bridge" => found(
                Cause::HeldForRival,
                "another DHCP server answers on the bridge, and dhcp.on_rival = \"hold\": nobody is answered"
                    .to_owned(),
            ),
            "stranger-limit" | "port-limit" | "stranger-rate" | "asks-too-often" => found(
                Cause::StrangersLimit,
                format!("machines nobody registered may take no more for now ([dhcp.strangers]): {reason}"),
            ),
            "other-server" => other_won(chain, event, *other_server, around),
            "declined" => {
                let which = chain.address().map(|address| format!(" {address}")).unwrap_or_default();
                let offered = chain.last(|happening| {
                    matches!(happening, Happening::Dhcp { answer: Ok(_), address: Some(_), .. })
                });
                let headline = format!("it declined the address{which}: another station answers there");
                Some(stopped(Stage::Dhcp, Cause::AddressInUse, headline, offered.into_iter().chain([event])))
            }
            "too-many-declines" => found(
                Cause::TooManyDeclines,
                "it declines every address it gets, and gets no more for now".to_owned(),
            ),
            "not-durable" => found(
                Cause::StoreFailed,
                "the appliance could not write its lease to the disk, so it gave none".to_owned(),
            ),
            // It is offered the next one right away.
            "address-in-use" | "probing" => None,
            // A machine that gives back what it has is leaving, not failing.
            "released" | "release-unfounded" | "decline-unfounded" => None,
            ADDRESS_ELSEWHERE => None,
            "would-offer" | "would-ack" | "would-nak" | "would-bootp-reply" => {
                let address = address.map(|address| format!(" {address}")).unwrap_or_default();
                found(
                    Cause::Observing,
                    format!("it was not answered, for dhcp.mode = \"observe\" ({reason}{address})"),
                )
            }
            reason => {
                let address = address.map(|address| format!(" for {address}")).unwrap_or_default();
                found(Cause::Unanswered, format!("its {message}{address} was not answered: {reason}"))
            }
        },
    }
}

fn pool_headline(around: &Surroundings) -> String {
    let pool = around.pool;
    format!(
        "no address is free for it: of {} in the pool {} are bound, {} offered, {} withheld",
        pool.size, pool.bound, pool.offered, pool.quarantined
    )
}

fn other_won(
    chain: &Chain<'_>,
    event: &TimelineEvent,
    server: Option<std::net::Ipv4Addr>,
    around: &Surroundings,
) -> Option<Finding> {
    let who = match server {
        None => "another DHCP server".to_owned(),
        Some(server) => match around.servers.get(&server) {
            Some(mac) => format!("the DHCP server {server} ({mac})"),
            None => format!("the DHCP server {server}"),
        },
    };
    let offer = chain
        .last(|happening| matches!(happening, Happening::Dhcp { answer: Ok(kind), .. } if kind == "offer"));
    let headline = format!("it took the offer of {who}, not ours");
    let mut finding = stopped(Stage::Dhcp, Cause::OtherServerWon, headline, offer.into_iter().chain([event]));
    if let Some((server, mac)) = server.and_then(|server| Some((server, around.servers.get(&server)?))) {
        finding.evidence.push(super::seen_now(around, format!("{server} is at {mac}")));
    }
    Some(finding)
}

/// It was answered, and told to boot nothing.
fn nothing(event: &TimelineEvent, reason: NothingToBoot, around: &Surroundings) -> Option<Finding> {
    let Happening::Dhcp { class, .. } = &event.happening else { return None };
    let found = |cause, headline: String| Some(stopped(Stage::Loader, cause, headline, [event]));
    let who = words::class_words(*class);
    match reason {
        NothingToBoot::NotABootClient => None,
        NothingToBoot::LocalDisk => Some(Finding {
            outcome: Outcome::Succeeded,
            stage: Stage::Dhcp,
            cause: Cause::LocalDisk,
            headline: "it is to boot from its local disk, and was told so".to_owned(),
            evidence: vec![cite(event)],
        }),
        NothingToBoot::UnknownFirmware => {
            found(Cause::UnknownFirmware, format!("{who} is of a kind nobody here has a loader for"))
        }
        NothingToBoot::NoLoader => {
            let file = around.loaders.lacking(*class);
            let name = file.map_or_else(|| "a loader".to_owned(), |file| file.name.to_string());
            found(Cause::LoaderNotInstalled, format!("{name}, which {who} needs, is not installed here"))
        }
        NothingToBoot::BootLoop => {
            found(
                Cause::BootLoop,
                "boot loop: its loader was fetched again and again and never asked for a script, so it gets none for now"
                    .to_owned(),
            )
        }
    }
}

fn missing(chain: &Chain<'_>, event: &TimelineEvent, stage: Option<Stage>, name: &str) -> Option<Finding> {
    if stage.is_none() && is_probe(name) {
        return None;
    }
    // A name nobody knows is judged by what was to come next.
    let next = match chain.reached {
        None | Some(Stage::Dhcp | Stage::Loader) => Stage::Loader,
        Some(Stage::Script) => Stage::Kernel,
        Some(Stage::Kernel) => Stage::Ramdisk,
        Some(Stage::Ramdisk | Stage::Agent | Stage::Enrolled) => return None,
    };
    let wanted = stage.unwrap_or(next);
    if Some(wanted) < chain.reached {
        return None;
    }
    let (cause, what) = match wanted {
        Stage::Loader | Stage::Dhcp => (Cause::LoaderNotFound, "a loader"),
        Stage::Script => (Cause::ScriptNotFound, "a script"),
        Stage::Kernel => (Cause::KernelMissing, "a kernel"),
        Stage::Ramdisk | Stage::Agent | Stage::Enrolled => (Cause::RamdiskMissing, "a ramdisk"),
    };
    let script = chain.script_plan().map(|(event, _)| event).filter(|_| wanted > Stage::Script);
    let headline = format!("it asked for {what} that is not here: {name}");
    Some(stopped(wanted, cause, headline, script.into_iter().chain([event])))
}

/// What shim, GRUB, iPXE and U-Boot look for and can do without.
fn is_probe(name: &str) -> bool {
    let file = name.rsplit(['/', '\\']).next().unwrap_or(name).to_ascii_lowercase();
    let beginnings = ["revocations", "shim_certificate", "grub.cfg", "autoexec.ipxe", "mac-"];
    let endings = [".lst", ".mod", ".mo", ".mo.gz", ".pf2", ".ipxe"];
    let by_u_boot = name.contains("pxelinux.cfg/");
    by_u_boot
        || beginnings.iter().any(|start| file.starts_with(start))
        || endings.iter().any(|end| file.ends_with(end))
}

fn broken_off(chain: &Chain<'_>, event: &TimelineEvent, reason: &str) -> Option<Finding> {
    let Happening::File { stage, name, size, sent, tftp, .. } = &event.happening else { return None };
    let stage = stage.unwrap_or(Stage::Loader);
    if Some(stage) < chain.reached {
        return None;
    }
    let of = size.map(|size| format!(" of {size}")).unwrap_or_default();
    let progress = format!("{name} broke off after {sent}{of} bytes");
    let (cause, headline) = match (reason, tftp) {
        (aborted::STOPPED, _) => {
            (Cause::ApplianceRestarted, format!("{progress}: the appliance was stopped"))
        }
        (aborted::TOO_SLOW, _) => (Cause::DownloadStalled, format!("{progress}: nothing moved any more")),
        (aborted::FELL_SILENT | aborted::NO_ANSWER, Some(facts)) => silenced(stage, *sent, *facts, &progress),
        (aborted::BEGAN_ANEW, _) => (Cause::TransferAborted, format!("{progress}: the machine began anew")),
        (text, Some(_)) => (Cause::TransferAborted, format!("{progress}: the machine ended it ({text})")),
        (_, None) => (
            Cause::DownloadCut,
            format!("{progress}: the connection was closed by the machine or on the way"),
        ),
    };
    Some(stopped(stage, cause, headline, [event]))
}

/// TFTP, and the machine was not heard any more.
fn silenced(stage: Stage, sent: u64, facts: TftpFacts, progress: &str) -> (Cause, String) {
    let TftpFacts { blksize, resent, .. } = facts;
    if stage > Stage::Loader {
        return (Cause::DownloadStalled, format!("{progress}: the machine stopped answering"));
    }
    if sent == 0 && blksize >= LARGE_BLOCK {
        let headline =
            format!("{progress}: not one block of {blksize} bytes got through, though small packets did");
        return (Cause::TransferMtu, headline);
    }
    (Cause::TransferLost, format!("{progress}: packets were lost, {resent} were sent again in vain"))
}

fn refused(reason: &str) -> (Cause, String) {
    match reason {
        "token-spent" => (
            Cause::TokenReplayed,
            "the agent came with a boot token that had been used before, or a newer one had".to_owned(),
        ),
        "token-expired" => {
            (Cause::TokenExpired, "the agent came with a boot token that is too old".to_owned())
        }
        reason => (Cause::AgentRefused, format!("the agent was refused: {reason}")),
    }
}
