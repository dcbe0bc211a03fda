use std::ffi::OsString;
use std::time::Duration;

use super::text::Style;
use super::*;
use crate::boot::client::{ClientClass, Firmware};
use crate::boot::decision::{NextBoot, ScriptPlan};
use crate::clock::Timestamp;
use crate::dhcp::lease::LeaseState;
use crate::guard::rivals::{Evidence, Kind};
use crate::net::MacAddr;
use crate::node::inventory::{BootedBy, Cpu, Disk, Inventory, Nic, System};
use crate::node::state::ProvisionState;
use crate::node::timeline::{AgentCall, Boot, FileOutcome, Happening, Stage, TimelineEvent, Transport};
use crate::node::{NodeId, Origin};
use crate::operator::api::*;

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

/// Expected output is a file; `REWRITE_EXPECTED=1` rewrites it, and the diff is reviewed.
fn assert_matches_file(text: &str, name: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/tests").join(name);
    if std::env::var_os("REWRITE_EXPECTED").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap());
}

fn id() -> NodeId {
    NodeId(uuid::Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef))
}

fn after(millis: u64) -> Timestamp {
    START.plus(Duration::from_millis(millis))
}

pub(super) fn summary() -> NodeSummary {
    NodeSummary {
        id: id(),
        name: Some("rack1-node07".parse().unwrap()),
        ports: vec![
            PortSummary { mac: MAC, reserved: None, address: Some([192, 168, 2, 130].into()) },
            PortSummary {
                mac: MacAddr([0x52, 0x54, 0, 0, 0, 2]),
                reserved: Some([192, 168, 2, 20].into()),
                address: None,
            },
        ],
        state: ProvisionState::Manageable,
        approved: true,
        origin: Origin::Seen,
        firmware: Some(Firmware::UefiX64),
        next_boot: NextBoot::Ramdisk,
        order: None,
        failure: None,
        labels: Default::default(),
        last_seen_at: Some(after(8_000)),
        enrolled_at: Some(after(8_900)),
        boot: Some(BootSummary {
            number: 3,
            started_at: START,
            stage: Some(Stage::Enrolled),
            stage_at: Some(after(8_900)),
            enrolled: true,
            stopped_at: None,
        }),
    }
}

fn stranger() -> NodeSummary {
    NodeSummary {
        name: None,
        ports: vec![PortSummary { mac: MacAddr([2, 0, 0, 0, 0, 9]), reserved: None, address: None }],
        state: ProvisionState::Enroll,
        approved: false,
        firmware: Some(Firmware::Bios),
        enrolled_at: None,
        last_seen_at: None,
        boot: None,
        ..summary()
    }
}

fn event(sequence: u32, millis: u64, happening: Happening) -> TimelineEvent {
    TimelineEvent { node: id(), boot: 3, sequence, at: after(millis), happening }
}

fn dhcp(message: &str, answer: Result<&str, &str>) -> Happening {
    Happening::Dhcp {
        port: MAC,
        class: ClientClass::Firmware { firmware: Firmware::UefiX64 },
        message: message.to_owned(),
        xid: 7,
        answer: answer.map(str::to_owned).map_err(str::to_owned),
        address: answer.is_ok().then_some([192, 168, 2, 130].into()),
        boot_file: answer.is_ok().then(|| "uefi-x64/shimx64.efi".to_owned()),
        nothing_to_boot: None,
        other_server: None,
    }
}

fn file(name: &str, size: u64, sent: u64, took_millis: u64, outcome: FileOutcome) -> Happening {
    let (transport, stage) = (Transport::Tftp, Some(Stage::Loader));
    Happening::File {
        transport,
        stage,
        name: name.to_owned(),
        size: Some(size),
        sent,
        took_millis,
        outcome,
        tftp: None,
    }
}

fn boot() -> Boot {
    let happenings = [
        (0, dhcp("discover", Ok("offer"))),
        (15, dhcp("request", Err("foreign-server"))),
        (300, file("uefi-x64/shimx64.efi", 955_656, 955_656, 210, FileOutcome::Complete)),
        (
            700,
            Happening::Script {
                name: "grub/grub.cfg".to_owned(),
                plan: ScriptPlan::Ramdisk,
                token_issued_at: None,
            },
        ),
        (
            2_500,
            file(
                "image/vm/vmlinuz",
                8_000_000,
                3_200_000,
                1_800,
                FileOutcome::Aborted("\x1b[2Jtimed out".into()),
            ),
        ),
        (
            3_000,
            Happening::Agent {
                call: AgentCall::Failure { step: "modules".into(), message: "no\nnet".into() },
            },
        ),
    ];
    let events = happenings.into_iter().zip(0..).map(|((millis, happening), n)| event(n, millis, happening));
    Boot {
        number: 3,
        started_at: START,
        stage: Some(Stage::Kernel),
        times: [(Stage::Dhcp, START), (Stage::Kernel, after(2_500))].into(),
        enrolled: false,
        stopped_at: Some("kernel: the transfer was broken off".to_owned()),
        events: events.collect(),
        unrecorded: 2,
    }
}

fn inventory() -> Inventory {
    let some = |text: &str| Some(text.to_owned());
    Inventory {
        system: System {
            vendor: some("ACME"),
            product: some("Anvil\x1b]0;x"),
            serial: some("S1"),
            ..System::default()
        },
        cpu: Cpu {
            model: "Fast CPU".into(),
            architecture: "x86_64".into(),
            logical: 4,
            cores: 2,
            sockets: 1,
        },
        memory_bytes: 2 << 30,
        disks: vec![Disk {
            name: "vda".into(),
            model: None,
            serial: some("D1"),
            bytes: 20_000_000_000,
            rotational: false,
            removable: false,
        }],
        nics: vec![Nic {
            name: "eth0".into(),
            mac: MAC,
            driver: some("virtio_net"),
            speed_mbps: Some(1000),
            link: true,
        }],
        uptime_secs: 2.5,
        kernel: "6.1.0".into(),
        booted_by: BootedBy::UefiSecureBoot,
    }
}

#[test]
fn nodes_are_listed_in_aligned_columns() {
    let text = node::render_list(&[summary(), stranger()], Style::PLAIN, after(20_000));
    assert_eq!(
        text,
        "\
NODE          MAC                   ADDRESS        FIRMWARE  STATE               STAGE     BOOT  SEEN
rack1-node07  52:54:00:00:00:01 +1  192.168.2.130  uefi-x64  manageable          enrolled     3  12s ago
-             02:00:00:00:00:09     -              bios      waits for approval  -            -  -
"
    );
    let coloured = node::render_list(&[stranger()], Style { colour: true }, START);
    assert!(coloured.contains("\x1b[33m-"), "{coloured:?}");
    assert!(node::render_list(&[], Style::PLAIN, START).contains("farrier node add"));
}

#[test]
fn a_node_is_shown_with_the_boot_that_stopped() {
    let detail = NodeDetail {
        summary: summary(),
        uuid: Some(uuid::Uuid::from_u128(7)),
        created_at: START,
        inventory: Some(inventory()),
        quirks: Default::default(),
        task: None,
        version: 4,
    };
    let text = node::render_detail(&detail, Some(&boot()), Style::PLAIN, after(20_000));
    assert_matches_file(&text, "node-show.txt");
    assert!(!text.contains('\x1b'));
}

#[test]
fn leases_are_listed() {
    let lease = |address: u8, state, secs: i64| LeaseEntry {
        address: [192, 168, 2, address].into(),
        mac: MAC,
        node_name: (address == 130).then(|| "rack1-node07".parse().unwrap()),
        hostname: None,
        state,
        granted_at: None,
        expires_at: Timestamp::from_millis((START.as_millis() as i64 + secs * 1000) as u64),
    };
    let leases = [
        lease(130, LeaseState::Bound, 43_200),
        lease(131, LeaseState::Bound, -90),
        lease(132, LeaseState::Offered, 100),
        lease(133, LeaseState::Quarantined, 600),
    ];
    assert_eq!(
        lease::render(&leases, Style::PLAIN, START),
        "\
ADDRESS        MAC                NODE          HOST NAME  STATE        ENDS
192.168.2.130  52:54:00:00:00:01  rack1-node07  -          bound        in 12h 00m
192.168.2.131  52:54:00:00:00:01  -             -          expired      1m 30s ago
192.168.2.132  52:54:00:00:00:01  -             -          offered      in 1m 40s
192.168.2.133  52:54:00:00:00:01  -             -          quarantined  in 10m 00s
"
    );
}

#[test]
fn the_status_says_what_is_wrong() {
    let status = Status {
        version: "0.1.0".into(),
        started_at: START,
        uptime_secs: 4000,
        bridge: BridgeStatus {
            name: "br-deploy".into(),
            address: "192.168.2.2/24".into(),
            mac: MAC,
            up: true,
            reason: None,
            objection: None,
        },
        services: vec![
            ServiceStatus { name: "dhcp".into(), listens: "192.168.2.2:67".into(), running: true },
            ServiceStatus { name: "tftp".into(), listens: "192.168.2.2:69".into(), running: false },
        ],
        dhcp: DhcpStatus::default(),
        rivals: vec![RivalStatus {
            kind: Kind::Dhcp,
            address: [192, 168, 2, 9].into(),
            mac: Some(MAC),
            port: None,
            evidence: Evidence::Offer,
            first_at: START,
            last_at: START,
            heard: 1,
            client: None,
            process: None,
            way_out: "find it and stop it".into(),
            holding: true,
        }],
        pool: PoolStatus {
            first: [192, 168, 2, 128].into(),
            last: [192, 168, 2, 254].into(),
            size: 127,
            bound: 3,
            offered: 1,
            quarantined: 0,
        },
        nodes: [
            (ProvisionState::Enroll, 1),
            (ProvisionState::Inspecting, 0),
            (ProvisionState::Manageable, 2),
        ]
        .into(),
        waiting_for_approval: 1,
        image: ImageStatus { profile: "metal".into(), present: false },
        store: StoreStatus {
            path: "/var/lib/farrier".into(),
            last_error: Some("disk full".into()),
            ..StoreStatus::default()
        },
        process: ProcessStatus {
            user: "farrier".into(),
            capabilities: vec!["CAP_NET_RAW".into()],
            no_new_privileges: true,
            landlock: "full".into(),
            seccomp: false,
        },
        transfers: TransfersStatus { tftp: 2, http: 0 },
        problems: vec![ReportedProblem {
            at: START,
            severity: Severity::Error,
            message: "no\x07 space".into(),
        }],
        counters: vec![Counter { service: "dhcp".into(), outcome: "ack".into(), count: 12 }],
    };
    assert_matches_file(&status::render(&status, Style::PLAIN, after(5_000)), "status.txt");
    let json = json_text(&status);
    assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
}

#[test]
fn a_watched_event_is_one_harmless_line() {
    let message = EventMessage {
        node_name: None,
        node_mac: Some(MAC),
        event: event(0, 0, file("a\x1b[2J\nb", 10, 10, 1500, FileOutcome::Complete)),
    };
    let text = serde_json::to_string(&message).unwrap();
    assert_eq!(serde_json::from_str::<EventMessage>(&text).unwrap(), message, "{text}");
    let line = watch::event_line(&client::WatchEvent::Timeline(Box::new(message)), Style::PLAIN);
    assert_eq!(line, "11:06:40.000  52:54:00:00:00:01  tftp a\\u{1b}[2J\\u{a}b, 10 B in 1.50s");
}

#[test]
fn a_removed_node_is_told_under_the_name_it_had() {
    let happening = Happening::Removed { name: "node-1".parse().ok(), port: Some(MAC) };
    let message =
        EventMessage { node_name: "node-1".parse().ok(), node_mac: Some(MAC), event: event(0, 0, happening) };
    let text = serde_json::to_string(&message).unwrap();
    assert_eq!(serde_json::from_str::<EventMessage>(&text).unwrap(), message, "{text}");
    let line = watch::event_line(&client::WatchEvent::Timeline(Box::new(message)), Style::PLAIN);
    assert_eq!(line, "11:06:40.000  node-1             removed");
}

fn run_words(words: &[&str]) -> Finished {
    run(std::iter::once("farrier").chain(words.iter().copied()).map(OsString::from))
}

#[test]
fn exit_codes_tell_usage_configuration_and_no_appliance_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    assert_eq!(run_words(&["--help"]).code, 0);
    assert!(run_words(&["--version"]).stdout.starts_with("farrier "));
    for usage in [
        &["no-such-command"][..],
        &[],
        &["node", "add"],
        &["node", "add", "52:54"],
        &["node", "order", "x", "y"],
    ] {
        let finished = run_words(usage);
        assert_eq!((finished.code, finished.stdout.as_str()), (2, ""), "{usage:?}");
        assert!(!finished.stderr.is_empty());
    }

    let told = run_words(&["node", "show", "--json", "--nope"]);
    let document: serde_json::Value = serde_json::from_str(&told.stderr).unwrap();
    assert_eq!((told.code, &document["exit_code"]), (2, &serde_json::json!(2)));
    assert!(document["error"].as_str().unwrap().contains("--nope"), "{document}");
    let nobody = run_words(&["node", "show", ""]);
    assert_eq!(nobody.code, 2);
    assert!(nobody.stderr.contains("farrier node list"), "{}", nobody.stderr);

    std::fs::write(path("good"), "[network]\nbridge = \"br0\"\naddress = \"192.168.2.2/24\"\n").unwrap();
    std::fs::write(path("bad"), "[network]\nbrigde = \"br0\"\n").unwrap();
    let good = run_words(&["config", "check", &path("good")]);
    assert_eq!((good.code, good.stderr.as_str()), (0, ""));
    assert!(good.stdout.contains("192.168.2.128-192.168.2.254"), "{}", good.stdout);
    let bad = run_words(&["config", "check", &path("bad")]);
    assert_eq!(bad.code, 2);
    assert!(
        bad.stderr.contains("bad:2: configuration refused\n  key:     network.brigde\n"),
        "{}",
        bad.stderr
    );
    assert_eq!(run_words(&["serve", "--config", &path("bad")]).code, 2);
    assert_eq!(run_words(&["serve", "--config", &path("missing")]).code, 2);

    let nobody = run_words(&["--socket", &path("none.sock"), "status"]);
    assert_eq!(nobody.code, 5);
    assert!(nobody.stderr.contains("farrier serve --config"), "{}", nobody.stderr);
    let nobody = run_words(&["status", "--json", "--socket", &path("none.sock")]);
    let told: serde_json::Value = serde_json::from_str(&nobody.stderr).unwrap();
    assert_eq!(told["exit_code"], 5);
}
