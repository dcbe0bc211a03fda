//! System images boot by themselves: from the raw disk, no appliance and no network boot in sight, on BIOS and on UEFI with
//! Secure Boot. First boot does what the seed says, once, and calls home; ssh works with the keys it told of.
//!
//! The machine's network is QEMU's own, closed but for two openings: the home it calls is a listener of the test's, and
//! the test reaches its ssh server.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use farrier::image::system::layout::{Extent, Window};
use farrier::lab::config::LabFirmware;
use farrier::lab::machine::QEMU;
use farrier::lab::process;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::{Value, json};

use crate::support::{farrier, turn};

/// Debian's first boot takes minutes of processor time here, which others may want as well.
const CALLS_WITHIN: Duration = Duration::from_secs(900);

/// Any time will do, as long as it is the same.
const TIME: &str = "1700000000";
const LISTENER: &str = "10.0.2.100";
const SEED_BYTES: u64 = 2 << 20;
const SECTOR: u64 = 512;

/// Packages are fetched once for all cases of this target.
fn state() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab-images")
}

fn build(recipe: &str, output: &Path, options: &[&str]) {
    let built = Command::new(farrier())
        .args(["image", "--state"])
        .arg(state())
        .args(["build", recipe, "--output"])
        .arg(output)
        .args(options)
        .env("SOURCE_DATE_EPOCH", TIME)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

fn small() -> &'static Path {
    static SMALL: OnceLock<PathBuf> = OnceLock::new();
    SMALL.get_or_init(|| {
        fs::create_dir_all(state()).unwrap();
        let output = state().join("small.raw");
        build("small", &output, &[]);
        output
    })
}

/// A machine's files; they stay for a look when a case fails.
struct Bench {
    root: PathBuf,
    home: Home,
    ssh_port: u16,
}

/// Where the machine calls.
struct Home {
    port: u16,
    reports: Receiver<Value>,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already, if it ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Home {
    /// The first call is turned away as by a server that is just starting: callers have to come again.
    fn open() -> Home {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, reports) = channel();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Some(report) = stream.ok().and_then(|stream| answer(stream, number == 0)) else {
                    continue;
                };
                if number > 0 && sender.send(report).is_err() {
                    return;
                }
            }
        });
        Home { port, reports }
    }
}

fn answer(stream: TcpStream, busy: bool) -> Option<Value> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line).ok()? > 2 {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let status = if busy { "503 Service Unavailable" } else { "200 OK" };
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()?;
    serde_json::from_slice(&body).ok()
}

impl Bench {
    /// The image on a disk of `disk_bytes`, larger than itself.
    fn new(name: &str, image: &Path, disk_bytes: u64) -> Bench {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/output/lab").join(name);
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&root).unwrap();
        let copied = Command::new("cp").arg("--sparse=always").arg(image).arg(root.join("disk.raw")).status();
        assert!(copied.unwrap().success());
        File::options().write(true).open(root.join("disk.raw")).unwrap().set_len(disk_bytes).unwrap();
        let key = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f"])
            .arg(root.join("key"))
            .status()
            .expect("ssh-keygen (.ci/packages.txt names the Debian package)");
        assert!(key.success());
        // Free a moment ago; QEMU tells if it is not any more.
        let ssh_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Bench { root, home: Home::open(), ssh_port }
    }

    /// Puts the seed where an install puts it: a partition at the disk's end.
    fn seed(&self, instance: &str, host: &str, user_data: &str) {
        let key = fs::read_to_string(self.root.join("key.pub")).unwrap();
        let meta_data = json!({
            "instance-id": instance, "local-hostname": host, "public-keys": [key.trim()],
            "farrier": {"phone_home": format!("http://{LISTENER}/metadata/v1/phone-home"), "token": "\\very \"secret\""},
        });
        let path = self.root.join("disk.raw");
        let disk = File::options().read(true).write(true).open(&path).unwrap();
        let end = disk.metadata().unwrap().len() - (1 << 20);
        let extent = Extent { start: end - SEED_BYTES, bytes: SEED_BYTES };
        let mut table = gpt::GptConfig::new().writable(true).open_from_device(disk).unwrap();
        if !table.partitions().contains_key(&4) {
            // The disk is larger than the image: the tables learn of it first.
            let partitions = table.take_partitions();
            table.update_partitions(partitions).unwrap();
            let kind = gpt::partition_types::BASIC;
            table.add_partition_at("cidata", 4, extent.start / SECTOR, SEED_BYTES / SECTOR, kind, 0).unwrap();
        }
        let disk = table.write().unwrap();
        let mut window = Window::new(disk, extent);
        let options = FormatVolumeOptions::new().volume_label(*b"CIDATA     ");
        fatfs::format_volume(&mut window, options).unwrap();
        let system = FileSystem::new(window, FsOptions::new()).unwrap();
        for (name, text) in [("meta-data", meta_data.to_string()), ("user-data", user_data.to_owned())] {
            let mut file = system.root_dir().create_file(name).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.flush().unwrap();
        }
    }

    /// The arguments are those of the lab's machines, the network apart.
    fn power_on(&self, firmware: LabFirmware) -> Running {
        let mut command = Command::new("nice");
        command
            .args(["-n", "5", QEMU, "-accel", "tcg", "-m", "512M", "-display", "none", "-monitor", "none"]);
        match firmware.uefi_files() {
            None => {
                command.args(["-machine", "pc"]);
            }
            Some(files) => {
                let variables = self.root.join("vars.fd");
                fs::copy(files.variables, &variables).unwrap();
                command.args(["-machine", "q35,smm=on"]);
                command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
                command.args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={}", files.code)]);
                command.args(["-drive", "if=pflash,format=raw,file=vars.fd"]);
            }
        }
        let (home, ssh) = (self.home.port, self.ssh_port);
        let network = format!(
            "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{ssh}-:22,\
             guestfwd=tcp:{LISTENER}:80-cmd:busybox nc 127.0.0.1 {home}"
        );
        command.args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net0,romfile="]);
        command.args(["-drive", "if=none,id=disk0,format=raw,discard=unmap,file=disk.raw"]);
        command.args(["-device", "virtio-blk-pci,drive=disk0", "-device", "virtio-rng-pci"]);
        command.args(["-chardev", "file,id=ser0,path=serial.log,append=on", "-serial", "chardev:ser0"]);
        let log = File::options().create(true).append(true).open(self.root.join("qemu.log")).unwrap();
        command.current_dir(&self.root).stdin(Stdio::null()).stderr(log);
        Running(command.spawn().expect("QEMU (.ci/packages.txt names the Debian package)"))
    }

    /// The next call home; anything else on the way there is told with what the machine's console said.
    fn report(&self, machine: &mut Running) -> Value {
        let deadline = Instant::now() + CALLS_WITHIN;
        loop {
            match self.home.reports.recv_timeout(Duration::from_millis(200)) {
                Ok(report) => return report,
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(error) => panic!("no call home ({error}); {}", self.told()),
            }
            if let Some(status) = machine.0.try_wait().unwrap() {
                panic!("QEMU ended with {status}; {}", self.told());
            }
        }
    }

    fn told(&self) -> String {
        let of = |name: &str| {
            let bytes = fs::read(self.root.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(3000)..]).into_owned()
        };
        format!("serial.log: {}\nqemu.log: {}", of("serial.log"), of("qemu.log"))
    }

    /// Trusts exactly the host keys that were reported.
    fn trust(&self, report: &Value) {
        let keys = report["ssh_host_keys"].as_array().unwrap();
        let line = |key: &Value| format!("[127.0.0.1]:{} {}\n", self.ssh_port, key.as_str().unwrap());
        fs::write(self.root.join("known_hosts"), keys.iter().map(line).collect::<String>()).unwrap();
    }

    fn ssh_once(&self, user: &str, command: &str) -> Result<String, String> {
        let output = Command::new("ssh")
            .args(["-i", "key", "-p", &self.ssh_port.to_string(), "-F", "/dev/null"])
            .args(["-o", "UserKnownHostsFile=known_hosts", "-o", "StrictHostKeyChecking=yes"])
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR"])
            .arg(format!("{user}@127.0.0.1"))
            .arg(command)
            .current_dir(&self.root)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// The machine's answer; asked until it is up.
    fn ssh(&self, user: &str, command: &str) -> String {
        let deadline = Instant::now() + CALLS_WITHIN;
        loop {
            match self.ssh_once(user, command) {
                Ok(answer) => return answer,
                Err(complaint) => {
                    let refused =
                        complaint.contains("Permission denied") || complaint.contains("HOST IDENTIFICATION");
                    assert!(
                        !refused && Instant::now() < deadline,
                        "ssh {command}: {complaint}; {}",
                        self.told()
                    );
                    // QEMU takes the connection at once; that the machine does not is what is waited for.
                    process::look_again();
                }
            }
        }
    }
}

const USER_DATA: &str = "#!/bin/sh\nhostname >>/root/ran\n";

fn check_report(report: &Value, instance: &str, host: &str) {
    assert_eq!(report["instance_id"], instance);
    assert_eq!(report["hostname"], host);
    assert_eq!(report["token"], "\\very \"secret\"");
    let keys = report["ssh_host_keys"].as_array().unwrap();
    assert!(
        keys.iter().any(|key| key.as_str().is_some_and(|key| key.starts_with("ssh-ed25519 AAAA"))),
        "{keys:?}"
    );
}

#[test]
fn small_boots_by_bios_and_by_secure_boot_and_does_what_its_seed_says_once() {
    let _turn = turn();
    let bench = Bench::new("system-small", small(), 1 << 30);
    bench.seed("i-1", "first.example", USER_DATA);
    let mut machine = bench.power_on(LabFirmware::Bios);
    let first = bench.report(&mut machine);
    check_report(&first, "i-1", "first.example");
    bench.trust(&first);
    assert_eq!(bench.ssh("root", "cat /root/ran; hostname"), "first.example\nfirst.example");
    // The root has all but the seed's partition and the loaders'.
    let mib: u64 = bench.ssh("root", "df -m / | awk 'END { print $2 }'").parse().unwrap();
    assert!((900..1024).contains(&mib), "the root has {mib} MiB of 1024");
    assert_eq!(bench.ssh("root", "sync; test -e /sys/firmware/efi || echo bios"), "bios");
    drop(machine);

    // Power comes back: the same instance, so nothing is done again, and the host keys are the ones known.
    let machine = bench.power_on(LabFirmware::Bios);
    assert_eq!(bench.ssh("root", "cat /root/ran; hostname"), "first.example\nfirst.example");
    assert_eq!(bench.ssh("root", "test -e /var/lib/farrier/finished && echo finished"), "finished");
    assert!(bench.home.reports.try_recv().is_err(), "it called home twice");
    drop(machine);

    // Another instance on the same disk, and other firmware: another machine, with other keys.
    bench.seed("i-2", "second", USER_DATA);
    let mut machine = bench.power_on(LabFirmware::UefiSecure);
    let second = bench.report(&mut machine);
    check_report(&second, "i-2", "second");
    assert_ne!(second["ssh_host_keys"], first["ssh_host_keys"]);
    bench.trust(&second);
    assert_eq!(bench.ssh("root", "cat /root/ran"), "first.example\nsecond");
    assert!(bench.ssh("root", "dmesg").contains("Secure boot enabled"));
}

#[test]
#[ignore = "builds it several times over: `make test-install` runs it"]
fn small_is_the_same_bytes_whenever_it_is_built() {
    let _turn = turn();
    let again = state().join("small-again.raw");
    let first = small();
    build("small", &again, &[]);
    let same = Command::new("cmp").arg(first).arg(&again).output().unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    fs::remove_file(again).unwrap();
}

#[test]
#[ignore = "takes minutes and half a gigabyte: `make test-install` runs it"]
fn debian_boots_by_bios_and_by_secure_boot_and_does_what_its_seed_says() {
    let _turn = turn();
    let image = state().join("debian-12.raw");
    build("debian-12", &image, &["--no-ssh-keys", "--timezone", "Etc/UTC", "--locale", "C.UTF-8"]);
    for (firmware, instance, host) in
        [(LabFirmware::Bios, "i-1", "bios.example"), (LabFirmware::UefiSecure, "i-2", "secure.example")]
    {
        let bench = Bench::new(&format!("system-debian-{firmware}"), &image, 8 << 30);
        bench.seed(instance, host, USER_DATA);
        let mut machine = bench.power_on(firmware);
        let report = bench.report(&mut machine);
        check_report(&report, instance, host);
        bench.trust(&report);
        assert_eq!(bench.ssh("root", "cat /root/ran"), host);
        assert_eq!(bench.ssh("debian", "sudo cat /etc/hostname"), host);
        let mib: u64 = bench.ssh("debian", "df -m --output=size / | tail -n 1").parse().unwrap();
        assert!((7500..8192).contains(&mib), "the root has {mib} MiB of 8192");
        let failed = bench.ssh("root", "systemctl --failed --plain --no-legend");
        assert_eq!(failed, "", "units failed");
        if firmware == LabFirmware::UefiSecure {
            assert!(bench.ssh("root", "dmesg").contains("Secure boot enabled"));
        }
    }
}
