//! the power goes. A writer's file operations are recorded by strace and replayed up to any moment: what had been
//! synced is there, and of each write since then all, nothing, or the first sectors. From every such image the store opens
//! with everything that had been acknowledged by then.
//!
//! Reordering is covered: of the writes since the last sync any subset may be there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use farrier::clock::Timestamp;
use farrier::dhcp::lease::{Binding, BindingState, ClientKey};
use farrier::net::MacAddr;
use farrier::store::sqlite::SqliteStore;
use farrier::store::{Change, Store};

use crate::count;
use crate::load::Dice;

const WRITER: &str = "FARRIER_TEST_POWER_WRITER";
const SECTOR: usize = 512;

fn binding(number: u32) -> Binding {
    let mac = MacAddr([2, 0xfc, 0, 0, (number >> 8) as u8, number as u8]);
    Binding {
        address: Ipv4Addr::from(0x0a00_0000 + number),
        key: ClientKey::Mac(mac),
        mac,
        client_id: None,
        hostname: Some(format!("host-{number}")),
        state: BindingState::Bound,
        granted_at: Timestamp::from_millis(1_795_000_000_000),
        expires_at: Timestamp::from_millis(1_795_000_000_000 + u64::from(number)),
    }
}

/// Not a test by itself: the process that is recorded. It says "durable N" once N is.
#[test]
fn writer() {
    let Some(path) = std::env::var_os(WRITER) else { return };
    let store = SqliteStore::open(Path::new(&path)).expect("a store");
    let said = fs::File::create("/dev/null").expect("somewhere to say it");
    for number in 1..=240_u32 {
        // Of some, what was stored is changed again.
        let changes = vec![Change::PutBinding(binding(number)), Change::PutBinding(binding(number % 16 + 1))];
        store.commit(changes).expect("a commit");
        let _ = said.write_at(format!("durable {number}").as_bytes(), 0);
        if number % 60 == 0 {
            // A pause is used to copy the WAL back, which has moments of its own.
            std::thread::park_timeout(Duration::from_millis(600));
        }
    }
}

#[derive(Debug)]
enum Operation {
    Write { file: PathBuf, offset: u64, bytes: Vec<u8> },
    Truncate { file: PathBuf, length: u64 },
    Sync { file: PathBuf },
    Remove { file: PathBuf },
    Durable(u32),
}

/// Lines of strace, those that were interrupted by another thread's put together again, in the order the calls ended.
fn whole_lines(trace: &str) -> Vec<String> {
    let mut begun: HashMap<&str, &str> = HashMap::new();
    let mut lines = Vec::new();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, start);
        } else if let Some((_, end)) = rest.split_once(" resumed>") {
            lines.push(format!("{}{end}", begun.remove(pid).unwrap_or_default()));
        } else {
            lines.push(rest.to_owned());
        }
    }
    lines
}

/// `call(3</path>, "\x00…", 4096, 0) = 4096`
fn parse(line: &str, state: &Path) -> Option<Operation> {
    let (call, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    if result.starts_with('-') {
        return None;
    }
    if call == "unlink" {
        let file = PathBuf::from(String::from_utf8(unescape(arguments.split('"').nth(1)?)).ok()?);
        return file.starts_with(state).then_some(Operation::Remove { file });
    }
    let file = arguments.split_once('<')?.1.split_once('>')?.0;
    let file = PathBuf::from(String::from_utf8(unescape(file)).ok()?);
    let behind = arguments.split_once('>')?.1;
    if file == Path::new("/dev/null") {
        let bytes = unescape(behind.split('"').nth(1)?);
        let number = String::from_utf8(bytes).ok()?.strip_prefix("durable ")?.parse().ok()?;
        return Some(Operation::Durable(number));
    }
    // The index of the WAL is made anew at every opening.
    if !file.starts_with(state) || file.to_string_lossy().ends_with("-shm") {
        return None;
    }
    Some(match call {
        "pwrite64" => {
            let bytes = unescape(behind.split('"').nth(1)?);
            let offset = behind.trim_end_matches(')').rsplit(", ").next()?.parse().ok()?;
            let written: usize = result.trim().parse().ok()?;
            assert_eq!(bytes.len(), written, "strace shows all of it");
            Operation::Write { file, offset, bytes }
        }
        "ftruncate" => {
            let length = behind.trim_start_matches(", ").trim_end_matches(')').trim().parse().ok()?;
            Operation::Truncate { file, length }
        }
        "fsync" | "fdatasync" => Operation::Sync { file },
        _ => return None,
    })
}

/// `\x41\x42`, or the characters themselves.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(hex) = rest.strip_prefix("\\x").and_then(|rest| rest.get(..2)) {
            bytes.push(u8::from_str_radix(hex, 16).expect("hexadecimal"));
            rest = &rest[4..];
        } else {
            bytes.extend(character.to_string().bytes());
            rest = &rest[character.len_utf8()..];
        }
    }
    bytes
}

fn record(directory: &Path) -> Vec<Operation> {
    let state = directory.join("state");
    let trace = directory.join("trace");
    let status = Command::new("strace")
        .args([
            "-f",
            "-y",
            "-xx",
            "-qq",
            "-s",
            "1000000",
            "-e",
            "trace=pwrite64,ftruncate,fsync,fdatasync,unlink",
            "-o",
        ])
        .arg(&trace)
        .arg(std::env::current_exe().expect("this program"))
        .args(["power::writer", "--exact", "--nocapture", "--test-threads=1"])
        .env(WRITER, state.join("farrier.db"))
        .stdout(std::process::Stdio::null())
        .status()
        .expect("strace (.ci/packages.txt)");
    assert!(status.success());
    let trace = fs::read_to_string(&trace).expect("a trace");
    whole_lines(&trace).iter().filter_map(|line| parse(line, &state)).collect()
}

/// Where, and what; without a place, a file of that length.
type Unsynced = (Option<u64>, Vec<u8>);

/// A file as the disk has it, and what was done to it since it was synced.
#[derive(Clone, Default)]
struct Disk {
    synced: BTreeMap<PathBuf, Vec<u8>>,
    since: BTreeMap<PathBuf, Vec<Unsynced>>,
}

fn apply(content: &mut Vec<u8>, offset: Option<u64>, bytes: &[u8], length: usize) {
    let Some(offset) = offset else {
        content.resize(bytes.len(), 0);
        return;
    };
    let start = usize::try_from(offset).expect("a small file");
    if content.len() < start + length {
        content.resize(start + length, 0);
    }
    content[start..start + length].copy_from_slice(&bytes[..length]);
}

impl Disk {
    fn take(&mut self, operation: &Operation) {
        match operation {
            Operation::Write { file, offset, bytes } => {
                self.since.entry(file.clone()).or_default().push((Some(*offset), bytes.clone()));
            }
            // A truncation is kept as its length in zeroes, which only `apply` looks at.
            Operation::Truncate { file, length } => {
                let length = usize::try_from(*length).expect("a small file");
                self.since.entry(file.clone()).or_default().push((None, vec![0; length]));
            }
            Operation::Sync { file } => {
                let content = self.synced.entry(file.clone()).or_default();
                for (offset, bytes) in self.since.remove(file).unwrap_or_default() {
                    apply(content, offset, &bytes, bytes.len());
                }
            }
            Operation::Remove { file } => {
                self.synced.remove(file);
                self.since.remove(file);
            }
            Operation::Durable(_) => {}
        }
    }

    /// What is found after the power has gone.
    fn image(&self, dice: &mut Dice) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = self.synced.clone();
        for (file, operations) in &self.since {
            let content = files.entry(file.clone()).or_default();
            for (offset, bytes) in operations {
                match dice.below(4) {
                    0 => {}
                    // Torn: the first sectors, and not the rest.
                    1 if offset.is_some() && bytes.len() > SECTOR => {
                        let sectors = dice.below((bytes.len() / SECTOR) as u64) as usize;
                        apply(content, *offset, bytes, sectors * SECTOR);
                    }
                    _ => apply(content, *offset, bytes, bytes.len()),
                }
            }
        }
        files
    }
}

#[test]
fn r_02_whenever_the_power_goes_the_store_opens_with_all_that_was_acknowledged() {
    let directory = tempfile::tempdir().expect("a directory");
    let operations = record(directory.path());
    let promised = operations.iter().filter(|operation| matches!(operation, Operation::Durable(_))).count();
    assert_eq!(promised, 240, "every promise is in the record");
    let cuts = count("FAULTS_POWER_CUTS", 200);
    let mut dice = Dice(0xfa88_1e85);
    let moments: BTreeSet<usize> =
        (0..cuts * 2).map(|_| dice.below(operations.len() as u64) as usize).take(cuts).collect();
    let (mut disk, mut acknowledged, mut tried) = (Disk::default(), 0, 0);
    for (moment, operation) in operations.iter().enumerate() {
        disk.take(operation);
        if let Operation::Durable(number) = operation {
            acknowledged = *number;
        }
        if !moments.contains(&moment) {
            continue;
        }
        tried += 1;
        let place = tempfile::tempdir().expect("a directory");
        for (file, content) in disk.image(&mut dice) {
            fs::write(place.path().join(file.file_name().expect("a name")), content).expect("an image");
        }
        let store = SqliteStore::open(&place.path().join("farrier.db"))
            .unwrap_or_else(|error| panic!("cut at {moment}: {error}"));
        let snapshot = store.load().unwrap_or_else(|error| panic!("cut at {moment}: {error}"));
        assert_eq!(snapshot.damage, Vec::<String>::new(), "cut at {moment}");
        let found: BTreeSet<_> = snapshot.bindings.iter().map(|binding| binding.address).collect();
        for number in 1..=acknowledged {
            assert!(
                found.contains(&binding(number).address),
                "cut at {moment}: {number} of {acknowledged} is lost"
            );
        }
        store.commit(vec![Change::PutBinding(binding(9999))]).expect("and it goes on");
    }
    println!("{tried} power cuts among {} operations, every acknowledged lease there", operations.len());
}
