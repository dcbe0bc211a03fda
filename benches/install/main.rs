//! How fast an image gets onto a disk: our writer beside `curl | zstd -d | dd oflag=direct`.
//!
//! Both fetch from one nginx on loopback and write to the same file system (or the same block device, named by
//! `INSTALL_DISK`, which is overwritten), in turns. The peers do less: they check nothing and read nothing back. What is
//! compared is therefore the writing, up to the moment the bytes are on the medium (`conv=fdatasync` there); what the
//! whole install takes with its reading back, seed and tables is printed beside it.
//!
//! `make bench-install`; INSTALL_MIB and ROUNDS set size and repetitions.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use farrier::agent::calls::{Appliance, CallError, TaskCalls};
use farrier::agent::console::Console;
use farrier::agent::install::target::{BlockDisk, Disk};
use farrier::agent::install::{Blob, Calls, Ground, Outcome, run};
use farrier::image::digest::Digest;
use farrier::image::disk::manifest::{CHUNK_BYTES, Chunk, DiskManifest};
use farrier::net::MacAddr;
use farrier::node::install::intent::{IntentId, IntentNonce};
use farrier::node::install::task::{AgentTask, AgentWork, Progress, Report, Seed, SeedFile, TargetDisk};

const MIB: u64 = 1024 * 1024;
const PORT: u16 = 18_437;

fn main() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let (size, rounds) = (number("INSTALL_MIB", 1024) * MIB, number("ROUNDS", 3));
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory below target");
    let image = prepare(place.path(), size);
    let _nginx = Nginx::start(place.path());
    let (mut ours, mut whole, mut peer) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let disk = disk(place.path(), size);
        peer.push(by_pipe(&disk));
        let (writing, all) = by_agent(place.path(), &image, size);
        ours.push(writing);
        whole.push(all);
        let rate = |time: &Vec<Duration>| size as f64 / 1e6 / time[time.len() - 1].as_secs_f64();
        println!(
            "round {round}: curl|zstd|dd {:.0} MB/s, farrier {:.0} MB/s (with reading back {:.0} MB/s)",
            rate(&peer),
            rate(&ours),
            rate(&whole)
        );
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let (ours, whole, peer) = (median(&mut ours), median(&mut whole), median(&mut peer));
    println!(
        "{} MiB, median of {rounds}: ratio {:.2}; with reading back {:.2}",
        size / MIB,
        peer / ours,
        peer / whole
    );
}

struct Image {
    manifest: DiskManifest,
    text: Vec<u8>,
}

/// Half text-like, half noise: compresses to about two thirds, as a system's files do.
fn prepare(place: &Path, size: u64) -> Image {
    let chunks_dir = place.join("www/agent/v1/chunk");
    fs::create_dir_all(&chunks_dir).expect("a directory");
    fs::create_dir_all(place.join("www/agent/v1/image")).expect("a directory");
    let mut raw = File::create(place.join("www/whole.raw")).expect("a file");
    let mut chunks = Vec::new();
    let mut state = 1_u64;
    let mut whole = sha2::Sha256::default();
    for index in 0..(size / u64::from(CHUNK_BYTES)) as u32 {
        let mut bytes = vec![0; CHUNK_BYTES as usize];
        for (number, word) in bytes.chunks_exact_mut(8).enumerate() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value =
                if (number / 512) % 2 == 0 { state } else { u64::from(index) << 32 | (state & 0x0f0f) };
            word.copy_from_slice(&value.to_le_bytes());
        }
        if index == 0 {
            // An entry of an MBR, so that the image counts as one that boots.
            bytes[446..510].fill(0);
            bytes[450] = 0x83;
            bytes[454..458].copy_from_slice(&2048_u32.to_le_bytes());
            bytes[458..462].copy_from_slice(&2048_u32.to_le_bytes());
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        raw.write_all(&bytes).expect("room for the image");
        sha2::Digest::update(&mut whole, &bytes);
        let stored = zstd::bulk::compress(&bytes, 3).expect("a frame");
        let blob = Digest::of(&stored);
        fs::write(chunks_dir.join(blob.to_string()), &stored).expect("room for the chunks");
        chunks.push(Chunk { index, sha256: Digest::of(&bytes), blob, stored_bytes: stored.len() as u32 });
    }
    let status = Command::new("zstd").args(["-q", "-3", "--rm"]).arg(place.join("www/whole.raw")).status();
    assert!(status.is_ok_and(|status| status.success()), "zstd compresses the image");
    let sha256: [u8; 32] = sha2::Digest::finalize(whole).into();
    let sha256 =
        sha256.iter().map(|byte| format!("{byte:02x}")).collect::<String>().parse().expect("a digest");
    let manifest = DiskManifest { bytes: size, sha256, chunk_bytes: CHUNK_BYTES, chunks };
    let text = serde_json::to_vec(&manifest).expect("JSON");
    fs::write(place.join("www/agent/v1/image").join(Digest::of(&text).to_string()), &text).expect("room");
    Image { manifest, text }
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

fn by_pipe(disk: &Path) -> Duration {
    let line = format!(
        "set -o pipefail; curl -sf http://127.0.0.1:{PORT}/whole.raw.zst | zstd -dc | \
         dd of={} bs=4M iflag=fullblock oflag=direct conv=notrunc,fdatasync status=none",
        disk.display()
    );
    let started = Instant::now();
    let status = Command::new("bash").args(["-c", &line]).status().expect("bash");
    let took = started.elapsed();
    assert!(status.success(), "{line}");
    took
}

/// The wire for chunks, and a clock for the steps.
struct Timed<'a> {
    inner: TaskCalls<'a>,
    done: Mutex<Option<Report>>,
}

impl Calls for Timed<'_> {
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

/// A disk that notes when it was flushed.
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

/// How long until all was written, and until all was done.
fn by_agent(place: &Path, image: &Image, size: u64) -> (Duration, Duration) {
    let flushed: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let root = place.join("root");
    let make = |path: &str| fs::create_dir_all(root.join(path)).expect("a directory");
    ["dev", "sys/block/vda/queue", "sys/class/tty/console"].iter().for_each(|path| make(path));
    fs::write(root.join("sys/class/tty/console/active"), "log\n").expect("a file");
    fs::write(root.join("dev/log"), "").expect("a file");
    let device = disk(place, size);
    let bytes =
        io::Seek::seek(&mut File::open(&device).expect("the disk"), io::SeekFrom::End(0)).expect("a size");
    fs::write(root.join("sys/block/vda/size"), (bytes / 512).to_string()).expect("a file");
    let _ = fs::remove_file(root.join("dev/vda"));
    std::os::unix::fs::symlink(&device, root.join("dev/vda")).expect("a link");
    let console = Console::open(&root);
    let appliance = Appliance::new(&format!("http://127.0.0.1:{PORT}"), MacAddr([2, 0, 0, 0, 0, 1]));
    let calls = Timed { inner: TaskCalls { appliance: &appliance, session: "s" }, done: Mutex::default() };
    let open = |path: &Path| {
        let flushed = Arc::clone(&flushed);
        BlockDisk::open(path).map(|disk| Box::new(Noted { disk, flushed }) as Box<dyn Disk>)
    };
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
    let ground = Ground {
        root: &root,
        console: &console,
        calls: &calls,
        open: &open,
        unlock_firmware: &|_| {},
        seed: 1,
    };
    let outcome = run(&ground, &task);
    let whole = started.elapsed();
    assert_eq!(outcome, Outcome::Reboot, "{}", fs::read_to_string(root.join("dev/log")).unwrap_or_default());
    // The first flush is that of the destroyed tables, the second that of the chunks.
    let written = flushed.lock().expect("no panic")[1];
    assert!(calls.done.lock().expect("no panic").is_some() && image.manifest.bytes == size);
    (written - started, whole)
}

/// On loopback, ended with this value.
struct Nginx(Child);

impl Nginx {
    fn start(place: &Path) -> Nginx {
        let configuration = place.join("nginx.conf");
        let at = place.display();
        let text = format!(
            "daemon off; worker_processes 2; pid {at}/nginx.pid; error_log {at}/error.log; user root;\n\
             events {{}}\n\
             http {{ access_log off; sendfile on; keepalive_requests 1000000;\n\
             client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; \
             scgi_temp_path {at}/s;\n\
             server {{ listen 127.0.0.1:{PORT}; root {at}/www; }} }}\n"
        );
        fs::write(&configuration, text).expect("a file");
        let child = Command::new("/usr/sbin/nginx")
            .arg("-c")
            .arg(&configuration)
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx: package nginx-light");
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            assert!(Instant::now() < deadline, "nginx does not listen");
            std::thread::yield_now();
        }
        Nginx(child)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGQUIT to the master ends its workers as well.
        if let Ok(id) = i32::try_from(self.0.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGQUIT);
        }
        let _ = self.0.wait();
    }
}
