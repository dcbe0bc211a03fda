//! Whole lists: what they come to, and that they are taken wholly or not at all.

use super::*;
use crate::node::roster::{RosterEntry, RosterPort};

fn entry(line: usize, name: Option<&str>, ports: &[(u16, Option<Ipv4Addr>)]) -> RosterEntry {
    let port = |(last, address): &(u16, Option<Ipv4Addr>)| RosterPort { mac: mac(*last), address: *address };
    let name = name.map(|name| name.parse().unwrap());
    RosterEntry { line, name, ports: ports.iter().map(port).collect(), labels: Default::default() }
}

fn actions(planned: &[Planned]) -> Vec<Action> {
    planned.iter().map(|entry| entry.action).collect()
}

#[test]
fn a_list_registers_updates_and_leaves_alone() {
    let bench = Bench::new(UnknownPolicy::Approve);
    bench.seen(3, 0).unwrap();
    let list = [entry(2, Some("a"), &[(1, Some(ADDRESS)), (2, None)]), entry(3, None, &[(3, None)])];
    let planned = bench.registry.plan_import(&list, after(1)).unwrap();
    assert_eq!(actions(&planned), [Action::Register, Action::Register]);
    assert!(bench.registry.find(&NodeRef::Mac(mac(1))).is_none(), "a plan changes nothing");
    assert_eq!(bench.registry.import(&list, after(1)).unwrap(), planned);
    assert!(bench.node(3).approved, "a seen machine is vouched for");
    assert_eq!(bench.node(1).id, bench.node(2).id);
    let again = bench.registry.import(&list, after(2)).unwrap();
    assert_eq!(actions(&again), [Action::Unchanged, Action::Unchanged]);
    // The list says less than is known: what it does not speak of stays.
    let less = [entry(1, Some("b"), &[(2, Some(OTHER_ADDRESS))])];
    let planned = bench.registry.import(&less, after(3)).unwrap();
    assert_eq!(actions(&planned), [Action::Update]);
    assert_eq!(planned[0].before.as_ref().unwrap().name.as_ref().unwrap().as_str(), "a");
    let bench = bench.restart();
    let node = bench.node(1);
    assert_eq!(node.name.as_ref().unwrap().as_str(), "b");
    let reserved: Vec<_> = node.ports.iter().map(|port| port.reserved).collect();
    assert_eq!(reserved, [Some(ADDRESS), Some(OTHER_ADDRESS)]);
}

#[test]
fn one_bad_entry_names_its_line_and_nothing_is_taken() {
    let bench = Bench::new(UnknownPolicy::Approve);
    let known = [entry(1, Some("a"), &[(1, Some(ADDRESS))]), entry(2, Some("b"), &[(2, None)])];
    bench.registry.import(&known, after(0)).unwrap();
    for (bad, says) in [
        (entry(9, Some("c"), &[(1, None), (2, None)]), "line 9: its MACs belong to two nodes, "),
        (entry(9, Some("a"), &[(7, None)]), "line 9: the name a belongs to a node with 52:54:00:00:00:01"),
        (
            entry(9, None, &[(7, Some(ADDRESS))]),
            "line 9: 192.168.2.50 is already fixed for 52:54:00:00:00:01",
        ),
        (entry(9, Some("b"), &[(2, Some(ADDRESS))]), "line 9: 192.168.2.50 is already fixed"),
        (entry(9, Some("b"), &[(1, None)]), "line 9: the name b belongs to a node with 52:54:00:00:00:02"),
    ] {
        let list = [entry(8, Some("new"), &[(8, None)]), bad];
        let error = bench.registry.import(&list, after(1)).unwrap_err().to_string();
        assert!(error.starts_with(says), "{error}");
        assert_eq!(bench.registry.plan_import(&list, after(1)).unwrap_err().to_string(), error);
        assert_eq!(bench.registry.nodes().len(), 2, "{says}");
    }
}

#[test]
fn what_cannot_be_stored_is_taken_back() {
    let bench = Bench::new(UnknownPolicy::Approve);
    bench.registry.import(&[entry(1, Some("a"), &[(1, None)])], after(0)).unwrap();
    let before = bench.registry.nodes();
    bench.store.fail_next_commits(1);
    let list = [entry(1, Some("renamed"), &[(1, Some(ADDRESS))]), entry(2, Some("b"), &[(2, None)])];
    assert!(matches!(bench.registry.import(&list, after(1)), Err(ImportError::Store(_))));
    let now: Vec<_> = bench.registry.nodes().into_iter().map(|node| (node.name, node.ports)).collect();
    assert_eq!(now, before.into_iter().map(|node| (node.name, node.ports)).collect::<Vec<_>>());
    bench.registry.import(&list, after(2)).unwrap();
    assert_eq!(bench.restart().registry.nodes().len(), 2);
}

#[test]
fn ten_thousand_at_once() {
    let bench = Bench::new(UnknownPolicy::Approve);
    let list: Vec<_> =
        (1..=10_000_u16).map(|last| entry(last.into(), Some(&format!("n{last}")), &[(last, None)])).collect();
    bench.registry.import(&list, after(0)).unwrap();
    assert_eq!(bench.restart().registry.nodes().len(), 10_000);
}
