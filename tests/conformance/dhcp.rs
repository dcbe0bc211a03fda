//! A DHCP client that sends what it is told to, and reads every byte of what comes back.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use farrier::dhcp::server::PROBE_WAIT;
use farrier::net::MacAddr;

use crate::station::{Datagram, PATIENCE, Station, Sums};
use crate::support::SERVER;

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const DECLINE: u8 = 4;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
pub const RELEASE: u8 = 7;
pub const INFORM: u8 = 8;
pub const NOWHERE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
pub const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;
/// In which an answer comes if one does: an address nobody had is asked for by ARP before it is offered.
pub const ONE_ANSWER: Duration = PROBE_WAIT.saturating_add(Duration::from_millis(250));
const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// A request, field by field.
#[derive(Clone, Debug)]
pub struct Message {
    pub mac: MacAddr,
    pub xid: u32,
    pub broadcast: bool,
    pub hops: u8,
    pub secs: u16,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub sname: Vec<u8>,
    pub file: Vec<u8>,
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    pub fn with(mut self, code: u8, data: impl AsRef<[u8]>) -> Message {
        self.options.push((code, data.as_ref().to_vec()));
        self
    }

    pub fn broadcast(mut self) -> Message {
        self.broadcast = true;
        self
    }

    pub fn at(mut self, address: Ipv4Addr) -> Message {
        self.ciaddr = address;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 236];
        bytes[..4].copy_from_slice(&[1, 1, 6, self.hops]);
        bytes[4..8].copy_from_slice(&self.xid.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.secs.to_be_bytes());
        bytes[10] = if self.broadcast { 0x80 } else { 0 };
        bytes[12..16].copy_from_slice(&self.ciaddr.octets());
        bytes[24..28].copy_from_slice(&self.giaddr.octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        bytes[44..44 + self.sname.len()].copy_from_slice(&self.sname);
        bytes[108..108 + self.file.len()].copy_from_slice(&self.file);
        bytes.extend_from_slice(&COOKIE);
        for (code, data) in &self.options {
            if *code == 0 {
                bytes.push(0);
                continue;
            }
            bytes.extend_from_slice(&[*code, u8::try_from(data.len()).expect("one option")]);
            bytes.extend_from_slice(data);
        }
        bytes.push(255);
        bytes.resize(bytes.len().max(300), 0);
        bytes
    }
}

/// An answer, with the frame it came in.
#[derive(Clone, Debug)]
pub struct Reply {
    pub frame: Datagram,
    pub kind: u8,
    pub flags: u16,
    pub ciaddr: Ipv4Addr,
    pub yiaddr: Ipv4Addr,
    pub siaddr: Ipv4Addr,
    pub mac: MacAddr,
    /// The whole field.
    pub sname: Vec<u8>,
    pub file: Vec<u8>,
    /// In wire order.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Reply {
    /// Reads a reply, and insists on all that holds of every reply whatever was asked (protocol §1.3).
    fn read(frame: Datagram) -> Reply {
        let bytes = &frame.payload;
        // Who has no address yet reads the bare frame; who has one, has a network stack.
        let bare = frame.destination.0.is_broadcast() || bytes[12..16] == [0; 4] && bytes[16..20] != [0; 4];
        let wanted = |sums| if bare { sums == Sums::Whole } else { sums != Sums::Wrong };
        assert!(wanted(frame.sums) && !frame.fragment, "{frame:?}");
        assert_eq!(frame.source.0, SERVER, "the server identifier is the source address");
        assert!((300..=1472).contains(&bytes.len()), "{} bytes", bytes.len());
        assert_eq!(bytes[..4], [2, 1, 6, 0], "op, htype, hlen, hops");
        assert_eq!(bytes[8..10], [0, 0], "secs");
        assert_eq!(bytes[24..28], [0; 4], "giaddr");
        assert_eq!(bytes[236..240], COOKIE);
        let four = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        let (mut options, mut rest) = (Vec::<(u8, Vec<u8>)>::new(), &bytes[240..]);
        let padding = loop {
            match rest {
                [255, padding @ ..] => break padding,
                [0, ..] | [] | [_] => panic!("PAD before END, or no END: {bytes:?}"),
                [code, length, behind @ ..] => {
                    let (data, next) = behind.split_at(usize::from(*length));
                    assert!(options.iter().all(|(other, _)| other != code), "option {code} twice");
                    options.push((*code, data.to_vec()));
                    rest = next;
                }
            }
        };
        assert!(padding.iter().all(|byte| *byte == 0), "zeros behind END");
        assert!(padding.is_empty() || bytes.len() == 300, "padded further than it must");
        let reply = Reply {
            kind: options.iter().find(|(code, _)| *code == 53).expect("option 53").1[0],
            flags: u16::from_be_bytes([bytes[10], bytes[11]]),
            ciaddr: four(12),
            yiaddr: four(16),
            siaddr: four(20),
            mac: MacAddr(bytes[28..34].try_into().expect("six bytes")),
            sname: bytes[44..108].to_vec(),
            file: bytes[108..236].to_vec(),
            options,
            frame: frame.clone(),
        };
        assert_eq!(reply.options[0].0, 53, "the message type comes first");
        assert_eq!(reply.address(54), Some(SERVER));
        for never in [13, 50, 52, 55, 57, 108, 114, 116, 252] {
            assert!(reply.option(never).is_none(), "option {never}: {reply:?}");
        }
        let name_end = reply.file.iter().position(|byte| *byte == 0).expect("`file` ends with NUL");
        assert!(reply.file[name_end..].iter().all(|byte| *byte == 0), "old bytes in `file`");
        reply
    }

    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(other, _)| *other == code).map(|(_, data)| data.as_slice())
    }

    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.option(code)?.first_chunk::<4>().copied().map(Ipv4Addr::from)
    }

    pub fn seconds(&self, code: u8) -> Option<u32> {
        self.option(code)?.first_chunk::<4>().copied().map(u32::from_be_bytes)
    }

    /// Option 67 without its NUL.
    pub fn boot_file(&self) -> Option<String> {
        let text = String::from_utf8(self.option(67)?.to_vec()).expect("text");
        Some(text.trim_end_matches('\0').to_owned())
    }

    pub fn file_field(&self) -> String {
        let end = self.file.iter().position(|byte| *byte == 0).expect("a NUL");
        String::from_utf8(self.file[..end].to_vec()).expect("text")
    }
}

/// One machine's DHCP client on a cable.
pub struct Client<'a> {
    pub station: &'a Station,
    pub mac: MacAddr,
    xid: u32,
}

impl<'a> Client<'a> {
    pub fn new(station: &'a Station, mac: MacAddr) -> Client<'a> {
        let [.., high, low] = mac.0;
        Client { station, mac, xid: u32::from_be_bytes([0x77, high, low, 0]) }
    }

    /// A new transaction.
    pub fn message(&mut self, kind: u8) -> Message {
        self.xid += 1;
        Message {
            mac: self.mac,
            xid: self.xid,
            broadcast: false,
            hops: 0,
            secs: 0,
            ciaddr: NOWHERE,
            giaddr: NOWHERE,
            sname: Vec::new(),
            file: Vec::new(),
            options: vec![(53, vec![kind])],
        }
    }

    /// REQUEST in SELECTING.
    pub fn selecting(&mut self, address: Ipv4Addr) -> Message {
        self.message(REQUEST).with(50, address.octets()).with(54, SERVER.octets())
    }

    pub fn send(&self, message: &Message) {
        self.send_bytes(&message.bytes(), message.ciaddr);
    }

    /// Broadcast, from the address the client has.
    pub fn send_bytes(&self, bytes: &[u8], from: Ipv4Addr) {
        self.station.send_udp(self.mac, (from, 68), (EVERYBODY, 67), bytes);
    }

    /// To the server alone, as when renewing.
    pub fn send_unicast(&self, message: &Message) {
        self.station.send_udp(self.mac, (message.ciaddr, 68), (SERVER, 67), &message.bytes());
    }

    /// The answer to the transaction under way, if it comes in time.
    pub fn reply_within(&self, patience: Duration) -> Option<Reply> {
        let until = Instant::now() + patience;
        while let Some(datagram) = self.station.receive(until) {
            let ours = matches!(datagram.source.1, 67 | 4011)
                && datagram.payload.get(4..8) == Some(&self.xid.to_be_bytes()[..]);
            if ours {
                let reply = Reply::read(datagram);
                assert_eq!(reply.mac, self.mac);
                return Some(reply);
            }
        }
        None
    }

    #[track_caller]
    pub fn reply(&self) -> Reply {
        self.reply_within(PATIENCE).expect("an answer")
    }

    #[track_caller]
    pub fn ask(&self, message: &Message) -> Reply {
        self.send(message);
        self.reply()
    }

    /// Insists that no answer comes: another machine on the same cable is answered, and some time passes.
    #[track_caller]
    pub fn is_silent(&self) {
        let mut other = Client::new(self.station, MacAddr([2, 0xff, 0, 0, self.mac.0[4], self.mac.0[5]]));
        other.xid |= 0x8000_0000;
        // An address each, for the appliance remembers where it found one.
        let address = Ipv4Addr::new(192, 168, 60 + self.mac.0[4], self.mac.0[5].clamp(1, 254));
        let sentinel = other.message(INFORM).at(address).broadcast();
        self.station.own(sentinel.ciaddr, other.mac);
        other.send(&sentinel);
        let (mut answered, until) = (false, Instant::now() + PATIENCE);
        let mut grace = until;
        while let Some(datagram) = self.station.receive(grace) {
            let xid = datagram.payload.get(4..8).unwrap_or_default();
            assert_ne!(xid, self.xid.to_be_bytes(), "an answer: {:?}", Reply::read(datagram.clone()));
            if xid == sentinel.xid.to_be_bytes() {
                answered = true;
                // An ACK waits for the disk, an offer for the wire to be asked: both could come behind this answer.
                grace = Instant::now() + ONE_ANSWER;
            }
        }
        assert!(answered, "nobody is answered at all");
    }

    #[track_caller]
    pub fn offer(&mut self) -> Reply {
        let discover = self.message(DISCOVER);
        let offer = self.ask(&discover);
        assert_eq!(offer.kind, OFFER);
        offer
    }

    /// DISCOVER to ACK; the address is answered for from then on.
    #[track_caller]
    pub fn bind(&mut self) -> Reply {
        let offer = self.offer();
        let request = self.selecting(offer.yiaddr);
        let ack = self.ask(&request);
        assert_eq!((ack.kind, ack.yiaddr), (ACK, offer.yiaddr));
        self.station.own(ack.yiaddr, self.mac);
        ack
    }
}

/// Options of a boot ROM: vendor class and architecture.
pub fn rom(message: Message, arch: u16) -> Message {
    message
        .with(60, format!("PXEClient:Arch:{arch:05}:UNDI:003000"))
        .with(93, arch.to_be_bytes())
        .with(94, [1, 3, 0])
}

pub fn http_rom(message: Message, arch: u16) -> Message {
    message.with(60, format!("HTTPClient:Arch:{arch:05}:UNDI:003000")).with(93, arch.to_be_bytes())
}

/// Features of a complete iPXE, as option 175 tells them.
pub const FULL_IPXE: [u8; 12] = [0x13, 1, 1, 0x18, 1, 1, 0x24, 1, 1, 0x15, 1, 1];

pub fn ipxe(message: Message, arch: u16) -> Message {
    rom(message, arch).with(77, b"iPXE").with(175, FULL_IPXE)
}
