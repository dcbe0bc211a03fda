//! A machine on a cable that speaks for itself: DHCP, TFTP and HTTP by hand, as far as a fault lets it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use farrier::boot::loader::LoaderTable;
use serde_json::Value;

use crate::support::{ClientMachine, PATIENCE, SERVER, TestBed, eventually, pattern, run};

/// Later than any stage is waited for.
pub const LATER: u64 = 3600;

pub const BIOS: Speaker = Speaker { vendor: b"PXEClient:Arch:00000:UNDI:002001", arch: Some(0), ipxe: false };
pub const UEFI: Speaker = Speaker { vendor: b"PXEClient:Arch:00007:UNDI:003000", arch: Some(7), ipxe: false };
pub const UEFI_IA32: Speaker =
    Speaker { vendor: b"PXEClient:Arch:00006:UNDI:003000", arch: Some(6), ipxe: false };
pub const ITANIUM: Speaker =
    Speaker { vendor: b"PXEClient:Arch:00002:UNDI:003000", arch: Some(2), ipxe: false };
pub const IPXE: Speaker = Speaker { vendor: b"PXEClient:Arch:00000:UNDI:002001", arch: Some(0), ipxe: true };
pub const RAMDISK: Speaker = Speaker { vendor: b"farrier-agent", arch: None, ipxe: false };
pub const SYSTEM: Speaker = Speaker { vendor: b"udhcp 1.35.0", arch: None, ipxe: false };

/// What in the machine asks.
#[derive(Clone, Copy)]
pub struct Speaker {
    vendor: &'static [u8],
    arch: Option<u16>,
    ipxe: bool,
}

/// An answer of DHCP.
#[derive(Clone, Debug)]
pub struct Reply {
    pub kind: u8,
    pub address: Ipv4Addr,
    pub boot_file: Option<String>,
}

pub struct Machine {
    pub plug: ClientMachine,
    pub mac: String,
    socket: UdpSocket,
    xid: u32,
}

impl Machine {
    pub fn plug(bed: &mut TestBed, number: u8) -> Machine {
        let mac = format!("52:54:00:00:07:{number:02x}");
        let plug = bed.plug(&mac);
        let socket = plug.inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 68)).expect("port 68");
            socket2::SockRef::from(&socket).bind_device(Some(b"eth0")).expect("its card");
            socket.set_broadcast(true).expect("broadcasts");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time-out");
            socket
        });
        // A port that was just attached needs a moment before frames pass, and some faults here ask only once.
        eventually("every port forwards", || {
            let told = run("bridge", &["link", "show"]);
            String::from_utf8_lossy(&told.stdout)
                .lines()
                .all(|line| line.contains("state forwarding"))
                .then_some(())
        });
        Machine { plug, mac, socket, xid: 0x1000_0000 + u32::from(number) * 256 }
    }

    fn message(&self, speaker: Speaker, kind: u8, options: &[(u8, [u8; 4])]) -> Vec<u8> {
        let mut bytes = vec![0; 236];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&self.xid.to_be_bytes());
        bytes[10] = 0x80;
        for (index, byte) in self.mac.split(':').enumerate() {
            bytes[28 + index] = u8::from_str_radix(byte, 16).expect("a MAC");
        }
        bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
        let mut put = |code: u8, data: &[u8]| {
            bytes.extend_from_slice(&[code, u8::try_from(data.len()).expect("short")]);
            bytes.extend_from_slice(data);
        };
        for (code, data) in options {
            put(*code, data);
        }
        put(60, speaker.vendor);
        if let Some(arch) = speaker.arch {
            put(93, &arch.to_be_bytes());
        }
        if speaker.ipxe {
            put(77, b"iPXE");
        }
        bytes.push(255);
        bytes.resize(300.max(bytes.len()), 0);
        bytes
    }

    fn send(&self, message: &[u8]) {
        self.socket.send_to(message, (Ipv4Addr::BROADCAST, 67)).expect("sent");
    }

    /// The next answer to this transaction, if one comes.
    fn receive(&self) -> Option<Reply> {
        let mut bytes = [0; 1500];
        loop {
            let (length, _) = self.socket.recv_from(&mut bytes).ok()?;
            if length < 240 || bytes[4..8] != self.xid.to_be_bytes() {
                continue;
            }
            let mut reply = Reply {
                kind: 0,
                address: Ipv4Addr::new(bytes[16], bytes[17], bytes[18], bytes[19]),
                boot_file: None,
            };
            let mut rest = &bytes[240..length];
            while let [code, len, tail @ ..] = rest
                && *code != 255
            {
                let (data, next) = tail.split_at(usize::from(*len));
                match code {
                    53 => reply.kind = data[0],
                    67 => {
                        let text = String::from_utf8_lossy(data);
                        reply.boot_file = Some(text.trim_end_matches('\0').to_owned());
                    }
                    _ => {}
                }
                rest = next;
            }
            return Some(reply);
        }
    }

    /// One DISCOVER; the offer, if there is one.
    pub fn discover(&mut self, speaker: Speaker) -> Option<Reply> {
        self.xid += 1;
        self.send(&self.message(speaker, 1, &[]));
        self.receive()
    }

    /// The same until an offer comes.
    pub fn offered(&mut self, speaker: Speaker) -> Reply {
        eventually("an offer", || self.discover(speaker).filter(|reply| reply.kind == 2))
    }

    pub fn request(&self, speaker: Speaker, address: Ipv4Addr, server: Ipv4Addr) -> Option<Reply> {
        self.send(&self.message(speaker, 3, &[(54, server.octets()), (50, address.octets())]));
        self.receive()
    }

    pub fn decline(&self, speaker: Speaker, address: Ipv4Addr) {
        self.send(&self.message(speaker, 4, &[(54, SERVER.octets()), (50, address.octets())]));
    }

    /// DISCOVER to ACK, and the address on its card.
    pub fn lease(&mut self, speaker: Speaker) -> Reply {
        let offer = self.offered(speaker);
        let ack = self.request(speaker, offer.address, SERVER).expect("an answer");
        assert_eq!(ack.kind, 5, "an ACK");
        self.plug.run("ip", &["addr", "replace", &format!("{}/24", ack.address), "dev", "eth0"]);
        ack
    }

    /// A TFTP transfer that goes on while `more` says so; it is given each block's number.
    pub fn tftp(&self, name: &str, blksize: u16, mut more: impl FnMut(u16) -> Go + Send) -> Fetched {
        self.plug.inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            let mut request = vec![0, 1];
            for word in [name, "octet", "blksize", &blksize.to_string()] {
                request.extend_from_slice(word.as_bytes());
                request.push(0);
            }
            socket.send_to(&request, (SERVER, 69)).expect("sent");
            let mut packet = vec![0; usize::from(blksize) + 4];
            let mut length_of_all = 0;
            loop {
                let (length, peer) = socket.recv_from(&mut packet).expect("an answer of TFTP");
                let block = u16::from_be_bytes([packet[2], packet[3]]);
                let (block, last) = match packet[1] {
                    5 => return Fetched::Refused,
                    6 => (0, false),
                    _ => {
                        length_of_all += length - 4;
                        (block, length < usize::from(blksize) + 4)
                    }
                };
                match more(block) {
                    Go::On => {}
                    Go::Silent => return Fetched::Part,
                    Go::Abort => {
                        socket.send_to(b"\0\x05\0\x03disk full\0", peer).expect("sent");
                        return Fetched::Part;
                    }
                }
                let [high, low] = block.to_be_bytes();
                socket.send_to(&[0, 4, high, low], peer).expect("sent");
                if last {
                    return Fetched::Whole(length_of_all);
                }
            }
        })
    }

    pub fn fetch_loader(&self, name: &str) {
        assert!(matches!(self.tftp(name, 1400, |_| Go::On), Fetched::Whole(1..)), "{name} is served");
    }

    /// GET; status and body, or as much of it as `at_most`.
    pub fn get(&self, path: &str, at_most: usize) -> (u16, Vec<u8>) {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: {SERVER}\r\n\r\n"), at_most)
    }

    pub fn post(&self, path: &str, authorization: Option<&str>, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let bearer =
            authorization.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {SERVER}\r\n{bearer}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, body) = self.http(&request, usize::MAX);
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn http(&self, request: &str, at_most: usize) -> (u16, Vec<u8>) {
        self.plug.inside(|| {
            let mut stream = TcpStream::connect(SocketAddr::from((SERVER, 80))).expect("HTTP");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut bytes = Vec::new();
            let mut part = [0; 65536];
            loop {
                let head_end = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
                if let Some(end) = head_end {
                    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
                    let status: u16 =
                        head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
                    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                    let length: usize = length.and_then(|word| word.parse().ok()).expect("a length");
                    if bytes.len() - end >= length.min(at_most) {
                        return (status, bytes.split_off(end));
                    }
                }
                let count = stream.read(&mut part).expect("more of the answer");
                assert!(count > 0, "the answer is cut off");
                bytes.extend_from_slice(&part[..count]);
            }
        })
    }

    /// iPXE's way to its script: address, URL, text.
    pub fn script(&mut self) -> String {
        let ack = self.lease(IPXE);
        let url = ack.boot_file.expect("a script's URL");
        let path = url.strip_prefix(&format!("http://{SERVER}")).expect("a URL of ours").to_owned();
        let (status, text) = self.get(&path, usize::MAX);
        assert_eq!(status, 200);
        String::from_utf8(text).expect("text")
    }

    /// All of it up to the ramdisk; the token of its script.
    pub fn load_ramdisk(&mut self) -> String {
        let script = self.script();
        for file in ["vmlinuz", "initrd.img"] {
            assert_eq!(self.get(&format!("/image/metal/{file}"), usize::MAX).0, 200, "{file}");
        }
        token_of(&script)
    }

    pub fn hello(&self, token: &str) -> (u16, Value) {
        let body = serde_json::json!({ "token": token, "mac": self.mac, "uptime_secs": 2.5 });
        self.post("/agent/v1/hello", None, &body)
    }
}

pub fn token_of(script: &str) -> String {
    let word = script.split_ascii_whitespace().find_map(|word| word.strip_prefix("farrier.token="));
    word.expect("a token").to_owned()
}

/// What the machine does after a block.
pub enum Go {
    On,
    Silent,
    Abort,
}

pub enum Fetched {
    Whole(usize),
    Part,
    Refused,
}

/// An appliance with every loader in place and a deploy image.
pub fn bed(configuration: &str) -> TestBed {
    let bed = bed_without_image(configuration);
    bed.publish("metal", &pattern(300_000), &pattern(6_000_000));
    bed
}

pub fn bed_without_image(configuration: &str) -> TestBed {
    let bed = TestBed::new(configuration);
    for file in LoaderTable::built_in().files().filter(|file| file.packaged) {
        let place = bed.state().join("loaders").join(file.path.strip_prefix("/").expect("absolute"));
        std::fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        std::fs::write(place, pattern(60_000)).expect("a loader");
    }
    bed
}

/// `farrier why`, as of `later` seconds from now.
pub fn why(bed: &TestBed, machine: &str, later: u64) -> Value {
    let at = std::time::SystemTime::now() + Duration::from_secs(later);
    let at = farrier::clock::Timestamp::from_millis(
        u64::try_from(at.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis())
            .expect("fits"),
    );
    bed.farrier_json(&["why", machine, "--at", &at.to_string()])
}

/// Insists on the whole verdict: cause, stage, an event that says so, and what to do. Events are recorded behind the
/// answer, so the verdict may take a moment to come to it.
pub fn expect(
    bed: &TestBed,
    machine: &str,
    later: u64,
    cause: &str,
    stage: Option<&str>,
    cited: &str,
) -> Value {
    let says = |seen: &Value| {
        let evidence = seen["evidence"].as_array().into_iter().flatten();
        evidence.filter_map(|evidence| evidence["text"].as_str()).any(|text| text.contains(cited))
    };
    let mut seen = Value::Null;
    let deadline = std::time::Instant::now() + 3 * PATIENCE;
    while std::time::Instant::now() < deadline {
        seen = why(bed, machine, later);
        if seen["cause"] == cause && seen["stage"].as_str() == stage && says(&seen) {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert_eq!(seen["cause"], cause, "{seen:#}");
    assert_eq!(seen["stage"].as_str(), stage, "{seen:#}");
    assert!(says(&seen), "no evidence says `{cited}`: {seen:#}");
    let fine = ["succeeded", "under-way"].contains(&seen["outcome"].as_str().expect("an outcome"));
    assert!(fine || !seen["remedy"].as_array().expect("a list").is_empty(), "{seen:#}");
    assert!(!seen["headline"].as_str().expect("a sentence").is_empty());
    seen
}
