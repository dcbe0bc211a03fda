//! A rack at once: the appliance, and ten machines that enroll and install over one link of a gigabit per second.
//!
//! The appliance is the real one, behind a bridge whose traffic towards the machines is shaped; each machine is the
//! agent's own code in a network namespace of its own, from DHCP to its signed report, its disk a file in memory so that
//! the link is what is slowest. The peer does less: as many `curl`s fetch the same compressed bytes from nginx on the
//! same link and throw them away.

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use farrier::agent::calls::{Appliance, TaskCalls};
use farrier::agent::collect;
use farrier::image::disk::catalogue::Entry;
use farrier::image::disk::manifest::DiskManifest;
use farrier::net::MacAddr;
use farrier::node::token::AgentNonce;

use crate::bed::wait_for;
use crate::ground::Root;
use crate::image::write_raw;
use crate::nginx::Nginx;
use crate::testbed::{ClientMachine, SERVER, TestBed, farrier_program, pattern, run};
use crate::{MIB, median};

const LINK: &str = "1gbit";
const LINK_BYTES_PER_SECOND: f64 = 125e6;
/// Of each full frame on the link, what TCP carries with timestamps: 1448 of 1538.
const PAYLOAD: f64 = 1448.0 / 1538.0;
const PEER_PORT: u16 = 8_080;

pub fn measure(size: u64, machines: usize, rounds: u64) {
    let mut bed = TestBed::new("[boot]\nprofile = \"vm\"\n");
    bed.quiet = true;
    bed.is_captured = false;
    bed.publish("vm", &pattern(1000), &pattern(2000));
    let stored = import(&bed, size);
    bed.start_server();
    let nginx = serve_the_same(&bed);
    // As a switch's port does it; bursts as large as what the kernel hands down in one piece.
    run(
        "tc",
        &["qdisc", "add", "dev", "br0", "root", "tbf", "rate", LINK, "burst", "256kb", "latency", "20ms"],
    );
    for count in [1, machines] {
        let (mut ours, mut whole, mut peer) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let clients = Rack::plug_in(&mut bed, count, (count as u64) << 16 | round);
            peer.push(clients.fetch());
            let (writing, all) = clients.install(&bed, size);
            ours.push(writing);
            whole.push(all);
        }
        let (ours, whole, peer) = (median(ours), median(whole), median(peer));
        let bytes = stored as f64 * count as f64;
        let share = |seconds: f64| bytes / seconds / (LINK_BYTES_PER_SECOND * PAYLOAD);
        println!(
            "{count} at once, {} MiB each ({:.0} MB on the wire) over {LINK}/s, median of {rounds}: {:.2} of the link \
             (target 0.9); curl from nginx {:.2}; {:.2}x curl. Image bytes written {:.0} MB/s, all done after {:.1} s",
            size / MIB,
            stored as f64 / 1e6,
            share(ours),
            share(peer),
            peer / ours,
            size as f64 * count as f64 / 1e6 / ours,
            whole
        );
    }
    let status = fs::read_to_string(format!("/proc/{}/status", bed.server_pid())).expect("it runs");
    let line =
        |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("?").trim().to_owned();
    println!(
        "the appliance's memory of its own: {}; most ever with mapped files: {}",
        line("RssAnon:"),
        line("VmHWM:")
    );
    drop(nginx);
}

/// Imports the image; how many bytes its chunks have on the wire.
fn import(bed: &TestBed, size: u64) -> u64 {
    let raw = bed.path("rack.raw");
    write_raw(&raw, size);
    let done = Command::new(farrier_program())
        .args(["image", "--state"])
        .arg(bed.state())
        .arg("import")
        .arg(&raw)
        .args(["--name", "rack"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(done.is_ok_and(|status| status.success()), "the image is imported");
    fs::remove_file(raw).expect("our own file");
    let entry = Entry::read(&bed.state().join("images/disks/rack.json")).expect("an entry");
    let manifest = bed.state().join("images/blobs").join(entry.manifest.digest.to_string());
    let manifest = fs::read(manifest).expect("the manifest");
    let manifest: DiskManifest = serde_json::from_slice(&manifest).expect("a manifest");
    // The same bytes for the peer, in one file.
    fs::create_dir_all(bed.path("peer/www")).expect("a directory");
    let mut whole = fs::File::create(bed.path("peer/www/whole")).expect("a file");
    for chunk in &manifest.chunks {
        let path = bed.state().join("images/blobs").join(chunk.blob.to_string());
        std::io::copy(&mut fs::File::open(path).expect("a chunk"), &mut whole).expect("room");
    }
    manifest.stored_bytes()
}

fn serve_the_same(bed: &TestBed) -> Nginx {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(bed.directory.path(), mode).expect("our own directory");
    Nginx::start(&bed.path("peer"), SocketAddrV4::new(SERVER, PEER_PORT))
}

/// Machines that are enrolled and wait for orders.
struct Rack {
    machines: Vec<Enrolled>,
}

struct Enrolled {
    client: ClientMachine,
    mac: MacAddr,
    appliance: Appliance,
    session: String,
    root: Root,
    _disk: tempfile::TempDir,
}

impl Rack {
    fn plug_in(bed: &mut TestBed, count: usize, generation: u64) -> Rack {
        Rack {
            machines: (0..count).map(|number| Enrolled::new(bed, generation << 8 | number as u64)).collect(),
        }
    }

    /// As many `curl`s at once; seconds until the last has it.
    fn fetch(&self) -> Duration {
        let url = format!("http://{SERVER}:{PEER_PORT}/whole");
        let started = Instant::now();
        let commands = self.machines.iter().map(|machine| {
            machine.client.command("curl", &["-sf", "-o", "/dev/null", &url]).spawn().expect("curl starts")
        });
        let children: Vec<_> = commands.collect();
        for mut child in children {
            assert!(child.wait().expect("our child").success(), "curl fetches {url}");
        }
        started.elapsed()
    }

    /// All at once; until the last is written, and until the last has reported.
    fn install(&self, bed: &TestBed, size: u64) -> (Duration, Duration) {
        for machine in &self.machines {
            let asked =
                bed.farrier(&["node", "deploy", &machine.mac.to_string(), "--image", "rack", "--wipe"]);
            assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        }
        let together = Barrier::new(self.machines.len());
        let times: Vec<(Duration, Duration)> = thread::scope(|scope| {
            let threads =
                self.machines.iter().map(|machine| scope.spawn(|| machine.install(&together, size)));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().expect("it installs")).collect()
        });
        let latest =
            |time: fn(&(Duration, Duration)) -> Duration| times.iter().map(time).max().expect("machines");
        (latest(|times| times.0), latest(|times| times.1))
    }
}

impl Enrolled {
    fn new(bed: &mut TestBed, number: u64) -> Enrolled {
        let [.., b, c, d, e] = number.to_be_bytes();
        let mac = MacAddr([2, 0, b, c, d, e]);
        let client = bed.plug(&mac.to_string());
        assert!(bed.farrier(&["node", "add", &mac.to_string()]).status.success(), "{mac} is registered");
        client.boot_udhcpc();
        let server = format!("http://{SERVER}");
        let script = format!("{server}/{}", farrier::boot::namespace::ipxe_script_name(mac));
        let script = client.run("curl", &["-sS", "--fail", &script]);
        let token = script.split_ascii_whitespace().find_map(|word| word.strip_prefix("farrier.token="));
        let token = token.unwrap_or_else(|| panic!("a token in {script}")).to_owned();
        let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let disk = memory.path().join("disk");
        fs::File::create(&disk).and_then(|file| file.set_len(8 << 30)).expect("a file in memory");
        let root = Root::new(memory.path().join("root"), &disk);
        let appliance = Appliance::new(&server, mac);
        let session = client.inside(|| {
            let nonce = format!("{number:032x}").parse::<AgentNonce>().ok();
            let welcome = appliance.hello(&token, nonce, 1.0).expect("the appliance knows us");
            appliance
                .inventory(&welcome.session, &collect::inventory(root.path()))
                .expect("it takes what we are");
            welcome.session
        });
        Enrolled { client, mac, appliance, session, root, _disk: memory }
    }

    fn install(&self, together: &Barrier, size: u64) -> (Duration, Duration) {
        self.client.inside(|| {
            let mut task = None;
            wait_for("the task", || {
                task = self.appliance.heartbeat(&self.session).expect("an answer").task;
                task.is_some()
            });
            let task = task.expect("it is there");
            together.wait();
            let started = Instant::now();
            let calls = TaskCalls { appliance: &self.appliance, session: &self.session };
            let written = self.root.carry_out(&task, &calls);
            let whole = started.elapsed();
            check(self.root.path(), size);
            (written - started, whole)
        })
    }
}

/// The last chunk is the image's.
fn check(root: &Path, size: u64) {
    use std::os::unix::fs::FileExt;
    let chunk = crate::image::chunks(size).last().expect("an image has chunks");
    let mut found = vec![0; chunk.len()];
    let disk = fs::File::open(root.join("dev/vda")).expect("the disk");
    disk.read_exact_at(&mut found, size - chunk.len() as u64).expect("it is as long");
    assert!(found == chunk, "the disk has the image's last chunk");
}
