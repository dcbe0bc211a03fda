//! The system calls no safe crate offers in the shape we need; the only file of the crate with `unsafe`.
//!
//! - [`recv_batch`]: many datagrams per call, each with the address it was sent *to* (broadcast or us)
//! - [`send_batch`], [`send_frames`]: many datagrams per call, from a chosen source address or to a chosen MAC
//! - [`send_pieces`]: many datagrams per call, each gathered from pieces of memory, or cut from one by the kernel
//! - [`map_file`]: a file as memory, shared by all transfers
//! - [`die_with_parent`]: a child process that cannot outlive us
//! - [`fork`]: a copy of this process
//! - [`peer_groups`]: the groups of whoever connected to a Unix socket
//! - [`checksum_offload`], [`set_checksum_offload`]: whether a device's checksums are left to it
//! - [`clock_is_kept`]: whether a time service keeps the kernel's clock
//! - [`bind_to_link`], [`hear_every_frame`]: frames of one kind, as they pass on one link
//! - [`discard_blocks`], [`zero_blocks`], [`read_partitions_again`]: what the kernel does to a whole block device
//! - [`admit_router_solicitations_only`] sets `ICMP6_FILTER`, [`never_fragment`] sets `IP_MTU_DISCOVER`

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, IoSlice};
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

/// Room for one control message of each kind we use, aligned as the kernel wants it.
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

    /// Whether the last [`recv_batch`] may have left something.
    pub fn is_full(&self) -> bool {
        self.arrivals.len() == self.slots.len() / self.slot_size
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
    let prepared = messages.iter().map(|message| Prepared {
        address: Address::Inet(inet(message.to)),
        payload: message.payload,
        from: Some(message.from),
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

/// A datagram in pieces; or several of one length, of which the last may be shorter, in the pieces of one buffer.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a> {
    pub slices: &'a [IoSlice<'a>],
    pub to: SocketAddrV4,
    /// Source address, and index of the interface to leave by; the socket's own if absent.
    pub from: Option<(Ipv4Addr, u32)>,
    /// Where the kernel is to cut (`UDP_SEGMENT`, since Linux 4.18).
    pub cut_at: Option<u16>,
}

/// Sends the first [`BATCH_MAX`] of them by one call; how many have left. The kernel stops at the first that fails and
/// says why when it is asked for that one first. Never blocks.
pub fn send_pieces(socket: &impl AsFd, messages: &[Pieces<'_>]) -> io::Result<usize> {
    // Most calls carry one message: nothing is filled in for those that are not there.
    let mut addresses = [const { MaybeUninit::<libc::sockaddr_in>::uninit() }; BATCH_MAX];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; BATCH_MAX];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH_MAX];
    let count = messages.len().min(BATCH_MAX);
    for (index, message) in messages.iter().take(count).enumerate() {
        let address = addresses[index].write(inet(message.to));
        // SAFETY: all-zero is a valid mmsghdr: null pointers with zero lengths.
        let header = headers[index].write(unsafe { mem::zeroed() });
        let header = &mut header.msg_hdr;
        header.msg_namelen = mem::size_of_val(address) as libc::socklen_t;
        header.msg_name = ptr::from_mut(address).cast();
        // IoSlice is an iovec by its documentation; the kernel only reads through it.
        header.msg_iov = message.slices.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.slices.len();
        if message.from.is_some() || message.cut_at.is_some() {
            header.msg_control = ptr::from_mut(controls[index].write(Control::EMPTY)).cast();
            header.msg_controllen = 0;
        }
        if let Some((source, interface)) = message.from {
            write_packet_info(header, source, interface);
        }
        if let Some(cut_at) = message.cut_at {
            write_cut(header, cut_at);
        }
    }
    // SAFETY: the first `count` headers are initialised and point at addresses, slices and control buffers that outlive
    // the call, with their true lengths.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Adds an `UDP_SEGMENT` control message to the header's buffer.
fn write_cut(header: &mut libc::msghdr, cut_at: u16) {
    add_control(header, libc::SOL_UDP, libc::UDP_SEGMENT, cut_at);
}

/// Adds one control message to the header's buffer, behind those it has.
fn add_control<T: Copy>(header: &mut libc::msghdr, level: libc::c_int, kind: libc::c_int, data: T) {
    let size = mem::size_of::<T>() as u32;
    // SAFETY: pure arithmetic on a constant.
    let (length, space) = unsafe { (libc::CMSG_LEN(size) as usize, libc::CMSG_SPACE(size) as usize) };
    let used = header.msg_controllen;
    assert!(used + space <= mem::size_of::<Control>(), "a Control has room for what is put there");
    // SAFETY: msg_control points at a live Control, aligned as a cmsghdr has to be; `used` is a sum of CMSG_SPACEs, which
    // keep that alignment, and the assertion says that the message lies within the buffer.
    unsafe {
        let control: *mut libc::cmsghdr = header.msg_control.cast::<u8>().add(used).cast();
        (*control).cmsg_level = level;
        (*control).cmsg_type = kind;
        (*control).cmsg_len = length;
        ptr::write_unaligned(libc::CMSG_DATA(control).cast(), data);
    }
    header.msg_controllen = used + space;
}

fn inet(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
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
            header.msg_controllen = 0;
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

/// Adds an `IP_PKTINFO` control message to the header's buffer.
fn write_packet_info(header: &mut libc::msghdr, source: Ipv4Addr, interface: u32) {
    let info = libc::in_pktinfo {
        ipi_ifindex: libc::c_int::try_from(interface).unwrap_or(0),
        ipi_spec_dst: libc::in_addr { s_addr: u32::from(source).to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    add_control(header, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
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

/// A copy of this process; true in the copy. To be called while there is one thread.
pub fn fork() -> io::Result<bool> {
    // SAFETY: with one thread, the copy finds no lock held by a thread it has not got.
    Ok(unsafe { nix::unistd::fork() }?.is_child())
}

/// setsockopt(2) with a value as C has it.
fn set_option<T: Copy>(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the kernel reads a live T of the stated size, which holds no pointers to write through.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            mem::size_of_val(value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For a socket whose datagrams always fit the device's MTU: they leave unfragmented whatever ICMP claims about the path,
/// and the kernel need not find each an identification for its fragments.
pub fn never_fragment(socket: &impl AsFd) -> io::Result<()> {
    let probe = libc::IP_PMTUDISC_PROBE;
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &probe)
}

/// `ICMP6_FILTER` of RFC 3542 §3.2: 256 bits, a set bit blocks the type.
const ICMP6_FILTER: libc::c_int = 1;
const ROUTER_SOLICITATION: usize = 133;

/// Lets the calling thread run before others when all processors are wanted (setpriority(2), which on Linux is about
/// threads), and those it makes. Takes CAP_SYS_NICE; without it nothing changes.
pub fn run_before_others() {
    set_niceness(-10);
}

/// Undoes it for the calling thread, which takes nothing.
pub fn run_like_others() {
    set_niceness(0);
}

fn set_niceness(nice: libc::c_int) {
    // SAFETY: no pointers; 0 is the calling thread.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// Supplementary groups of the peer of a Unix stream socket, as they were when it connected (`SO_PEERGROUPS`, Linux
/// 4.13). Credentials alone name one group only.
pub fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    // What nearly everybody is in fits; a longer list is asked for again, with the length the kernel named.
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes =
            libc::socklen_t::try_from(groups.len() * size_of::<libc::gid_t>()).map_err(io::Error::other)?;
        // SAFETY: the pointer and the length describe `groups`, which outlives the call; gid_t has no invalid values.
        let failed = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        } != 0;
        let count = bytes as usize / size_of::<libc::gid_t>();
        if !failed {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // NGROUPS_MAX is 65536; the kernel names no more.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > 65_536 {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Gives a packet socket one link and one kind of frame; until then one of protocol 0 receives nothing.
pub fn bind_to_link(socket: &impl AsFd, interface: u32, ethertype: u16) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::sa_family_t;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = libc::c_int::try_from(interface).map_err(io::Error::other)?;
    // SAFETY: the kernel reads a live sockaddr_ll of the stated size.
    let result = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of_val(&address) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a link promiscuous for as long as this packet socket lives (packet(7), `PACKET_MR_PROMISC`).
pub fn hear_every_frame(socket: &impl AsFd, interface: u32) -> io::Result<()> {
    // SAFETY: all-zero is a valid packet_mreq.
    let mut membership: libc::packet_mreq = unsafe { mem::zeroed() };
    membership.mr_ifindex = libc::c_int::try_from(interface).map_err(io::Error::other)?;
    membership.mr_type = libc::PACKET_MR_PROMISC as libc::c_ushort;
    set_option(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// `ethtool -k DEVICE`: whether the kernel leaves transmit checksums to the device.
pub fn checksum_offload(device: &str) -> io::Result<bool> {
    const ETHTOOL_GTXCSUM: u32 = 0x16;
    ethtool(device, EthtoolValue { command: ETHTOOL_GTXCSUM, data: 0 }).map(|answer| answer.data != 0)
}

/// `ethtool -K DEVICE tx on|off`
pub fn set_checksum_offload(device: &str, on: bool) -> io::Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    ethtool(device, EthtoolValue { command: ETHTOOL_STXCSUM, data: on.into() }).map(drop)
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

fn ethtool(device: &str, mut value: EthtoolValue) -> io::Result<EthtoolValue> {
    // The last byte stays the NUL that ends the name.
    if device.is_empty() || device.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    // Any socket will do, and one that is bound needs an address: this machine may have none yet.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: all-zero is a valid ifreq: an empty name and a null pointer.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads the ifreq and reads and writes the ethtool_value it points at; both outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Whether the kernel thinks that its clock is kept (adjtimex(2)): by NTP, PTP, or a hypervisor's driver.
pub fn clock_is_kept() -> io::Result<bool> {
    // SAFETY: all-zero is a valid timex, and with no mode set the call only reads.
    let mut state: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a live timex that the kernel fills in.
    match unsafe { libc::adjtimex(&raw mut state) } {
        error if error < 0 => Err(io::Error::last_os_error()),
        state => Ok(state != libc::TIME_ERROR),
    }
}

/// Tells a block device that nothing in the range is needed any more (`BLKDISCARD`); what it reads as afterwards is its
/// own affair.
pub fn discard_blocks(device: &impl AsFd, start: u64, length: u64) -> io::Result<()> {
    // _IO(0x12, 119) of linux/fs.h.
    block_range(device, 0x1277, start, length)
}

/// Makes the range read as zeros (`BLKZEROOUT`): by a command of the device where it has one, else the kernel writes.
pub fn zero_blocks(device: &impl AsFd, start: u64, length: u64) -> io::Result<()> {
    // _IO(0x12, 127) of linux/fs.h.
    block_range(device, 0x127f, start, length)
}

fn block_range(device: &impl AsFd, request: libc::Ioctl, start: u64, length: u64) -> io::Result<()> {
    let range = [start, length];
    // SAFETY: both requests read two u64 through the pointer, which is to a live array of two.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), request, range.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the kernel read a disk's partition table again (`BLKRRPART`).
pub fn read_partitions_again(device: &impl AsFd) -> io::Result<()> {
    // _IO(0x12, 95) of linux/fs.h.
    const BLKRRPART: libc::Ioctl = 0x125f;
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKRRPART) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A stream socket is ready to read once so many bytes wait, or its end (`SO_RCVLOWAT`, socket(7)).
pub fn ready_from(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, &bytes)
}

/// Lets a raw ICMPv6 socket see router solicitations and nothing else.
pub fn admit_router_solicitations_only(socket: &impl AsFd) -> io::Result<()> {
    let mut blocked = [u32::MAX; 8];
    blocked[ROUTER_SOLICITATION >> 5] &= !(1 << (ROUTER_SOLICITATION & 31));
    set_option(socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &blocked)
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
    fn pieces_arrive_whole_and_cut() {
        let (_, receiver) = pair();
        let to = v4(receiver.local_addr().unwrap());
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let whole = [IoSlice::new(b"he"), IoSlice::new(b"ad")];
        let several = [IoSlice::new(b"ab"), IoSlice::new(b"cde")];
        let messages = [
            Pieces { slices: &whole, to, from: None, cut_at: None },
            Pieces { slices: &several, to, from: None, cut_at: Some(2) },
            Pieces { slices: &whole, to, from: None, cut_at: None },
        ];
        assert_eq!(send_pieces(&socket, &messages).unwrap(), 3);
        let mut buffer = [0; 16];
        for expected in [b"head".as_slice(), b"ab", b"cd", b"e", b"head"] {
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], expected);
        }
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

    #[test]
    fn a_unix_peer_has_the_groups_of_its_process() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut groups = peer_groups(&ours).unwrap();
        let mut own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        groups.sort_unstable();
        own.sort_unstable();
        assert_eq!(groups, own);
    }
}
