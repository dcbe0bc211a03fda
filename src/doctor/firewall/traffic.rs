//! The packets without which nothing boots.

use std::net::Ipv4Addr;

use super::Family;

/// One kind of packet, by a typical specimen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub name: &'static str,
    pub bridge: String,
    /// The bridge's ports, which rules for frames see instead of the bridge.
    pub ports: Vec<String>,
    /// Towards us.
    pub incoming: bool,
    pub protocol: &'static str,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    /// `None` for one that the kernel chooses.
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    pub established: bool,
}

impl Traffic {
    /// The port of ours by which the traffic can be told; `None` where the kernel chooses it.
    pub fn service_port(&self) -> Option<u16> {
        if self.incoming { self.destination_port } else { self.source_port }
    }

    /// The devices it may be on, as rules of that family see them.
    pub(super) fn devices(&self, family: Family) -> Vec<&str> {
        match family {
            Family::Ip | Family::Inet => vec![&self.bridge],
            Family::Bridge | Family::Netdev => self.ports.iter().map(String::as_str).collect(),
        }
    }
}

/// What must get in and out for a machine at `client` to boot from `us`.
pub fn of_a_boot(bridge: &str, ports: &[String], us: Ipv4Addr, client: Ipv4Addr) -> Vec<Traffic> {
    let base = Traffic {
        name: "",
        bridge: bridge.to_owned(),
        ports: ports.to_vec(),
        incoming: true,
        protocol: "udp",
        source: client,
        destination: us,
        source_port: None,
        destination_port: None,
        established: false,
    };
    let inward =
        |name, protocol, port| Traffic { name, protocol, destination_port: Some(port), ..base.clone() };
    let outward = |name, protocol, port, established| Traffic {
        name,
        protocol,
        incoming: false,
        source: us,
        destination: client,
        source_port: port,
        established,
        ..base.clone()
    };
    vec![
        Traffic {
            source: Ipv4Addr::UNSPECIFIED,
            destination: Ipv4Addr::BROADCAST,
            source_port: Some(68),
            ..inward("DHCP", "udp", 67)
        },
        inward("PXE", "udp", 4011),
        inward("TFTP", "udp", 69),
        Traffic { name: "TFTP data", established: true, ..base.clone() },
        inward("HTTP", "tcp", 80),
        Traffic { destination_port: Some(68), ..outward("DHCP", "udp", Some(67), false) },
        outward("TFTP data", "udp", None, false),
        outward("HTTP", "tcp", Some(80), true),
    ]
}
