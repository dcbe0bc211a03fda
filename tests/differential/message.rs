//! From words to bytes, and from an answer back to words: where both servers have the same words, they do the same.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use farrier::net::MacAddr;

use crate::ground::{AGENT, BROADCAST, GATEWAY, LEASE, MASK, NAME_SERVER};
use crate::sequence::{Class, Identifier, Kind, List, Machine, Named, Oddity, Path, Step};
use crate::station::Datagram;
use crate::support::SERVER;

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Circuit id, remote id, and a sub-option nobody knows.
const INFORMATION: [u8; 11] = [1, 4, b'p', b'o', b'r', b't', 2, 1, 7, 200, 0];
const FOREIGN_AGENT: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 9);
/// T1 and T2 may differ from 1/2 and 7/8 of the lease by so many thousandths (RFC 2131 §4.4.5 wants them fuzzed; dnsmasq
/// takes off up to a sixteenth of the lease).
const FUZZ: u64 = 130;

/// A step with its addresses put in.
#[derive(Clone, Debug)]
pub struct Asked {
    pub machine: Machine,
    pub step: Step,
    pub mac: MacAddr,
    pub xid: u32,
    pub current: Option<Ipv4Addr>,
    pub wish: Option<Ipv4Addr>,
}

type Options = Vec<(u8, Vec<u8>)>;

impl Asked {
    pub fn source(&self) -> (Ipv4Addr, u16) {
        let port = if self.step.oddity == Oddity::SourcePort { 1068 } else { 68 };
        match self.machine.path {
            Path::Direct => (self.current.unwrap_or(Ipv4Addr::UNSPECIFIED), port),
            Path::Relay { .. } | Path::ForeignRelay => (AGENT, 67),
        }
    }

    pub fn destination(&self) -> Ipv4Addr {
        let alone = self.step.unicast && self.current.is_some() || self.machine.path != Path::Direct;
        if alone { SERVER } else { Ipv4Addr::BROADCAST }
    }

    fn agent(&self) -> Option<Ipv4Addr> {
        match self.machine.path {
            Path::Direct => None,
            Path::Relay { .. } => Some(AGENT),
            Path::ForeignRelay => Some(FOREIGN_AGENT),
        }
    }

    fn agent_information(&self) -> bool {
        match self.machine.path {
            Path::Direct => self.step.oddity == Oddity::OwnAgentInformation,
            Path::Relay { information } => information,
            Path::ForeignRelay => false,
        }
    }

    fn identifier(&self) -> Option<Vec<u8>> {
        match self.machine.identifier {
            Identifier::None => None,
            Identifier::OfMac => Some([&[1][..], &self.mac.0].concat()),
            Identifier::Duid => Some([&[255, 0, 0, 0, 1, 0, 3, 0, 1][..], &self.mac.0].concat()),
            Identifier::Short => Some(vec![self.mac.0[4]]),
            Identifier::Long => Some([&[0; 80][..], &self.mac.0].concat()),
        }
    }

    fn machine_id(&self) -> Option<Vec<u8>> {
        match self.machine.class {
            Class::System => None,
            _ => Some([&[0; 11][..], &self.mac.0].concat()),
        }
    }

    fn flags(&self) -> u16 {
        let reserved = if self.step.oddity == Oddity::ReservedFlags { 0x1234 } else { 0 };
        reserved | if self.machine.broadcast { 0x8000 } else { 0 }
    }

    fn options(&self) -> Options {
        let Asked { machine, step, .. } = self;
        let mut options = Options::new();
        let kind = match step.kind {
            Kind::Discover => Some(1),
            Kind::Request => Some(3),
            Kind::Decline => Some(4),
            Kind::Release => Some(7),
            Kind::Inform => Some(8),
            Kind::Bootp => None,
            Kind::Type(number) => Some(number),
        };
        options.extend(kind.map(|kind| (53, vec![kind])));
        if step.oddity == Oddity::TwoTypes {
            options.extend(kind.map(|kind| (53, vec![kind])));
        }
        options.extend(self.identifier().map(|identifier| (61, identifier)));
        match step.oddity {
            Oddity::EmptyWish => options.push((50, Vec::new())),
            _ => options.extend(self.wish.map(|address| (50, address.octets().to_vec()))),
        }
        match step.server {
            Named::Nobody => {}
            Named::Ours => options.push((54, SERVER.octets().to_vec())),
            Named::Other => options.push((54, OTHER_SERVER.octets().to_vec())),
        }
        if matches!(step.kind, Kind::Discover | Kind::Request) {
            options.extend(machine.lease.map(|seconds| (51, seconds.to_be_bytes().to_vec())));
        }
        options.extend(machine.size.map(|size| (57, size.to_be_bytes().to_vec())));
        match step.oddity {
            Oddity::EmptyHostName => options.push((12, Vec::new())),
            _ if machine.host_name => {
                let name: String = self.mac.0.iter().map(|byte| format!("{byte:02x}")).collect();
                options.push((12, format!("m{name}").into_bytes()));
            }
            _ => {}
        }
        let list: &[u8] = match (machine.list, step.oddity) {
            (_, Oddity::ZeroInList) => &[1, 0, 3, 6, 28, 0],
            (List::None, _) => &[],
            (List::Usual, _) => &[1, 3, 6, 12, 15, 28, 42, 121],
            (List::Little, _) => &[1, 3],
        };
        if !list.is_empty() {
            options.push((55, list.to_vec()));
        }
        let arch = match machine.class {
            Class::System => None,
            Class::Bios | Class::Ipxe => Some(0_u16),
            Class::UefiX64 => Some(7),
            Class::UefiHttp => Some(16),
            Class::Strange => Some(99),
        };
        if let Some(arch) = arch {
            let name = if machine.class == Class::UefiHttp { "HTTPClient" } else { "PXEClient" };
            options.push((60, format!("{name}:Arch:{arch:05}:UNDI:003000").into_bytes()));
            options.push((93, arch.to_be_bytes().to_vec()));
            options.push((94, vec![1, 3, 0]));
        }
        options.extend(self.machine_id().map(|id| (97, id)));
        if machine.class == Class::Ipxe {
            options.push((77, b"iPXE".to_vec()));
            options.push((175, vec![0x13, 1, 1, 0x18, 1, 1]));
        }
        if self.agent_information() {
            options.push((82, INFORMATION.to_vec()));
        }
        options
    }

    pub fn bytes(&self) -> Vec<u8> {
        let oddity = self.step.oddity;
        let mut bytes = vec![0; 236];
        let relayed = u8::from(self.agent().is_some());
        bytes[..4].copy_from_slice(&[1, 1, 6, relayed]);
        bytes[4..8].copy_from_slice(&self.xid.to_be_bytes());
        bytes[10..12].copy_from_slice(&self.flags().to_be_bytes());
        bytes[12..16].copy_from_slice(&self.current.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes[24..28].copy_from_slice(&self.agent().unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes[28..34].copy_from_slice(&self.mac.0);
        match oddity {
            Oddity::Hops(hops) => bytes[3] = hops,
            Oddity::Secs(secs) => bytes[8..10].copy_from_slice(&secs.to_be_bytes()),
            Oddity::OperationReply => bytes[0] = 2,
            Oddity::HardwareType(number) => bytes[1] = number,
            Oddity::HardwareLength(length) => bytes[2] = length,
            Oddity::FullNames => bytes[44..236].fill(b'x'),
            _ => {}
        }
        match oddity {
            Oddity::CutFixed => {
                bytes.truncate(200);
                return bytes;
            }
            Oddity::NoCookie => {
                bytes.resize(300, 0);
                return bytes;
            }
            Oddity::WrongCookie => bytes.extend_from_slice(&[1, 2, 3, 4]),
            _ => bytes.extend_from_slice(&COOKIE),
        }
        self.write_options(&mut bytes);
        bytes
    }

    fn write_options(&self, bytes: &mut Vec<u8>) {
        let oddity = self.step.oddity;
        let mut options = self.options();
        if oddity == Oddity::Overloaded {
            overload(&mut options, bytes);
        }
        if oddity == Oddity::Split
            && let Some(at) =
                options.iter().position(|(code, data)| [55, 60, 61].contains(code) && data.len() > 1)
        {
            let (code, data) = options[at].clone();
            let (first, second) = data.split_at(data.len() / 2);
            options.splice(at..=at, [(code, first.to_vec()), (code, second.to_vec())]);
        }
        for (code, data) in &options {
            if oddity == Oddity::Pads {
                bytes.extend_from_slice(&[0, 0, 0]);
            }
            push_option(bytes, *code, data);
        }
        match oddity {
            Oddity::CutOption => {
                bytes.extend_from_slice(&[224, 40, 1, 2, 3]);
                return;
            }
            Oddity::NoEnd => {}
            Oddity::BehindEnd => bytes.extend_from_slice(&[255, 50, 4, 10, 9, 9, 9, 54, 4, 10, 9, 9, 9]),
            _ => bytes.push(255),
        }
        if oddity != Oddity::Unpadded {
            bytes.resize(bytes.len().max(300), 0);
        }
    }
}

fn push_option(bytes: &mut Vec<u8>, code: u8, data: &[u8]) {
    bytes.extend_from_slice(&[code, u8::try_from(data.len()).expect("one option")]);
    bytes.extend_from_slice(data);
}

/// Moves what fits of all but the message type into `file`, then into `sname` (RFC 2131 §4.1).
fn overload(options: &mut Options, fixed: &mut [u8]) {
    for field in [108..236, 44..108] {
        let room = field.len() - 1;
        let mut there = Vec::new();
        options.retain(|(code, data)| {
            let fits = ![52, 53].contains(code) && there.len() + 2 + data.len() <= room;
            if fits {
                push_option(&mut there, *code, data);
            }
            !fits
        });
        there.push(255);
        fixed[field.start..field.start + there.len()].copy_from_slice(&there);
    }
    options.push((52, vec![3]));
}

/// What came back, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub kind: &'static str,
    /// The address it gives, as bytes; what it is to the client the player knows.
    pub address: Option<Ipv4Addr>,
    /// Everything else that may differ; what is usual is there as well.
    pub fields: BTreeMap<String, String>,
}

impl Answer {
    pub fn read(frame: &Datagram, asked: &Asked) -> Answer {
        let bytes = &frame.payload;
        let mut fields = BTreeMap::new();
        if bytes.len() < 240 {
            return Answer { kind: "unreadable", address: None, fields };
        }
        let four = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        let yiaddr = four(16);
        let mut tell = |field: &str, word: &str| drop(fields.insert(field.to_owned(), word.to_owned()));
        tell("to", &told_to(frame, asked, yiaddr));
        tell("port", &port(frame, asked));
        if frame.source != (SERVER, 67) {
            tell("from", "another address or port");
        }
        let copied = |same: bool| if same { "copied" } else { "changed" };
        let zero_or = |zero: bool, same: bool| if zero { "zero" } else { copied(same) };
        tell(
            "fixed part",
            match () {
                () if bytes[0] != 2 => "no reply",
                () if bytes[1..3] != asked_hardware(asked) => "another hardware type or length",
                () if bytes[28..34] != asked.mac.0 => "another chaddr",
                () if four(24) != asked.agent().unwrap_or(Ipv4Addr::UNSPECIFIED) => "another giaddr",
                () => "as it should be",
            },
        );
        let sent = asked.bytes();
        tell("hops", zero_or(bytes[3] == 0, bytes[3] == sent[3]));
        tell("secs", zero_or(bytes[8..10] == [0, 0], bytes[8..10] == sent[8..10]));
        let flags = u16::from_be_bytes([bytes[10], bytes[11]]);
        tell(
            "flags",
            match flags {
                flags if flags == asked.flags() => "copied",
                flags if flags == asked.flags() | 0x8000 => "broadcast set",
                flags if flags == asked.flags() & 0x8000 => "reserved cleared",
                _ => "changed",
            },
        );
        let ciaddr = four(12);
        let sent_ciaddr = asked.current.unwrap_or(Ipv4Addr::UNSPECIFIED);
        tell(
            "ciaddr",
            match (ciaddr.is_unspecified(), ciaddr == sent_ciaddr, ciaddr == yiaddr) {
                (true, _, _) => "zero",
                (false, true, _) => "copied",
                (false, false, true) => "yiaddr",
                (false, false, false) => "other",
            },
        );
        tell(
            "siaddr",
            match four(20) {
                address if address.is_unspecified() => "zero",
                SERVER => "server",
                _ => "other",
            },
        );
        tell("file", if bytes[108] == 0 { "empty" } else { "a name" });
        tell("sname", if bytes[44] == 0 { "empty" } else { "a name" });
        tell("length", if bytes.len() < 300 { "under 300" } else { "at least 300" });
        let options = options_of(&bytes[240..]);
        for (code, data) in &options {
            if let Some(word) = option_word(*code, data, asked, &options) {
                tell(&option_field(*code), &word);
            }
        }
        if let Some(at) = options.iter().position(|(code, _)| *code == 82) {
            tell("place of option 82", if at + 1 == options.len() { "last" } else { "not last" });
        }
        let kind = match options.iter().find(|(code, _)| *code == 53).map(|(_, data)| data.as_slice()) {
            Some([OFFER]) => "offer",
            Some([ACK]) => "ack",
            Some([NAK]) => "nak",
            Some(_) => "another message",
            None => "bootp reply",
        };
        Answer { kind, address: Some(yiaddr).filter(|address| !address.is_unspecified()), fields }
    }
}

fn asked_hardware(asked: &Asked) -> [u8; 2] {
    match asked.step.oddity {
        Oddity::HardwareType(number) => [number, 6],
        Oddity::HardwareLength(length) => [1, length],
        _ => [1, 6],
    }
}

/// Where it went, by the layers that carry it.
fn told_to(frame: &Datagram, asked: &Asked, yiaddr: Ipv4Addr) -> String {
    let address = frame.destination.0;
    let whom = match address {
        Ipv4Addr::BROADCAST => "everybody",
        AGENT if asked.agent().is_some() => "the agent",
        address if Some(address) == asked.current => "ciaddr",
        address if address == yiaddr => "yiaddr",
        _ => "elsewhere",
    };
    match (address.is_broadcast(), frame.to == MacAddr([0xff; 6])) {
        (true, true) | (false, false) => whom.to_owned(),
        (true, false) => "everybody, in a frame to one".to_owned(),
        (false, true) => format!("{whom}, in a frame to everybody"),
    }
}

fn port(frame: &Datagram, asked: &Asked) -> String {
    match frame.destination.1 {
        67 => "67".to_owned(),
        68 => "68".to_owned(),
        port if port == asked.source().1 => "source port".to_owned(),
        _ => "other".to_owned(),
    }
}

/// Option 51 has a name, and T1 and T2 are one thing.
fn option_field(code: u8) -> String {
    match code {
        51 => "lease".to_owned(),
        58 => "T1".to_owned(),
        59 => "T2".to_owned(),
        code => format!("option {code}"),
    }
}

fn options_of(bytes: &[u8]) -> Options {
    let (mut options, mut rest) = (Options::new(), bytes);
    loop {
        match rest {
            [0, behind @ ..] => rest = behind,
            [255, ..] | [] | [_] => return options,
            [code, length, behind @ ..] => {
                let length = usize::from(*length).min(behind.len());
                options.push((*code, behind[..length].to_vec()));
                rest = &behind[length..];
            }
        }
    }
}

fn option_word(code: u8, data: &[u8], asked: &Asked, all: &Options) -> Option<String> {
    let seconds = |data: &[u8]| data.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
    let is = |right: bool| if right { "right" } else { "wrong" };
    let echoed = |sent: Option<Vec<u8>>| match sent {
        Some(sent) if sent == data => "echoed",
        Some(_) => "changed",
        None => "not asked for",
    };
    let fraction = |permille: u64| {
        let lease = all.iter().find(|(code, _)| *code == 51).and_then(|(_, data)| seconds(data));
        match (lease, seconds(data)) {
            (Some(lease), Some(time)) => {
                let wanted = u64::from(lease) * permille / 1000;
                is(u64::from(time).abs_diff(wanted) * 1000 <= wanted * FUZZ)
            }
            _ => "without a lease",
        }
    };
    let word = match code {
        53 => return None,
        1 => is(data == MASK.octets()),
        3 => is(data == GATEWAY.octets()),
        6 => is(data == NAME_SERVER.octets()),
        28 => is(data == BROADCAST.octets()),
        54 => is(data == SERVER.octets()),
        51 => match seconds(data) {
            Some(LEASE) => "configured",
            Some(time) if Some(time) == asked.machine.lease => "as asked",
            _ => "other",
        },
        58 => fraction(500),
        59 => fraction(875),
        61 => echoed(asked.identifier()),
        82 => echoed(asked.agent_information().then(|| INFORMATION.to_vec())),
        97 => echoed(asked.machine_id()),
        66 | 67 => {
            if data.last() == Some(&0) {
                "ends with NUL"
            } else {
                "without NUL"
            }
        }
        _ => "sent",
    };
    Some(word.to_owned())
}
