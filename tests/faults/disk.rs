//! a disk that is full, and one that fails, call by call.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::count;
use crate::load::{POOL, SHORTLY, bind, mac_text, plug_relay, renew};
use crate::support::{
    ClientMachine, PATIENCE, Process, TestBed, eventually, farrier_program, in_namespace, run,
};

/// `GET /readyz` on the operators' socket: its status line and its text.
fn readiness(bed: &TestBed) -> (bool, String) {
    let output = Command::new("curl")
        .args(["-s", "-i", "--max-time", "5", "--unix-socket"])
        .arg(bed.path("operator.sock"))
        .arg("http://localhost/readyz")
        .output()
        .expect("curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The image is none of the disk's concern here, and missing.
    let degraded_by_store = text.contains("degraded: store");
    (!degraded_by_store && text.starts_with("HTTP/1.1"), text)
}

/// All of these are on record, as they were acknowledged.
fn assert_kept(bed: &TestBed, acknowledged: &[(usize, Ipv4Addr)]) {
    let leases = bed.farrier_json(&["lease", "list"]);
    for (client, address) in acknowledged {
        let kept = leases.as_array().expect("a list").iter().any(|lease| {
            lease["address"] == address.to_string()
                && lease["mac"] == mac_text(*client).as_str()
                && lease["state"] == "bound"
        });
        assert!(kept, "{} was acknowledged {address}: {leases}", mac_text(*client));
    }
}

/// Takes every byte there is, and every one that becomes free; gives them back when dropped.
struct Filler {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Filler {
    fn start(path: &Path) -> Filler {
        let mut file = fs::File::create(path).expect("a file");
        let stop = Arc::new(AtomicBool::new(false));
        while file.write_all(&[0x55; 512]).is_ok() {}
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                while file.write_all(&[0x55; 512]).is_ok() {}
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        Filler { path: path.to_owned(), stop, thread: Some(thread) }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn r_05_on_a_full_disk_nothing_is_promised_and_what_is_stored_is_confirmed() {
    in_namespace("disk::r_05_on_a_full_disk_nothing_is_promised_and_what_is_stored_is_confirmed", || {
        let mut bed = TestBed::new(&format!("{POOL}lease = \"1h\"\n"));
        fs::create_dir(bed.state()).expect("a state directory");
        let state = bed.state().display().to_string();
        run("mount", &["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", &state]);
        bed.start_server();
        let relay = plug_relay(&mut bed);
        let mut acknowledged: Vec<(usize, Ipv4Addr)> = Vec::new();
        let bound =
            relay.inside(|| (0..5).map(|client| bind(client, PATIENCE).expect("an ACK")).collect::<Vec<_>>());
        let granted_at = Instant::now();
        acknowledged.extend(bound.iter().enumerate().map(|(client, (address, _))| (client, *address)));
        assert!(readiness(&bed).0);

        // Full to the last byte.
        let filler = Filler::start(&bed.state().join("filler"));
        let mut silent = 0;
        for client in 20..60 {
            // What the WAL has room for may still be granted, and then it is durable; soon nothing is.
            match relay.inside(|| bind(client, SHORTLY)) {
                Some((address, _)) => acknowledged.push((client, address)),
                None => silent += 1,
            }
            if silent == 3 {
                break;
            }
        }
        assert_eq!(silent, 3, "a full disk grants nothing for long");
        let (ready, told) = readiness(&bed);
        assert!(!ready && told.contains("503"), "{told}");
        // Again and again; nobody is told more than the disk has.
        for round in 0..3 {
            for (client, (address, _)) in bound.iter().enumerate() {
                let (again, left) =
                    relay.inside(|| renew(client, *address, PATIENCE)).expect("its lease runs");
                assert_eq!(again, *address);
                let most = Duration::from_secs(3601).saturating_sub(granted_at.elapsed());
                assert!(
                    left <= most && left > Duration::from_secs(3000),
                    "round {round}: {left:?} of {most:?}"
                );
            }
        }
        let counted = bed.farrier_json(&["status"])["counters"].to_string();
        assert!(counted.contains("not-extended") && counted.contains("not-durable"), "{counted}");
        assert!(!readiness(&bed).0, "and it stays degraded");

        // Ended in this state, everything acknowledged is there.
        bed.kill_server();
        drop(filler);
        bed.start_server();
        assert_kept(&bed, &acknowledged);

        // Once more, and this time the space comes back while it runs.
        let filler = Filler::start(&bed.state().join("filler"));
        let mut client = 60;
        eventually("the disk is full", || {
            client += 1;
            match relay.inside(|| bind(client, SHORTLY)) {
                Some((address, _)) => acknowledged.push((client, address)),
                None => return Some(()),
            }
            None
        });
        drop(filler);
        let freed = Instant::now();
        eventually("ready again", || readiness(&bed).0.then_some(()));
        let (address, lease) = relay.inside(|| bind(200, PATIENCE)).expect("an ACK");
        assert!(freed.elapsed() <= Duration::from_secs(5), "recovery took {:?}", freed.elapsed());
        assert_eq!(lease, Duration::from_secs(3600));
        acknowledged.push((200, address));
        bed.kill_server();
        bed.start_server();
        assert_kept(&bed, &acknowledged);
        assert!(!bed.log().contains("set aside"), "{}", bed.log());
    });
}

/// What fails, and how. `fsync` is what a commit waits for; the rest leads there. A running appliance
/// neither renames a file nor makes one by `write`: those are for a start.
const FAILURES: [(&str, &str); 10] = [
    ("pwrite64", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("fsync", "EIO"),
    ("ftruncate", "EIO"),
    ("openat", "EMFILE"),
    ("openat", "ENOSPC"),
    ("pwrite64", "EINTR"),
    ("fsync", "EINTR"),
    ("fsync", "ENOSPC"),
    ("unlink", "EIO"),
];

/// As long as one of these lasts, there is no commit.
const COMMIT_FAILURES: [(&str, &str); 4] =
    [("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("fsync", "EIO"), ("fsync", "ENOSPC")];

/// Attached to the running appliance, so that it ends with the fault and not with the appliance. `when`: which calls of
/// each thread fail, as strace says it.
fn inject(bed: &TestBed, call: &str, errno: &str, when: &str) -> Process {
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"])
        .arg(format!("inject={call}:error={errno}:when={when}"));
    attach(bed, strace)
}

/// Every thread of the running appliance is traced from here on.
fn attach(bed: &TestBed, mut strace: Command) -> Process {
    let pid = bed.server_pid().to_string();
    let strace = strace
        .args(["-p", &pid])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace (.ci/packages.txt)");
    let strace = Process(strace);
    eventually("strace is attached", || {
        let mut threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the appliance").flatten();
        // One that has ended meanwhile is not waited for.
        let status =
            |thread: fs::DirEntry| fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let is_free = |thread| status(thread).contains("TracerPid:\t0\n");
        (!threads.any(is_free)).then_some(())
    });
    strace
}

/// Strace lets go of what it traces when it is told to end, not when it is killed.
fn let_go(mut strace: Process) {
    let pid = nix::unistd::Pid::from_raw(strace.0.id() as i32);
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let _ = strace.0.wait();
}

#[test]
fn r_04_whichever_call_fails_nothing_acknowledged_is_lost_and_service_returns() {
    in_namespace("disk::r_04_whichever_call_fails_nothing_acknowledged_is_lost_and_service_returns", || {
        let mut bed = TestBed::start(POOL);
        let relay: ClientMachine = plug_relay(&mut bed);
        let depth = count("FAULTS_INJECTIONS", 1);
        let mut acknowledged: Vec<(usize, Ipv4Addr)> = Vec::new();
        let mut refused = 0;
        for when in 1..=depth {
            for (call, errno) in FAILURES {
                let strace = inject(&bed, call, errno, &format!("{when}..{}", when + 2));
                for number in 0..6 {
                    let client = (when * 7 + number) % 150;
                    match relay.inside(|| bind(client, SHORTLY)) {
                        Some((address, _)) => {
                            acknowledged.retain(|(other, _)| *other != client);
                            acknowledged.push((client, address));
                        }
                        None => refused += 1,
                    }
                }
                let_go(strace);
                let ended = Instant::now();
                eventually("ready again", || readiness(&bed).0.then_some(()));
                assert!(
                    relay.inside(|| bind(190, PATIENCE)).is_some(),
                    "{call} {errno} {when}: served again"
                );
                assert!(
                    ended.elapsed() <= Duration::from_secs(5),
                    "{call} {errno} {when}: {:?}",
                    ended.elapsed()
                );
                bed.kill_server();
                bed.start_server();
                assert_kept(&bed, &acknowledged);
            }
        }
        println!(
            "{} faults, {refused} requests unanswered, {} leases kept",
            depth * FAILURES.len(),
            acknowledged.len()
        );
        assert!(!bed.log().contains("set aside"), "nothing was damaged");
        assert!(bed.log().contains("commit failed"), "the faults were felt");
    });
}

#[test]
fn r_04_while_no_commit_succeeds_readiness_says_so_and_nothing_is_acknowledged() {
    const NAME: &str = "disk::r_04_while_no_commit_succeeds_readiness_says_so_and_nothing_is_acknowledged";
    in_namespace(NAME, || {
        let mut bed = TestBed::start(POOL);
        let relay: ClientMachine = plug_relay(&mut bed);
        let (address, _) = relay.inside(|| bind(1, PATIENCE)).expect("an ACK");
        for (case, (call, errno)) in COMMIT_FAILURES.into_iter().enumerate() {
            assert!(readiness(&bed).0, "{call} {errno}: before");
            let strace = inject(&bed, call, errno, "1+");
            let newcomer = 20 + case;
            assert_eq!(relay.inside(|| bind(newcomer, SHORTLY)), None, "{call} {errno}");
            eventually("readiness says so", || {
                let (ready, told) = readiness(&bed);
                (!ready && told.contains("503")).then_some(())
            });
            // What is stored is confirmed as it stands.
            assert_eq!(relay.inside(|| renew(1, address, PATIENCE)).expect("its lease runs").0, address);
            let_go(strace);
            let ended = Instant::now();
            eventually("ready again", || readiness(&bed).0.then_some(()));
            assert!(relay.inside(|| bind(newcomer, PATIENCE)).is_some(), "{call} {errno}: served again");
            assert!(ended.elapsed() <= Duration::from_secs(5), "{call} {errno}: {:?}", ended.elapsed());
        }
    });
}

/// A start during which this call fails, ended after so many seconds; how it ended and what it said.
fn start_with(bed: &TestBed, call: &str, errno: &str, when: &str, seconds: &str) -> (ExitStatus, String) {
    let output = Command::new("timeout")
        .args(["--signal=TERM", seconds, "strace", "-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .arg("-e")
        .arg(format!("inject={call}:error={errno}:when={when}"))
        .arg(farrier_program())
        .args(["serve", "--config"])
        .arg(bed.path("farrier.toml"))
        .output()
        .expect("strace");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The one moment at which the appliance renames something of its store.
#[test]
fn r_04_a_damaged_store_that_cannot_be_set_aside_is_left_as_it_is() {
    in_namespace("disk::r_04_a_damaged_store_that_cannot_be_set_aside_is_left_as_it_is", || {
        let mut bed = TestBed::start(POOL);
        let relay = plug_relay(&mut bed);
        relay.inside(|| bind(1, PATIENCE)).expect("an ACK");
        bed.kill_server();
        let database = bed.state().join("farrier.db");
        let checkpoint = rusqlite::Connection::open(&database).expect("the store");
        checkpoint.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").expect("no WAL is left");
        drop(checkpoint);
        let mut bytes = fs::read(&database).expect("the store");
        bytes[..64].fill(0x55);
        fs::write(&database, &bytes).expect("damage");
        // The first one puts the operators' socket in its place.
        for errno in ["EIO", "ENOSPC", "EACCES"] {
            let (status, said) = start_with(&bed, "rename", errno, "2+", "20");
            assert_eq!(status.code(), Some(1), "{errno}: {said}");
            assert!(said.contains("farrier: ") && said.contains("farrier.db"), "{errno}: {said}");
            assert!(!said.contains("panicked"), "{errno}: {said}");
            assert_eq!(fs::read(&database).expect("it is there"), bytes, "{errno}");
        }
        bed.start_server();
        assert!(bed.log().contains("set aside"), "{}", bed.log());
        assert!(relay.inside(|| bind(2, PATIENCE)).is_some());
    });
}

#[test]
fn r_04_a_start_whose_calls_fail_starts_or_says_why_and_harms_nothing() {
    in_namespace("disk::r_04_a_start_whose_calls_fail_starts_or_says_why_and_harms_nothing", || {
        let mut bed = TestBed::start(POOL);
        let relay = plug_relay(&mut bed);
        let (address, _) = relay.inside(|| bind(1, PATIENCE)).expect("an ACK");
        bed.kill_server();
        let calls = [("openat", "EIO"), ("openat", "EMFILE"), ("pwrite64", "ENOSPC"), ("fdatasync", "EIO")];
        for when in (1..=count("FAULTS_INJECTIONS", 1) * 9).step_by(3) {
            for (call, errno) in calls {
                let (status, said) = start_with(&bed, call, errno, &when.to_string(), "0.7");
                // It serves until the time is up, or it has said what it lacks and how that is mended.
                let served = said.contains("serving");
                assert!(served || said.contains("farrier: "), "{call} {errno} {when}: {status} {said}");
                assert!(!said.contains("panicked"), "{call} {errno} {when}: {said}");
            }
        }
        bed.start_server();
        assert_kept(&bed, &[(1, address)]);
        assert!(!bed.log().contains("set aside"), "{}", bed.log());
    });
}
