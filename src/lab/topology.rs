//! The lab's network, inside the namespace we are in: one bridge with the appliance's address and a tap per machine.
//!
//! ```text
//!   namespace ────────────────────────────────────────────────────────
//!     ooodemo  192.168.2.2/24 (appliance)  192.168.2.1/32 (host)
//!       ├── uplink ── host   a cable: a bridge none of whose ports is up has no carrier
//!       ├── tap0 ── QEMU
//!       └── tap1 ── QEMU …
//! ```
//!
//! The namespace has no name and no mount: it lives as long as a process is in it.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use crate::lab::plan::NetworkPlan;

#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("`ip` (Debian package iproute2) cannot be run")]
    Run(#[source] io::Error),
    #[error("the lab's network cannot be built: {said}")]
    Refused { said: String },
}

/// Builds the network; the namespace must be empty but for `lo`.
pub fn build(network: &NetworkPlan) -> Result<(), TopologyError> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(TopologyError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // An `ip` that stopped reading says why below.
        let _ = stdin.write_all(batch(network).as_bytes());
    }
    let output = child.wait_with_output().map_err(TopologyError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(TopologyError::Refused { said })
}

/// Commands for `ip -batch`. The bridge learns at once (no forwarding delay, no spanning tree) and keeps its own MAC:
/// without one it takes that of its newest port, and the appliance's sockets would see the address change. The cable's
/// far end is mute: in this namespace it would answer ARP for the bridge's addresses with a MAC of its own.
fn batch(network: &NetworkPlan) -> String {
    let NetworkPlan { bridge, bridge_mac, addresses, taps } = network;
    let mut text = format!(
        "link set lo up\n\
         link add {bridge} address {bridge_mac} type bridge forward_delay 0 stp_state 0\n\
         link add uplink type veth peer name host\n\
         link set host arp off addrgenmode none up\n\
         link set uplink master {bridge} addrgenmode none up\n"
    );
    for address in addresses {
        text.push_str(&format!("address add {address} dev {bridge}\n"));
    }
    text.push_str(&format!("link set {bridge} up\n"));
    for tap in taps {
        text.push_str(&format!(
            "tuntap add {tap} mode tap\nlink set {tap} master {bridge} addrgenmode none up\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_a_port_on_the_bridge() {
        let network = NetworkPlan {
            bridge: "ooodemo".to_owned(),
            bridge_mac: "52:54:00:00:02:fe".parse().unwrap(),
            addresses: vec!["192.168.2.2/24".parse().unwrap(), "192.168.2.1/32".parse().unwrap()],
            taps: vec!["tap0".to_owned(), "tap1".to_owned()],
        };
        let text = batch(&network);
        assert_eq!(text.matches("master ooodemo").count(), 3, "{text}");
        assert!(text.contains("address add 192.168.2.1/32 dev ooodemo"));
        assert!(text.lines().all(|line| !line.is_empty()));
    }
}
