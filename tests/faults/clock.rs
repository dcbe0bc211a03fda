//! the clock was put forward or back while the appliance was down. It reads the clock once, at its start, and counts
//! from there, so a restart is the only moment at which another time can reach the leases.
//!
//! The machine's own clock is left alone: what is moved, the other way, are the times in the store.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use rusqlite::Connection;

use crate::load::{POOL, bind, plug_relay, renew};
use crate::support::{PATIENCE, TestBed, in_namespace};

const LEASE: Duration = Duration::from_secs(3600);
const HOUR_MS: i64 = 3_600_000;
const TEN_YEARS_MS: i64 = 10 * 365 * 24 * HOUR_MS;

#[test]
fn r_06_a_clock_put_forward_or_back_takes_no_address_from_its_machine() {
    in_namespace("clock::r_06_a_clock_put_forward_or_back_takes_no_address_from_its_machine", || {
        let mut bed = TestBed::start(&format!("{POOL}lease = \"1h\"\n"));
        let relay = plug_relay(&mut bed);
        let bound = |client| relay.inside(|| bind(client, PATIENCE)).expect("an ACK").0;
        let held: Vec<Ipv4Addr> = (0..5).map(bound).collect();
        for (case, forward) in [HOUR_MS, -HOUR_MS, TEN_YEARS_MS, -TEN_YEARS_MS].into_iter().enumerate() {
            bed.kill_server();
            let moved = Connection::open(bed.state().join("farrier.db"))
                .expect("the store")
                .execute(
                    "UPDATE bindings SET granted_at = granted_at - ?1, expires_at = expires_at - ?1",
                    [forward],
                )
                .expect("the leases' times");
            assert!(moved >= held.len(), "{moved} leases");
            bed.start_server();
            // Newcomers come first, and still nobody's address is given to them.
            for newcomer in 0..3 {
                let address = bound(100 + 10 * case + newcomer);
                assert!(!held.contains(&address), "{forward} ms: {address} was another's");
            }
            for (client, address) in held.iter().enumerate() {
                let renewed = relay.inside(|| renew(client, *address, PATIENCE)).expect("an ACK");
                assert_eq!(renewed.0, *address, "{forward} ms");
            }
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
