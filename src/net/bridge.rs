//! The one interface we serve: what must be true of it, and sockets that cannot leave it.
//!
//! Every boot-plane socket of the program is made here (or from a [`Bridge`], in [`super::frame`] and
//! [`super::advertise`]), bound to the device before it is bound to a port. A [`Bridge`] value exists only for an
//! interface that was found to be a bridge, up, and to carry the configured address.
//!
//! Bridges come and go under a running appliance. [`super::link::LinkWatch`] wakes its owner when any link or address changes,
//! and [`Bridge::link`] tells whether the sockets made from a value still belong to a living device: one that is
//! deleted and made anew has a new index, and old sockets stay deaf until [`Bridge::rebind`].

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;

use ipnetwork::Ipv4Network;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::BridgeName;
use crate::net::hazards::{self, Allowed, Hazard};
use crate::net::link::{self, Link};
use crate::net::{MacAddr, Urgency, congestion, link_local};

/// Connections the kernel completes before we accept them. Past it a SYN is dropped, and its sender waits a second, then
/// two: a storm of a thousand machines did with 1024. The kernel cuts this down to `net.core.somaxconn`, 4096 by default.
const TCP_BACKLOG: i32 = 4096;

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
    /// `network.allow`: holds as well for a bridge that is made anew.
    pub allowed: Allowed,
}

#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    #[error(
        "network.bridge = \"{name}\": there is no such interface; a Linux bridge of that name is wanted: `ip link add {name} type bridge && ip addr add {address} dev {name} && ip link set {name} up`"
    )]
    Missing { name: BridgeName, address: Ipv4Network },
    #[error(
        "network.bridge = \"{name}\": this interface is not a bridge, and farrier serves a bridge only; {}",
        bridge_way_out(name)
    )]
    NotABridge { name: BridgeName },
    #[error(
        "network.bridge = \"{name}\": it carries this host's default route ({route}): farrier answers DHCP on a network of its own only, not on the one this host is itself a guest of; name a bridge that only the machines are on, or write allow = [\"{}\"] under [network] if they are meant to be on that network",
        Hazard::DefaultRoute.as_str()
    )]
    DefaultRoute { name: BridgeName, route: String },
    #[error(
        "network.bridge = \"{name}\": {which} is wireless: farrier boots whoever is on the wire, and on the air that is everybody around; take it off (`ip link set {which} nomaster`) or name another bridge, or write allow = [\"{}\"] under [network]",
        Hazard::Wireless.as_str()
    )]
    Wireless { name: BridgeName, which: String },
    #[error("network.bridge = \"{name}\": the bridge is down: `ip link set {name} up`")]
    Down { name: BridgeName },
    #[error(
        "network.address = \"{address}\": the bridge {name} must carry this address and carries {}: `ip addr add {address} dev {name}`",
        list(.present)
    )]
    NoAddress { name: BridgeName, address: Ipv4Network, present: Vec<Ipv4Network> },
    #[error("network.bridge = \"{name}\": the kernel does not tell about it")]
    Unreadable { name: BridgeName, source: io::Error },
}

fn bridge_way_out(name: &BridgeName) -> String {
    let make = "name another, or make one";
    match name.0.as_str() {
        // The kernel lets no bridge have it as a port.
        "lo" => {
            format!("{make} (the loopback interface cannot be attached to it): `ip link add br0 type bridge`")
        }
        name => {
            let word = Hazard::NotABridge.as_str();
            format!(
                "{make} and attach this: `ip link add br0 type bridge && ip link set {name} master br0`; or write allow = [\"{word}\"] under [network]"
            )
        }
    }
}

fn list(networks: &[Ipv4Network]) -> String {
    if networks.is_empty() {
        return "none".to_owned();
    }
    networks.iter().map(Ipv4Network::to_string).collect::<Vec<_>>().join(", ")
}

impl Bridge {
    /// Finds the bridge and checks it, with nothing allowed that is not by itself.
    pub fn find(name: &BridgeName, address: Ipv4Network) -> Result<Bridge, BridgeError> {
        Bridge::admit(name, address, Allowed::default())
    }

    /// Finds the interface and checks all that has to be true before anything is served there.
    pub fn admit(name: &BridgeName, address: Ipv4Network, allowed: Allowed) -> Result<Bridge, BridgeError> {
        let bridge = Bridge::look(name, address, allowed)?;
        let unreadable = |source| BridgeError::Unreadable { name: name.clone(), source };
        if !allowed.permits(Hazard::DefaultRoute)
            && let Some(route) = hazards::default_route(bridge.index).map_err(unreadable)?
        {
            return Err(BridgeError::DefaultRoute { name: name.clone(), route });
        }
        if !allowed.permits(Hazard::Wireless)
            && let Some(which) = hazards::wireless(&name.0, bridge.index)
        {
            return Err(BridgeError::Wireless { name: name.clone(), which });
        }
        Ok(bridge)
    }

    /// The interface that has our name now, under the same rules as at start: the device may have been replaced.
    pub fn again(&self) -> Result<Bridge, BridgeError> {
        Bridge::admit(&self.name, self.address, self.allowed)
    }

    /// Whether it can be served at this moment: it is there, is a bridge, is up, and has our address with our prefix.
    pub fn state(&self) -> Result<Bridge, BridgeError> {
        Bridge::look(&self.name, self.address, self.allowed)
    }

    fn look(name: &BridgeName, address: Ipv4Network, allowed: Allowed) -> Result<Bridge, BridgeError> {
        let unreadable = |source| BridgeError::Unreadable { name: name.clone(), source };
        let link = Link::find(&name.0).map_err(unreadable)?;
        let link = link.ok_or_else(|| BridgeError::Missing { name: name.clone(), address })?;
        let fits = link.is_bridge || allowed.permits(Hazard::NotABridge);
        // Without an Ethernet address there is nothing to answer from, whatever is allowed.
        let Some(mac) = link.mac.filter(|mac| fits && (link.is_bridge || mac.is_station())) else {
            return Err(BridgeError::NotABridge { name: name.clone() });
        };
        if !link.up {
            return Err(BridgeError::Down { name: name.clone() });
        }
        let present = link::ipv4_addresses(link.index).map_err(unreadable)?;
        if !present.contains(&address) {
            return Err(BridgeError::NoAddress { name: name.clone(), address, present });
        }
        Ok(Bridge { name: name.clone(), index: link.index, mac, address, allowed })
    }

    /// Our own address on the bridge.
    pub fn ip(&self) -> Ipv4Addr {
        self.address.ip()
    }

    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        self.address.contains(ip)
    }

    /// The bridge as it is now; `None` if the device our sockets are bound to is gone, even if another has its name.
    pub fn link(&self) -> Option<Link> {
        Link::find(&self.name.0).ok().flatten().filter(|link| link.index == self.index)
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
        Urgency::Prompt.set_on(&socket);
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        // From here on, not before: libvirt's dnsmasq takes the port of all devices for a moment before it ties itself to
        // its own bridge, and could not start beside us; while for us a port that is taken stays taken.
        socket.set_reuse_address(true)?;
        Ok(socket.into())
    }

    /// Ties a socket made from an earlier value of this bridge to the device that has its name now.
    pub fn rebind(&self, socket: &impl AsFd) -> io::Result<()> {
        SockRef::from(socket).bind_device(Some(self.name.0.as_bytes()))
    }

    /// A TCP listener on our address and this device; does not block. Accepted connections send at once, and before bulk
    /// data (`TCP_NODELAY`, the priority and the congestion control are inherited from the listener).
    pub fn tcp_listener(&self, port: u16) -> io::Result<TcpListener> {
        let socket = self.socket(Type::STREAM, Protocol::TCP)?;
        // A restart must not wait for connections of the previous run to leave TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        congestion::choose_for(&socket);
        Urgency::Prompt.set_on(&socket);
        socket.bind(&SocketAddr::from((self.ip(), port)).into())?;
        socket.listen(TCP_BACKLOG)?;
        Ok(socket.into())
    }

    /// The same on `169.254.169.254`, which [`link_local`](super::link_local) makes local here. What it sends reaches the
    /// next machine and no further (TTL 1): a node does not pass its metadata on to what runs behind it.
    pub fn link_local_listener(&self, port: u16) -> io::Result<TcpListener> {
        let socket = self.socket(Type::STREAM, Protocol::TCP)?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        // No interface has the address.
        socket.set_ip_transparent_v4(true)?;
        socket.set_ttl_v4(1)?;
        Urgency::Prompt.set_on(&socket);
        socket.bind(&SocketAddr::from((link_local::ADDRESS, port)).into())?;
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
