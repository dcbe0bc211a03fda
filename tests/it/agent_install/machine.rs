//! A machine of plain files with one disk that keeps a log, and an appliance that does as a script says.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use farrier::agent::calls::CallError;
use farrier::agent::console::Console;
use farrier::agent::install::target::{BlockDisk, Disk};
use farrier::agent::install::{Blob, Calls, Ground, Outcome, disks, run};
use farrier::image::digest::Digest;
use farrier::net::MacAddr;
use farrier::node::install::disk_rule::Signature;
use farrier::node::install::intent::{IntentId, IntentNonce};
use farrier::node::install::task::{AgentTask, AgentWork, Progress, Report, Seed, SeedFile, TargetDisk};

use super::image::{Image, noise};
use crate::support::PATIENCE;

pub fn mac() -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, 1])
}

pub fn seed() -> Seed {
    let file = |name: &str, text: &str| SeedFile { name: name.to_owned(), text: text.to_owned() };
    Seed {
        files: vec![
            file("meta-data", "instance-id: 1\n"),
            file("user-data", &"#cloud-config\n".repeat(2000)),
            file("network-config", "version: 2\n"),
            file("vendor-data", "{}\n"),
        ],
    }
}

/// What the disk was asked to do.
pub struct Log {
    pub writes: Mutex<Vec<(u64, Vec<u8>)>>,
    /// Writes that are still let through.
    left: AtomicUsize,
    /// Whether it discards and zeroes by itself.
    pub able: AtomicBool,
}

impl Log {
    pub fn fail_after(&self, writes: usize) {
        self.left.store(writes, Ordering::SeqCst);
    }

    /// Power is back.
    pub fn restart(&self) {
        self.writes.lock().unwrap().clear();
        self.fail_after(usize::MAX);
    }

    /// Indexes of chunks that were written as such: not the first and the last, which are committed in parts.
    pub fn chunk_writes(&self, image: &Image) -> BTreeSet<u32> {
        let chunk_bytes = u64::from(image.manifest.chunk_bytes);
        let last = (image.manifest.bytes - 1) / chunk_bytes;
        let listed: BTreeSet<u32> = image.manifest.chunks.iter().map(|chunk| chunk.index).collect();
        let writes = self.writes.lock().unwrap();
        writes
            .iter()
            .filter(|(at, bytes)| at % chunk_bytes == 0 && bytes.len() as u64 == chunk_bytes)
            .map(|(at, _)| (at / chunk_bytes) as u32)
            .filter(|index| *index > 0 && u64::from(*index) < last && listed.contains(index))
            .collect()
    }
}

struct LoggedDisk {
    disk: BlockDisk,
    log: Arc<Log>,
}

impl LoggedDisk {
    fn by_itself(&self, range: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.log.able.load(Ordering::Relaxed) { range() } else { Err(io::ErrorKind::Unsupported.into()) }
    }
}

impl Disk for LoggedDisk {
    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut writes = self.log.writes.lock().unwrap();
        if writes.len() >= self.log.left.load(Ordering::SeqCst) {
            return Err(io::Error::other("the power is cut"));
        }
        writes.push((at, bytes.to_vec()));
        self.disk.write(at, bytes)
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.read(at, into)
    }
    fn discard(&self, start: u64, length: u64) -> io::Result<()> {
        self.by_itself(|| self.disk.discard(start, length))
    }
    fn zero(&self, start: u64, length: u64) -> io::Result<()> {
        self.by_itself(|| self.disk.zero(start, length))
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }
    fn announce(&self) -> io::Result<()> {
        self.disk.announce()
    }
}

pub struct Machine {
    root: tempfile::TempDir,
    bytes: u64,
    pub log: Arc<Log>,
}

impl Machine {
    /// With one disk, empty or full of something else.
    pub fn new(bytes: u64, dirty: bool) -> Machine {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(root.path().join(path)).unwrap();
        for path in ["dev", "proc", "sys/class/tty/console", "sys/block/vda/queue"] {
            make(path);
        }
        let put = |path: &str, text: &str| fs::write(root.path().join(path), text).unwrap();
        put("sys/class/tty/console/active", "ttyT\n");
        put("dev/ttyT", "");
        put("sys/block/vda/size", &format!("{}\n", bytes / 512));
        put("sys/block/vda/serial", "DISK1\n");
        let log =
            Log { writes: Mutex::default(), left: AtomicUsize::new(usize::MAX), able: AtomicBool::new(true) };
        let machine = Machine { root, bytes, log: Arc::new(log) };
        machine.dirty(dirty);
        machine
    }

    fn dirty(&self, dirty: bool) {
        let disk = File::create(self.device()).unwrap();
        disk.set_len(self.bytes).unwrap();
        if dirty {
            let mut old = vec![0; self.bytes as usize];
            noise(&mut old, 99);
            // An old system: a table at either end.
            old[510..512].copy_from_slice(&[0x55, 0xaa]);
            old[512..520].copy_from_slice(b"EFI PART");
            let end = old.len() - 512;
            old[end..end + 8].copy_from_slice(b"EFI PART");
            fs::write(self.device(), old).unwrap();
        }
    }

    pub fn device(&self) -> PathBuf {
        self.root.path().join("dev/vda")
    }

    pub fn disk(&self) -> File {
        File::open(self.device()).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.device()).unwrap()
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.root.path().join("dev/ttyT")).unwrap()
    }

    pub fn make_firmware(&self) {
        fs::create_dir_all(self.root.path().join("sys/firmware/efi/efivars")).unwrap();
    }

    /// As the next look at the disks would find.
    pub fn carries(&self) -> Vec<Signature> {
        let found = disks::facts(self.root.path()).remove(0).carries;
        found.into_iter().filter(|found| *found != Signature::Unknown).collect()
    }

    pub fn deploy(&self, image: &Image, wipe: bool) -> AgentTask {
        AgentTask {
            intent: IntentId(uuid::Uuid::from_u128(42)),
            generation: 3,
            nonce: IntentNonce::from_bytes([7; 32]),
            begun_on: Vec::new(),
            work: AgentWork::Deploy {
                image: "test".to_owned(),
                manifest: image.digest,
                manifest_bytes: image.text.len() as u64,
                disk: "smallest".parse().unwrap(),
                wipe,
            },
        }
    }

    pub fn run(&self, calls: &dyn Calls, task: &AgentTask) -> Outcome {
        let console = Console::open(self.root.path());
        let log = &self.log;
        let open = |device: &Path| {
            let disk = BlockDisk::open(device)?;
            Ok(Box::new(LoggedDisk { disk, log: Arc::clone(log) }) as Box<dyn Disk>)
        };
        let root = self.root.path();
        let ground =
            Ground { root, console: &console, calls, open: &open, unlock_firmware: &|_| {}, seed: 1 };
        run(&ground, task)
    }

    /// How many writes an install takes; the disk is as dirty as before afterwards.
    pub fn log_of_a_whole_run(&self, image: &Image) -> usize {
        let fake = Fake::new(image, Script::default());
        assert_eq!(self.run(&fake, &self.deploy(image, true)), Outcome::Reboot);
        let count = self.log.writes.lock().unwrap().len();
        self.log.restart();
        self.dirty(true);
        count
    }
}

/// What goes otherwise than it should.
pub struct Script {
    /// Each so many-th chunk's first answer ends early (of the HTTP server).
    pub break_every: Option<usize>,
    /// After so many chunks all calls are answered with this status (of the HTTP server).
    pub refuse_after: Option<(usize, u16)>,
    /// After so many chunks the task is another's.
    pub supersede_after: Option<usize>,
    /// After so many chunks none comes until progress was told.
    pub stall_after: Option<usize>,
    pub go_on: bool,
    /// A blob that arrives damaged so many times.
    pub damage: Option<(Digest, u32)>,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            break_every: None,
            refuse_after: None,
            supersede_after: None,
            stall_after: None,
            go_on: true,
            damage: None,
        }
    }
}

#[derive(Default)]
pub struct Told {
    pub begun: Vec<Vec<TargetDisk>>,
    pub progress: Vec<Progress>,
    pub kept_max: u64,
    pub done: Option<Report>,
    pub failures: Vec<(String, String)>,
    pub fetched: Vec<Blob>,
    damaged: u32,
}

/// An appliance without a network.
pub struct Fake {
    manifest: Vec<u8>,
    blobs: std::collections::HashMap<Digest, Vec<u8>>,
    pub script: Script,
    pub told: Mutex<Told>,
    progressed: Condvar,
}

impl Fake {
    pub fn new(image: &Image, script: Script) -> Fake {
        let (manifest, blobs) = (image.text.clone(), image.blobs.clone());
        Fake { manifest, blobs, script, told: Mutex::default(), progressed: Condvar::new() }
    }

    pub fn blob(&self, blob: Blob) -> Option<&Vec<u8>> {
        match blob {
            Blob::Manifest(_) => Some(&self.manifest),
            Blob::Chunk(digest) => self.blobs.get(&digest),
        }
    }
}

impl Calls for Fake {
    fn begin(&self, _: IntentId, disks: &[TargetDisk]) -> Result<(), CallError> {
        self.told.lock().unwrap().begun.push(disks.to_vec());
        Ok(())
    }

    fn seed(&self, _: IntentId) -> Result<Seed, CallError> {
        Ok(seed())
    }

    fn progress(&self, _: IntentId, progress: &Progress) -> Result<bool, CallError> {
        let mut told = self.told.lock().unwrap();
        told.progress.push(*progress);
        told.kept_max = told.kept_max.max(progress.kept);
        self.progressed.notify_all();
        Ok(self.script.go_on || told.fetched.len() < 5)
    }

    fn done(&self, _: IntentId, report: &Report) -> Result<(), CallError> {
        self.told.lock().unwrap().done = Some(report.clone());
        Ok(())
    }

    fn failure(&self, _: IntentId, step: &str, message: &str) -> Result<(), CallError> {
        self.told.lock().unwrap().failures.push((step.to_owned(), message.to_owned()));
        Ok(())
    }

    fn fetch(&self, blob: Blob, bytes: u64, into: &mut Vec<u8>) -> Result<(), CallError> {
        let mut told = self.told.lock().unwrap();
        told.fetched.push(blob);
        let fetched = told.fetched.len();
        if self.script.supersede_after.is_some_and(|after| fetched > after) {
            return Err(CallError::Superseded { reason: "aborted".to_owned() });
        }
        if self.script.stall_after.is_some_and(|after| fetched > after) {
            let seen = told.progress.len();
            let more = |told: &mut Told| told.progress.len() <= seen;
            let (told, waited) = self.progressed.wait_timeout_while(told, PATIENCE, more).unwrap();
            assert!(!waited.timed_out() && told.progress.len() > seen, "no word of progress");
            return Err(CallError::Later { what: "stalled".to_owned(), retry_after: None });
        }
        let stored = self.blob(blob).expect("a blob that was named");
        assert_eq!((stored.len() as u64, into.len()), (bytes, 0));
        into.extend_from_slice(stored);
        if let (Blob::Chunk(digest), Some((victim, times))) = (blob, self.script.damage)
            && digest == victim
            && told.damaged < times
        {
            told.damaged += 1;
            // Within the content: a frame that decodes to something else, or none at all.
            let middle = into.len() / 2;
            into[middle] ^= 1;
        }
        Ok(())
    }
}
