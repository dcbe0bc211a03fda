//! Reads classic pcap files of Ethernet frames, down to the DHCP datagrams clients sent.

use std::net::SocketAddrV4;
use std::time::Duration;

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
