//! What the agent's writer stands on here: a fixture tree in place of `/`, and a disk that notes when it was flushed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use farrier::agent::console::Console;
use farrier::agent::install::target::{BlockDisk, Disk};
use farrier::agent::install::{Calls, Ground, Outcome, run};
use farrier::node::install::task::AgentTask;

/// A machine's `/`, with one disk.
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// `device` is a block device, or a file.
    pub fn new(path: PathBuf, device: &Path) -> Root {
        let make = |name: &str| fs::create_dir_all(path.join(name)).expect("a directory");
        ["dev", "sys/block/vda/queue", "sys/class/tty/console"].iter().for_each(|name| make(name));
        fs::write(path.join("sys/class/tty/console/active"), "log\n").expect("a file");
        fs::write(path.join("dev/log"), "").expect("a file");
        let end = io::SeekFrom::End(0);
        let bytes = io::Seek::seek(&mut fs::File::open(device).expect("the disk"), end).expect("a size");
        fs::write(path.join("sys/block/vda/size"), (bytes / 512).to_string()).expect("a file");
        let _ = fs::remove_file(path.join("dev/vda"));
        std::os::unix::fs::symlink(device, path.join("dev/vda")).expect("a link");
        Root { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Carries the task out; when all chunks were on the medium, before any was read back.
    pub fn carry_out(&self, task: &AgentTask, calls: &dyn Calls) -> Instant {
        let flushed: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let console = Console::open(&self.path);
        let open = |path: &Path| {
            let flushed = Arc::clone(&flushed);
            BlockDisk::open(path).map(|disk| Box::new(Noted { disk, flushed }) as Box<dyn Disk>)
        };
        let ground = Ground {
            root: &self.path,
            console: &console,
            calls,
            open: &open,
            unlock_firmware: &|_| {},
            seed: 1,
        };
        let outcome = run(&ground, task);
        let said = || fs::read_to_string(self.path.join("dev/log")).unwrap_or_default();
        assert_eq!(outcome, Outcome::Reboot, "{}", said());
        // The first flush is that of the destroyed tables, the second that of the chunks.
        flushed.lock().expect("no panic")[1]
    }
}

struct Noted {
    disk: BlockDisk,
    flushed: Arc<Mutex<Vec<Instant>>>,
}

impl Disk for Noted {
    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(at, bytes)
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.read(at, into)
    }
    fn discard(&self, start: u64, length: u64) -> io::Result<()> {
        self.disk.discard(start, length)
    }
    fn zero(&self, start: u64, length: u64) -> io::Result<()> {
        self.disk.zero(start, length)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.sync()?;
        self.flushed.lock().expect("no panic").push(Instant::now());
        Ok(())
    }
    fn announce(&self) -> io::Result<()> {
        self.disk.announce()
    }
}
