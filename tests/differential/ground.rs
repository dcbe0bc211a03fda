//! Three servers, each alone on a wire, all with the same address, subnet, pool, lease time and boot files: as somebody
//! who knows them would set them up for machines that netboot.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use crate::station::{BRIDGE, Station};
use crate::support::{ClientMachine, Process, SERVER, TestBed, eventually, run};

pub const SUBNET: &str = "192.160.0.0/11";
const ADDRESS: &str = "192.168.77.2/11";
pub const MASK: Ipv4Addr = Ipv4Addr::new(255, 224, 0, 0);
pub const BROADCAST: Ipv4Addr = Ipv4Addr::new(192, 191, 255, 255);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 3);
/// A relay agent; its address is on the subnet.
pub const AGENT: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 5);
/// dnsmasq picks by a hash of the MAC: in a small pool strangers would meet.
pub const POOL_FIRST: Ipv4Addr = Ipv4Addr::new(192, 176, 0, 0);
pub const POOL_LAST: Ipv4Addr = Ipv4Addr::new(192, 191, 255, 254);
/// From here on the pool is for addresses that clients name by themselves; machines are made so that dnsmasq's hash does
/// not lead here, and the others count up from the first.
pub const NAMED_FIRST: Ipv4Addr = Ipv4Addr::new(192, 190, 0, 0);
/// Of those, the ones that no sequence names.
pub const FENCE_FIRST: Ipv4Addr = Ipv4Addr::new(192, 191, 0, 0);
/// Seconds.
pub const LEASE: u32 = 43_200;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    Farrier,
    Kea,
    Dnsmasq,
}

impl Who {
    pub const PEERS: [Who; 2] = [Who::Kea, Who::Dnsmasq];

    pub fn name(self) -> &'static str {
        match self {
            Who::Farrier => "farrier",
            Who::Kea => "Kea",
            Who::Dnsmasq => "dnsmasq",
        }
    }
}

/// The three of them, started.
pub struct Ground {
    bed: TestBed,
    peers: Vec<Peer>,
}

struct Peer {
    who: Who,
    machine: ClientMachine,
    _process: Process,
}

impl Ground {
    pub fn start() -> Ground {
        let mut bed = TestBed::on(ADDRESS, CONFIGURATION);
        run("ip", &["link", "set", "br0", "address", &BRIDGE.to_string()]);
        let path = bed.path("farrier.toml");
        let text = fs::read_to_string(&path).expect("the configuration");
        let network = format!("[network]\ngateway = \"{GATEWAY}\"\ndns = [\"{NAME_SERVER}\"]\n");
        fs::write(&path, text.replacen("[network]\n", &network, 1)).expect("the configuration");
        bed.install_loaders();
        bed.quiet = true;
        any_source("br0");
        bed.start_server();
        let peers = Who::PEERS.map(|who| Peer::start(who, &mut bed)).into();
        Ground { bed, peers }
    }

    /// A cable to that server.
    pub fn station(&self, who: Who) -> Station {
        let number = who as u32;
        Station::plug(&bridge_of(who), number)
    }

    /// What the server said.
    pub fn log(&self, who: Who) -> String {
        let peer = self.peers.iter().find(|peer| peer.who == who);
        let text = peer.map_or_else(|| self.bed.log(), Peer::log);
        let from = text.len().saturating_sub(4000);
        text.get(from..).unwrap_or(&text).to_owned()
    }

    /// Makes the kernels forget whom they asked for by ARP: their table is small, and one for all namespaces.
    pub fn forget_neighbours(&self) {
        let flush = ["neigh", "flush", "all"];
        run("ip", &flush);
        for peer in &self.peers {
            peer.machine.run("ip", &flush);
        }
    }
}

fn bridge_of(who: Who) -> String {
    match who {
        Who::Farrier => "br0".to_owned(),
        Who::Kea => "br1".to_owned(),
        Who::Dnsmasq => "br2".to_owned(),
    }
}

/// The kernel takes packets from whatever address: some clients claim a foreign one.
fn any_source(interface: &str) {
    for name in ["all", interface] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0")
            .expect("a setting of this namespace");
    }
}

impl Peer {
    fn start(who: Who, bed: &mut TestBed) -> Peer {
        let bridge = bridge_of(who);
        run("ip", &["link", "add", &bridge, "type", "bridge", "forward_delay", "0", "stp_state", "0"]);
        run("ip", &["link", "set", &bridge, "up"]);
        // Nothing but the server on this bridge has that MAC.
        let machine = bed.plug_into(&bridge, &BRIDGE.to_string());
        machine.run("ip", &["addr", "add", ADDRESS, "dev", "eth0"]);
        machine.inside(|| any_source("eth0"));
        let mut command = match who {
            Who::Kea => kea(&machine),
            Who::Dnsmasq => dnsmasq(&machine),
            Who::Farrier => unreachable!("is no peer of itself"),
        };
        let log = fs::File::create(machine.path("log")).expect("a log file");
        let child = command
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("the peer starts (.ci/packages.txt names the Debian package)");
        let mut process = Process(child);
        eventually(&format!("{} listens", who.name()), || {
            let ended = process.0.try_wait().expect("a child");
            assert!(
                ended.is_none(),
                "{} ended:\n{}",
                who.name(),
                String::from_utf8_lossy(&machine.read("log"))
            );
            machine.run("ss", &["-Hlun", "sport", "=", ":67"]).contains(":67").then_some(())
        });
        Peer { who, machine, _process: process }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.machine.read("log")).into_owned()
    }
}

const CONFIGURATION: &str = "[dhcp]\npool = \"192.176.0.0-192.191.255.254\"\nlease = \"12h\"\n\
     [dhcp.strangers]\nshare = \"100%\"\nper_second = 100000\n";

fn filled(machine: &ClientMachine, name: &str, template: &str) -> String {
    let mut text = template.to_owned();
    for (place, value) in [
        ("@SERVER@", SERVER.to_string()),
        ("@SUBNET@", SUBNET.to_owned()),
        ("@MASK@", MASK.to_string()),
        ("@POOL_FIRST@", POOL_FIRST.to_string()),
        ("@POOL_LAST@", POOL_LAST.to_string()),
        ("@GATEWAY@", GATEWAY.to_string()),
        ("@BROADCAST@", BROADCAST.to_string()),
        ("@NAME_SERVER@", NAME_SERVER.to_string()),
        ("@LEASE@", LEASE.to_string()),
        ("@PLACE@", machine.path("").display().to_string()),
    ] {
        text = text.replace(place, &value);
    }
    let path = machine.path(name);
    fs::write(&path, text).expect("a configuration");
    path.display().to_string()
}

fn kea(machine: &ClientMachine) -> Command {
    let path = filled(machine, "kea.json", include_str!("kea.json"));
    let mut command = machine.command("kea-dhcp4", &["-c", &path]);
    command.env("KEA_PIDFILE_DIR", machine.path("")).env("KEA_LOCKFILE_DIR", machine.path(""));
    command
}

fn dnsmasq(machine: &ClientMachine) -> Command {
    let path = filled(machine, "dnsmasq.conf", include_str!("dnsmasq.conf"));
    machine.command("dnsmasq", &["--keep-in-foreground", "-C", &path])
}
