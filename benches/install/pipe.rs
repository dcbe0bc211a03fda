//! One machine, nothing but its disk in the way: our writer beside `curl | zstd -d | dd oflag=direct`, and beside `dd`
//! alone out of memory, which is what the disk can do.
//!
//! Both fetch from one nginx on loopback and write to the same file system (or the same block device, named by
//! `INSTALL_DISK`, which is overwritten), in turns. The peers do less: they check nothing and read nothing back. What is
//! compared is therefore the writing, up to the moment the bytes are on the medium (`conv=fdatasync` there); what the
//! whole install takes with its reading back, seed and tables is printed beside it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use farrier::agent::calls::{Appliance, CallError, TaskCalls};
use farrier::agent::install::{Blob, Calls};
use farrier::image::digest::Digest;
use farrier::net::MacAddr;
use farrier::node::install::intent::{IntentId, IntentNonce};
use farrier::node::install::task::{AgentTask, AgentWork, Progress, Report, Seed, SeedFile, TargetDisk};

use crate::ground::Root;
use crate::image::{Image, prepare};
use crate::nginx::Nginx;
use crate::{MIB, median};

const PORT: u16 = 18_437;

pub fn measure(size: u64, rounds: u64) {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory below target");
    let image = prepare(place.path(), size);
    let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let raw = memory.path().join("whole.raw");
    fs::copy(place.path().join("whole.raw"), &raw).expect("room in memory");
    let _nginx = Nginx::start(place.path(), SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT));
    let (mut ours, mut whole, mut peer, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let disk = disk(place.path(), size);
        let to_disk = format!("of={} bs=4M oflag=direct conv=notrunc,fdatasync status=none", disk.display());
        alone.push(shell(&format!("dd if={} {to_disk}", raw.display())));
        let fetch = format!("curl -sf http://127.0.0.1:{PORT}/whole.raw.zst");
        peer.push(shell(&format!("{fetch} | zstd -dc | dd {to_disk} iflag=fullblock")));
        let (writing, all) = by_agent(place.path(), &image, &disk);
        ours.push(writing);
        whole.push(all);
        let rate = |times: &[Duration]| size as f64 / 1e6 / times[times.len() - 1].as_secs_f64();
        println!(
            "round {round}: disk alone {:.0} MB/s, curl|zstd|dd {:.0}, farrier {:.0} (with reading back {:.0})",
            rate(&alone),
            rate(&peer),
            rate(&ours),
            rate(&whole)
        );
    }
    let (ours, whole, peer, alone) = (median(ours), median(whole), median(peer), median(alone));
    println!(
        "{} MiB on one disk, median of {rounds}: {:.2}x the pipe (target 1.0), {:.2} of what the disk can do (target \
         0.9); with reading back {:.2}x the pipe\n",
        size / MIB,
        peer / ours,
        alone / ours,
        peer / whole
    );
}

/// The block device that was named, or a fresh file.
fn disk(place: &Path, size: u64) -> PathBuf {
    let device = std::env::var_os("INSTALL_DISK").map(PathBuf::from);
    device.unwrap_or_else(|| {
        let path = place.join("disk");
        let _ = fs::remove_file(&path);
        File::create(&path).and_then(|file| file.set_len(size + 16 * MIB)).expect("a file");
        path
    })
}

fn shell(line: &str) -> Duration {
    let started = Instant::now();
    let status =
        Command::new("bash").args(["-c", &format!("set -o pipefail; {line}")]).status().expect("bash");
    let took = started.elapsed();
    assert!(status.success(), "{line}");
    took
}

/// The wire for chunks; nobody to talk to for the rest.
struct Chunks<'a> {
    inner: TaskCalls<'a>,
    done: Mutex<Option<Report>>,
}

impl Calls for Chunks<'_> {
    fn begin(&self, _: IntentId, _: &[TargetDisk]) -> Result<(), CallError> {
        Ok(())
    }
    fn seed(&self, _: IntentId) -> Result<Seed, CallError> {
        let file = SeedFile { name: "meta-data".to_owned(), text: "instance-id: 1\n".to_owned() };
        Ok(Seed { files: vec![file] })
    }
    fn progress(&self, _: IntentId, _: &Progress) -> Result<bool, CallError> {
        Ok(true)
    }
    fn done(&self, _: IntentId, report: &Report) -> Result<(), CallError> {
        *self.done.lock().expect("no panic") = Some(report.clone());
        Ok(())
    }
    fn failure(&self, _: IntentId, step: &str, message: &str) -> Result<(), CallError> {
        panic!("{step}: {message}")
    }
    fn fetch(&self, blob: Blob, bytes: u64, into: &mut Vec<u8>) -> Result<(), CallError> {
        self.inner.fetch(blob, bytes, into)
    }
}

/// How long until all was written, and until all was done.
fn by_agent(place: &Path, image: &Image, disk: &Path) -> (Duration, Duration) {
    let root = Root::new(place.join("root"), disk);
    let appliance = Appliance::new(&format!("http://127.0.0.1:{PORT}"), MacAddr([2, 0, 0, 0, 0, 1]));
    let calls = Chunks { inner: TaskCalls { appliance: &appliance, session: "s" }, done: Mutex::default() };
    let task = AgentTask {
        intent: IntentId(uuid::Uuid::nil()),
        generation: 1,
        nonce: IntentNonce::from_bytes([0; 32]),
        begun_on: Vec::new(),
        work: AgentWork::Deploy {
            image: "bench".to_owned(),
            manifest: Digest::of(&image.text),
            manifest_bytes: image.text.len() as u64,
            disk: "smallest".parse().expect("a rule"),
            wipe: true,
        },
    };
    let started = Instant::now();
    let written = root.carry_out(&task, &calls);
    let whole = started.elapsed();
    let report = calls.done.lock().expect("no panic").take().expect("a report");
    assert_eq!(report.bytes, image.manifest.bytes);
    (written - started, whole)
}
