//! a store file that was cut off or garbled. (Every 64 bytes of it in `store::sqlite::tests`; here the real program.)

use std::fs;

use rusqlite::Connection;

use crate::load::{ACK, DISCOVER, POOL, REQUEST, ask, message, open_socket, plug_relay};
use crate::support::{PATIENCE, TestBed, in_namespace};

#[test]
fn r_03_a_damaged_store_is_set_aside_and_said_so_and_machines_are_served() {
    in_namespace("damage::r_03_a_damaged_store_is_set_aside_and_said_so_and_machines_are_served", || {
        let mut bed = TestBed::start(POOL);
        let relay = plug_relay(&mut bed);
        relay.inside(|| {
            let socket = open_socket();
            for client in 0..60 {
                let xid = client as u32;
                let (_, address, _) =
                    ask(&socket, &message(DISCOVER, client, xid, None), PATIENCE).expect("an offer");
                let request = message(REQUEST, client, xid + 1000, Some(address));
                assert_eq!(ask(&socket, &request, PATIENCE).expect("an answer").0, ACK);
            }
        });
        bed.kill_server();
        let database = bed.state().join("farrier.db");
        Connection::open(&database)
            .expect("the store")
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .expect("all of it in one file");
        let sound = fs::read(&database).expect("the store");
        let half = sound.len() / 2;
        type Damage = Box<dyn Fn(&mut Vec<u8>)>;
        let cases: [(&str, Damage); 6] = [
            ("empty but for a few bytes", Box::new(|bytes| bytes.truncate(100))),
            ("cut in half", Box::new(move |bytes| bytes.truncate(half))),
            ("header garbled", Box::new(|bytes| bytes[..64].fill(0x5a))),
            ("first pages garbled", Box::new(|bytes| bytes[100..9000].fill(0x5a))),
            ("zeroes in the middle", Box::new(move |bytes| bytes[half..half + 4096].fill(0))),
            ("another program's file", Box::new(|bytes| *bytes = b"#!/bin/sh\n".repeat(1000))),
        ];
        for (case, damage) in cases {
            for suffix in ["-wal", "-shm"] {
                let _ = fs::remove_file(bed.state().join(format!("farrier.db{suffix}")));
            }
            let mut bytes = sound.clone();
            damage(&mut bytes);
            fs::write(&database, bytes).expect("damage");
            let said_before = bed.log().matches("set aside on reading the store").count();
            bed.start_server();
            let bound = bed.farrier_json(&["lease", "list"]).as_array().expect("a list").len();
            let said = bed.log().matches("set aside on reading the store").count() > said_before;
            assert!(said || bound == 60, "{case}: {bound} of 60 leases, without a word");
            let problems = bed.farrier_json(&["status"])["problems"].to_string();
            assert!(bound == 60 || problems.contains("set aside"), "{case}: {problems}");
            relay.inside(|| {
                let socket = open_socket();
                let offered = ask(&socket, &message(DISCOVER, 150, 9, None), PATIENCE).expect("an offer");
                let request = message(REQUEST, 150, 10, Some(offered.1));
                assert_eq!(ask(&socket, &request, PATIENCE).expect("an answer").0, ACK, "{case}");
            });
            bed.kill_server();
        }
        let aside = fs::read_dir(bed.state()).expect("the state directory").flatten();
        let aside = aside.filter(|entry| entry.file_name().to_string_lossy().contains(".damaged-")).count();
        assert!(aside >= 4, "{aside} damaged files are kept");
    });
}
