//! DHCP packets by hand, from and to a socket of a machine on a cable; and dnsmasq as the other server.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};

use farrier::boot::loader::LoaderTable;

use crate::support::{ClientMachine, Process, SERVER, TestBed, eventually, pattern, run};

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
pub const INFORM: u8 = 8;

/// Where dnsmasq is.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 9);
/// How long an answer that is not to come is waited for; those that do come take milliseconds.
pub const SILENCE: Duration = Duration::from_millis(700);
/// How long one is waited for that has to come, on a busy machine.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// A message of a client, field by field.
#[derive(Clone)]
pub struct Packet {
    fixed: Vec<u8>,
    /// The first four bytes of the vendor field; options follow only the cookie of RFC 1497.
    vendor: [u8; 4],
    options: Vec<u8>,
}

const COOKIE: [u8; 4] = [99, 130, 83, 99];

impl Packet {
    pub fn new(kind: u8, mac: [u8; 6]) -> Packet {
        Packet::bootp(mac).with_cookie().option(53, &[kind])
    }

    /// Without cookie and options.
    pub fn bootp(mac: [u8; 6]) -> Packet {
        use std::sync::atomic::{AtomicU32, Ordering};
        static XID: AtomicU32 = AtomicU32::new(0x5eed_0001);
        let mut fixed = vec![0; 236];
        fixed[..3].copy_from_slice(&[1, 1, 6]);
        fixed[4..8].copy_from_slice(&XID.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        fixed[10] = 0x80;
        fixed[28..34].copy_from_slice(&mac);
        Packet { fixed, vendor: [0; 4], options: Vec::new() }
    }

    pub fn with_cookie(self) -> Packet {
        self.with_vendor(COOKIE)
    }

    pub fn with_vendor(mut self, vendor: [u8; 4]) -> Packet {
        self.vendor = vendor;
        self
    }

    pub fn option(mut self, code: u8, data: &[u8]) -> Packet {
        self.options.extend_from_slice(&[code, u8::try_from(data.len()).expect("one option")]);
        self.options.extend_from_slice(data);
        self
    }

    /// Overwrites a part of the fixed fields.
    pub fn at(mut self, offset: usize, bytes: &[u8]) -> Packet {
        self.fixed[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn no_broadcast(self) -> Packet {
        self.at(10, &[0, 0])
    }

    pub fn using(self, current: Ipv4Addr) -> Packet {
        self.at(12, &current.octets())
    }

    /// As a relay agent hands it on: one hop, its address, and option 82 behind the client's own.
    pub fn relayed(self, agent: Ipv4Addr, information: &[u8]) -> Packet {
        let packet = self.at(3, &[1]).at(24, &agent.octets());
        if information.is_empty() { packet } else { packet.option(82, information) }
    }

    pub fn pxe(self, arch: u16) -> Packet {
        let vendor = format!("PXEClient:Arch:{arch:05}:UNDI:003000");
        self.option(60, vendor.as_bytes()).option(93, &arch.to_be_bytes()).option(97, &[0; 17])
    }

    pub fn http(self) -> Packet {
        self.option(60, b"HTTPClient:Arch:00016:UNDI:003000").option(93, &16_u16.to_be_bytes())
    }

    /// iPXE that can do what our script needs.
    pub fn ipxe(self) -> Packet {
        self.pxe(0).option(77, b"iPXE").option(175, &[0x13, 1, 1, 0x18, 1, 1])
    }

    pub fn xid(&self) -> [u8; 4] {
        self.fixed[4..8].try_into().expect("four bytes")
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.fixed.clone();
        bytes.extend_from_slice(&self.vendor);
        if self.vendor == COOKIE {
            bytes.extend_from_slice(&self.options);
            bytes.push(255);
        }
        bytes.resize(bytes.len().max(300), 0);
        bytes
    }
}

/// A reply as it came.
#[derive(Clone, Debug)]
pub struct Reply {
    pub from: SocketAddrV4,
    pub bytes: Vec<u8>,
}

impl Reply {
    pub fn address(&self, offset: usize) -> Ipv4Addr {
        let bytes: [u8; 4] = self.bytes[offset..offset + 4].try_into().expect("four bytes");
        bytes.into()
    }

    pub fn yiaddr(&self) -> Ipv4Addr {
        self.address(16)
    }

    pub fn siaddr(&self) -> Ipv4Addr {
        self.address(20)
    }

    pub fn broadcast_flag(&self) -> bool {
        self.bytes[10] & 0x80 != 0
    }

    pub fn file(&self) -> String {
        let name = self.bytes[108..236].split(|byte| *byte == 0).next().expect("a field");
        String::from_utf8_lossy(name).into_owned()
    }

    /// Codes and data, in wire order.
    pub fn options(&self) -> Vec<(u8, Vec<u8>)> {
        let mut options = Vec::new();
        let mut rest = &self.bytes[240..];
        while let [code, len, tail @ ..] = rest
            && *code != 255
        {
            let (data, next) = tail.split_at(usize::from(*len));
            options.push((*code, data.to_vec()));
            rest = next;
        }
        options
    }

    pub fn codes(&self) -> Vec<u8> {
        self.options().iter().map(|(code, _)| *code).collect()
    }

    pub fn option(&self, code: u8) -> Option<Vec<u8>> {
        self.options().into_iter().find(|(found, _)| *found == code).map(|(_, data)| data)
    }

    pub fn kind(&self) -> u8 {
        self.option(53).map_or(0, |data| data[0])
    }

    pub fn ours(&self) -> bool {
        *self.from.ip() == SERVER
    }
}

/// A machine with a socket on one port.
pub struct Station {
    pub plug: ClientMachine,
    pub mac: [u8; 6],
    socket: UdpSocket,
}

impl Station {
    pub fn plug(bed: &mut TestBed, number: u8, port: u16) -> Station {
        let mac = [0x52, 0x54, 0, 0, 0x0d, number];
        let plug = bed.plug(&text(mac));
        let socket = socket(&plug, port);
        forwarding();
        Station { plug, mac, socket }
    }

    pub fn mac_text(&self) -> String {
        text(self.mac)
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Another port of the same machine, or this one in a machine whose address has changed.
    pub fn port(&self, port: u16) -> UdpSocket {
        socket(&self.plug, port)
    }

    pub fn send(&self, packet: &Packet) {
        self.socket.send_to(&packet.bytes(), (Ipv4Addr::BROADCAST, 67)).expect("sent");
    }

    /// Every answer to this packet that comes within the silence after the last.
    pub fn ask_all(&self, packet: &Packet) -> Vec<Reply> {
        self.send(packet);
        gather(&self.socket, packet, SILENCE, |_| false)
    }

    /// The first answer of ours.
    pub fn ask(&self, packet: &Packet) -> Option<Reply> {
        self.send(packet);
        gather(&self.socket, packet, ANSWER_WITHIN, Reply::ours).into_iter().find(Reply::ours)
    }

    /// Whether we leave it unanswered.
    pub fn asks_in_vain(&self, packet: &Packet) -> bool {
        !self.ask_all(packet).iter().any(Reply::ours)
    }

    /// DISCOVER to ACK with our server; gives the address.
    pub fn bind(&self, decorate: impl Fn(Packet) -> Packet) -> Ipv4Addr {
        let offer = self.ask(&decorate(Packet::new(DISCOVER, self.mac))).expect("an offer");
        let request =
            Packet::new(REQUEST, self.mac).option(54, &SERVER.octets()).option(50, &offer.yiaddr().octets());
        let ack = self.ask(&decorate(request)).expect("an answer");
        assert_eq!((ack.kind(), ack.yiaddr()), (ACK, offer.yiaddr()));
        ack.yiaddr()
    }

    /// Gets an address from dnsmasq, has it, and gives it. Whoever else offers is left alone.
    pub fn take_from_other(&self, decorate: impl Fn(Packet) -> Packet) -> Ipv4Addr {
        let discover = decorate(Packet::new(DISCOVER, self.mac));
        self.send(&discover);
        let from_other = |reply: &Reply| *reply.from.ip() == OTHER;
        let offers = gather(&self.socket, &discover, ANSWER_WITHIN, from_other);
        let address = offers.iter().find(|reply| from_other(reply)).expect("dnsmasq offers").yiaddr();
        let request = decorate(
            Packet::new(REQUEST, self.mac).option(54, &OTHER.octets()).option(50, &address.octets()),
        );
        self.send(&request);
        let answers = gather(&self.socket, &request, ANSWER_WITHIN, from_other);
        assert!(answers.iter().any(|reply| from_other(reply) && reply.kind() == ACK), "{answers:?}");
        self.plug.run("ip", &["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        address
    }
}

pub fn socket(plug: &ClientMachine, port: u16) -> UdpSocket {
    plug.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port");
        socket2::SockRef::from(&socket).bind_device(Some(b"eth0")).expect("its card");
        socket.set_broadcast(true).expect("broadcasts");
        socket
    })
}

/// Answers to the packet, until one is the last or nothing has come for so long.
pub fn gather(
    socket: &UdpSocket,
    packet: &Packet,
    patience: Duration,
    is_last: impl Fn(&Reply) -> bool,
) -> Vec<Reply> {
    let mut replies = Vec::new();
    let mut bytes = [0; 2048];
    let mut until = Instant::now() + patience;
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left)).expect("a time-out");
        let Ok((length, std::net::SocketAddr::V4(from))) = socket.recv_from(&mut bytes) else { continue };
        if length < 240 || bytes[4..8] != packet.xid() || bytes[0] != 2 {
            continue;
        }
        let reply = Reply { from, bytes: bytes[..length].to_vec() };
        let last = is_last(&reply);
        replies.push(reply);
        if last {
            break;
        }
        until = Instant::now() + patience;
    }
    replies
}

pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A port that was just attached needs a moment before frames pass.
pub fn forwarding() {
    eventually("every port forwards", || {
        let told = run("bridge", &["link", "show"]);
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        told.lines().all(|line| line.contains("state forwarding")).then_some(())
    });
}

/// Loaders and an image, and a configuration that says what mode; nothing runs yet.
pub fn bed(mode: &str) -> TestBed {
    let bed = TestBed::new(&format!("[dhcp]\nmode = \"{mode}\"\n"));
    for file in LoaderTable::built_in().files().filter(|file| file.packaged) {
        let place = bed.state().join("loaders").join(file.path.strip_prefix("/").expect("absolute"));
        std::fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        std::fs::write(place, pattern(60_000)).expect("a loader");
    }
    bed.publish("metal", &pattern(300_000), &pattern(600_000));
    bed
}

/// dnsmasq on a machine of its own, giving 192.168.77.100 to 150.
pub struct OtherServer {
    /// Kept plugged in.
    _plug: ClientMachine,
    _process: Process,
}

impl OtherServer {
    pub fn start(bed: &mut TestBed) -> OtherServer {
        let plug = bed.plug("02:00:00:00:00:99");
        plug.run("ip", &["addr", "add", &format!("{OTHER}/24"), "dev", "eth0"]);
        forwarding();
        let log = std::fs::File::create(plug.path("dnsmasq.log")).expect("a log file");
        let child = plug
            .command(
                "dnsmasq",
                &[
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--user=root",
                    "--group=",
                    "--pid-file=",
                    "--port=0",
                    "--interface=eth0",
                    "--bind-interfaces",
                    "--dhcp-range=192.168.77.100,192.168.77.150,1h",
                    "--dhcp-leasefile=leases",
                    "--dhcp-authoritative",
                    "--no-ping",
                    "--log-facility=-",
                ],
            )
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("dnsmasq-base is installed");
        let process = Process(child);
        eventually("dnsmasq listens", || {
            String::from_utf8_lossy(&plug.read("dnsmasq.log")).contains("sockets bound").then_some(())
        });
        OtherServer { _plug: plug, _process: process }
    }
}

/// The counter of the appliance's DHCP service for this word.
pub fn counted(bed: &TestBed, word: &str) -> u64 {
    let status = bed.farrier_json(&["status"]);
    let counters = status["counters"].as_array().expect("counters");
    let of_word = |counter: &&serde_json::Value| counter["service"] == "dhcp" && counter["outcome"] == word;
    counters.iter().find(of_word).map_or(0, |counter| counter["count"].as_u64().expect("a number"))
}
