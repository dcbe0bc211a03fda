//! What only a file can suffer: damage, locks, a killed process, a disk that says no.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use rusqlite::Connection;

use std::os::unix::fs::PermissionsExt;

use super::files::with_suffix;
use super::*;
use crate::dhcp::lease::{Binding, BindingState};
use crate::store::tests::{binding, event, node};

fn filled(path: &Path) {
    fill(path, 200, 20);
}

fn fill(path: &Path, bindings: u8, nodes: u128) {
    let store = SqliteStore::open(path).unwrap();
    for last in 1..=bindings {
        store.commit(vec![Change::PutBinding(binding(last, BindingState::Bound, 1))]).unwrap();
    }
    for number in 1..=nodes {
        let mut changes = vec![Change::PutNode(Box::new(node(number, 1)))];
        changes.extend((0..10).map(|n| Change::PutEvent(Box::new(event(number, 1, n, 0)))));
        store.commit(changes).unwrap();
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn only_the_owner_reads_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/farrier.db");
    let store = SqliteStore::open(&path).unwrap();
    store.commit(vec![Change::PutSecret { name: "key", value: vec![1] }]).unwrap();
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    for suffix in ["", "-wal", "-shm", ".lock"] {
        assert_eq!(mode(&with_suffix(&path, suffix)), 0o600, "{suffix}");
    }
}

#[test]
fn a_second_farrier_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farrier.db");
    let _first = SqliteStore::open(&path).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(LoadError::InUse { .. })));
}

#[test]
fn a_newer_schema_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farrier.db");
    filled(&path);
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version=99").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(LoadError::TooNew { found: 99, .. })));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn rows_that_mean_nothing_are_set_aside_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farrier.db");
    filled(&path);
    Connection::open(&path)
        .unwrap()
        .execute_batch(
            "UPDATE bindings SET mac = 'nonsense' WHERE address % 256 = 7;
             UPDATE bindings SET expires_at = -1 WHERE address % 256 = 8;
             UPDATE bindings SET state = CAST(x'ff41' AS TEXT) WHERE address % 256 = 9;
             UPDATE nodes SET record = '{\"id\": 1}' WHERE name = 'node-2';
             UPDATE events SET happening = '{' WHERE node LIKE '%03' AND sequence = 4;",
        )
        .unwrap();
    for pass in ["first", "again"] {
        let store = SqliteStore::open(&path).unwrap();
        let snapshot = store.load().unwrap();
        assert_eq!((snapshot.bindings.len(), snapshot.nodes.len(), snapshot.events.len()), (197, 19, 199));
        assert_eq!(snapshot.damage.len(), if pass == "first" { 5 } else { 0 }, "{:?}", snapshot.damage);
    }
    let count = |sql: &str| Connection::open(&path).unwrap().query_row(sql, [], |row| row.get::<_, i64>(0));
    assert_eq!(count("SELECT count(*) FROM damaged"), Ok(5));
    assert_eq!(count("SELECT count(*) FROM leases WHERE ip = '192.168.2.10'"), Ok(1));
}

#[test]
fn a_file_that_is_no_database_is_kept_aside() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farrier.db");
    for round in 1..=2 {
        std::fs::write(&path, b"not a database at all, but long enough to have a header ".repeat(40))
            .unwrap();
        let store = SqliteStore::open(&path).unwrap();
        let snapshot = store.load().unwrap();
        assert!(snapshot.damage[0].contains("file is not a database"), "{:?}", snapshot.damage);
        assert!(with_suffix(&path, &format!(".damaged-{round}")).exists());
        store.commit(vec![Change::PutBinding(binding(1, BindingState::Bound, 1))]).unwrap();
        drop(store);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(with_suffix(&path, suffix));
        }
    }
}

/// A store of 80 leases and 8 nodes, in one file.
fn sound_file(directory: &Path) -> Vec<u8> {
    let sound = directory.join("sound.db");
    fill(&sound, 80, 8);
    Connection::open(&sound).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    std::fs::read(&sound).unwrap()
}

/// In memory if there is such a place: thousands of stores are opened, and what a disk takes to sync them is not in question.
fn sweep_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Whatever byte is damaged, the appliance starts, and says so or has everything.
#[test]
fn r_03_damage_anywhere_never_prevents_the_start() {
    let directory = sweep_directory();
    let bytes = sound_file(directory.path());
    let mut most_rescued = 0;
    for offset in (0..bytes.len()).step_by(64) {
        let path = directory.path().join(format!("{offset}/farrier.db"));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let mut damaged = bytes.clone();
        damaged[offset] ^= 0xff;
        std::fs::write(&path, damaged).unwrap();
        let store = SqliteStore::open(&path).unwrap_or_else(|error| panic!("byte {offset}: {error}"));
        let snapshot = store.load().unwrap_or_else(|error| panic!("byte {offset}: {error}"));
        let whole = snapshot.bindings.len() == 80 && snapshot.nodes.len() == 8;
        assert!(whole || !snapshot.damage.is_empty(), "byte {offset}: rows are missing without a word");
        if path.with_extension("db.damaged-1").exists() {
            most_rescued = most_rescued.max(snapshot.bindings.len());
        }
        store.commit(vec![Change::PutBinding(binding(1, BindingState::Bound, 2))]).unwrap();
        drop(store);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
    assert_eq!(most_rescued, 80, "damage elsewhere costs no lease");
}

/// Wherever the file ends, the appliance starts, and says what is missing.
#[test]
fn r_03_a_file_that_ends_anywhere_never_prevents_the_start() {
    let directory = sweep_directory();
    let bytes = sound_file(directory.path());
    // An empty file is a new store; of less than that something is missing wherever it ends.
    for keep in (64..bytes.len()).step_by(64).chain([1, 511, bytes.len() - 1]) {
        let path = directory.path().join(format!("cut-{keep}/farrier.db"));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &bytes[..keep]).unwrap();
        let store = SqliteStore::open(&path).unwrap_or_else(|error| panic!("cut to {keep}: {error}"));
        let snapshot = store.load().unwrap_or_else(|error| panic!("cut to {keep}: {error}"));
        assert!(!snapshot.damage.is_empty(), "cut to {keep}");
        drop(store);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}

/// Somebody holds the file: commits fail, say so, and work again afterwards, with nothing half done.
#[test]
fn a_failed_commit_is_told_and_the_next_one_works() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farrier.db");
    let store = SqliteStore::open(&path).unwrap();
    let put = |last| vec![Change::PutBinding(binding(last, BindingState::Bound, 1))];
    store.commit(put(1)).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(matches!(store.commit(put(2)), Err(CommitError::Write { .. })));
    let stats = store.stats();
    assert_eq!((stats.commits, stats.failed_commits, stats.failed_batches), (1, 1, 1));
    assert!(stats.last_error.is_some());
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    store.commit(put(3)).unwrap();
    assert_eq!(store.stats().last_error, None);
    let kept: Vec<Binding> = store.load().unwrap().bindings;
    assert_eq!(kept, [binding(1, BindingState::Bound, 1), binding(3, BindingState::Bound, 1)]);
}

#[test]
fn many_batches_share_a_commit() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("farrier.db")).unwrap();
    for round in 0..4000u64 {
        let last = u8::try_from(round % 250).unwrap();
        let change = Change::PutBinding(binding(last, BindingState::Bound, round));
        store.submit(vec![change], Box::new(|result| result.unwrap()));
    }
    store.commit(Vec::new()).unwrap();
    let stats = store.stats();
    assert_eq!((stats.batches, stats.changes, stats.queued), (4001, 4000, 0));
    assert!(stats.commits < 400 && stats.largest_group <= GROUP_MAX as u64, "{stats:?}");
}

fn event_change(sequence: u32) -> Vec<Change> {
    vec![Change::PutEvent(Box::new(event(1, 1, sequence, 0)))]
}

#[test]
fn what_nobody_waits_for_is_stored_with_what_somebody_does() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("farrier.db")).unwrap();
    // Whoever is kept from a processor for longer than such a batch waits has it stored before.
    let together = (0..100).any(|round| {
        let before = store.stats().commits;
        for sequence in 0..5 {
            store.submit_in_background(event_change(10 * round + sequence), Box::new(|_| {}));
        }
        store.commit(event_change(10 * round + 5)).unwrap();
        store.stats().commits == before + 1
    });
    assert!(together, "{:?}", store.stats());
}

#[test]
fn what_nobody_waits_for_is_stored_without_company_and_at_the_end_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farrier.db");
    let store = SqliteStore::open(&path).unwrap();
    let (told, durable) = sync_channel(1);
    store.submit_in_background(event_change(1), Box::new(move |result| told.send(result).unwrap()));
    durable.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    store.submit_in_background(event_change(2), Box::new(|_| {}));
    assert_eq!(store.load().unwrap().events.len(), 2, "who loads sees what was submitted before");
    store.submit_in_background(event_change(3), Box::new(|_| {}));
    drop(store);
    assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap().events.len(), 3);
}

const CHILD: &str = "FARRIER_TEST_KILLED_WRITER";

/// Not a test by itself: the process that gets killed. It prints an address once its binding is durable.
#[test]
fn killed_writer() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = SqliteStore::open(Path::new(&path)).unwrap();
    // Ends when it is killed, or when nobody reads any more.
    for number in 0..u32::MAX {
        let mut binding = binding(1, BindingState::Bound, 1);
        binding.address = (0x0a00_0000 + number).into();
        let address = binding.address;
        store.submit(
            vec![Change::PutBinding(binding)],
            Box::new(move |result| {
                let mut out = std::io::stdout().lock();
                if result.is_ok() && writeln!(out, "durable {address}").and_then(|()| out.flush()).is_err() {
                    std::process::exit(1);
                }
            }),
        );
        if number % 50 == 49 {
            store.commit(Vec::new()).unwrap();
        }
    }
}

/// R-01, in small: what was acknowledged before `kill -9` is there after it.
#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farrier.db");
    let mut acknowledged = BTreeSet::new();
    for round in 1..=8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::sqlite::tests::killed_writer", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: String| {
            // The harness may print its own words on the same line.
            if let Some(Ok(address)) = line.split("durable ").nth(1).map(str::parse::<Ipv4Addr>) {
                acknowledged.insert(address);
            }
        };
        for line in lines.by_ref().take(100 * round) {
            note(line.unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said between our last look and its end was a promise too; a torn last line was not.
        let mut rest: Vec<String> = lines.map_while(Result::ok).collect();
        rest.pop();
        rest.into_iter().for_each(&mut note);
        let snapshot = SqliteStore::open(&path).unwrap().load().unwrap();
        assert_eq!(snapshot.damage, Vec::<String>::new());
        let found: BTreeSet<_> = snapshot.bindings.iter().map(|binding| binding.address).collect();
        let lost: Vec<_> = acknowledged.difference(&found).collect();
        assert!(lost.is_empty(), "round {round}: {} lost, such as {:?}", lost.len(), lost.first());
    }
    assert!(acknowledged.len() >= 500, "{} promises were put to the test", acknowledged.len());
}

#[test]
fn a_record_of_before_a_field_was_added_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("farrier.db");
    filled(&path);
    let old = "UPDATE nodes SET record = json_remove(record, '$.redeemed_by')";
    assert_eq!(Connection::open(&path).unwrap().execute(old, []).unwrap(), 20);
    let snapshot = SqliteStore::open(&path).unwrap().load().unwrap();
    assert_eq!((snapshot.nodes.len(), snapshot.damage), (20, Vec::new()));
    assert!(snapshot.nodes.contains(&node(1, 1)));
}
