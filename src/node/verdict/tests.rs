use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::boot::client::{ClientClass, Firmware};
use crate::boot::decision::{NothingToBoot, ScriptPlan, UnknownPolicy};
use crate::boot::loader::LoaderTable;
use crate::bridge_log::event::BridgeFault;
use crate::bridge_log::outages::{Outage, OutageOf};
use crate::config::DhcpMode;
use crate::dhcp::lease::PoolUse;
use crate::net::ports::{BridgePort, PortState};
use crate::node::registry::TraceStep;
use crate::node::timeline::{AgentCall, FileOutcome, Happening, TftpFacts, Transport, aborted};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const UEFI: ClientClass = ClientClass::Firmware { firmware: Firmware::UefiX64 };

fn at(secs: u64) -> Timestamp {
    Timestamp::from_millis(1_795_000_000_000 + secs * 1000)
}

fn around(now: u64) -> Surroundings {
    Surroundings {
        mode: DhcpMode::Server,
        now: at(now),
        started_at: at(0),
        unknown: UnknownPolicy::Enroll,
        call_deadline: Duration::from_secs(300),
        bridge: BridgeView { name: "br0".into(), address: "192.168.2.2/24".into(), fault: None },
        ports: Vec::new(),
        outages: Vec::new(),
        servers: Default::default(),
        pool: PoolUse { size: 2, bound: 2, offered: 0, quarantined: 0 },
        loaders: std::sync::Arc::new(LoaderTable::built_in()),
        profile: "vm".into(),
        kernel_altered: false,
        fetching: None,
    }
}

fn dhcp(class: ClientClass, message: &str, answer: Result<&str, &str>) -> Happening {
    Happening::Dhcp {
        port: MAC,
        class,
        message: message.to_owned(),
        xid: 7,
        answer: answer.map(str::to_owned).map_err(str::to_owned),
        address: answer.is_ok().then_some(Ipv4Addr::new(192, 168, 2, 130)),
        boot_file: (answer.is_ok() && class.wants_boot()).then(|| "loader".to_owned()),
        nothing_to_boot: None,
        other_server: None,
    }
}

fn file(stage: Option<Stage>, name: &str, outcome: FileOutcome, tftp: Option<TftpFacts>) -> Happening {
    let (transport, name) = (Transport::Tftp, name.to_owned());
    Happening::File { transport, stage, name, size: Some(9000), sent: 0, took_millis: 10, outcome, tftp }
}

fn whole(stage: Stage, name: &str) -> Happening {
    file(Some(stage), name, FileOutcome::Complete, None)
}

fn aborted_by(stage: Stage, reason: &str, blksize: u16) -> Happening {
    let facts = TftpFacts { blksize, windowsize: 1, resent: 4 };
    file(Some(stage), "x", FileOutcome::Aborted(reason.to_owned()), Some(facts))
}

fn script(plan: ScriptPlan) -> Happening {
    Happening::Script { name: "grub/grub.cfg".to_owned(), plan, token_issued_at: Some(at(4)) }
}

fn leased() -> Vec<Happening> {
    vec![dhcp(UEFI, "discover", Ok("offer")), dhcp(UEFI, "request", Ok("ack"))]
}

/// A boot with one event a second.
fn boot(happenings: impl IntoIterator<Item = Happening>) -> Boot {
    let node = NodeId(uuid::Uuid::from_u128(1));
    let events = happenings.into_iter().zip(0_u32..).map(|(happening, sequence)| TimelineEvent {
        node,
        boot: 4,
        sequence,
        at: at(u64::from(sequence)),
        happening,
    });
    Boot {
        number: 4,
        started_at: at(0),
        stage: None,
        times: Default::default(),
        enrolled: false,
        stopped_at: None,
        events: events.collect(),
        unrecorded: 0,
    }
}

fn judged(happenings: Vec<Happening>, around: &Surroundings) -> Verdict {
    let boot = boot(happenings);
    of(&Case { boot: Some(&boot), ..Case::default() }, around)
}

fn upto(steps: &[Happening]) -> Vec<Happening> {
    leased().into_iter().chain(steps.iter().cloned()).collect()
}

/// How far a boot gets, step by step.
fn steps() -> Vec<Happening> {
    vec![
        whole(Stage::Loader, "uefi-x64/shimx64.efi"),
        whole(Stage::Loader, "uefi-x64/grubx64.efi"),
        script(ScriptPlan::Ramdisk),
        whole(Stage::Kernel, "image/vm/vmlinuz"),
        whole(Stage::Ramdisk, "image/vm/initrd.img"),
        Happening::Agent { call: AgentCall::Hello { uptime_secs: 2.0, token_issued_at: Some(at(4)) } },
        Happening::Agent { call: AgentCall::Inventory },
    ]
}

#[test]
fn each_stage_has_its_deadline_and_its_silence() {
    let table = [
        (0, 30, Cause::LoaderNotFetched, Stage::Loader),
        (2, 45, Cause::LoaderSilent, Stage::Loader),
        (3, 30, Cause::KernelNotFetched, Stage::Kernel),
        (4, 30, Cause::RamdiskNotFetched, Stage::Ramdisk),
        (5, 300, Cause::AgentNoDriver, Stage::Agent),
        (6, 300, Cause::InventoryMissing, Stage::Enrolled),
    ];
    for (count, deadline, cause, stage) in table {
        let happenings = upto(&steps()[..count]);
        let last = happenings.len() as u64 - 1;
        let early = judged(happenings.clone(), &around(last + deadline));
        assert_eq!((early.cause, early.outcome), (Cause::UnderWay, Outcome::UnderWay), "{count}");
        let late = judged(happenings, &around(last + deadline + 1));
        assert_eq!((late.cause, late.stage, late.outcome), (cause, Some(stage), Outcome::Stopped), "{count}");
        assert!(!late.evidence.is_empty() && !late.remedy.is_empty(), "{count}");
        assert!(late.evidence.iter().any(|evidence| evidence.event.is_some_and(|event| event.boot == 4)));
        let stopped: Vec<Stage> = late
            .stages
            .iter()
            .filter(|mark| mark.state == StageState::Stopped)
            .map(|mark| mark.stage)
            .collect();
        assert_eq!(stopped, [stage], "{count}");
    }
    let enrolled = judged(upto(&steps()), &around(9999));
    assert_eq!((enrolled.cause, enrolled.outcome), (Cause::Enrolled, Outcome::Succeeded));
    assert!(enrolled.stages.iter().all(|mark| mark.state == StageState::Passed), "{:?}", enrolled.stages);
}

#[test]
fn a_download_under_way_is_no_silence() {
    let mut around = around(5000);
    around.fetching = Some(surroundings::Fetching { stage: Stage::Ramdisk, since: at(10) });
    assert_eq!(judged(upto(&steps()[..4]), &around).cause, Cause::UnderWay);
}

#[test]
fn problems_are_told_by_their_events() {
    let refused =
        |reason: &str| Happening::AgentRefused { reason: reason.to_owned(), token_issued_at: Some(at(4)) };
    let failure = AgentCall::Failure { step: "disks".to_owned(), message: "none".to_owned() };
    let nothing = |reason| match dhcp(UEFI, "request", Ok("ack")) {
        Happening::Dhcp { port, class, message, xid, answer, address, other_server, .. } => Happening::Dhcp {
            port,
            class,
            message,
            xid,
            answer,
            address,
            boot_file: None,
            nothing_to_boot: Some(reason),
            other_server,
        },
        other => other,
    };
    let missing = |stage, name| file(stage, name, FileOutcome::NotFound, None);
    let silent = |reason| dhcp(UEFI, "discover", Err(reason));
    let table: Vec<(usize, Happening, Cause)> = vec![
        (0, silent("pool-exhausted"), Cause::PoolExhausted),
        (0, silent("offer-limit"), Cause::StrangersLimit),
        (0, silent("stranger-limit"), Cause::StrangersLimit),
        (0, silent("rival-on-bridge"), Cause::HeldForRival),
        (0, silent("not-durable"), Cause::StoreFailed),
        (0, silent("too-many-declines"), Cause::TooManyDeclines),
        (0, silent("relayed"), Cause::Unanswered),
        (0, dhcp(UEFI, "decline", Err("declined")), Cause::AddressInUse),
        (0, dhcp(UEFI, "request", Err("other-server")), Cause::OtherServerWon),
        (0, dhcp(UEFI, "request", Ok("nak")), Cause::AddressRefused),
        (0, nothing(NothingToBoot::NoLoader), Cause::LoaderNotInstalled),
        (0, nothing(NothingToBoot::UnknownFirmware), Cause::UnknownFirmware),
        (0, nothing(NothingToBoot::BootLoop), Cause::BootLoop),
        (0, nothing(NothingToBoot::LocalDisk), Cause::LocalDisk),
        (0, missing(None, "pxelinux.0"), Cause::LoaderNotFound),
        (1, missing(Some(Stage::Loader), "uefi-x64/grubx64.efi"), Cause::LoaderNotFound),
        (2, missing(Some(Stage::Script), "grub/grub.cfg"), Cause::ScriptNotFound),
        (3, missing(Some(Stage::Kernel), "image/vm/vmlinuz"), Cause::KernelMissing),
        (4, missing(Some(Stage::Ramdisk), "image/vm/initrd.img"), Cause::RamdiskMissing),
        (0, aborted_by(Stage::Loader, aborted::FELL_SILENT, 1428), Cause::TransferMtu),
        (0, aborted_by(Stage::Loader, aborted::FELL_SILENT, 512), Cause::TransferLost),
        (0, aborted_by(Stage::Loader, "client error 0: out of memory", 1428), Cause::TransferAborted),
        (3, aborted_by(Stage::Kernel, aborted::FELL_SILENT, 1024), Cause::DownloadStalled),
        (
            4,
            file(Some(Stage::Ramdisk), "x", FileOutcome::Aborted(aborted::TOO_SLOW.into()), None),
            Cause::DownloadStalled,
        ),
        (
            4,
            file(Some(Stage::Ramdisk), "x", FileOutcome::Aborted(aborted::CLOSED.into()), None),
            Cause::DownloadCut,
        ),
        (4, aborted_by(Stage::Ramdisk, aborted::STOPPED, 1024), Cause::ApplianceRestarted),
        (5, refused("token-spent"), Cause::TokenReplayed),
        (5, refused("token-expired"), Cause::TokenExpired),
        (5, refused("wrong-mac"), Cause::AgentRefused),
        (6, Happening::Agent { call: failure }, Cause::AgentFailed),
        (2, Happening::BootLoop { loaders: 3 }, Cause::BootLoop),
        (3, Happening::ApplianceStarted, Cause::ApplianceRestarted),
    ];
    for (count, problem, cause) in table {
        let mut happenings = upto(&steps()[..count]);
        happenings.push(problem.clone());
        let verdict = judged(happenings, &around(5000));
        assert_eq!(verdict.cause, cause, "{problem:?}: {verdict:#?}");
        let last = u32::try_from(count + 2).unwrap();
        let cited = verdict.evidence.iter().filter_map(|evidence| evidence.event);
        assert!(cited.clone().any(|event| event.sequence == last), "{problem:?} is not cited: {verdict:#?}");
        assert!(!verdict.remedy.is_empty(), "{problem:?}");
    }
}

#[test]
fn what_was_overcome_does_not_matter() {
    let probes =
        ["revocations.efi", "shim_certificate_0.efi", "grub/x86_64-efi/command.lst", "grub/grub.cfg-01-02"];
    let mut happenings = leased();
    happenings.insert(0, dhcp(UEFI, "discover", Err("pool-exhausted")));
    happenings.push(aborted_by(Stage::Loader, aborted::BEGAN_ANEW, 1428));
    happenings.extend(steps()[..2].iter().cloned());
    happenings.extend(probes.map(|name| file(None, name, FileOutcome::NotFound, None)));
    let now = happenings.len() as u64;
    assert_eq!(judged(happenings.clone(), &around(now)).cause, Cause::UnderWay);
    // GRUB looked for files, so it runs.
    let quiet = judged(happenings, &around(5000));
    assert_eq!((quiet.cause, quiet.stage), (Cause::ScriptNotFetched, Some(Stage::Script)));
}

#[test]
fn a_restart_is_to_blame_only_for_what_it_interrupted() {
    let mut ended = leased();
    ended.push(file(None, "pxelinux.0", FileOutcome::NotFound, None));
    ended.push(Happening::ApplianceStarted);
    assert_eq!(judged(ended, &around(5000)).cause, Cause::LoaderNotFound);
    let mut cut = upto(&steps()[..3]);
    cut.push(file(Some(Stage::Kernel), "x", FileOutcome::Aborted(aborted::CLOSED.into()), None));
    cut.push(Happening::ApplianceStarted);
    assert_eq!(judged(cut.clone(), &around(8)).cause, Cause::UnderWay);
    assert_eq!(judged(cut.clone(), &around(5000)).cause, Cause::ApplianceRestarted);
    cut.push(file(Some(Stage::Kernel), "x", FileOutcome::NotFound, None));
    assert_eq!(judged(cut, &around(5000)).cause, Cause::KernelMissing);
    // It had been silent for long when the appliance was started again.
    let mut boot = boot(leased());
    let restart = TimelineEvent {
        sequence: 2,
        at: at(400),
        happening: Happening::ApplianceStarted,
        ..boot.events[0].clone()
    };
    boot.events.push(restart);
    let verdict = of(&Case { boot: Some(&boot), ..Case::default() }, &around(5000));
    assert_eq!(verdict.cause, Cause::LoaderNotFetched);
}

#[test]
fn loaders_are_told_apart_by_platform_and_signature() {
    let fetched = |class, name: &str| vec![dhcp(class, "request", Ok("ack")), whole(Stage::Loader, name)];
    let bios = ClientClass::Firmware { firmware: Firmware::Bios };
    let table = [
        (bios, "undionly.kpxe", Cause::LoaderSilent),
        (bios, "ipxe.efi", Cause::WrongArchitecture),
        (UEFI, "undionly.kpxe", Cause::WrongArchitecture),
        (UEFI, "uefi-arm64/shimaa64.efi", Cause::WrongArchitecture),
        (UEFI, "ipxe.efi", Cause::SecureBootRefused),
        (UEFI, "snponly.efi", Cause::SecureBootRefused),
        (UEFI, "uefi-x64/shimx64.efi", Cause::LoaderSilent),
    ];
    for (class, name, cause) in table {
        let verdict = judged(fetched(class, name), &around(5000));
        assert_eq!((verdict.cause, verdict.stage), (cause, Some(Stage::Loader)), "{class:?} {name}");
        assert!(verdict.headline.contains(name), "{}", verdict.headline);
    }
}

#[test]
fn what_was_changed_after_it_was_signed_is_what_secure_boot_refused() {
    let shim = "uefi-x64/shimx64.efi";
    let mut surroundings = around(5000);
    surroundings.loaders = std::sync::Arc::new(surroundings.loaders.with_altered(|name| name.0 == shim));
    let fetched = |class| vec![dhcp(class, "request", Ok("ack")), whole(Stage::Loader, shim)];
    let verdict = judged(fetched(UEFI), &surroundings);
    assert_eq!((verdict.cause, verdict.stage), (Cause::SecureBootRefused, Some(Stage::Loader)));
    assert!(verdict.headline.contains("changed after it was signed"), "{}", verdict.headline);
    assert!(verdict.remedy.iter().any(|line| line.contains("shim-signed")), "{:?}", verdict.remedy);

    let mut with_kernel = around(5000);
    let upto_kernel = || upto(&steps()[..4]);
    assert_eq!(judged(upto_kernel(), &with_kernel).cause, Cause::RamdiskNotFetched);
    with_kernel.kernel_altered = true;
    let verdict = judged(upto_kernel(), &with_kernel);
    assert_eq!((verdict.cause, verdict.stage), (Cause::SecureBootRefused, Some(Stage::Kernel)));
    assert!(verdict.remedy.iter().any(|line| line.contains("image build deploy")), "{:?}", verdict.remedy);
}

#[test]
fn the_ramdisk_is_told_apart_by_what_it_asks() {
    let with = |answer| {
        let mut happenings = upto(&steps()[..5]);
        happenings.push(dhcp(ClientClass::Ramdisk, "discover", answer));
        judged(happenings, &around(5000)).cause
    };
    assert_eq!(with(Err("pool-exhausted")), Cause::AgentNoAddress);
    assert_eq!(with(Ok("offer")), Cause::AgentNoAddress);
    assert_eq!(with(Ok("ack")), Cause::AgentNoRoute);
}

#[test]
fn the_premises_explain_a_silence_and_no_failure() {
    let mut down = around(5000);
    down.bridge.fault = Some(BridgeFault::Down);
    assert_eq!(judged(leased(), &down).cause, Cause::BridgeDown);
    assert_eq!(
        judged(vec![dhcp(UEFI, "discover", Err("pool-exhausted"))], &down).cause,
        Cause::PoolExhausted
    );
    assert_eq!(judged(upto(&steps()), &down).cause, Cause::Enrolled);
    let mut held = around(5000);
    let port = BridgePort { name: "tap3".into(), state: PortState::Learning, carrier: true, learned: true };
    held.ports = vec![port];
    assert_eq!(judged(leased(), &held).cause, Cause::PortNotForwarding);
    let nobody = of(&Case { mac: Some(MAC), ..Case::default() }, &held);
    assert_eq!((nobody.cause, nobody.stage), (Cause::PortNotForwarding, None));
    held.ports[0].state = PortState::Forwarding;
    let heard = of(&Case { mac: Some(MAC), ..Case::default() }, &held);
    assert_eq!(heard.cause, Cause::NeverHeard);
    assert!(heard.headline.contains("tap3"), "{}", heard.headline);
}

#[test]
fn an_outage_that_is_over_explains_the_silence_it_overlapped() {
    let with = |of: OutageOf, from: u64, to: Option<u64>| {
        let mut around = around(5000);
        around.outages = vec![Outage { of, from: at(from), to: to.map(at) }];
        around
    };
    let bridge = || OutageOf::Bridge(BridgeFault::Down);
    // The last that was heard is the ACK, a second after the DISCOVER; the loader was due within half a minute.
    let verdict = judged(leased(), &with(bridge(), 5, Some(20)));
    assert_eq!((verdict.cause, verdict.stage), (Cause::BridgeDown, Some(Stage::Loader)));
    assert!(
        verdict.headline.contains("br0 was down from") && verdict.headline.contains("(15 s)"),
        "{verdict:?}"
    );
    assert!(verdict.evidence.iter().any(|evidence| evidence.at == at(5)), "{verdict:?}");
    assert!(!verdict.remedy.iter().any(|line| line.contains("set br0 up")), "it is up: {verdict:?}");
    for (from, to) in [(100, Some(110)), (0, Some(0))] {
        assert_eq!(judged(leased(), &with(bridge(), from, to)).cause, Cause::LoaderNotFetched, "{from}");
    }
    // What has another reason keeps it, and what came through is through.
    let full = vec![dhcp(UEFI, "discover", Err("pool-exhausted"))];
    assert_eq!(judged(full, &with(bridge(), 0, Some(20))).cause, Cause::PoolExhausted);
    assert_eq!(judged(upto(&steps()), &with(bridge(), 0, None)).cause, Cause::Enrolled);
    // A transfer that broke off while it lasted.
    let mut cut = leased();
    cut.push(aborted_by(Stage::Loader, aborted::FELL_SILENT, 512));
    assert_eq!(judged(cut, &with(bridge(), 1, Some(30))).cause, Cause::BridgeDown);

    // A port's outage is told of the machines behind it, and of no others.
    let held = || OutageOf::Port { name: "tap3".to_owned(), state: PortState::Listening };
    let mut behind = with(held(), 3, Some(18));
    assert_eq!(judged(leased(), &behind).cause, Cause::LoaderNotFetched);
    behind.ports =
        vec![BridgePort { name: "tap3".into(), state: PortState::Forwarding, carrier: true, learned: true }];
    let verdict = judged(leased(), &behind);
    assert_eq!(verdict.cause, Cause::PortNotForwarding);
    assert!(verdict.headline.contains("tap3, which it is behind, was listening"), "{}", verdict.headline);
}

#[test]
fn a_stranger_is_judged_by_its_trace() {
    let step = |secs, answer| TraceStep {
        at: at(secs),
        class: UEFI,
        message: "discover",
        xid: 9,
        answer,
        address: None,
        other_server: None,
    };
    let trace = StrangerTrace {
        first_at: at(1),
        asked: 5,
        steps: [step(1, Err("unknown-mac")), step(7, Err("unknown-mac"))].into(),
    };
    let case = Case { mac: Some(MAC), trace: Some(&trace), ..Case::default() };
    let verdict = of(&case, &around(10));
    assert_eq!((verdict.cause, verdict.stage, verdict.boot), (Cause::UnknownMac, Some(Stage::Dhcp), None));
    assert!(verdict.headline.contains("asked 5 times, last 3 s ago"), "{}", verdict.headline);
    assert!(verdict.remedy[0].contains("farrier node add 52:54:00:00:00:01"), "{:?}", verdict.remedy);
    assert!(
        verdict.evidence.iter().all(|evidence| evidence.event.is_none()),
        "there is no timeline to refer to"
    );
}

#[test]
fn an_overtaken_boot_is_closed() {
    let boot = boot(leased());
    let case = Case { boot: Some(&boot), overtaken_at: Some(at(3)), ..Case::default() };
    let verdict = of(&case, &around(3));
    assert_eq!((verdict.cause, verdict.outcome), (Cause::LoaderNotFetched, Outcome::Stopped));
    assert!(verdict.headline.contains("boot 5 followed"), "{}", verdict.headline);
    // As of before the next one began it was under way.
    assert_eq!(of(&Case { overtaken_at: Some(at(3)), ..case }, &around(2)).cause, Cause::UnderWay);
}

#[test]
fn a_verdict_reads_back_from_its_json() {
    let verdict = judged(leased(), &around(5000));
    let text = serde_json::to_string(&verdict).unwrap();
    assert!(
        text.contains("\"cause\":\"loader-not-fetched\"") && text.contains("\"stage\":\"loader\""),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
}

/// With the registry itself: a token outlives half an hour only as an evidence.
#[test]
fn an_expired_token_is_told_from_a_spent_one() {
    use crate::node::registry::{Hello, NewNode, NodeRef, Registry, RegistrySettings};
    use crate::node::token::TokenKey;
    let store = std::sync::Arc::new(crate::store::memory::MemoryStore::new());
    let settings = RegistrySettings {
        unknown: UnknownPolicy::Enroll,
        call_deadline: Duration::from_secs(300),
        first_boot_deadline: Duration::from_secs(1800),
        installer_deadline: Duration::from_secs(7200),
        reservations: Vec::new(),
    };
    let registry = Registry::new(store, Default::default(), settings, TokenKey::from_bytes([7; 32]));
    registry.register(NewNode { name: None, macs: vec![(MAC, None)], quirks: None }, at(0)).unwrap();
    for (secs, happening) in (1..).zip(upto(&steps()[..2])) {
        registry.record(MAC, happening, at(secs));
    }
    let address = Ipv4Addr::new(192, 168, 2, 130);
    let token = registry.issue_token(MAC, address, at(10)).unwrap().text;
    let plan = ScriptPlan::Ramdisk;
    let handed = Happening::Script { name: "grub/grub.cfg".to_owned(), plan, token_issued_at: Some(at(10)) };
    registry.record(MAC, handed, at(10));
    registry.record(MAC, whole(Stage::Ramdisk, "image/vm/initrd.img"), at(11));
    let hello = Hello { token: &token, nonce: None, uptime_secs: 2.0 };
    let verdict_at = |secs| {
        let node = registry.find(&NodeRef::Mac(MAC)).unwrap();
        let boots = registry.boots(node.id);
        of(&Case { node: Some(&node), boot: boots.last(), ..Case::default() }, &around(secs))
    };
    assert!(registry.hello(&hello, MAC, address, at(10 + 31 * 60)).is_err());
    let expired = verdict_at(10 + 31 * 60);
    assert_eq!((expired.cause, expired.stage), (Cause::TokenExpired, Some(Stage::Agent)), "{expired:#?}");
    assert_eq!(
        expired.evidence.len(),
        2,
        "the script the token was in, and the refusal: {:#?}",
        expired.evidence
    );
    registry.hello(&hello, MAC, address, at(20)).unwrap();
    assert!(registry.hello(&hello, MAC, address, at(10 + 31 * 60)).is_err());
    assert_eq!(verdict_at(10 + 31 * 60).cause, Cause::TokenReplayed);
}
