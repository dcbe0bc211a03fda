//! A namespace per test, a bridge in it, and the far ends of its ports.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use farrier::config::BridgeName;
use farrier::net::link::Link;
use farrier::net::ports::{self, PortState};
use farrier::net::{Bridge, MacAddr};
use ipnetwork::Ipv4Network;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use tempfile::TempDir;

use crate::dissect::{Capture, Keep};

/// Longest wait for something that must happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// True within the test's own namespace; otherwise runs the calling test there and checks that it passed.
pub fn isolated(test: &str) -> bool {
    const MARK: &str = "FARRIER_TEST_ISOLATED";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let arguments = if nix::unistd::geteuid().is_root() { "-n" } else { "-rn" };
    let output = Command::new("unshare")
        .arg(arguments)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .output()
        .expect("unshare (util-linux) is needed to run this test");
    let text =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in its namespace, {test} failed:\n{text}");
    assert!(text.contains("1 passed"), "{test} is not the name of a test:\n{text}");
    false
}

/// Runs `ip` with these words.
#[track_caller]
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is needed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes `name`, up, with a MAC of its own (not its ports' lowest), the address, and the port `{name}p`; returns the port's
/// far end, `{name}s`. What the bridge's side sends is dissected when that is dropped.
pub fn make_bridge(name: &str, address: &str) -> (Bridge, Wire) {
    let number: u8 = name.bytes().fold(0, u8::wrapping_add);
    ip(&format!("link add {name} address 02:62:72:00:00:{number:02x} type bridge"));
    ip(&format!("addr add {address} dev {name}"));
    ip(&format!("link set {name} up"));
    let station = attach(name, name);
    let mut wire = Wire::open(&station);
    let folder = tempfile::tempdir().unwrap();
    let capture = Capture::start(name, &folder.path().join("bridge.pcap"), Keep::Beginnings);
    wire.capture = Some((capture, folder));
    (Bridge::find(&bridge_name(name), network(address)).unwrap(), wire)
}

/// Plugs a veth pair into the bridge; returns the name of the far end, which is up and says nothing by itself.
pub fn attach(bridge: &str, prefix: &str) -> String {
    let (port, station) = (format!("{prefix}p"), format!("{prefix}s"));
    ip(&format!("link add {port} type veth peer name {station}"));
    ip(&format!("link set {station} addrgenmode none"));
    ip(&format!("link set {port} addrgenmode none master {bridge} up"));
    ip(&format!("link set {station} up"));
    // The kernel notices the cable a little later; until then frames are lost.
    let index = Link::find(bridge).unwrap().unwrap().index;
    eventually("the port forwards", || {
        let ports = ports::of_bridge(index, None).unwrap();
        ports.iter().any(|found| found.name == port && found.state == PortState::Forwarding).then_some(())
    });
    station
}

pub fn bridge_name(name: &str) -> BridgeName {
    BridgeName(name.to_owned())
}

pub fn network(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

/// Raw Ethernet on one interface.
pub struct Wire {
    socket: OwnedFd,
    pub mac: MacAddr,
    capture: Option<(Capture, TempDir)>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some((capture, _folder)) = self.capture.take()
            && !thread::panicking()
        {
            capture.insist();
        }
    }
}

impl Wire {
    pub fn open(interface: &str) -> Wire {
        let link = nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter(|found| found.interface_name == interface)
            .find_map(|found| found.address?.as_link_addr().copied())
            .unwrap_or_else(|| panic!("{interface} has no link address"));
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                .unwrap();
        // The link address carries protocol 0: the one the socket was made with stays.
        bind(socket.as_raw_fd(), &link).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
        Wire { socket, mac: MacAddr(link.addr().unwrap()), capture: None }
    }

    /// For tests whose payloads are made up: tshark would find fault with them.
    pub fn undissected(mut self) -> Wire {
        self.capture = None;
        self
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.socket, frame).unwrap(), frame.len());
    }

    /// The next frame not sent by this end, or `None` if `until` passes first.
    pub fn receive(&self, until: Instant) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        while Instant::now() < until {
            match nix::unistd::read(&self.socket, &mut buffer) {
                Ok(length) if buffer[6..12] != self.mac.0 => return Some(buffer[..length].to_vec()),
                Ok(_) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
                Err(error) => panic!("receive: {error}"),
            }
        }
        None
    }

    /// The first frame that `wanted` turns into something; panics when it does not come.
    #[track_caller]
    pub fn expect<T>(&self, what: &str, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        while let Some(frame) = self.receive(until) {
            if let Some(found) = wanted(&frame) {
                return found;
            }
        }
        panic!("{what}: not seen within {DEADLINE:?}");
    }
}

/// Calls `ready` until it returns something, as fast as the system schedules; panics at the deadline.
#[track_caller]
pub fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {DEADLINE:?}");
        thread::yield_now();
    }
}

/// An Ethernet frame with an IPv4/UDP datagram; the UDP checksum is left out, as RFC 768 allows.
pub fn udp_frame(
    (source_mac, mac): (MacAddr, MacAddr),
    (source, source_port): ([u8; 4], u16),
    (destination, port): ([u8; 4], u16),
    payload: &[u8],
) -> Vec<u8> {
    let length = 28 + payload.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend_from_slice(&source);
    header.extend_from_slice(&destination);
    let checksum = !ones_sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = [mac.0, source_mac.0].concat();
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&header);
    for word in [source_port, port, length - 20, 0] {
        frame.extend_from_slice(&word.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame
}

/// RFC 1071, before complementing.
pub fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A machine: a thread with a network namespace of its own, into which one interface moves.
pub struct Machine;

impl Machine {
    /// Moves `interface` into a new namespace, gives it the address, and runs `work` there.
    pub fn run<T: Send + 'static>(
        interface: &str,
        address: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let (entered, has_entered) = mpsc::channel();
        let (moved, has_moved) = mpsc::channel::<()>();
        let (own, with) = (interface.to_owned(), address.to_owned());
        let thread = thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            entered.send(nix::unistd::gettid()).unwrap();
            has_moved.recv().unwrap();
            ip(&format!("addr add {with} dev {own}"));
            ip(&format!("link set {own} up"));
            work()
        });
        let id = has_entered.recv().unwrap();
        ip(&format!("link set {interface} netns {id}"));
        moved.send(()).unwrap();
        thread
    }
}

/// Connects within the deadline, sends, and reads to the end.
pub fn exchange(address: &str, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = std::net::TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
