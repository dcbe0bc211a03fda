//! The one interface we serve: what must be true of it, and sockets that cannot leave it.
//!
//! Every boot-plane socket of the program is made here (or from a [`Bridge`], in [`super::frame`] and
//! [`super::advertise`]), bound to the device before it is bound to a port. A [`Bridge`] value exists only for an
//! interface that was found to be a bridge, up, and to carry the configured address.
//!
//! Bridges come and go under a running appliance. [`LinkWatch`] wakes its owner when any link or address changes,
//! and [`Bridge::is_current`] tells whether the sockets made from a value still belong to a living device: one that
//! is deleted and made anew has a new index, and old sockets stay deaf for ever.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::Ipv4Network;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::BridgeName;
use crate::net::MacAddr;

/// Connections the kernel completes before we accept them; a rack that powers on at once fits.
const TCP_BACKLOG: i32 = 1024;

/// Receive queue of a boot-plane UDP socket. Holds about a thousand requests: a burst of a whole rack waits, an
/// overload is dropped by the kernel before the wait exceeds what clients tolerate (they ask again after 1–4 s).
const UDP_QUEUE_BYTES: usize = 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    pub name: BridgeName,
    pub index: u32,
    /// As it was when the bridge was found; a bridge without a fixed MAC takes its ports' lowest.
    pub mac: MacAddr,
    /// Our own address with the prefix of the subnet.
    pub address: Ipv4Network,
}

#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    #[error(
        "network.bridge = \"{name}\": there is no such interface; a Linux bridge of that name is wanted: `ip link add {name} type bridge && ip addr add {address} dev {name} && ip link set {name} up`"
    )]
    Missing { name: BridgeName, address: Ipv4Network },
    #[error(
        "network.bridge = \"{name}\": this interface is not a bridge, and farrier serves a bridge only; name another, or make one and attach this: `ip link add br0 type bridge && ip link set {name} master br0`"
    )]
    NotABridge { name: BridgeName },
    #[error("network.bridge = \"{name}\": the bridge is down: `ip link set {name} up`")]
    Down { name: BridgeName },
    #[error(
        "network.address = \"{address}\": the bridge {name} must carry this address and carries {}: `ip addr add {address} dev {name}`",
        list(.present)
    )]
    NoAddress { name: BridgeName, address: Ipv4Network, present: Vec<Ipv4Network> },
    #[error(
        "network.bridge = \"{name}\": {what} cannot be read; /sys and /proc of this network namespace are wanted"
    )]
    Unreadable { name: BridgeName, what: String, source: io::Error },
}

fn list(networks: &[Ipv4Network]) -> String {
    if networks.is_empty() {
        return "none".to_owned();
    }
    networks.iter().map(Ipv4Network::to_string).collect::<Vec<_>>().join(", ")
}

impl Bridge {
    /// Finds the bridge and checks it: it exists, is a bridge, is up, and has our address with our prefix.
    pub fn find(name: &BridgeName, address: Ipv4Network) -> Result<Bridge, BridgeError> {
        let missing = || BridgeError::Missing { name: name.clone(), address };
        let directory = directory(name).filter(|path| path.exists()).ok_or_else(missing)?;
        if !directory.join("bridge").is_dir() {
            return Err(BridgeError::NotABridge { name: name.clone() });
        }
        let unreadable = |what: &str, source| BridgeError::Unreadable {
            name: name.clone(),
            what: what.to_owned(),
            source,
        };
        let read = |file: &str| {
            fs::read_to_string(directory.join(file))
                .map(|text| text.trim().to_owned())
                .map_err(|error| unreadable(file, error))
        };
        let malformed = |what: &str, text: &str| {
            let error = io::Error::new(io::ErrorKind::InvalidData, format!("`{text}`"));
            unreadable(what, error)
        };
        let index = read("ifindex")?;
        let index = index.parse().map_err(|_| malformed("ifindex", &index))?;
        let mac = read("address")?;
        let mac = mac.parse().map_err(|_| malformed("address", &mac))?;
        let flags = read("flags")?;
        let flags = i32::from_str_radix(flags.trim_start_matches("0x"), 16)
            .map_err(|_| malformed("flags", &flags))?;
        if flags & libc::IFF_UP == 0 {
            return Err(BridgeError::Down { name: name.clone() });
        }
        let present = addresses_of(name).map_err(|error| unreadable("its IPv4 addresses", error))?;
        if !present.contains(&address) {
            return Err(BridgeError::NoAddress { name: name.clone(), address, present });
        }
        Ok(Bridge { name: name.clone(), index, mac, address })
    }

    /// Our own address on the bridge.
    pub fn ip(&self) -> Ipv4Addr {
        self.address.ip()
    }

    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        self.address.contains(ip)
    }

    /// Whether the device these sockets are bound to still exists under its name.
    pub fn is_current(&self) -> bool {
        self.read("ifindex").is_some_and(|index| index.parse() == Ok(self.index))
    }

    /// The MAC the bridge has now.
    pub fn current_mac(&self) -> Option<MacAddr> {
        self.read("address")?.parse().ok()
    }

    pub fn mtu(&self) -> Option<u32> {
        self.read("mtu")?.parse().ok()
    }

    /// How long the spanning tree keeps a freshly attached machine off the network, if it does. Boot ROMs give up
    /// sooner: `ip link set NAME type bridge stp_state 0`, or `forward_delay 0`.
    pub fn spanning_tree_delay(&self) -> Option<Duration> {
        let running = self.read("bridge/stp_state")? != "0";
        // Hundredths of a second; a port passes through listening and learning, that long each.
        let forward: u64 = self.read("bridge/forward_delay")?.parse().ok()?;
        (running && forward > 0).then(|| Duration::from_millis(forward * 10 * 2))
    }

    fn read(&self, file: &str) -> Option<String> {
        let text = fs::read_to_string(directory(&self.name)?.join(file)).ok()?;
        Some(text.trim().to_owned())
    }

    /// A UDP socket for broadcasts and requests on `port`: any destination address, this device only. Reports
    /// each datagram's destination (`IP_PKTINFO`), does not block.
    ///
    /// The port is not shared: if another program holds it on this device or on all devices, binding fails.
    pub fn udp_socket(&self, port: u16) -> io::Result<UdpSocket> {
        let socket = self.socket(Type::DGRAM, Protocol::UDP)?;
        socket.set_broadcast(true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        enlarge_queue(&socket)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        Ok(socket.into())
    }

    /// A UDP socket from our address and a free port to one peer on this device; does not block.
    pub fn connected_udp(&self, peer: SocketAddrV4) -> io::Result<UdpSocket> {
        let socket = self.socket(Type::DGRAM, Protocol::UDP)?;
        socket.bind(&SocketAddr::from((self.ip(), 0)).into())?;
        socket.connect(&SocketAddr::from(peer).into())?;
        Ok(socket.into())
    }

    /// A TCP listener on our address and this device; does not block. Accepted connections send at once (`TCP_NODELAY`
    /// is inherited from the listener).
    pub fn tcp_listener(&self, port: u16) -> io::Result<TcpListener> {
        let socket = self.socket(Type::STREAM, Protocol::TCP)?;
        // A restart must not wait for connections of the previous run to leave TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::from((self.ip(), port)).into())?;
        socket.listen(TCP_BACKLOG)?;
        Ok(socket.into())
    }

    fn socket(&self, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
        socket.bind_device(Some(self.name.0.as_bytes()))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

fn enlarge_queue(socket: &Socket) -> io::Result<()> {
    // Past net.core.rmem_max only with CAP_NET_ADMIN; without it, as far as the system allows.
    setsockopt(socket, sockopt::RcvBufForce, &UDP_QUEUE_BYTES)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &UDP_QUEUE_BYTES))?;
    Ok(())
}

/// The interface's directory in sysfs; `None` for a name no interface can have.
fn directory(name: &BridgeName) -> Option<PathBuf> {
    let name = name.0.as_str();
    let possible = !matches!(name, "" | "." | "..")
        && name.len() < libc::IFNAMSIZ
        && !name.contains(|character: char| {
            matches!(character, '/' | ':' | '\0') || character.is_ascii_whitespace()
        });
    possible.then(|| PathBuf::from("/sys/class/net").join(name))
}

fn addresses_of(name: &BridgeName) -> io::Result<Vec<Ipv4Network>> {
    let mut found = Vec::new();
    for interface in getifaddrs()? {
        if interface.interface_name != name.0 {
            continue;
        }
        let ip = |storage: Option<nix::sys::socket::SockaddrStorage>| Some(storage?.as_sockaddr_in()?.ip());
        let (Some(address), Some(mask)) = (ip(interface.address), ip(interface.netmask)) else {
            continue;
        };
        found.extend(Ipv4Network::with_netmask(address, mask));
    }
    Ok(found)
}

/// Becomes readable whenever a link or an address of the system changes. A hint: its reader looks for itself.
pub struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    pub fn open() -> io::Result<LinkWatch> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups as u32))?;
        Ok(LinkWatch { socket })
    }

    /// Discards what is queued, so that only later changes wake the reader again.
    pub fn clear(&self) {
        // The kernel drops notices when we are slow (ENOBUFS): that too means "something changed".
        const NOTICES_MAX: usize = 1024;
        let mut notice = [0; 4096];
        for _ in 0..NOTICES_MAX {
            match recv(self.socket.as_raw_fd(), &mut notice, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Ipv4Network {
        "192.168.2.2/24".parse().unwrap()
    }

    #[test]
    fn a_missing_bridge_is_named_with_the_way_out() {
        for name in ["no-such-bridge", "../net/lo", "", "a-name-that-is-too-long"] {
            let error = Bridge::find(&BridgeName(name.to_owned()), address()).unwrap_err();
            assert!(matches!(error, BridgeError::Missing { .. }), "{name}: {error}");
            let text = error.to_string();
            assert!(text.contains("network.bridge") && text.contains("ip link add"), "{text}");
        }
    }

    #[test]
    fn an_interface_that_is_no_bridge_is_refused() {
        let error = Bridge::find(&BridgeName("lo".to_owned()), address()).unwrap_err();
        assert!(matches!(error, BridgeError::NotABridge { .. }), "{error}");
    }

    #[test]
    fn the_addresses_present_are_shown() {
        let error = BridgeError::NoAddress {
            name: BridgeName("br0".to_owned()),
            address: address(),
            present: vec!["10.0.0.1/8".parse().unwrap()],
        };
        assert!(error.to_string().contains("carries 10.0.0.1/8: `ip addr add 192.168.2.2/24 dev br0`"));
    }
}
