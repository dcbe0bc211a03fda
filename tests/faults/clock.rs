//! the clock was put forward or back while the appliance was down. It reads the clock once, at its start, and counts
//! from there, so a restart is the only moment at which another time can reach the leases.
//!
//! The machine's own clock is left alone: what is moved, the other way, are the times in the store.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use rusqlite::Connection;

use crate::load::{POOL, bind, plug_relay, renew};
use crate::support::{ClientMachine, PATIENCE, TestBed, in_namespace};

const LEASE: Duration = Duration::from_secs(3600);
const HOUR_MS: i64 = 3_600_000;
const TEN_YEARS_MS: i64 = 10 * 365 * 24 * HOUR_MS;

const JUMPS_MS: [i64; 4] = [HOUR_MS, -HOUR_MS, TEN_YEARS_MS, -TEN_YEARS_MS];

/// The appliance is down; when it starts again it is as if the clock had been put forward, or back.
fn put_clock_forward(bed: &TestBed, forward: i64, leases: usize) {
    let moved = Connection::open(bed.state().join("farrier.db"))
        .expect("the store")
        .execute("UPDATE bindings SET granted_at = granted_at - ?1, expires_at = expires_at - ?1", [forward])
        .expect("the leases' times");
    assert!(moved >= leases, "{moved} leases");
}

fn assert_renewed(relay: &ClientMachine, held: &[Ipv4Addr], forward: i64) {
    for (client, address) in held.iter().enumerate() {
        let renewed = relay.inside(|| renew(client, *address, PATIENCE)).expect("an ACK");
        assert_eq!(renewed.0, *address, "{forward} ms");
    }
}

/// With room to spare nobody sees what becomes of leases that look expired. Here there is none: a newcomer could only be
/// given an address that another machine goes on using. It waits, on the bridge and behind a relay agent, and each machine
/// that boots anew meanwhile has its own address.
#[test]
fn r_06_with_a_full_pool_a_newcomer_is_turned_away_rather_than_given_anothers_address() {
    const NAME: &str =
        "clock::r_06_with_a_full_pool_a_newcomer_is_turned_away_rather_than_given_anothers_address";
    in_namespace(NAME, || {
        let mut bed = TestBed::start("[dhcp]\npool = \"192.168.77.10-192.168.77.13\"\nlease = \"1h\"\n");
        let relay = plug_relay(&mut bed);
        let machines = [1, 2].map(|number| bed.plug(&format!("02:00:00:00:06:0{number}")));
        let newcomer = bed.plug("02:00:00:00:06:ff");
        let held: Vec<Ipv4Addr> = machines.iter().map(ClientMachine::boot_udhcpc).collect();
        let bound = |client| relay.inside(|| bind(client, PATIENCE)).expect("an ACK").0;
        let relayed: Vec<Ipv4Addr> = (0..2).map(bound).collect();
        for (case, forward) in [-HOUR_MS, -TEN_YEARS_MS, 2 * HOUR_MS, TEN_YEARS_MS].into_iter().enumerate() {
            bed.kill_server();
            put_clock_forward(&bed, forward, held.len() + relayed.len());
            bed.start_server();
            let asked = newcomer
                .output("udhcpc", &["-i", "eth0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-s", "/bin/true"]);
            let said = String::from_utf8_lossy(&asked.stderr);
            assert!(!asked.status.success(), "{forward} ms: a newcomer, of {held:?}: {said}");
            let behind_the_relay = relay.inside(|| bind(100 + case, Duration::from_secs(2)));
            assert!(behind_the_relay.is_none(), "{forward} ms: {behind_the_relay:?}, of {relayed:?}");
            // Heard, and turned away for that reason.
            let counted = bed.farrier_json(&["status"])["counters"].to_string();
            assert!(counted.contains("pool-exhausted"), "{forward} ms: {counted}");
            // One of each place comes back; the other has not yet when the clock is set again.
            assert_eq!(machines[case % 2].boot_udhcpc(), held[case % 2], "{forward} ms");
            assert_eq!(bound(case % 2), relayed[case % 2], "{forward} ms");
        }
        for (machine, address) in machines.iter().zip(&held) {
            assert_eq!(machine.boot_udhcpc(), *address);
        }
    });
}

#[test]
fn r_06_a_clock_put_forward_or_back_takes_no_address_from_its_machine() {
    in_namespace("clock::r_06_a_clock_put_forward_or_back_takes_no_address_from_its_machine", || {
        let mut bed = TestBed::start(&format!("{POOL}lease = \"1h\"\n"));
        let relay = plug_relay(&mut bed);
        let bound = |client| relay.inside(|| bind(client, PATIENCE)).expect("an ACK").0;
        let held: Vec<Ipv4Addr> = (0..5).map(bound).collect();
        for (case, forward) in JUMPS_MS.into_iter().enumerate() {
            bed.kill_server();
            put_clock_forward(&bed, forward, held.len());
            bed.start_server();
            // Newcomers come first, and still nobody's address is given to them.
            for newcomer in 0..3 {
                let address = bound(100 + 10 * case + newcomer);
                assert!(!held.contains(&address), "{forward} ms: {address} was another's");
            }
            assert_renewed(&relay, &held, forward);
            let leases = bed.farrier_json(&["lease", "list"]);
            for lease in leases.as_array().expect("a list") {
                let until = lease["expires_at"].as_str().and_then(|text| humantime::parse_rfc3339(text).ok());
                let left =
                    until.and_then(|until| until.duration_since(SystemTime::now()).ok()).unwrap_or_default();
                assert!(left <= LEASE + Duration::from_secs(5), "{forward} ms: no lease is longer: {lease}");
            }
        }
        assert!(!bed.log().contains("set aside"), "{}", bed.log());
    });
}
