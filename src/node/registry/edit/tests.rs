//! Edits over the reference store.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::boot::decision::UnknownPolicy;
use crate::config::Reservation;
use crate::node::registry::{NodeFilter, RegistrySettings};
use crate::node::token::TokenKey;
use crate::store::memory::MemoryStore;
use crate::store::{Snapshot, Store};

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 50);

fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

fn registry(reservations: Vec<Reservation>) -> (Arc<MemoryStore>, Registry) {
    let store = Arc::new(MemoryStore::new());
    let settings = RegistrySettings {
        unknown: UnknownPolicy::Approve,
        call_deadline: Duration::from_secs(600),
        first_boot_deadline: Duration::from_secs(1800),
        installer_deadline: Duration::from_secs(7200),
        reservations,
    };
    let shared = Arc::clone(&store) as Arc<dyn Store>;
    (store, Registry::new(shared, Snapshot::default(), settings, TokenKey::from_bytes([7; 32])))
}

fn new(name: &str, ports: &[(u8, Option<Ipv4Addr>)]) -> NewNode {
    let macs = ports.iter().map(|(last, at)| (mac(*last), *at)).collect();
    NewNode { name: name.parse().ok(), macs, quirks: None }
}

fn named(name: &str) -> NodeRef {
    NodeRef::Name(name.parse().unwrap())
}

fn ports(ports: &[(u8, Option<Ipv4Addr>)]) -> NodeEdit {
    NodeEdit { ports: Some(new("x", ports).macs), ..NodeEdit::default() }
}

#[test]
fn ports_move_with_their_addresses_and_indexes_follow() {
    let (_, registry) = registry(Vec::new());
    registry.register(new("a", &[(1, Some(ADDRESS)), (2, None)]), START).unwrap();
    registry.register(new("b", &[(3, None)]), START).unwrap();
    // An address may pass from one port of a node to another.
    let swapped =
        registry.edit(&named("a"), ports(&[(1, None), (2, Some(ADDRESS))]), &Expected::Anything, START);
    assert_eq!(swapped.unwrap().node.version, 2);
    assert_eq!(registry.reserved_for(ADDRESS), Some(mac(2)));
    for (edit, told) in [
        (ports(&[]), "at least one port"),
        (ports(&[(1, None), (1, None)]), "twice"),
        (ports(&[(3, None)]), "already is a port of b"),
        (NodeEdit { name: Some("b".parse().ok()), ..NodeEdit::default() }, "taken"),
    ] {
        let error = registry.edit(&named("a"), edit, &Expected::Anything, START).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
    let taken = registry.edit(&named("b"), ports(&[(3, Some(ADDRESS))]), &Expected::Anything, START);
    assert!(taken.unwrap_err().to_string().contains("already fixed"));
    registry.edit(&named("a"), ports(&[(1, None)]), &Expected::Anything, START).unwrap();
    assert_eq!((registry.reserved_for(ADDRESS), registry.find(&NodeRef::Mac(mac(2)))), (None, None));
}

#[test]
fn an_edit_is_told_on_the_timeline_and_to_watchers() {
    use crate::node::timeline::edited::{NodeChange, told};
    let (store, registry) = registry(Vec::new());
    let id = registry.register(new("a", &[(1, Some(ADDRESS)), (2, None)]), START).unwrap().id;
    let mut watcher = registry.subscribe();
    let edit = |edit| registry.edit(&NodeRef::Id(id), edit, &Expected::Anything, START).unwrap();
    edit(NodeEdit { name: Some("b".parse().ok()), ..ports(&[(1, None), (3, Some(ADDRESS))]) });
    let event = watcher.try_recv().unwrap();
    let Happening::Edited { changes } = &event.happening else { panic!("{event:?}") };
    assert_eq!(
        *changes,
        [
            NodeChange::Name { from: "a".parse().ok(), to: "b".parse().ok() },
            NodeChange::Address { port: mac(1), from: Some(ADDRESS), to: None },
            NodeChange::PortRemoved { port: mac(2) },
            NodeChange::PortAdded { port: mac(3), address: Some(ADDRESS) },
        ]
    );
    assert_eq!(
        told(changes),
        "renamed from a to b; 192.168.2.50 no longer fixed for 52:54:00:00:00:01; port 52:54:00:00:00:02 removed; \
         port 52:54:00:00:00:03 added with address 192.168.2.50"
    );
    // Outside any boot, and on disk like the rest.
    assert_eq!(event.boot, 0);
    assert!(store.load().unwrap().events.contains(&event));
    edit(ports(&[(3, Some(ADDRESS)), (1, None)]));
    edit(NodeEdit { name: Some("b".parse().ok()), ..NodeEdit::default() });
    assert!(watcher.try_recv().is_err(), "nothing worth telling has changed");
    edit(NodeEdit { approved: Some(false), next_boot: Some(NextBoot::LocalDisk), ..NodeEdit::default() });
    let event = watcher.try_recv().unwrap();
    let Happening::Edited { changes } = &event.happening else { panic!("{event:?}") };
    assert_eq!(told(changes), "boots from its disk next; approval withdrawn");
}

#[test]
fn labels_are_set_taken_away_bounded_and_chosen_by() {
    use crate::node::labels::{LABELS_MAX, LabelEdit};
    use crate::node::timeline::edited::told;
    let (store, registry) = registry(Vec::new());
    registry.register(new("a", &[(1, None)]), START).unwrap();
    registry.register(new("b", &[(2, None)]), START).unwrap();
    let mut watcher = registry.subscribe();
    let label = |name: &str, labels: &[(&str, Option<&str>)]| {
        let parsed = |(key, value): &(&str, Option<&str>)| {
            (key.parse().unwrap(), value.map(|value| value.parse().unwrap()))
        };
        let labels: LabelEdit = labels.iter().map(parsed).collect();
        registry.edit(&named(name), NodeEdit { labels, ..NodeEdit::default() }, &Expected::Anything, START)
    };
    let edited = label("a", &[("rack", Some("r1")), ("example.org/owner", Some("ada"))]).unwrap();
    assert_eq!(edited.node.labels.to_string(), "example.org/owner=ada rack=r1");
    let event = watcher.try_recv().unwrap();
    let Happening::Edited { changes } = &event.happening else { panic!("{event:?}") };
    assert_eq!(told(changes), "labelled example.org/owner=ada; labelled rack=r1");
    label("b", &[("rack", Some("r2"))]).unwrap();
    let chosen = |selector: &str| {
        let filter = NodeFilter { labels: selector.parse().unwrap(), ..NodeFilter::default() };
        let mut names = registry.page(None, 9, &filter, |view| view.node.name.clone().unwrap().to_string()).0;
        // Both came in one millisecond: they are in the order of their ids.
        names.sort();
        names
    };
    assert_eq!(chosen("rack=r1"), ["a"]);
    assert_eq!(chosen("rack"), ["a", "b"]);
    assert!(chosen("rack=r2,example.org/owner").is_empty());
    label("a", &[("rack", None), ("never-there", None)]).unwrap();
    assert_eq!(chosen("rack"), ["b"]);

    let many: Vec<String> = (0..LABELS_MAX).map(|number| format!("k{number}")).collect();
    let many: Vec<(&str, Option<&str>)> = many.iter().map(|key| (key.as_str(), Some(""))).collect();
    let refused = label("a", &many).unwrap_err();
    assert!(refused.to_string().contains("65 labels are too many"), "{refused}");
    store.fail_next_commits(1);
    assert!(label("b", &[("rack", Some("r9"))]).is_err());
    assert_eq!(chosen("rack=r2"), ["b"], "what the disk refused is taken back");
    // On disk as in memory.
    let kept = store.load().unwrap().nodes;
    assert!(kept.iter().any(|node| node.labels.to_string() == "example.org/owner=ada"));
}

#[test]
fn what_the_disk_refuses_is_taken_back() {
    let (store, registry) = registry(Vec::new());
    let before = registry.register(new("a", &[(1, Some(ADDRESS))]), START).unwrap();
    store.fail_next_commits(1);
    let edit = NodeEdit { name: Some(None), ..ports(&[(2, None)]) };
    assert!(registry.edit(&named("a"), edit, &Expected::Anything, START).is_err());
    let node = registry.find(&named("a")).unwrap();
    assert_eq!((node.ports, node.name), (before.ports, before.name));
    assert_eq!(registry.reserved_for(ADDRESS), Some(mac(1)));
}

#[test]
fn a_port_the_configuration_names_stays() {
    let name = "conf".parse().ok();
    let (_, registry) = registry(vec![Reservation { mac: mac(1), address: ADDRESS, name }]);
    registry.reconfigure(
        RegistrySettings {
            unknown: UnknownPolicy::Approve,
            call_deadline: Duration::from_secs(600),
            first_boot_deadline: Duration::from_secs(1800),
            installer_deadline: Duration::from_secs(7200),
            reservations: vec![Reservation { mac: mac(1), address: ADDRESS, name: "conf".parse().ok() }],
        },
        START,
    );
    let error = registry.edit(&named("conf"), ports(&[(2, None)]), &Expected::Anything, START).unwrap_err();
    assert!(error.to_string().contains("configuration"), "{error}");
    assert_eq!(registry.reservations(), [(ADDRESS, (mac(1), false))].into());
}

#[test]
fn pages_go_through_all_nodes_however_long_they_are() {
    let (_, registry) = registry(Vec::new());
    for last in 0..100 {
        registry
            .register(
                new(&format!("n{last}"), &[(last, None)]),
                START.plus(Duration::from_millis(last.into())),
            )
            .unwrap();
    }
    for limit in [1, 15, 16, 17, 99, 100, 101] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let filter = NodeFilter::default();
            let (items, next) = registry.page(after, limit, &filter, |view| view.node.ports[0].mac);
            assert!(items.len() <= limit);
            seen.extend(items);
            after = next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, (0..100).map(mac).collect::<Vec<_>>(), "pages of {limit}");
    }
    let (items, next) = registry.page(
        None,
        5,
        &NodeFilter { text: Some("n9".to_owned()), ..NodeFilter::default() },
        |view| view.node.name.clone().unwrap().to_string(),
    );
    assert_eq!(
        (items, next.is_some()),
        (["n9", "n90", "n91", "n92", "n93"].map(str::to_owned).to_vec(), true)
    );
    let cursor = next.unwrap();
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
}

#[test]
fn quirks_are_set_noted_kept_and_taken_back_if_the_disk_refuses() {
    let (store, registry) = registry(Vec::new());
    registry.register(new("a", &[(1, None)]), START).unwrap();
    let mut told = registry.subscribe();
    let wanted = Quirks { shim_fallback: true, ..Quirks::default() };
    let edit = |quirks| NodeEdit { quirks: Some(quirks), ..NodeEdit::default() };
    let edited = registry.edit(&named("a"), edit(wanted), &Expected::Anything, START).unwrap();
    assert_eq!((edited.node.quirks, edited.node.version), (wanted, 2));
    assert_eq!(told.try_recv().unwrap().happening, Happening::QuirksSet { quirks: wanted });
    assert_eq!(registry.quirks_of(mac(1)), wanted);
    let again = registry.edit(&named("a"), edit(wanted), &Expected::Anything, START).unwrap();
    assert_eq!((again.node.version, told.try_recv().is_err()), (2, true), "no change, no event");
    store.fail_next_commits(1);
    assert!(registry.edit(&named("a"), edit(Quirks::default()), &Expected::Anything, START).is_err());
    assert_eq!((registry.quirks_of(mac(1)), registry.quirks_of(mac(2))), (wanted, Quirks::default()));
}

#[test]
fn a_record_without_quirks_is_one_of_an_earlier_farrier() {
    let (_, registry) = registry(Vec::new());
    let node = registry.register(new("a", &[(1, None)]), START).unwrap();
    let mut record = serde_json::to_value(&node).unwrap();
    record.as_object_mut().unwrap().remove("quirks").expect("it is written");
    assert_eq!(serde_json::from_value::<Node>(record).unwrap(), node);
}
