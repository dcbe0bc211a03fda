//! Which process of this host answers, and the line that mends it.
//!
//! A rival is often at home: libvirt's dnsmasq, a container's, one forgotten after a try. /proc tells: a process whose
//! network namespace has the rival's address, with a socket on the port in question. Who may not look into other users'
//! processes gets by with the names of known servers among those whose command line everybody may read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::BridgeName;

/// Processes looked at; a host with more gets no answer rather than a late one.
const PROCESSES_MAX: usize = 32_768;
/// Command lines are shown to people.
const COMMAND_LINE_MAX: usize = 4096;
/// `sockets` files of /proc/PID/net that have local port 67 (DHCP) or protocol 58 (ICMPv6) where a port would stand.
const DHCP_SOCKETS: (&str, u16) = ("udp", 67);
const ROUTER_SOCKETS: (&str, u16) = ("raw6", 58);

/// Programs that serve DHCP or advertise routers, where each is configured unless told otherwise, and the options that
/// tell otherwise.
const SERVERS: [(&str, &str, &[&str]); 7] = [
    ("dnsmasq", "/etc/dnsmasq.conf", &["--conf-file", "-C"]),
    ("dhcpd", "/etc/dhcp/dhcpd.conf", &["-cf"]),
    ("kea-dhcp4", "/etc/kea/kea-dhcp4.conf", &["-c"]),
    ("udhcpd", "/etc/udhcpd.conf", &[]),
    ("radvd", "/etc/radvd.conf", &["--config", "-C"]),
    ("systemd-networkd", "/etc/systemd/network", &[]),
    ("farrier", "/etc/farrier/farrier.toml", &["--config"]),
];

/// A process of this host that answers on the bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LocalServer {
    pub pid: u32,
    /// The name of its program.
    pub program: String,
    /// The file it is configured by, if that is known of such a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
    /// What to change, and where.
    pub way_out: String,
}

/// The process with a socket on UDP port 67 (or for ICMPv6) in a namespace that has this address.
pub fn find(address: IpAddr, bridge: &BridgeName) -> Option<LocalServer> {
    Processes::new(Path::new("/proc")).find(address, bridge)
}

/// The process that holds UDP port 67 here, where we would.
pub fn holder_of_port(bridge: &BridgeName) -> Option<LocalServer> {
    Processes::new(Path::new("/proc")).holder_of_port(bridge)
}

struct Processes<'a> {
    root: &'a Path,
}

impl Processes<'_> {
    fn new(root: &Path) -> Processes<'_> {
        Processes { root }
    }

    fn find(&self, address: IpAddr, bridge: &BridgeName) -> Option<LocalServer> {
        let (sockets, port) = match address {
            IpAddr::V4(_) => DHCP_SOCKETS,
            IpAddr::V6(_) => ROUTER_SOCKETS,
        };
        let mut namespaces: BTreeMap<PathBuf, BTreeSet<u64>> = BTreeMap::new();
        for pid in self.pids() {
            let Ok(namespace) = fs::read_link(self.path(pid, "ns/net")) else { continue };
            let wanted =
                namespaces.entry(namespace).or_insert_with(|| match self.has_address(pid, address) {
                    true => self.sockets_on(pid, sockets, port),
                    false => BTreeSet::new(),
                });
            if !wanted.is_empty() && self.holds_one_of(pid, wanted) {
                let interface = self.interface_to(pid, address);
                return Some(self.describe(pid, interface.as_deref().unwrap_or(&bridge.0)));
            }
        }
        self.by_name(address, bridge)
    }

    fn holder_of_port(&self, bridge: &BridgeName) -> Option<LocalServer> {
        let own = std::process::id();
        let wanted = self.sockets_on(own, DHCP_SOCKETS.0, DHCP_SOCKETS.1);
        let holder = self.pids().find(|pid| *pid != own && self.holds_one_of(*pid, &wanted));
        Some(self.describe(holder?, &bridge.0))
    }

    /// Without a look at its descriptors: a known server in a namespace that has the address, if there is but one.
    fn by_name(&self, address: IpAddr, bridge: &BridgeName) -> Option<LocalServer> {
        let known = |pid: &u32| {
            let name = self.program(*pid);
            SERVERS.iter().any(|(server, ..)| *server == name) && *pid != std::process::id()
        };
        let mut candidates = self.pids().filter(known).filter(|pid| self.has_address(*pid, address));
        let (first, second) = (candidates.next()?, candidates.next());
        if second.is_some() {
            return None;
        }
        let interface = self.interface_to(first, address);
        Some(self.describe(first, interface.as_deref().unwrap_or(&bridge.0)))
    }

    fn pids(&self) -> impl Iterator<Item = u32> + use<> {
        let entries = fs::read_dir(self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(PROCESSES_MAX)
    }

    fn path(&self, pid: u32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }

    fn read(&self, pid: u32, name: &str) -> String {
        fs::read(self.path(pid, name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether the process's namespace has this address as its own.
    fn has_address(&self, pid: u32, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => is_local(&self.read(pid, "net/fib_trie"), address),
            IpAddr::V6(address) => {
                let digits = HEXLOWER.encode(&address.octets());
                self.read(pid, "net/if_inet6").lines().any(|line| line.starts_with(&digits))
            }
        }
    }

    /// Inodes of the sockets of this kind on that local port.
    fn sockets_on(&self, pid: u32, kind: &str, port: u16) -> BTreeSet<u64> {
        let table = self.read(pid, &format!("net/{kind}"));
        table.lines().filter_map(|line| socket_on(line, port)).collect()
    }

    fn holds_one_of(&self, pid: u32, sockets: &BTreeSet<u64>) -> bool {
        let Ok(descriptors) = fs::read_dir(self.path(pid, "fd")) else { return false };
        descriptors.flatten().any(|descriptor| {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
            inode.and_then(|digits| digits.parse().ok()).is_some_and(|inode| sockets.contains(&inode))
        })
    }

    /// The interface by which the process's namespace reaches the address's subnet: the one it serves.
    fn interface_to(&self, pid: u32, address: IpAddr) -> Option<String> {
        let IpAddr::V4(address) = address else { return None };
        let routes = self.read(pid, "net/route");
        let on_link = |line: &str| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?;
            let hex = |text: Option<&str>| u32::from_str_radix(text?, 16).ok().map(u32::from_be);
            let (destination, gateway) = (hex(fields.next())?, hex(fields.next())?);
            let mask = hex(fields.nth(4))?;
            let fits = gateway == 0 && mask != 0 && u32::from(address) & mask == destination;
            fits.then(|| name.to_owned())
        };
        routes.lines().skip(1).find_map(on_link)
    }

    fn program(&self, pid: u32) -> String {
        self.read(pid, "comm").trim().chars().filter(|c| !c.is_control()).collect()
    }

    fn describe(&self, pid: u32, interface: &str) -> LocalServer {
        let program = self.program(pid);
        let line = self.read(pid, "cmdline");
        let words: Vec<&str> = line.get(..COMMAND_LINE_MAX).unwrap_or(&line).split('\0').collect();
        let configuration = configuration_of(&program, &words);
        let way_out = way_out(&program, configuration.as_deref(), interface, pid);
        LocalServer { pid, program, configuration, way_out }
    }
}

/// Whether a routing trie (/proc/net/fib_trie) lists the address as the host's own.
fn is_local(trie: &str, address: Ipv4Addr) -> bool {
    let leaf = format!("|-- {address}");
    let mut at_it = false;
    trie.lines().any(|line| {
        let line = line.trim();
        if line.contains("-- ") {
            at_it = line == leaf;
        }
        at_it && line.starts_with("/32 host LOCAL")
    })
}

/// The inode, if this line of /proc/net/udp (or raw6) is a socket on that local port.
fn socket_on(line: &str, port: u16) -> Option<u64> {
    let mut fields = line.split_whitespace();
    let (_, local) = (fields.next()?, fields.next()?);
    let (_, bound) = local.rsplit_once(':')?;
    if u16::from_str_radix(bound, 16) != Ok(port) {
        return None;
    }
    fields.nth(7)?.parse().ok()
}

fn configuration_of(program: &str, words: &[&str]) -> Option<String> {
    let (_, usual, options) = SERVERS.iter().find(|(name, ..)| *name == program)?;
    let told = words.iter().enumerate().skip(1).find_map(|(index, word)| {
        let option = options.iter().find(|option| word.starts_with(**option))?;
        let rest = &word[option.len()..];
        match rest.strip_prefix('=').unwrap_or(rest) {
            "" => words.get(index + 1).map(|next| (*next).to_owned()),
            joined => Some(joined.to_owned()),
        }
    });
    Some(told.filter(|path| !path.is_empty()).unwrap_or_else(|| (*usual).to_owned()))
}

fn way_out(program: &str, configuration: Option<&str>, interface: &str, pid: u32) -> String {
    let file = configuration.unwrap_or_default();
    match program {
        "dnsmasq" => match libvirt_network(file) {
            Some(network) => format!(
                "libvirt writes {file} itself: `virsh net-edit {network}`, add the dnsmasq option except-interface={interface} (<dnsmasq:option value=\"except-interface={interface}\"/>), then `virsh net-destroy {network}` and `virsh net-start {network}`"
            ),
            None => format!("add the line except-interface={interface} to {file} and restart dnsmasq"),
        },
        "dhcpd" => format!(
            "name only other interfaces in INTERFACESv4 of /etc/default/isc-dhcp-server, or remove the subnet of {interface} from {file}, and restart dhcpd"
        ),
        "kea-dhcp4" => {
            format!("remove \"{interface}\" from interfaces-config in {file} and restart kea-dhcp4")
        }
        "udhcpd" => format!("change interface, which is {interface}, in {file}, or stop udhcpd"),
        "radvd" => format!("remove the section `interface {interface}` from {file} and restart radvd"),
        "systemd-networkd" => {
            format!("set DHCPServer=no and IPv6SendRA=no in the .network file of {interface} below {file}")
        }
        "farrier" => {
            "one farrier serves one bridge: stop one of the two, or give it a bridge of its own".to_owned()
        }
        _ => format!("stop it (`kill {pid}`), or take it off {interface}"),
    }
}

/// The network whose file this is, where libvirt keeps them.
fn libvirt_network(file: &str) -> Option<&str> {
    let name = Path::new(file).file_stem()?.to_str()?;
    file.contains("/libvirt/dnsmasq/").then_some(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const UDP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
         1000: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0\n\
         1001: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0\n";
    const TRIE: &str = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.168.77.0\n        /24 link UNICAST\n     |-- 192.168.77.9\n        /32 host LOCAL\n     |-- 192.168.77.255\n        /32 link BROADCAST\n";
    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
         eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
         virbr0\t004DA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

    /// A process in a made-up /proc.
    fn process(root: &Path, pid: u32, namespace: &str, comm: &str, cmdline: &str, socket: Option<u64>) {
        let folder = root.join(pid.to_string());
        for part in ["ns", "net", "fd"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        symlink(format!("net:[{namespace}]"), folder.join("ns/net")).unwrap();
        fs::write(folder.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(folder.join("cmdline"), cmdline.replace(' ', "\0") + "\0").unwrap();
        let serves = namespace == "2";
        fs::write(folder.join("net/udp"), if serves { UDP } else { "" }).unwrap();
        fs::write(folder.join("net/fib_trie"), if serves { TRIE } else { "" }).unwrap();
        fs::write(folder.join("net/route"), ROUTES).unwrap();
        if let Some(inode) = socket {
            symlink(format!("socket:[{inode}]"), folder.join("fd/4")).unwrap();
        }
    }

    #[test]
    fn the_process_with_the_socket_and_the_address_is_it() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 10, "1", "dnsmasq", "dnsmasq -C /elsewhere", Some(4711));
        process(proc.path(), 11, "2", "sh", "sh", None);
        process(
            proc.path(),
            12,
            "2",
            "dnsmasq",
            "/usr/sbin/dnsmasq --conf-file=/var/lib/libvirt/dnsmasq/default.conf",
            Some(4711),
        );
        let bridge = BridgeName("br0".to_owned());
        let processes = Processes::new(proc.path());
        let found = processes.find("192.168.77.9".parse().unwrap(), &bridge).unwrap();
        assert_eq!((found.pid, found.program.as_str()), (12, "dnsmasq"));
        assert_eq!(found.configuration.as_deref(), Some("/var/lib/libvirt/dnsmasq/default.conf"));
        assert!(found.way_out.contains("except-interface=virbr0"), "{}", found.way_out);
        assert!(found.way_out.contains("virsh net-edit default"), "{}", found.way_out);
        assert_eq!(processes.find("192.168.77.10".parse().unwrap(), &bridge), None, "not of this host");
    }

    #[test]
    fn without_a_look_at_descriptors_the_name_will_do_if_there_is_one() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 12, "2", "dnsmasq", "dnsmasq --port 0", None);
        let bridge = BridgeName("br0".to_owned());
        let address = "192.168.77.9".parse().unwrap();
        let found = Processes::new(proc.path()).find(address, &bridge).unwrap();
        assert_eq!(
            found.way_out,
            "add the line except-interface=virbr0 to /etc/dnsmasq.conf and restart dnsmasq"
        );
        process(proc.path(), 13, "2", "dhcpd", "dhcpd br0", None);
        assert_eq!(Processes::new(proc.path()).find(address, &bridge), None, "either of the two");
    }

    #[test]
    fn configuration_files_are_read_off_command_lines() {
        let of = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            configuration_of(words[0], &words).unwrap_or_default()
        };
        assert_eq!(of("dnsmasq"), "/etc/dnsmasq.conf");
        assert_eq!(of("dnsmasq -k -C /a"), "/a");
        assert_eq!(of("dnsmasq --conf-file /a"), "/a");
        assert_eq!(of("dnsmasq -C"), "/etc/dnsmasq.conf");
        assert_eq!(of("dhcpd -4 -cf /b br0"), "/b");
        assert_eq!(of("kea-dhcp4 -c /c"), "/c");
        assert_eq!(of("nobody"), "");
    }
}
