//! A TFTP client: one file, as bytes in, bytes out, and time.
//!
//! Client manners as edk2 has them (RFC 1350, 2347, 2348, 7440): every ACK restarts the timer, a timer that runs out
//! repeats the last packet, a packet from another port than the transfer's is not ours, every block out of order is
//! answered with the last one in order. What arrives is counted, not kept.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use crate::storm::firmware::TftpManners;
use crate::storm::machine::Trouble;

const PORT: u16 = 69;
const RRQ: u16 = 1;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;
const NOT_FOUND: u16 = 1;
const ABORTED: u16 = 8;
const BLKSIZE_DEFAULT: u16 = 512;

/// A datagram to send, and the port of the server it goes to.
pub type Datagram = (u16, Vec<u8>);

#[derive(Debug)]
pub struct Download {
    manners: &'static TftpManners,
    server: SocketAddrV4,
    request: Vec<u8>,
    probe: bool,
    keep: Option<Vec<u8>>,
    /// The server's port for this transfer, once it has answered.
    port: Option<u16>,
    blksize: u16,
    windowsize: u16,
    /// Announced size.
    size: Option<u64>,
    /// The last block that came in order.
    last: u64,
    received: u64,
    /// Blocks since the last ACK.
    unacknowledged: u16,
    /// The last packet sent, for the timer to repeat.
    repeat: Vec<u8>,
    waited: usize,
    deadline: Instant,
    pub resends: u32,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub bytes: u64,
    /// The content, where it was asked for.
    pub content: Vec<u8>,
}

impl Download {
    /// `probe`: ask for the size and stop there. `keep`: the content is wanted, up to this many bytes.
    pub fn start(
        manners: &'static TftpManners,
        server: SocketAddrV4,
        name: &str,
        probe: bool,
        keep: bool,
        now: Instant,
        out: &mut Vec<Datagram>,
    ) -> Download {
        let mut request = RRQ.to_be_bytes().to_vec();
        let mut word = |text: &str| {
            request.extend_from_slice(text.as_bytes());
            request.push(0);
        };
        word(name);
        word("octet");
        if probe || manners.asks_size {
            word("tsize");
            word("0");
        }
        word("blksize");
        word(&manners.blksize.to_string());
        if let Some(windowsize) = manners.windowsize {
            word("windowsize");
            word(&windowsize.to_string());
        }
        let download = Download {
            manners,
            server,
            repeat: request.clone(),
            request,
            probe,
            keep: keep.then(Vec::new),
            port: None,
            blksize: BLKSIZE_DEFAULT,
            windowsize: 1,
            size: None,
            last: 0,
            received: 0,
            unacknowledged: 0,
            waited: 0,
            deadline: now + wait(manners, 0),
            resends: 0,
        };
        out.push((PORT, download.request.clone()));
        download
    }

    pub fn server(&self) -> SocketAddrV4 {
        self.server
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The timer ran out.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Datagram>) -> Option<Result<Received, Trouble>> {
        if now < self.deadline {
            return None;
        }
        self.waited += 1;
        if self.waited >= self.manners.waits.len() {
            return Some(Err(if self.port.is_some() { Trouble::TftpStalled } else { Trouble::TftpSilent }));
        }
        self.deadline = now + wait(self.manners, self.waited);
        if self.port.is_none() || self.manners.repeats_ack {
            self.resends += 1;
            out.push((self.port.unwrap_or(PORT), self.repeat.clone()));
        }
        None
    }

    pub fn handle(
        &mut self,
        from: SocketAddrV4,
        bytes: &[u8],
        now: Instant,
        out: &mut Vec<Datagram>,
    ) -> Option<Result<Received, Trouble>> {
        if from.ip() != self.server.ip() || self.port.is_some_and(|port| port != from.port()) {
            return None;
        }
        let (head, rest) =
            bytes.split_at_checked(4).map(|(head, rest)| (word(head, 0).zip(word(head, 2)), rest))?;
        let (opcode, number) = head?;
        match opcode {
            ERROR => {
                Some(Err(if number == NOT_FOUND { Trouble::FileMissing } else { Trouble::TftpError(number) }))
            }
            OACK if self.last == 0 => self.handle_options(from, &bytes[2..], now, out),
            DATA => self.handle_data(from, number, rest, now, out),
            _ => None,
        }
    }

    fn handle_options(
        &mut self,
        from: SocketAddrV4,
        options: &[u8],
        now: Instant,
        out: &mut Vec<Datagram>,
    ) -> Option<Result<Received, Trouble>> {
        let mut words =
            options.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).to_ascii_lowercase());
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            match name.as_str() {
                "blksize" => self.blksize = value.parse().ok()?,
                "windowsize" => self.windowsize = value.parse::<u16>().ok()?.max(1),
                "tsize" => self.size = value.parse().ok(),
                _ => {}
            }
        }
        self.port = Some(from.port());
        if self.probe {
            let mut abort = [ERROR.to_be_bytes(), ABORTED.to_be_bytes()].concat();
            abort.extend_from_slice(b"User aborted the transfer\0");
            out.push((from.port(), abort));
            return Some(Ok(Received { bytes: self.size.unwrap_or(0), content: Vec::new() }));
        }
        self.acknowledge(0, now, out);
        None
    }

    fn handle_data(
        &mut self,
        from: SocketAddrV4,
        number: u16,
        data: &[u8],
        now: Instant,
        out: &mut Vec<Datagram>,
    ) -> Option<Result<Received, Trouble>> {
        if self.port.is_none() {
            // No OACK: the server knows no options.
            self.port = Some(from.port());
            if self.probe {
                return Some(Ok(Received { bytes: 0, content: Vec::new() }));
            }
        }
        if number != (self.last + 1) as u16 {
            // A block again, or one after a lost one: edk2 and ROMs answer each with what they have.
            self.resends += 1;
            self.acknowledge(self.last, now, out);
            return None;
        }
        self.last += 1;
        self.received += data.len() as u64;
        if let Some(kept) = &mut self.keep {
            kept.extend_from_slice(data);
        }
        let is_end = data.len() < usize::from(self.blksize);
        self.unacknowledged += 1;
        if is_end || self.unacknowledged >= self.windowsize {
            self.acknowledge(self.last, now, out);
        } else {
            self.waited = 0;
            self.repeat = ack(self.last);
        }
        if !is_end {
            return None;
        }
        if self.size.is_some_and(|size| size != self.received) {
            return Some(Err(Trouble::WrongLength));
        }
        Some(Ok(Received { bytes: self.received, content: self.keep.take().unwrap_or_default() }))
    }

    fn acknowledge(&mut self, block: u64, now: Instant, out: &mut Vec<Datagram>) {
        let ack = ack(block);
        out.push((self.port.unwrap_or(PORT), ack.clone()));
        self.repeat = ack;
        self.unacknowledged = 0;
        self.waited = 0;
        self.deadline = now + wait(self.manners, 0);
    }
}

fn ack(block: u64) -> Vec<u8> {
    [ACK.to_be_bytes(), (block as u16).to_be_bytes()].concat()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn wait(manners: &TftpManners, attempt: usize) -> Duration {
    let millis = manners.waits.get(attempt).or(manners.waits.last()).copied().unwrap_or(1000);
    Duration::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::firmware::{BIOS_ROM, OVMF};

    const SERVER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 1), 69);
    const PEER: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 0, 0, 1), 4000);

    fn data(number: u16, length: usize) -> Vec<u8> {
        let mut bytes = [DATA.to_be_bytes(), number.to_be_bytes()].concat();
        bytes.resize(4 + length, 7);
        bytes
    }

    #[test]
    fn a_window_is_acknowledged_once_and_what_is_out_of_order_each_time() {
        let now = Instant::now();
        let mut out = Vec::new();
        let mut download = Download::start(&OVMF.tftp, SERVER, "a", false, false, now, &mut out);
        assert_eq!(out.pop().unwrap(), (69, b"\0\x01a\0octet\0blksize\x001468\0windowsize\x004\0".to_vec()));
        download.handle(PEER, b"\0\x06blksize\x001468\0windowsize\x004\0", now, &mut out);
        assert_eq!(out.pop().unwrap(), (4000, ack(0)));
        for number in 1..=3 {
            assert_eq!(download.handle(PEER, &data(number, 1468), now, &mut out), None);
        }
        assert!(out.is_empty());
        download.handle(PEER, &data(4, 1468), now, &mut out);
        assert_eq!(out.pop().unwrap(), (4000, ack(4)));
        for number in [6, 7, 8] {
            download.handle(PEER, &data(number, 1468), now, &mut out);
        }
        assert_eq!(out, [(4000, ack(4)), (4000, ack(4)), (4000, ack(4))]);
        out.clear();
        let ended = download.handle(PEER, &data(5, 10), now, &mut out).unwrap().unwrap();
        assert_eq!((ended.bytes, out.pop()), (4 * 1468 + 10, Some((4000, ack(5)))));
    }

    #[test]
    fn a_probe_ends_with_an_error_and_silence_with_giving_up() {
        let mut now = Instant::now();
        let mut out = Vec::new();
        let mut probe = Download::start(&BIOS_ROM.tftp, SERVER, "a", true, false, now, &mut out);
        out.clear();
        let answer = probe.handle(PEER, b"\0\x06tsize\x0099\0", now, &mut out);
        assert_eq!(answer.unwrap().unwrap().bytes, 99);
        assert_eq!(out.pop().unwrap().1[..4], [0, 5, 0, 8]);
        let mut download = Download::start(&BIOS_ROM.tftp, SERVER, "a", false, false, now, &mut out);
        out.clear();
        let ended = loop {
            now = download.deadline();
            if let Some(ended) = download.wake(now, &mut out) {
                break ended;
            }
        };
        assert_eq!(ended, Err(Trouble::TftpSilent));
        assert_eq!(out.len(), BIOS_ROM.tftp.waits.len() - 1);
    }

    #[test]
    fn another_port_is_not_ours_and_not_found_is_told() {
        let now = Instant::now();
        let mut out = Vec::new();
        let mut download = Download::start(&OVMF.tftp, SERVER, "a", false, true, now, &mut out);
        download.handle(PEER, b"\0\x06blksize\x001468\0", now, &mut out);
        let other = SocketAddrV4::new(*PEER.ip(), 4001);
        assert_eq!(download.handle(other, &data(1, 3), now, &mut out), None);
        let missing = download.handle(PEER, b"\0\x05\0\x01no\0", now, &mut out);
        assert_eq!(missing, Some(Err(Trouble::FileMissing)));
    }
}
