//! Addresses of the pool that somebody uses without a lease.

use std::net::Ipv4Addr;

use crate::support::{ClientMachine, TestBed, in_namespace};

const POOL: &str = "[dhcp]\npool = \"192.168.77.128-192.168.77.140\"";
const FIRST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 128);

/// Asks for a lease and leaves the interface as it is; gives the address it was granted.
fn ask(machine: &ClientMachine, more: &[&str]) -> Ipv4Addr {
    let usual = ["-i", "eth0", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", "/bin/true"];
    let said = machine.run("udhcpc", &[usual.as_slice(), more].concat());
    let word = said.split_whitespace().skip_while(|word| *word != "of").nth(1);
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no lease: {said}"))
}

fn quarantined(bed: &TestBed) -> Vec<(String, String)> {
    let leases = bed.farrier_json(&["lease", "list"]);
    let leases = leases.as_array().expect("a list").iter().filter(|lease| lease["state"] == "quarantined");
    let word = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    leases.map(|lease| (word(&lease["address"]), word(&lease["mac"]))).collect()
}

#[test]
fn d_31_a_squatter_in_the_pool_is_never_offered() {
    in_namespace("conflicts::d_31_a_squatter_in_the_pool_is_never_offered", || {
        let mut bed = TestBed::start(POOL);
        let mut squatters = Vec::new();
        for (mac, place) in
            [("52:54:00:00:00:f1", "192.168.77.128/24"), ("52:54:00:00:00:f2", "192.168.77.131/24")]
        {
            let squatter = bed.plug(mac);
            squatter.run("ip", &["addr", "add", place, "dev", "eth0"]);
            squatters.push(squatter);
        }
        let mut given = Vec::new();
        for number in 1..=5 {
            let machine = bed.plug(&format!("52:54:00:00:00:0{number}"));
            given.push(ask(&machine, &[]).octets()[3]);
        }
        assert_eq!(given, [129, 130, 132, 133, 134]);
        let expected = [("192.168.77.128", "52:54:00:00:00:f1"), ("192.168.77.131", "52:54:00:00:00:f2")]
            .map(|(address, mac)| (address.to_owned(), mac.to_owned()));
        assert_eq!(quarantined(&bed), expected);
        // The event: in the log and among the problems that operators see, and counted.
        let log = bed.log();
        assert!(log.contains("is used without a lease") && log.contains("52:54:00:00:00:f1"), "{log}");
        // What was set aside stays so over a crash.
        bed.kill_server();
        bed.start_server();
        assert_eq!(quarantined(&bed), expected);
        let machine = bed.plug("52:54:00:00:00:09");
        let wish = ["-r", "192.168.77.128"];
        assert_eq!(
            ask(&machine, &wish),
            Ipv4Addr::new(192, 168, 77, 135),
            "nor is it given to who asks for it"
        );
    });
}

#[test]
fn d_32_a_returning_owner_is_not_blocked_by_answering() {
    in_namespace("conflicts::d_32_a_returning_owner_is_not_blocked_by_answering", || {
        let mut bed = TestBed::start(POOL);
        let machine = bed.plug("52:54:00:00:00:01");
        assert_eq!(ask(&machine, &[]), FIRST);
        // It has its address and answers for it, as a netbooted system does before it asks again.
        machine.run("ip", &["addr", "add", "192.168.77.128/24", "dev", "eth0"]);
        assert_eq!(ask(&machine, &[]), FIRST);
        // The same when our record is lost.
        bed.kill_server();
        std::fs::remove_dir_all(bed.state()).expect("the state directory");
        bed.start_server();
        assert_eq!(ask(&machine, &["-r", "192.168.77.128"]), FIRST);
        assert_eq!(quarantined(&bed), []);
    });
}
