//! Machines that are played: what the wire would say of them, told to the registry.

use std::net::Ipv4Addr;
use std::time::Duration;

use farrier::boot::client::{Client, ClientClass, Firmware};
use farrier::boot::decision::ScriptPlan;
use farrier::clock::Timestamp;
use farrier::dhcp::lease::LeaseState;
use farrier::net::MacAddr;
use farrier::node::inventory::{BootedBy, Cpu, Disk, Inventory, Nic, System};
use farrier::node::registry::{Hello, NewNode};
use farrier::node::timeline::{FileOutcome, Happening, Stage, Transport};

use crate::rig::Rig;

/// How far a machine comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Until {
    Dhcp,
    Loader,
    Script,
    Kernel,
    Ramdisk,
    Agent,
    Enrolled,
}

pub struct Machine<'a> {
    rig: &'a Rig,
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    pub firmware: Firmware,
    at: Timestamp,
}

impl<'a> Machine<'a> {
    pub fn new(rig: &'a Rig, number: u16) -> Machine<'a> {
        let [high, low] = number.to_be_bytes();
        let mac = MacAddr([0x52, 0x54, 0, 0x12, high, low]);
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 20, 0, 100)) + u32::from(number));
        let firmware = match number % 5 {
            0 => Firmware::Bios,
            1 => Firmware::UefiX64Http,
            _ => Firmware::UefiX64,
        };
        Machine { rig, mac, address, firmware, at: rig.now() }
    }

    pub fn register(self, name: &str, reserved: bool) -> Machine<'a> {
        let macs = vec![(self.mac, reserved.then_some(self.address))];
        let new = NewNode { name: Some(name.parse().expect("a name")), macs, quirks: None };
        let at = self.rig.now().minus(Duration::from_secs(7 * 86_400));
        self.rig.registry.register(new, at).expect("it is registered");
        self
    }

    /// Switched on that long ago.
    pub fn on(mut self, ago: Duration) -> Machine<'a> {
        self.at = self.rig.now().minus(ago);
        self
    }

    pub fn tell(&mut self, after_millis: u64, happening: Happening) {
        self.at = self.at.plus(Duration::from_millis(after_millis));
        self.rig.registry.record(self.mac, happening, self.at);
    }

    fn dhcp(
        &mut self,
        after: u64,
        class: ClientClass,
        message: &str,
        answer: Result<&str, &str>,
        file: Option<&str>,
    ) {
        let happening = Happening::Dhcp {
            port: self.mac,
            class,
            message: message.to_owned(),
            xid: 0x5eed_0001,
            answer: answer.map(str::to_owned).map_err(str::to_owned),
            address: answer.is_ok().then_some(self.address),
            boot_file: file.map(str::to_owned),
            nothing_to_boot: None,
            other_server: None,
        };
        self.tell(after, happening);
    }

    pub fn file(&mut self, after: u64, stage: Stage, name: &str, size: u64, took: u64, outcome: FileOutcome) {
        let sent = match outcome {
            FileOutcome::Complete | FileOutcome::Range => size,
            FileOutcome::Aborted(_) => size / 3,
            FileOutcome::Probe | FileOutcome::NotFound => 0,
        };
        let transport = if self.firmware == Firmware::UefiX64 && stage <= Stage::Loader {
            Transport::Tftp
        } else {
            Transport::Http
        };
        self.rig.tally.add("http", "bytes", sent);
        self.tell(
            after + took,
            Happening::File {
                transport,
                stage: Some(stage),
                name: name.to_owned(),
                size: Some(size),
                sent,
                took_millis: took,
                outcome,
                tftp: None,
            },
        );
    }

    pub fn client(&self, class: ClientClass) -> Client {
        Client { mac: self.mac, class, uuid: None }
    }

    /// Everything a boot consists of, up to that stage.
    pub fn boot(&mut self, until: Until) {
        let class = ClientClass::Firmware { firmware: self.firmware };
        self.rig.registry.seen(&self.client(class), self.at);
        self.dhcp(0, class, "discover", Ok("offer"), Some("shimx64.efi"));
        self.rig.registry.granted(&self.client(class), self.at);
        self.dhcp(40, class, "request", Ok("ack"), Some("shimx64.efi"));
        self.rig.lease(self.address, self.mac, LeaseState::Bound, None);
        if until == Until::Dhcp {
            return;
        }
        self.file(20, Stage::Loader, "shimx64.efi", 952_384, 0, FileOutcome::Probe);
        self.file(15, Stage::Loader, "shimx64.efi", 952_384, 210, FileOutcome::Complete);
        self.tell(
            30,
            Happening::File {
                transport: Transport::Tftp,
                stage: None,
                name: "revocations.efi".to_owned(),
                size: None,
                sent: 0,
                took_millis: 0,
                outcome: FileOutcome::NotFound,
                tftp: None,
            },
        );
        self.file(10, Stage::Loader, "grubx64.efi", 2_653_184, 480, FileOutcome::Complete);
        if until == Until::Loader {
            return;
        }
        let plan = match self.rig.registry.standing(self.mac, self.at) {
            farrier::boot::decision::Standing::Known(node) if node.approved => ScriptPlan::Ramdisk,
            _ => ScriptPlan::AwaitApproval,
        };
        let name = format!("grub/grub.cfg-01-{}", self.mac.to_string().replace(':', "-"));
        self.tell(90, Happening::Script { name: name.clone(), plan, token_issued_at: None });
        self.file(1, Stage::Script, &name, 914, 3, FileOutcome::Complete);
        if until == Until::Script {
            return;
        }
        let token = self.rig.registry.issue_token(self.mac, self.address, self.at).map(|token| token.text);
        self.file(120, Stage::Kernel, "metal/vmlinuz", 9_216_544, 160, FileOutcome::Complete);
        if until == Until::Kernel {
            return;
        }
        self.file(8, Stage::Ramdisk, "metal/initrd.img", 38_411_264, 590, FileOutcome::Complete);
        if until == Until::Ramdisk {
            return;
        }
        let token = token.expect("an approved node has a token");
        self.at = self.at.plus(Duration::from_millis(3_900));
        let hello = Hello { token: &token, nonce: None, uptime_secs: 2.7 };
        let session = self
            .rig
            .registry
            .hello(&hello, self.mac, self.address, self.at)
            .expect("the token is good")
            .session;
        if until == Until::Agent {
            return;
        }
        self.at = self.at.plus(Duration::from_millis(420));
        let inventory = self.inventory();
        self.rig
            .registry
            .report_inventory(&session, self.mac, self.address, inventory, self.at)
            .expect("it is awaited");
    }

    fn inventory(&self) -> Inventory {
        let serial = format!("CZ{:06}", u32::from(self.mac.0[4]) * 256 + u32::from(self.mac.0[5]) + 41_000);
        let disk = |name: &str| Disk {
            name: name.to_owned(),
            model: Some("SAMSUNG MZ7L3960".to_owned()),
            serial: Some(format!("S6{serial}{name}")),
            bytes: 960_197_124_096,
            rotational: false,
            removable: false,
        };
        Inventory {
            system: System {
                vendor: Some("Supermicro".to_owned()),
                product: Some("SYS-1029P-WTR".to_owned()),
                serial: Some(serial.clone()),
                bios_vendor: Some("American Megatrends".to_owned()),
                bios_version: Some("3.4".to_owned()),
                ..System::default()
            },
            cpu: Cpu {
                model: "Intel(R) Xeon(R) Gold 6226R CPU @ 2.90GHz".to_owned(),
                architecture: "x86_64".to_owned(),
                logical: 64,
                cores: 32,
                sockets: 2,
            },
            memory_bytes: 384 << 30,
            disks: vec![disk("sda"), disk("sdb")],
            nics: vec![Nic {
                name: "eno1".to_owned(),
                mac: self.mac,
                driver: Some("i40e".to_owned()),
                speed_mbps: Some(10_000),
                link: true,
            }],
            uptime_secs: 3.1,
            kernel: "6.1.0-42-cloud-amd64".to_owned(),
            booted_by: BootedBy::UefiSecureBoot,
        }
    }
}

/// A rack on an ordinary morning: most of it up, some of it moving, some in trouble.
pub fn rack(rig: &Rig) {
    let secs = Duration::from_secs;
    for number in 1..=14 {
        let mut machine =
            Machine::new(rig, number).register(&format!("rack1-node{number:02}"), number % 4 == 0);
        if number == 1 {
            machine = machine.on(secs(90_000));
            machine.boot(Until::Loader);
            machine = machine.on(secs(52_000));
            machine.boot(Until::Enrolled);
        }
        machine = machine.on(secs(3_600 + 97 * u64::from(number)));
        machine.boot(Until::Enrolled);
    }
    let moving = [Until::Loader, Until::Script, Until::Kernel, Until::Ramdisk, Until::Agent];
    for (number, until) in (15..).zip(moving) {
        let mut machine =
            Machine::new(rig, number).register(&format!("rack1-node{number}"), false).on(secs(2));
        machine.boot(until);
    }
    let mut cut = Machine::new(rig, 20).register("rack1-node20", false).on(secs(1_900));
    cut.boot(Until::Kernel);
    cut.file(
        8,
        Stage::Ramdisk,
        "metal/initrd.img",
        38_411_264,
        4_200,
        FileOutcome::Aborted("the connection was closed".to_owned()),
    );
    let mut silent = Machine::new(rig, 21).register("rack1-node21", false).on(secs(2_400));
    silent.boot(Until::Ramdisk);
    Machine::new(rig, 22).register("rack1-node22", true);
    Machine::new(rig, 23).register("rack1-node23", true);
    for number in 24..=26 {
        Machine::new(rig, number).on(secs(40 * u64::from(number))).boot(Until::Script);
    }
    // Whose ramdisk has not called within the deadline has failed.
    rig.registry.tick(rig.now().minus(secs(2_390)));
    rig.registry.tick(rig.now());
    rig.lease(Ipv4Addr::new(10, 20, 1, 7), MacAddr([2, 0, 0, 0, 0, 9]), LeaseState::Quarantined, None);
    rig.lease(
        Ipv4Addr::new(10, 20, 1, 9),
        MacAddr([2, 0, 0, 0, 0, 10]),
        LeaseState::Released,
        Some("laptop"),
    );
    rig.lease(Ipv4Addr::new(10, 20, 1, 12), MacAddr([2, 0, 0, 0, 0, 11]), LeaseState::Offered, None);
    for (service, outcome, count) in [
        ("dhcp", "offer", 61),
        ("dhcp", "ack", 58),
        ("dhcp", "unknown-mac", 3),
        ("tftp", "complete", 84),
        ("tftp", "bytes", 90_211_004),
        ("http", "complete", 51),
        ("http", "aborted", 1),
    ] {
        rig.tally.add(service, outcome, count);
    }
}
