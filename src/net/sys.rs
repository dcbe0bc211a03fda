//! The system calls no safe crate offers in the shape we need; the only file of the crate with `unsafe`.
//!
//! - [`recv_batch`]: many datagrams per call, each with the address it was sent *to* (broadcast or us)
//! - [`send_batch`], [`send_frames`]: many datagrams per call, from a chosen source address or to a chosen MAC
//! - [`map_file`]: a file as memory, shared by all transfers
//! - [`die_with_parent`]: a child process that cannot outlive us
//! - [`admit_router_solicitations_only`] sets `ICMP6_FILTER`

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use crate::net::MacAddr;

pub use memmap2::Mmap;

/// Datagrams moved by one call. Enough to spread the call's cost, few enough to keep a batch's latency low.
pub const BATCH_MAX: usize = 64;

/// Room for one control message of either kind we use, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; 64]);

impl Control {
    const EMPTY: Control = Control([0; 64]);
}

/// Where a datagram came from and where it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub source: SocketAddrV4,
    /// Destination address in the IP header: 255.255.255.255, a subnet broadcast, or an address of ours.
    pub destination: Ipv4Addr,
    /// Index of the interface it came in on.
    pub interface: u32,
    pub length: usize,
    /// It was longer than a slot; what remains is not worth parsing.
    pub truncated: bool,
}

/// Buffers for [`recv_batch`], used over and over.
pub struct Inbox {
    slot_size: usize,
    slots: Vec<u8>,
    arrivals: Vec<Arrival>,
}

impl Inbox {
    /// `slots` is capped at [`BATCH_MAX`].
    pub fn new(slots: usize, slot_size: usize) -> Inbox {
        let slots = slots.clamp(1, BATCH_MAX);
        Inbox { slot_size, slots: vec![0; slots * slot_size], arrivals: Vec::with_capacity(slots) }
    }

    /// What the last [`recv_batch`] brought.
    pub fn iter(&self) -> impl Iterator<Item = (&Arrival, &[u8])> {
        self.arrivals.iter().zip(self.slots.chunks_exact(self.slot_size)).map(|(arrival, slot)| {
            let length = arrival.length.min(slot.len());
            (arrival, &slot[..length])
        })
    }
}

/// Receives what is queued, up to the inbox's slots; the socket must have `IP_PKTINFO` set. Never blocks.
pub fn recv_batch(socket: &impl AsFd, inbox: &mut Inbox) -> io::Result<usize> {
    inbox.arrivals.clear();
    let mut sources = [MaybeUninit::<libc::sockaddr_in>::zeroed(); BATCH_MAX];
    let mut controls = [Control::EMPTY; BATCH_MAX];
    let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH_MAX];
    // SAFETY: all-zero is a valid mmsghdr: null pointers with zero lengths.
    let mut headers: [libc::mmsghdr; BATCH_MAX] = unsafe { mem::zeroed() };
    let mut count = 0;
    for slot in inbox.slots.chunks_exact_mut(inbox.slot_size).take(BATCH_MAX) {
        vectors[count] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
        let header = &mut headers[count].msg_hdr;
        header.msg_name = sources[count].as_mut_ptr().cast();
        header.msg_namelen = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
        header.msg_iov = &raw mut vectors[count];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut controls[count]).cast();
        header.msg_controllen = mem::size_of::<Control>();
        count += 1;
    }
    // SAFETY: the first `count` headers point at live buffers of the stated lengths, which outlive the call.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for (header, source) in headers.iter().zip(&sources).take(received) {
        // SAFETY: zeroed above, and overwritten by the kernel at most with another valid sockaddr_in.
        let source = unsafe { source.assume_init() };
        let (destination, interface) = packet_info(&header.msg_hdr).unwrap_or((Ipv4Addr::UNSPECIFIED, 0));
        inbox.arrivals.push(Arrival {
            source: SocketAddrV4::new(
                Ipv4Addr::from(u32::from_be(source.sin_addr.s_addr)),
                u16::from_be(source.sin_port),
            ),
            destination,
            interface,
            length: header.msg_len as usize,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        });
    }
    Ok(received)
}

/// The `IP_PKTINFO` control message of a received datagram.
fn packet_info(header: &libc::msghdr) -> Option<(Ipv4Addr, u32)> {
    // SAFETY: the kernel filled msg_control and msg_controllen of this header; the buffer is still alive.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: CMSG_FIRSTHDR/NXTHDR return null or a pointer to a whole cmsghdr within the buffer.
        let (level, kind, length) =
            unsafe { ((*control).cmsg_level, (*control).cmsg_type, (*control).cmsg_len) };
        // SAFETY: pure arithmetic on a constant.
        let wanted = unsafe { libc::CMSG_LEN(mem::size_of::<libc::in_pktinfo>() as u32) } as usize;
        if level == libc::IPPROTO_IP && kind == libc::IP_PKTINFO && length >= wanted {
            // SAFETY: the message is long enough for an in_pktinfo; read_unaligned needs no alignment.
            let info: libc::in_pktinfo = unsafe { ptr::read_unaligned(libc::CMSG_DATA(control).cast()) };
            let destination = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
            return Some((destination, u32::try_from(info.ipi_ifindex).unwrap_or(0)));
        }
        // SAFETY: `control` came from this header.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    None
}

/// A UDP datagram to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub payload: &'a [u8],
    pub to: SocketAddrV4,
    /// Source address, and index of the interface to leave by.
    pub from: (Ipv4Addr, u32),
}

/// Sends each datagram; one result each, in order. Never blocks.
pub fn send_batch(socket: &impl AsFd, messages: &[Outgoing<'_>]) -> Vec<io::Result<()>> {
    let prepared = messages.iter().map(|message| {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: message.to.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*message.to.ip()).to_be() },
            sin_zero: [0; 8],
        };
        Prepared { address: Address::Inet(address), payload: message.payload, from: Some(message.from) }
    });
    send_prepared(socket, &prepared.collect::<Vec<_>>())
}

/// An IP packet to send to one station of a link, with no address resolution.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// From the IP header on; the kernel writes the Ethernet header.
    pub packet: &'a [u8],
    pub to: MacAddr,
    pub ethertype: u16,
    /// Index of the interface to leave by.
    pub interface: u32,
}

/// Sends each frame over an `AF_PACKET`/`SOCK_DGRAM` socket; one result each, in order. Never blocks.
pub fn send_frames(socket: &impl AsFd, frames: &[Frame<'_>]) -> Vec<io::Result<()>> {
    let prepared = frames.iter().map(|frame| {
        let mut hardware = [0; 8];
        hardware[..6].copy_from_slice(&frame.to.0);
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: frame.ethertype.to_be(),
            sll_ifindex: libc::c_int::try_from(frame.interface).unwrap_or(libc::c_int::MAX),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: hardware,
        };
        Prepared { address: Address::Link(address), payload: frame.packet, from: None }
    });
    send_prepared(socket, &prepared.collect::<Vec<_>>())
}

enum Address {
    Inet(libc::sockaddr_in),
    Link(libc::sockaddr_ll),
}

struct Prepared<'a> {
    address: Address,
    payload: &'a [u8],
    from: Option<(Ipv4Addr, u32)>,
}

fn send_prepared(socket: &impl AsFd, messages: &[Prepared<'_>]) -> Vec<io::Result<()>> {
    let mut results = Vec::with_capacity(messages.len());
    while results.len() < messages.len() {
        let rest = &messages[results.len()..];
        match send_some(socket, &rest[..rest.len().min(BATCH_MAX)]) {
            // sendmmsg stops before the first message that fails, and reports it only when it comes first.
            Ok(sent) => results.extend((0..sent).map(|_| Ok(()))),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => results.push(Err(error)),
        }
    }
    results
}

fn send_some(socket: &impl AsFd, messages: &[Prepared<'_>]) -> io::Result<usize> {
    debug_assert!((1..=BATCH_MAX).contains(&messages.len()));
    let mut controls = [Control::EMPTY; BATCH_MAX];
    let mut vectors = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; BATCH_MAX];
    // SAFETY: all-zero is a valid mmsghdr: null pointers with zero lengths.
    let mut headers: [libc::mmsghdr; BATCH_MAX] = unsafe { mem::zeroed() };
    for (index, message) in messages.iter().take(BATCH_MAX).enumerate() {
        vectors[index] = libc::iovec {
            iov_base: message.payload.as_ptr().cast_mut().cast(),
            iov_len: message.payload.len(),
        };
        let header = &mut headers[index].msg_hdr;
        match &message.address {
            Address::Inet(address) => {
                header.msg_name = ptr::from_ref(address).cast_mut().cast();
                header.msg_namelen = mem::size_of_val(address) as libc::socklen_t;
            }
            Address::Link(address) => {
                header.msg_name = ptr::from_ref(address).cast_mut().cast();
                header.msg_namelen = mem::size_of_val(address) as libc::socklen_t;
            }
        }
        header.msg_iov = &raw mut vectors[index];
        header.msg_iovlen = 1;
        if let Some((source, interface)) = message.from {
            header.msg_control = (&raw mut controls[index]).cast();
            header.msg_controllen = mem::size_of::<Control>();
            write_packet_info(header, source, interface);
        }
    }
    // SAFETY: the headers point at addresses, payloads and control buffers that outlive the call, with their true
    // lengths; the kernel only reads through the pointers whose constness was cast away.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr(),
            messages.len().min(BATCH_MAX) as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Puts one `IP_PKTINFO` control message into the header's buffer and sets its length.
fn write_packet_info(header: &mut libc::msghdr, source: Ipv4Addr, interface: u32) {
    let info = libc::in_pktinfo {
        ipi_ifindex: libc::c_int::try_from(interface).unwrap_or(0),
        ipi_spec_dst: libc::in_addr { s_addr: u32::from(source).to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let size = mem::size_of_val(&info) as u32;
    // SAFETY: msg_control points at a live, aligned Control of 64 bytes, more than CMSG_SPACE of an in_pktinfo
    // (32), so the first cmsghdr and its data lie within it.
    unsafe {
        let control = libc::CMSG_FIRSTHDR(header);
        (*control).cmsg_level = libc::IPPROTO_IP;
        (*control).cmsg_type = libc::IP_PKTINFO;
        (*control).cmsg_len = libc::CMSG_LEN(size) as usize;
        ptr::write_unaligned(libc::CMSG_DATA(control).cast(), info);
        header.msg_controllen = libc::CMSG_SPACE(size) as usize;
    }
}

/// Maps a whole file for reading.
///
/// The file must never be written or shortened while mapped: callers map immutable, content-addressed blobs and
/// loaders that package managers replace by rename, never in place.
pub fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: sound as long as nobody changes the file underneath, which is the contract stated above; a breach by
    // another process of the same administrator shows as changed bytes or SIGBUS, not as memory corruption.
    unsafe { Mmap::map(file) }
}

/// Makes the child die with the *thread* that spawns it, whatever ends that thread; so spawn from one that lives
/// as long as the child should.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: the closure runs between fork and exec and makes two async-signal-safe system calls only.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have gone before the call above: then nobody would ever send the signal. In a new PID
            // namespace the parent reads as 0, which says nothing.
            let now = libc::getppid();
            if now != 0 && u32::try_from(now) != Ok(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// `ICMP6_FILTER` of RFC 3542 §3.2: 256 bits, a set bit blocks the type.
const ICMP6_FILTER: libc::c_int = 1;
const ROUTER_SOLICITATION: usize = 133;

/// Lets a raw ICMPv6 socket see router solicitations and nothing else.
pub fn admit_router_solicitations_only(socket: &impl AsFd) -> io::Result<()> {
    let mut blocked = [u32::MAX; 8];
    blocked[ROUTER_SOLICITATION >> 5] &= !(1 << (ROUTER_SOLICITATION & 31));
    // SAFETY: the kernel reads 32 bytes from a live array of that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMP6_FILTER,
            (&raw const blocked).cast(),
            mem::size_of_val(&blocked) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        (sender, receiver)
    }

    fn v4(address: std::net::SocketAddr) -> SocketAddrV4 {
        match address {
            std::net::SocketAddr::V4(address) => address,
            std::net::SocketAddr::V6(_) => panic!("loopback is IPv4 here"),
        }
    }

    #[test]
    fn a_batch_arrives_in_order_with_its_addresses() {
        let (_, receiver) = pair();
        nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::Ipv4PacketInfo, &true).unwrap();
        let to = v4(receiver.local_addr().unwrap());
        let payloads: Vec<Vec<u8>> = (0..100_u8).map(|number| vec![number; 10]).collect();
        let from = (Ipv4Addr::new(127, 0, 0, 2), 1);
        let messages: Vec<_> = payloads.iter().map(|payload| Outgoing { payload, to, from }).collect();
        let chooser = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        assert!(send_batch(&chooser, &messages).iter().all(Result::is_ok));
        let mut inbox = Inbox::new(BATCH_MAX, 2048);
        let mut seen = Vec::new();
        while seen.len() < messages.len() {
            recv_batch(&receiver, &mut inbox).unwrap();
            for (arrival, bytes) in inbox.iter() {
                assert_eq!(*arrival.source.ip(), from.0);
                assert_eq!(arrival.destination, Ipv4Addr::LOCALHOST);
                assert_eq!(arrival.interface, 1);
                assert!(!arrival.truncated);
                seen.push(bytes.to_vec());
            }
        }
        assert_eq!(seen, payloads);
        assert_eq!(recv_batch(&receiver, &mut inbox).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_datagram_longer_than_a_slot_is_marked() {
        let (sender, receiver) = pair();
        sender.send(&[7; 100]).unwrap();
        let mut inbox = Inbox::new(1, 64);
        assert_eq!(recv_batch(&receiver, &mut inbox).unwrap(), 1);
        let (arrival, bytes) = inbox.iter().next().unwrap();
        assert!(arrival.truncated);
        assert_eq!(bytes, [7; 64]);
    }

    #[test]
    fn one_failing_datagram_does_not_hold_up_the_others() {
        let (_, receiver) = pair();
        let to = v4(receiver.local_addr().unwrap());
        let from = (Ipv4Addr::LOCALHOST, 1);
        let good = Outgoing { payload: b"good", to, from };
        let bad = Outgoing { payload: &[0; 66_000], to, from };
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let results = send_batch(&socket, &[good, bad, good]);
        assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn a_file_is_mapped_whole() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, b"blob").unwrap();
        assert_eq!(&map_file(file.as_file()).unwrap()[..], b"blob");
    }

    #[test]
    fn a_child_dies_with_the_thread_that_spawned_it() {
        let spawned =
            std::thread::spawn(|| die_with_parent(Command::new("sleep").arg("600")).spawn().unwrap());
        let status = spawned.join().unwrap().wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}
