//! Network interfaces that have hardware behind them.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::agent::BUSYBOX;
use crate::agent::collect::{names, number};
use crate::net::MacAddr;
use crate::node::inventory::Nic;

/// An Ethernet interface; `/sys/class/net/*/type` of others differs (ARPHRD_ETHER).
const ETHERNET: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mac: MacAddr,
}

/// Ethernet interfaces of real or emulated hardware: they have a `device`, which bridges and tunnels lack.
pub fn interfaces(root: &Path) -> Vec<Interface> {
    let class = root.join("sys/class/net");
    names(&class)
        .into_iter()
        .filter(|name| class.join(name).join("device").exists())
        .filter(|name| number::<u32>(&class.join(name).join("type")) == Some(ETHERNET))
        .filter_map(|name| {
            let mac = number::<MacAddr>(&class.join(&name).join("address"))?;
            Some(Interface { name, mac })
        })
        .collect()
}

pub fn nics(root: &Path) -> Vec<Nic> {
    interfaces(root)
        .into_iter()
        .map(|Interface { name, mac }| {
            let directory = root.join("sys/class/net").join(&name);
            let driver = std::fs::read_link(directory.join("device/driver"))
                .ok()
                .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
            Nic {
                mac,
                driver,
                // -1 or an error while there is no link, and for ever on virtio.
                speed_mbps: number::<i64>(&directory.join("speed"))
                    .and_then(|speed| u32::try_from(speed).ok())
                    .filter(|speed| *speed > 0),
                link: number::<u8>(&directory.join("carrier")) == Some(1),
                name,
            }
        })
        .collect()
}

/// An interface that is down has no link to report. IPv6 is off first, so that no packet leaves a port we were not
/// booted from.
pub fn bring_up_all() {
    let root = Path::new("/");
    for Interface { name, .. } in interfaces(root) {
        let flags = std::fs::read_to_string(root.join("sys/class/net").join(&name).join("flags"));
        let is_up = flags
            .ok()
            .and_then(|text| u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok())
            .is_some_and(|flags| flags & 1 != 0);
        if is_up {
            continue;
        }
        // Kernels without IPv6 have no such file; a port that does not come up is reported without link.
        let _ = std::fs::write(root.join("proc/sys/net/ipv6/conf").join(&name).join("disable_ipv6"), "1");
        let _ = Command::new(BUSYBOX)
            .args(["ip", "link", "set", &name, "up"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}
