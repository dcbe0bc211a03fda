//! Our ports, tried the way `farrier serve` opens them; and who has those that are taken, as `ss` tells.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use super::printed;
use crate::doctor::facts::{Door, DoorState, Holder};
use crate::net::Bridge;

const DOORS: [(&str, &str, u16); 4] =
    [("DHCP", "udp", 67), ("TFTP", "udp", 69), ("PXE", "udp", 4011), ("HTTP", "tcp", 80)];

pub(super) fn try_all(bridge: Option<&Bridge>) -> Vec<Door> {
    let state = |protocol, port| bridge.map_or(DoorState::NotTried, |bridge| try_one(bridge, protocol, port));
    let door = |(service, protocol, port)| Door { service, protocol, port, state: state(protocol, port) };
    DOORS.map(door).to_vec()
}

fn try_one(bridge: &Bridge, protocol: &str, port: u16) -> DoorState {
    let opened = match protocol {
        "tcp" => bridge.tcp_listener(port).map(drop),
        _ => bridge.udp_socket(port).map(drop),
    };
    match opened {
        Ok(()) => DoorState::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let kind = if protocol == "tcp" { "-t" } else { "-u" };
            // Without `ss` the port is taken all the same; by whom is not known.
            let sockets = printed("ss", &["-H", "-l", "-n", "-p", kind]).unwrap_or_default();
            DoorState::Taken(
                holders(&sockets, &bridge.name.0, bridge.ip(), port).into_iter().map(describe).collect(),
            )
        }
        Err(error) => DoorState::Refused(error.to_string()),
    }
}

/// Programs and process ids of the sockets that stand in our way: those of all devices, or of the bridge.
fn holders(sockets: &str, bridge: &str, us: Ipv4Addr, port: u16) -> Vec<(String, u32)> {
    let us = us.to_string();
    let mut found = Vec::new();
    for line in sockets.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // State, receive queue, send queue, local address, peer address, who.
        let Some((place, number)) = words.get(3).and_then(|local| local.rsplit_once(':')) else { continue };
        let (address, device) =
            place.split_once('%').map_or((place, None), |(address, device)| (address, Some(device)));
        let address = address.trim_matches(['[', ']']).trim_start_matches("::ffff:");
        let in_the_way = number.parse() == Ok(port)
            && device.is_none_or(|device| device == bridge)
            && (["0.0.0.0", "*", "::"].contains(&address) || address == us);
        if !in_the_way {
            continue;
        }
        // users:(("dnsmasq",pid=12,fd=4),("dnsmasq",pid=13,fd=4))
        for holder in line.split("(\"").skip(1) {
            let name = holder.split('"').next().unwrap_or_default().to_owned();
            let pid = holder.split("pid=").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok());
            let Some(pid) = pid else { continue };
            if !found.iter().any(|(_, known)| *known == pid) {
                found.push((name, pid));
            }
        }
    }
    found
}

fn describe((program, pid): (String, u32)) -> Holder {
    let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let arguments = read("cmdline").split('\0').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let unit = read("cgroup")
        .lines()
        .filter_map(|line| line.rsplit('/').next())
        .find(|name| name.ends_with(".service"))
        .map(str::to_owned);
    Holder { pid, program, arguments, unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_in_our_way_count() {
        let sockets = r#"
UNCONN 0 0 0.0.0.0%virbr0:67 0.0.0.0:* users:(("dnsmasq",pid=1,fd=4))
UNCONN 0 0 0.0.0.0%br0:67 0.0.0.0:* users:(("dhcpd",pid=2,fd=4),("dhcpd",pid=3,fd=4))
UNCONN 0 0 0.0.0.0:69 0.0.0.0:* users:(("in.tftpd",pid=4,fd=4))
UNCONN 0 0 10.0.0.1:67 0.0.0.0:* users:(("elsewhere",pid=5,fd=4))
LISTEN 0 511 *:80 *:* users:(("nginx",pid=6,fd=4))
LISTEN 0 511 [::]:80 [::]:* users:(("nginx",pid=6,fd=5))
LISTEN 0 511 [::ffff:192.168.2.2]:80 *:*
nonsense"#;
        let find = |port| holders(sockets, "br0", Ipv4Addr::new(192, 168, 2, 2), port);
        assert_eq!(find(67), [("dhcpd".to_owned(), 2), ("dhcpd".to_owned(), 3)]);
        assert_eq!(find(69), [("in.tftpd".to_owned(), 4)]);
        assert_eq!(find(80), [("nginx".to_owned(), 6)]);
        assert_eq!(find(4011), []);
    }
}
