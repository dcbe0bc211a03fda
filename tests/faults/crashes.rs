//! ended in the middle of a load, by `kill -9` and by SIGTERM.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::count;
use crate::load::{POOL, await_acks, plug_relay, under_load};
use crate::support::{TestBed, in_namespace};

/// Exchanges a second.
const RATE: f64 = 500.0;

#[test]
fn r_01_kill_9_under_load_loses_no_acknowledged_lease_and_gives_none_twice() {
    in_namespace("crashes::r_01_kill_9_under_load_loses_no_acknowledged_lease_and_gives_none_twice", || {
        let mut bed = TestBed::start(POOL);
        let relay = plug_relay(&mut bed);
        let kills = count("FAULTS_KILLS", 12);
        let (acks, exchanges) = under_load(&relay, RATE, 0.0, |model| {
            for kill in 0..kills as u64 {
                // Never at the same point of a commit.
                await_acks(model, 40 + 7 * (kill % 11));
                bed.kill_server();
                bed.start_server();
                model.compare(&bed);
            }
            await_acks(model, 100);
            model.compare(&bed);
            let book = model.book();
            (book.acks, book.exchanges)
        });
        println!("{kills} kills, {exchanges} exchanges, {acks} acknowledged, 0 lost, 0 given twice");
        assert!(!bed.log().contains("set aside"), "nothing was damaged");
    });
}

#[test]
fn r_17_sigterm_under_load_loses_nothing_and_ends_in_time() {
    in_namespace("crashes::r_17_sigterm_under_load_loses_nothing_and_ends_in_time", || {
        let mut bed = TestBed::start(POOL);
        let relay = plug_relay(&mut bed);
        under_load(&relay, RATE, 0.0, |model| {
            for _ in 0..4 {
                await_acks(model, 100);
                let asked = Instant::now();
                bed.signal(Signal::SIGTERM);
                assert_eq!(bed.wait_server(), Some(0));
                assert!(asked.elapsed() <= Duration::from_secs(2), "it took {:?}", asked.elapsed());
                bed.start_server();
                model.compare(&bed);
            }
        });
    });
}
