//! One battery for every store, and random histories told to two of them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::channel;

use proptest::prelude::*;
use uuid::Uuid;

use super::memory::MemoryStore;
use super::sqlite::SqliteStore;
use super::*;
use crate::boot::client::{ClientClass, Firmware};
use crate::boot::decision::NextBoot;
use crate::boot::profile::rules::{RuleList, RuleNumber};
use crate::boot::profile::runs::{Record, Run, RunState};
use crate::boot::quirks::Quirks;
use crate::bridge_log::event::{BridgeFault, BridgeHappening};
use crate::clock::Timestamp;
use crate::dhcp::lease::{BindingState, ClientKey};
use crate::guard::rivals::Kind;
use crate::image::digest::Digest;
use crate::net::MacAddr;
use crate::node::Origin;
use crate::node::state::ProvisionState;
use crate::node::timeline::{AgentCall, FileOutcome, Happening, Stage, Transport};
use crate::operator::idempotency::Answer;

pub(super) fn binding(last: u8, state: BindingState, millis: u64) -> Binding {
    let mac = MacAddr([0x52, 0x54, 0, 0, 0, last]);
    let odd = last % 2 == 1;
    Binding {
        address: Ipv4Addr::new(192, 168, 2, last),
        key: if odd { ClientKey::Mac(mac) } else { ClientKey::ClientId(vec![0, last, 0xff]) },
        mac,
        client_id: odd.then(|| vec![1, last]),
        hostname: (!odd).then(|| format!("host-{last}")),
        state,
        granted_at: Timestamp::from_millis(millis),
        expires_at: Timestamp::from_millis(millis + 1),
    }
}

pub(super) fn node(number: u128, version: u64) -> Node {
    Node {
        id: NodeId(Uuid::from_u128(number)),
        name: format!("node-{number}").parse().ok().filter(|_| number.is_multiple_of(2)),
        uuid: None,
        ports: Vec::new(),
        origin: Origin::Seen,
        approved: version.is_multiple_of(2),
        state: ProvisionState::Inspecting,
        next_boot: NextBoot::Ramdisk,
        quirks: Quirks::default(),
        firmware: Some(Firmware::UefiX64),
        created_at: Timestamp::from_millis(1_795_000_000_000 + u64::try_from(number % 7).unwrap()),
        last_seen_at: None,
        enrolled_at: None,
        inventory: None,
        order: None,
        redeemed_token_at: Some(Timestamp::from_millis(1_795_000_000_000)),
        redeemed_by: None,
        intent: None,
        labels: Default::default(),
        failure: None,
        version,
    }
}

pub(super) fn event(number: u128, boot: u32, sequence: u32, kind: u8) -> TimelineEvent {
    let happening = match kind % 6 {
        0 => Happening::Dhcp {
            port: MacAddr([2; 6]),
            class: ClientClass::Firmware { firmware: Firmware::Bios },
            message: "discover".to_owned(),
            xid: 7,
            answer: if sequence.is_multiple_of(2) {
                Ok("offer".to_owned())
            } else {
                Err("pool-empty".to_owned())
            },
            address: Some(Ipv4Addr::LOCALHOST),
            boot_file: None,
            nothing_to_boot: None,
            other_server: None,
        },
        1 => Happening::File {
            transport: Transport::Tftp,
            stage: Some(Stage::Loader),
            name: "a\"b\u{0}'; --".to_owned(),
            size: Some(u64::from(sequence)),
            sent: 3,
            took_millis: 4,
            outcome: FileOutcome::Aborted("timeout".to_owned()),
            tftp: None,
        },
        2 => Happening::Agent { call: AgentCall::Hello { uptime_secs: 2.5, token_issued_at: None } },
        3 => Happening::State {
            from: ProvisionState::Enroll,
            to: ProvisionState::Inspecting,
            cause: "ramdisk served".to_owned(),
        },
        4 => Happening::PortConflict { port: MacAddr([4; 6]), owner: NodeId(Uuid::from_u128(9)) },
        _ => Happening::Approved,
    };
    let at = Timestamp::from_millis(1_795_000_000_000 + u64::from(sequence));
    TimelineEvent { node: NodeId(Uuid::from_u128(number)), boot, sequence, at, happening }
}

fn answer(who: &str, key: &str, until: u64) -> KeptAnswer {
    KeptAnswer {
        key: RequestKey { who: who.to_owned(), key: key.to_owned() },
        request: Digest::of(key.as_bytes()),
        kept_until: Timestamp::from_millis(until),
        answer: Answer {
            status: 201,
            headers: vec![("etag".to_owned(), format!("\"v{until}\""))],
            body: "{}".to_owned(),
        },
    }
}

fn bridge_event(sequence: u64) -> BridgeEvent {
    let happening = match sequence % 2 {
        0 => BridgeHappening::BridgeOut { fault: BridgeFault::WithoutAddress },
        _ => BridgeHappening::RivalAppeared {
            kind: Kind::Dhcp,
            address: IpAddr::from([192, 168, 2, 9]),
            mac: Some(MacAddr([2; 6])),
            port: None,
        },
    };
    BridgeEvent { sequence, at: Timestamp::from_millis(sequence), happening }
}

fn profile_record(last: u8, kept: bool) -> Change {
    let (rule, mac) = (RuleNumber(u32::from(last)), MacAddr([2, 0, 0, 0, 0, last]));
    let state = RunState::Started { boot: 3, at: Timestamp::from_millis(u64::from(last)) };
    let profile = "wipe".parse().expect("a name");
    let record = match last {
        0 => Record::Rules(RuleList::default()),
        _ => Record::Run(Run { rule, mac, node: NodeId(Uuid::from_u128(1)), profile, state }),
    };
    Change::ProfileRecord { key: record.key(), record: kept.then(|| Box::new(record)) }
}

fn put_node(number: u128, version: u64) -> Change {
    Change::PutNode(Box::new(node(number, version)))
}

fn put_event(number: u128, boot: u32, sequence: u32) -> Change {
    Change::PutEvent(Box::new(event(number, boot, sequence, 0)))
}

/// A store that can be closed and opened again.
enum Subject {
    Memory(MemoryStore),
    Sqlite(
        Option<SqliteStore>,
        PathBuf,
        #[expect(dead_code, reason = "removed when dropped")] tempfile::TempDir,
    ),
}

impl Subject {
    fn all() -> [Subject; 2] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/farrier.db");
        let store = SqliteStore::open(&path).unwrap();
        [Subject::Memory(MemoryStore::new()), Subject::Sqlite(Some(store), path, directory)]
    }

    fn store(&self) -> &dyn Store {
        match self {
            Subject::Memory(store) => store,
            Subject::Sqlite(store, ..) => store.as_ref().unwrap(),
        }
    }

    fn reopen(&mut self) {
        match self {
            Subject::Memory(store) => *store = MemoryStore::with(store.load().unwrap()),
            Subject::Sqlite(store, path, _) => {
                drop(store.take());
                *store = Some(SqliteStore::open(path).unwrap());
            }
        }
    }
}

#[test]
fn what_was_committed_is_loaded_after_reopening() {
    for mut subject in Subject::all() {
        assert_eq!(subject.store().load().unwrap(), Snapshot::default());
        let changes = vec![
            Change::PutBinding(binding(5, BindingState::Bound, 10)),
            Change::PutBinding(binding(4, BindingState::Quarantined, 10)),
            put_node(2, 1),
            put_node(1, 1),
            put_event(2, 1, 1),
            put_event(2, 1, 0),
            Change::PutSecret { name: "token-key", value: vec![0, 255] },
        ];
        subject.store().commit(changes).unwrap();
        subject.store().commit(vec![Change::PutBinding(binding(5, BindingState::Released, 20))]).unwrap();
        subject.reopen();
        let snapshot = subject.store().load().unwrap();
        assert_eq!(
            snapshot.bindings,
            [binding(4, BindingState::Quarantined, 10), binding(5, BindingState::Released, 20)]
        );
        assert_eq!(snapshot.nodes, [node(1, 1), node(2, 1)]);
        assert_eq!(snapshot.events, [event(2, 1, 0, 0), event(2, 1, 1, 0)]);
        assert_eq!(snapshot.secrets, [("token-key".to_owned(), vec![0, 255])]);
        assert!(snapshot.damage.is_empty());
    }
}

#[test]
fn dropping_a_node_drops_its_timeline_and_nobody_elses() {
    for subject in Subject::all() {
        let changes =
            vec![put_node(1, 1), put_node(2, 1), put_event(1, 1, 0), put_event(2, 1, 0), put_event(2, 2, 0)];
        subject.store().commit(changes).unwrap();
        let drop_node = Change::DropNode(NodeId(Uuid::from_u128(1)));
        let drop_boot = Change::DropBoot { node: NodeId(Uuid::from_u128(2)), boot: 1 };
        subject.store().commit(vec![drop_node, drop_boot]).unwrap();
        let snapshot = subject.store().load().unwrap();
        assert_eq!(snapshot.nodes, [node(2, 1)]);
        assert_eq!(snapshot.events, [event(2, 2, 0, 0)]);
    }
}

#[test]
fn batches_are_applied_in_order_and_each_is_told() {
    for subject in Subject::all() {
        let (sender, told) = channel();
        for millis in 0..2000 {
            let sender = sender.clone();
            subject.store().submit(
                vec![Change::PutBinding(binding(1, BindingState::Bound, millis))],
                Box::new(move |result| sender.send((millis, result)).unwrap()),
            );
        }
        let snapshot = subject.store().load().unwrap();
        assert_eq!(snapshot.bindings, [binding(1, BindingState::Bound, 1999)]);
        drop(sender);
        assert_eq!(told.iter().collect::<Vec<_>>(), (0..2000).map(|n| (n, Ok(()))).collect::<Vec<_>>());
    }
}

#[test]
fn dropping_the_store_finishes_what_is_queued() {
    for mut subject in Subject::all() {
        for last in 0..=255 {
            let change = Change::PutBinding(binding(last, BindingState::Bound, 1));
            subject.store().submit(vec![change], Box::new(|result| result.unwrap()));
        }
        subject.reopen();
        assert_eq!(subject.store().load().unwrap().bindings.len(), 256);
    }
}

#[test]
fn the_model_fails_and_waits_when_told() {
    let store = MemoryStore::new();
    store.fail_next_commits(1);
    let change = || vec![Change::PutBinding(binding(1, BindingState::Bound, 1))];
    assert!(store.commit(change()).is_err());
    assert_eq!(store.load().unwrap(), Snapshot::default());
    store.hold();
    let (sender, told) = channel();
    store.submit(change(), Box::new(move |result| sender.send(result).unwrap()));
    assert!(told.try_recv().is_err());
    store.release();
    assert_eq!(told.try_recv(), Ok(Ok(())));
    assert_eq!(store.load().unwrap().bindings.len(), 1);
}

fn any_change() -> impl Strategy<Value = Change> {
    let state =
        prop_oneof![Just(BindingState::Bound), Just(BindingState::Released), Just(BindingState::Quarantined)];
    // Small key spaces, so that histories overwrite and drop what they wrote.
    prop_oneof![
        4 => (0..8u8, state, 0..1u64 << 40).prop_map(|(last, state, at)| Change::PutBinding(binding(last, state, at))),
        1 => (0..8u8).prop_map(|last| Change::DropBinding { address: Ipv4Addr::new(192, 168, 2, last) }),
        2 => (0..4u128, 0..9u64).prop_map(|(number, version)| put_node(number, version)),
        1 => (0..4u128).prop_map(|number| Change::DropNode(NodeId(Uuid::from_u128(number)))),
        4 => (0..4u128, 0..3u32, 0..5u32, any::<u8>())
            .prop_map(|(number, boot, sequence, kind)| Change::PutEvent(Box::new(event(number, boot, sequence, kind)))),
        1 => (0..4u128, 0..3u32)
            .prop_map(|(number, boot)| Change::DropBoot { node: NodeId(Uuid::from_u128(number)), boot }),
        1 => ("[ab]", "[ab]", 0..3u64).prop_map(|(who, key, until)| Change::PutAnswer(Box::new(answer(&who, &key, until)))),
        1 => ("[ab]", "[ab]").prop_map(|(who, key)| Change::DropAnswer(RequestKey { who, key })),
        1 => (0..6u64).prop_map(|sequence| Change::PutBridgeEvent(Box::new(bridge_event(sequence)))),
        1 => (0..6u64).prop_map(|sequence| Change::DropBridgeEventsBelow { sequence }),
        1 => (0..3u8, any::<bool>()).prop_map(|(last, kept)| profile_record(last, kept)),
        1 => any::<Vec<u8>>().prop_map(|value| Change::PutSecret { name: "key", value }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_the_same_from_both(
        before in prop::collection::vec(prop::collection::vec(any_change(), 0..6), 0..12),
        after in prop::collection::vec(prop::collection::vec(any_change(), 0..6), 0..12),
    ) {
        let [mut model, mut file] = Subject::all();
        for batch in before {
            model.store().submit(batch.clone(), Box::new(|_| {}));
            file.store().submit(batch, Box::new(|result| result.unwrap()));
        }
        file.reopen();
        model.reopen();
        prop_assert_eq!(model.store().load().unwrap(), file.store().load().unwrap());
        for batch in after {
            model.store().submit(batch.clone(), Box::new(|_| {}));
            file.store().submit(batch, Box::new(|result| result.unwrap()));
        }
        prop_assert_eq!(model.store().load().unwrap(), file.store().load().unwrap());
    }
}
