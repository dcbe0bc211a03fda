//! A bridge with the appliance on it, and client machines on cables.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use farrier::boot::loader::LoaderTable;
use farrier::image::library::{Library, Manifest};

#[path = "dissect.rs"]
pub mod dissect;

use dissect::{Capture, Keep};

/// Longer than anything here takes, on a busy machine; only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
const INSIDE: &str = "FARRIER_TEST_NAMESPACE";

/// The program under test: the release one if the environment names its directory, as `make test` does, else the one
/// built beside this test.
pub fn farrier_program() -> PathBuf {
    match std::env::var_os("FARRIER_BINARIES") {
        Some(directory) => Path::new(&directory).join("farrier"),
        None => env!("CARGO_BIN_EXE_farrier").into(),
    }
}

/// Whether this process is the one that [`in_namespace`] started.
pub fn inside_namespace() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs `test` in a fresh network namespace: by running this test binary again, for the one test named `name`.
pub fn in_namespace(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return test();
    }
    let this = std::env::current_exe().expect("path of the test binary");
    let mut command = Command::new("unshare");
    if !nix::unistd::Uid::effective().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    // `--kill-child` takes the whole of it down with this process, however it ends.
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let status = command
        .arg(this)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "yes")
        .status()
        .expect("unshare is part of util-linux");
    assert!(status.success(), "{name} failed inside its namespace: {status}");
}

/// Runs a program to its end and insists on success.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error} (.ci/packages.txt names the Debian package)"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Polls until `condition` gives a value; fails with `what` when patience ends.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A child that is killed when the test is done with it, well or not.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The appliance on bridge `br0`, 192.168.77.2/24.
pub struct TestBed {
    pub directory: tempfile::TempDir,
    address: &'static str,
    server: Option<Process>,
    /// Log warnings only: a long run would log gigabytes.
    pub quiet: bool,
    /// What crosses the bridge is kept, and dissected in the end; a run that moves gigabytes does without.
    pub is_captured: bool,
    capture: Option<Capture>,
    cables: usize,
}

impl TestBed {
    /// A bridge with its address and a configuration; nothing runs yet.
    pub fn new(extra_configuration: &str) -> TestBed {
        TestBed::on("192.168.77.2/24", extra_configuration)
    }

    /// The same on another subnet.
    pub fn on(address: &'static str, extra_configuration: &str) -> TestBed {
        add_bridge("br0", address);
        let bed = TestBed {
            address,
            directory: tempfile::tempdir().expect("a temporary directory"),
            server: None,
            quiet: false,
            is_captured: true,
            capture: None,
            cables: 0,
        };
        bed.configure(extra_configuration);
        bed
    }

    /// A running appliance.
    pub fn start(extra_configuration: &str) -> TestBed {
        let mut bed = TestBed::new(extra_configuration);
        bed.start_server();
        bed
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Writes the configuration; `extra` may hold any section but `[network]`, `[operator]` and `[store]`.
    pub fn configure(&self, extra: &str) {
        let text = format!(
            "[network]\nbridge = \"br0\"\naddress = \"{}\"\n\n\
             [operator]\nsocket = \"{}\"\nlisten = \"off\"\n\n[store]\npath = \"{}\"\n\n{extra}\n",
            self.address,
            self.path("operator.sock").display(),
            self.state().display(),
        );
        fs::write(self.path("farrier.toml"), text).expect("write the configuration");
    }

    /// Starts `farrier serve` and waits until it says it is ready.
    pub fn start_server(&mut self) {
        if self.is_captured && self.capture.is_none() {
            self.capture = Some(Capture::start("br0", &self.path("bridge.pcap"), Keep::Beginnings));
        }
        let notify_path = self.path("notify.sock");
        let _ = fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(&notify_path).expect("a notification socket");
        fs::set_permissions(&notify_path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("whoever the appliance becomes may tell");
        notify.set_read_timeout(Some(Duration::from_millis(100))).expect("a read timeout");
        let log =
            fs::File::options().create(true).append(true).open(self.path("serve.log")).expect("a log file");
        let child = Command::new(farrier_program())
            .args(["serve", "--config"])
            .arg(self.path("farrier.toml"))
            .env("NOTIFY_SOCKET", &notify_path)
            .env("RUST_LOG", if self.quiet { "farrier=warn" } else { "farrier=debug" })
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("farrier starts");
        let mut server = Process(child);
        let deadline = Instant::now() + PATIENCE;
        let mut message = [0; 256];
        loop {
            if let Ok(length) = notify.recv(&mut message)
                && message[..length].starts_with(b"READY=1")
            {
                break;
            }
            let exited = server.0.try_wait().expect("the child can be waited for");
            assert!(
                exited.is_none() && Instant::now() < deadline,
                "farrier did not come up:\n{}",
                self.log()
            );
        }
        self.server = Some(server);
    }

    pub fn server_pid(&self) -> i32 {
        i32::try_from(self.server.as_ref().expect("the appliance runs").0.id()).expect("a pid fits")
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.server_pid()), signal)
            .expect("the appliance runs");
    }

    /// `kill -9`, and gone.
    pub fn kill_server(&mut self) {
        drop(self.server.take());
    }

    /// Waits for the appliance to end by itself; gives its exit code.
    pub fn wait_server(&mut self) -> Option<i32> {
        let mut server = self.server.take().expect("the appliance runs");
        eventually("the appliance ends", || server.0.try_wait().expect("a child")).code()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("serve.log")).unwrap_or_default()
    }

    /// The command line against this appliance.
    pub fn farrier(&self, arguments: &[&str]) -> Output {
        Command::new(farrier_program())
            .arg("--socket")
            .arg(self.path("operator.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("farrier starts")
    }

    /// The same, which must succeed, as JSON.
    pub fn farrier_json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.farrier(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Plugs a client machine into `br0`.
    pub fn plug(&mut self, mac: &str) -> ClientMachine {
        self.plug_into("br0", mac)
    }

    pub fn plug_into(&mut self, bridge: &str, mac: &str) -> ClientMachine {
        self.cables += 1;
        ClientMachine::plug(bridge, self.cables, mac, self.directory.path())
    }

    /// Every loader that firmware can be told of, in the state directory.
    #[allow(dead_code, reason = "for tests whose clients are ROMs")]
    pub fn install_loaders(&self) {
        for file in LoaderTable::built_in().files() {
            let place = self.state().join("loaders").join(file.path.strip_prefix("/").expect("absolute"));
            fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
            fs::write(place, pattern(60_000 + file.name.0.len())).expect("a loader");
        }
    }

    /// Publishes a deploy profile whose kernel and ramdisk are these bytes.
    pub fn publish(&self, profile: &str, kernel: &[u8], ramdisk: &[u8]) {
        publish_profile(&self.state(), profile, kernel, ramdisk);
    }
}

impl Drop for TestBed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the appliance said ---\n{}", self.log());
            return;
        }
        self.kill_server();
        if let Some(capture) = self.capture.take() {
            let frames = capture.insist();
            assert!(frames > 0 || self.cables == 0, "nothing that the appliance sent was captured");
        }
    }
}

pub fn publish_profile(state: &Path, profile: &str, kernel: &[u8], ramdisk: &[u8]) {
    let library = Library::open(state).expect("a library");
    let add = |bytes: &[u8]| library.add(&mut &bytes[..]).expect("a blob");
    let manifest = Manifest {
        profile: profile.to_owned(),
        kernel: add(kernel),
        ramdisk: add(ramdisk),
        arguments: Vec::new(),
        built_from: Default::default(),
    };
    library.publish(&manifest).expect("the profile is published");
}

pub fn add_bridge(name: &str, address: &str) {
    // Its own MAC: else it has the lowest of its ports', another one whenever a cable is plugged or pulled.
    let number: u32 = name.bytes().map(u32::from).sum();
    let mac = format!("02:62:72:00:{:02x}:{:02x}", number >> 8 & 255, number & 255);
    let kind = ["type", "bridge", "forward_delay", "0", "stp_state", "0"];
    run("ip", &[&["link", "add", name, "address", &mac][..], &kind].concat());
    run("ip", &["addr", "add", address, "dev", name]);
    run("ip", &["link", "set", name, "up"]);
}

/// A machine on a cable: a network namespace with one interface, `eth0`.
pub struct ClientMachine {
    holder: Process,
    directory: PathBuf,
}

impl ClientMachine {
    fn plug(bridge: &str, number: usize, mac: &str, directory: &Path) -> ClientMachine {
        // The namespace lives as long as this process: it says it is inside, then waits for its input to close.
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo inside; read wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is part of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        assert_eq!(line, "inside\n");
        let (near, far) = (format!("port{number}"), format!("far{number}"));
        run("ip", &["link", "add", &near, "type", "veth", "peer", "name", &far]);
        run("ip", &["link", "set", &near, "master", bridge, "up"]);
        run("ip", &["link", "set", &far, "netns", &holder.id().to_string()]);
        let directory = directory.join(format!("client{number}"));
        fs::create_dir_all(&directory).expect("a directory");
        let machine = ClientMachine { holder: Process(holder), directory };
        machine.run("ip", &["link", "set", &far, "name", "eth0", "address", mac]);
        machine.run("ip", &["link", "set", "lo", "up"]);
        machine.run("ip", &["link", "set", "eth0", "up"]);
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Runs `work` on a thread inside this machine's network.
    #[allow(dead_code, reason = "for tests that bring a client of their own")]
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace =
            fs::File::open(format!("/proc/{}/ns/net", self.holder.0.id())).expect("its namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("inside");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside this machine, in its directory.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder.0.id()))
            .arg(program)
            .args(arguments)
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs to the end and insists on success; gives what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}", output.status);
        text
    }

    /// Gets an address with udhcpc and configures it; gives the address.
    pub fn boot_udhcpc(&self) -> Ipv4Addr {
        self.write_udhcpc_script();
        self.run("udhcpc", &["-i", "eth0", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", "./udhcpc.sh"]);
        self.address().expect("udhcpc said it has a lease")
    }

    pub fn write_udhcpc_script(&self) {
        use std::os::unix::fs::PermissionsExt;
        let script = "#!/bin/sh\nenv | sort > \"$1.env\"\ncase $1 in\n\
             bound|renew) ip addr flush dev $interface; ip addr add $ip/$mask dev $interface ;;\n\
             deconfig) ip addr flush dev $interface ;;\nesac\n";
        let path = self.path("udhcpc.sh");
        fs::write(&path, script).expect("write the script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
    }

    /// The IPv4 address of `eth0`.
    pub fn address(&self) -> Option<Ipv4Addr> {
        let text = self.run("ip", &["-4", "-o", "addr", "show", "dev", "eth0"]);
        let word = text.split_whitespace().skip_while(|word| *word != "inet").nth(1)?;
        word.split('/').next()?.parse().ok()
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        fs::File::open(self.path(name))
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        bytes
    }
}

/// Bytes that differ everywhere, so that a block in the wrong place shows.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index ^ (index >> 8) ^ (index >> 16).wrapping_mul(31)) as u8).collect()
}
