//! backup while machines are served, restore, a store of an earlier farrier, and one of a later.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rusqlite::Connection;

use crate::load::{POOL, await_acks, plug_relay, under_load};
use crate::support::{TestBed, farrier_program, in_namespace};

fn farrier(command: &str, file: &Path, state: &Path) -> Output {
    Command::new(farrier_program())
        .arg(command)
        .arg(file)
        .arg("--state")
        .arg(state)
        .output()
        .expect("farrier starts")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn r_15_a_backup_under_load_is_restored_whole() {
    in_namespace("backup::r_15_a_backup_under_load_is_restored_whole", || {
        let mut bed = TestBed::start(POOL);
        let relay = plug_relay(&mut bed);
        assert!(bed.farrier(&["node", "add", "02:00:00:00:0b:01", "--name", "kept"]).status.success());
        let copy = bed.path("copy.db");
        under_load(&relay, 200.0, 0.0, |model| {
            await_acks(model, 100);
            for _ in 0..5 {
                let output = farrier("backup", &copy, &bed.state());
                assert!(output.status.success(), "{}", said(&output));
            }
            await_acks(model, 50);
        });
        assert!(!bed.log().contains("commit failed"), "a backup stops no writer");
        let running = farrier("restore", &copy, &bed.state());
        assert_eq!(running.status.code(), Some(4), "{}", said(&running));
        assert!(said(&running).contains("systemctl stop"), "{}", said(&running));
        assert!(bed.farrier(&["node", "add", "02:00:00:00:0b:02", "--name", "later"]).status.success());
        bed.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(bed.wait_server(), Some(0));
        let restored = farrier("restore", &copy, &bed.state());
        assert!(
            restored.status.success() && said(&restored).contains("before-restore-1"),
            "{}",
            said(&restored)
        );
        bed.start_server();
        let names: Vec<String> = bed
            .farrier_json(&["node", "list"])
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|node| node["name"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(names, ["kept"], "as it was when it was copied");
        assert!(bed.farrier_json(&["lease", "list"]).as_array().expect("a list").len() > 20);
        assert!(bed.state().join("farrier.db.before-restore-1").exists());
    });
}

/// Written by farrier 0.1.0: three leases, two nodes, a token, an audit log.
fn fixture() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores/schema-1.db"))
        .expect("the fixture")
}

#[test]
fn r_15_a_store_of_an_earlier_farrier_is_served_and_one_of_a_later_is_left_alone() {
    in_namespace(
        "backup::r_15_a_store_of_an_earlier_farrier_is_served_and_one_of_a_later_is_left_alone",
        || {
            let mut bed = TestBed::new("");
            fs::create_dir(bed.state()).expect("a state directory");
            let database = bed.state().join("farrier.db");
            // As it is, and as it was before there were tokens and an audit log.
            for tables in ["", "DROP TABLE tokens; DROP TABLE audit;"] {
                fs::write(&database, fixture()).expect("a store");
                Connection::open(&database).expect("the store").execute_batch(tables).expect("an older one");
                bed.start_server();
                assert_eq!(bed.farrier_json(&["lease", "list"]).as_array().expect("a list").len(), 3);
                let nodes = bed.farrier_json(&["node", "list"]);
                let names: Vec<_> =
                    nodes.as_array().expect("a list").iter().map(|node| node["name"].clone()).collect();
                assert_eq!(names, ["web1", "web2"]);
                assert!(!bed.log().contains("set aside"), "{}", bed.log());
                bed.kill_server();
                for suffix in ["-wal", "-shm"] {
                    let _ = fs::remove_file(bed.state().join(format!("farrier.db{suffix}")));
                }
            }
            fs::write(&database, fixture()).expect("a store");
            Connection::open(&database)
                .expect("the store")
                .execute_batch("PRAGMA user_version=2")
                .expect("a newer one");
            let before = fs::read(&database).expect("the store");
            let output = Command::new(farrier_program())
                .args(["serve", "--config"])
                .arg(bed.path("farrier.toml"))
                .output()
                .expect("farrier starts");
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            let told = said(&output);
            assert!(told.contains("newer farrier") && told.contains("restore a backup"), "{told}");
            assert_eq!(fs::read(&database).expect("the store"), before, "and nothing was written to it");
        },
    );
}
