//! What was acknowledged survives `kill -9`.

use crate::support::{TestBed, in_namespace};

#[test]
fn a_lease_acknowledged_before_kill_9_is_there_after_the_restart() {
    in_namespace("durability::a_lease_acknowledged_before_kill_9_is_there_after_the_restart", || {
        let mut bed = TestBed::start("");
        let machines: Vec<_> =
            (1..=8).map(|number| bed.plug(&format!("02:00:00:00:01:{number:02x}"))).collect();
        let mut granted = Vec::new();
        for (number, machine) in machines.iter().enumerate() {
            granted.push(machine.boot_udhcpc());
            // Killed right after an ACK, in the middle of the others.
            if number % 3 == 0 {
                bed.kill_server();
                bed.start_server();
            }
        }
        bed.kill_server();
        bed.start_server();
        let leases = bed.farrier_json(&["lease", "list"]);
        for (number, address) in granted.iter().enumerate() {
            let mac = format!("02:00:00:00:01:{:02x}", number + 1);
            let lease = leases.as_array().unwrap().iter().find(|lease| lease["mac"] == mac.as_str());
            let lease = lease.unwrap_or_else(|| panic!("{mac} lost its lease"));
            assert_eq!(lease["address"], address.to_string());
            assert_eq!(lease["state"], "bound");
        }
        let mut distinct = granted.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), granted.len(), "an address was given twice: {granted:?}");
        // And the clients get the same addresses again.
        for (machine, address) in machines.iter().zip(&granted) {
            assert_eq!(machine.boot_udhcpc(), *address);
        }
    });
}

#[test]
fn registered_nodes_survive_kill_9() {
    in_namespace("durability::registered_nodes_survive_kill_9", || {
        let mut bed = TestBed::start("");
        for number in 1..=5 {
            let mac = format!("02:00:00:00:02:{number:02x}");
            assert!(bed.farrier(&["node", "add", &mac, "--name", &format!("node{number}")]).status.success());
        }
        bed.kill_server();
        bed.start_server();
        let nodes = bed.farrier_json(&["node", "list"]);
        let names: Vec<_> =
            nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["node1", "node2", "node3", "node4", "node5"]);
    });
}
