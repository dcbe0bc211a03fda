//! What crosses a bridge, in a file, and what tshark has to say about this side's part of it.
//!
//! Every bed keeps what its appliance says, and when the test is over tshark reads it: a frame that it marks as malformed,
//! or as an error, fails the test. Of bulk the beginnings are kept: see [`Keep`].

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use farrier::net::MacAddr;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Classic pcap, little-endian, microseconds.
const MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];
const LINKTYPE_ETHERNET: u32 = 1;
const RECORD_HEADER_LEN: usize = 16;
/// A frame that is to be cut by the card (TCP segmentation offload) comes whole.
const FRAME_MAX: usize = 70_000;
/// `PACKET_OUTGOING` of packet(7).
const OUTGOING: u8 = 4;
/// So long nothing came: whoever waits for the end of the capture is heard, and a bridge made anew is found.
const IDLE_MILLIS: i64 = 50;
const TRANSFER_BYTES_MAX: usize = 64 << 10;
const BYTES_MAX: usize = 16 << 20;
/// What a header needs of an IPv4 frame without IP options, ports included.
const PORTS_END: usize = 38;
/// DHCP, TFTP's requests and PXE's own port: never bulk.
const PORTS_KEPT: [u16; 4] = [67, 68, 69, 4011];
/// A filter of tshark's.
pub const EVERYTHING: &str = "frame";
/// `_ws.expert.severity`
const EXPERT_ERROR: &str = "8388608";

/// How much of what crosses the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "not every program that shares this has a use for each")]
pub enum Keep {
    Everything,
    /// All that is no transfer, and the first 64 KiB of each transfer, up to 16 MiB.
    Beginnings,
}

/// A capture under way, into a file, of everything an interface sends and receives.
pub struct Capture {
    file: PathBuf,
    ends: Arc<AtomicBool>,
    thread: JoinHandle<BTreeSet<MacAddr>>,
}

impl Capture {
    /// Frames from now on; the interface may go and come back. It ends with this process or by [`Capture::end`].
    pub fn start(interface: &str, file: &Path, keep: Keep) -> Capture {
        let mut recorder = Recorder::new(interface, file, keep);
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while recorder.take() || !told.load(Ordering::Relaxed) {}
            recorder.senders
        });
        Capture { file: file.to_owned(), ends, thread }
    }

    /// The addresses this side sent from, once all that was sent is in the file.
    fn end(self) -> (PathBuf, BTreeSet<MacAddr>) {
        self.ends.store(true, Ordering::Relaxed);
        (self.file, self.thread.join().expect("the capture ends well"))
    }

    /// Ends it and insists that nothing that this side sent is wrong; gives how many frames that were.
    pub fn insist(self) -> usize {
        let (file, senders) = self.end();
        dissect(&file, &senders, EVERYTHING).unwrap_or_else(|text| panic!("{text}"))
    }
}

struct Recorder {
    interface: String,
    index: u32,
    wire: OwnedFd,
    file: File,
    keep: Keep,
    bytes: usize,
    transfers: HashMap<[u8; 13], usize>,
    senders: BTreeSet<MacAddr>,
    frame: Vec<u8>,
}

impl Recorder {
    fn new(interface: &str, file: &Path, keep: Keep) -> Recorder {
        let mut file = File::create(file).expect("a capture file");
        let mut head = MAGIC.to_vec();
        for (number, width) in [(2, 2), (4, 2), (0, 4), (0, 4), (262_144, 4), (LINKTYPE_ETHERNET, 4)] {
            head.extend_from_slice(&number.to_le_bytes()[..width]);
        }
        file.write_all(&head).expect("written");
        Recorder {
            interface: interface.to_owned(),
            index: if_nametoindex(interface).expect("the interface is there"),
            wire: bound_to(interface).expect("the interface is there"),
            file,
            keep,
            bytes: 0,
            transfers: HashMap::new(),
            senders: BTreeSet::new(),
            frame: vec![0; FRAME_MAX],
        }
    }

    /// Keeps one frame. `false`: there was none for a while.
    fn take(&mut self) -> bool {
        let Ok((length, from)) = recvfrom::<LinkAddr>(self.wire.as_raw_fd(), &mut self.frame) else {
            // Deleted and made anew, it has another number.
            if let Ok(index) = if_nametoindex(self.interface.as_str())
                && index != self.index
                && let Some(wire) = bound_to(&self.interface)
            {
                (self.index, self.wire) = (index, wire);
            }
            return false;
        };
        let frame = &self.frame[..length];
        if let Some(sender) = frame.get(6..12)
            && from.is_some_and(|from| from.pkttype() == OUTGOING)
        {
            self.senders.insert(MacAddr(sender.try_into().expect("six bytes")));
        }
        if self.keep == Keep::Beginnings {
            if self.bytes + length > BYTES_MAX {
                return true;
            }
            if let Some(key) = transfer(frame) {
                let sent = self.transfers.entry(key).or_default();
                if *sent > TRANSFER_BYTES_MAX {
                    return true;
                }
                *sent += length;
            }
        }
        self.bytes += length;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut record = Vec::with_capacity(RECORD_HEADER_LEN + length);
        for number in [at.as_secs() as u32, at.subsec_micros(), length as u32, length as u32] {
            record.extend_from_slice(&number.to_le_bytes());
        }
        record.extend_from_slice(frame);
        // In one piece: this process may end at any moment.
        self.file.write_all(&record).expect("written");
        true
    }
}

fn bound_to(interface: &str) -> Option<OwnedFd> {
    let link = nix::ifaddrs::getifaddrs()
        .expect("interfaces")
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())?;
    let wire = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .expect("a packet socket");
    setsockopt(&wire, sockopt::RcvBuf, &(8 << 20)).expect("a buffer");
    setsockopt(&wire, sockopt::ReceiveTimeout, &TimeVal::milliseconds(IDLE_MILLIS)).expect("a time-out");
    bind(wire.as_raw_fd(), &link).ok().map(|()| wire)
}

/// What tells a frame's transfer from others, if it is of one: protocol, addresses and ports.
fn transfer(frame: &[u8]) -> Option<[u8; 13]> {
    let header = frame.get(..PORTS_END)?;
    let (is_plain, protocol) = (header[12..15] == [8, 0, 0x45], header[23]);
    let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // Its offset, or that more follow.
    let is_fragment = number(20) & 0x3fff != 0;
    let is_kept =
        protocol == 17 && !is_fragment && [34, 36].iter().any(|at| PORTS_KEPT.contains(&number(*at)));
    if !is_plain || !matches!(protocol, 6 | 17) || is_kept {
        return None;
    }
    let mut key = [0; 13];
    key[0] = protocol;
    // What follows a fragment's addresses need not be ports.
    let end = if is_fragment { 34 } else { PORTS_END };
    key[1..end - 25].copy_from_slice(&header[26..end]);
    Some(key)
}

/// How many frames these senders sent; the text of those that tshark marks as malformed or as an error. `of`: tshark's
/// filter for those that are looked at; what is left of a connection of which parts were not kept is malformed to it.
pub fn dissect(capture: &Path, senders: &BTreeSet<MacAddr>, of: &str) -> Result<usize, String> {
    let tshark = |filter: &str, arguments: &[&str]| {
        let output = Command::new("tshark")
            .args(["-n", "-r"])
            .arg(capture)
            // The ports of transfers: left to guess, tshark takes some blocks for STUN.
            .args(["-d", "udp.port==32768-60999,tftp"])
            .args(["-Y", filter])
            .args(arguments)
            .output()
            .expect("tshark (.ci/packages.txt names the Debian package)");
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(format!("tshark {}: {complained}", output.status));
        }
        Ok(said.into_owned())
    };
    if senders.is_empty() {
        return Ok(0);
    }
    let ours: Vec<String> = senders.iter().map(|sender| format!("eth.src == {sender}")).collect();
    let ours = format!("({}) && ({of})", ours.join(" || "));
    let fields = ["-e", "frame.number", "-e", "frame.protocols", "-e", "_ws.expert.severity"];
    let told = tshark(&ours, &[&["-T", "fields"], &fields[..]].concat())?;
    let is_wrong = |line: &&str| line.contains("_ws.malformed") || line.contains(EXPERT_ERROR);
    let wrong: Vec<&str> = told.lines().filter(is_wrong).filter_map(|line| line.split('\t').next()).collect();
    if wrong.is_empty() {
        return Ok(told.lines().count());
    }
    let first: Vec<&str> = wrong.iter().take(20).copied().collect();
    let shown = tshark(&format!("frame.number in {{{}}}", first.join(", ")), &["-V"])?;
    let shown: String = shown.chars().take(20_000).collect();
    Err(format!("tshark finds fault with {} of what the appliance sent:\n{shown}", wrong.len()))
}
