//! Classic pcap files of Ethernet frames: a reader, down to the DHCP datagrams clients sent, and a writer.

use std::io::Write;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt};

use pnet_packet::Packet;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::udp::UdpPacket;

/// Little-endian, microseconds, as tcpdump writes on the machines we use.
const MAGIC: [u8; 4] = [0xd4, 0xc3, 0xb2, 0xa1];
const FILE_HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
const LINKTYPE_ETHERNET: u32 = 1;

/// One UDP datagram from a client to a DHCP or boot server port.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Number of the frame in the capture, from 1, as tshark counts.
    pub frame: usize,
    /// Time since the first frame.
    pub at: Duration,
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub payload: Vec<u8>,
}

/// All datagrams to ports 67 and 4011 that are requests, in order.
pub fn client_datagrams(file: &[u8]) -> Vec<Datagram> {
    assert_eq!(file[..4], MAGIC, "a little-endian microsecond pcap");
    assert_eq!(number(&file[20..24]), LINKTYPE_ETHERNET);
    let mut datagrams = Vec::new();
    let mut started = None;
    let mut rest = &file[FILE_HEADER_LEN..];
    let mut frame = 0;
    while !rest.is_empty() {
        frame += 1;
        let since_epoch = Duration::from_secs(number(&rest[..4]).into())
            + Duration::from_micros(number(&rest[4..8]).into());
        let len = number(&rest[8..12]) as usize;
        let (bytes, next) = rest[RECORD_HEADER_LEN..].split_at(len);
        rest = next;
        let started = *started.get_or_insert(since_epoch);
        if let Some((source, destination, payload)) = udp(bytes)
            && matches!(destination.port(), 67 | 4011)
            && payload.first() == Some(&1)
        {
            datagrams.push(Datagram { frame, at: since_epoch - started, source, destination, payload });
        }
    }
    datagrams
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

fn udp(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, Vec<u8>)> {
    let ethernet = EthernetPacket::new(frame)?;
    if ethernet.get_ethertype() != EtherTypes::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new(ethernet.payload())?;
    if ip.get_next_level_protocol() != IpNextHeaderProtocols::Udp {
        return None;
    }
    let udp = UdpPacket::new(ip.payload())?;
    // The UDP length counts, not the frame's: short frames are padded.
    let payload = udp.payload().get(..usize::from(udp.get_length()).checked_sub(8)?)?;
    Some((
        SocketAddrV4::new(ip.get_source(), udp.get_source()),
        SocketAddrV4::new(ip.get_destination(), udp.get_destination()),
        payload.to_vec(),
    ))
}

/// Writes every frame that crosses `interface` from now on into `file`, each as it comes, until this process ends.
pub fn start(interface: &str, file: &Path) {
    let link = nix::ifaddrs::getifaddrs()
        .expect("interfaces")
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .expect("a link address");
    let wire = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .expect("a packet socket");
    bind(wire.as_raw_fd(), &link).expect("bound to the bridge");
    setsockopt(&wire, sockopt::RcvBuf, &(8 << 20)).expect("a buffer");
    let mut file = std::fs::File::create(file).expect("a capture file");
    let mut head = MAGIC.to_vec();
    for (number, width) in [(2, 2), (4, 2), (0, 4), (0, 4), (262_144, 4), (LINKTYPE_ETHERNET, 4)] {
        head.extend_from_slice(&number.to_le_bytes()[..width]);
    }
    file.write_all(&head).expect("written");
    std::thread::spawn(move || {
        // A frame that is to be cut by the card (TCP segmentation offload) comes whole.
        let mut frame = vec![0; 70_000];
        loop {
            let Ok(length) = nix::unistd::read(&wire, &mut frame) else { continue };
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let (secs, length) = (at.as_secs() as u32, length as u32);
            let mut record = Vec::with_capacity(RECORD_HEADER_LEN + length as usize);
            for number in [secs, at.subsec_micros(), length, length] {
                record.extend_from_slice(&number.to_le_bytes());
            }
            record.extend_from_slice(&frame[..length as usize]);
            file.write_all(&record).expect("written");
        }
    });
}
