//! `lab.toml`: what the lab is made of.
//!
//! As with the appliance's own configuration there are two shapes: the file as serde reads it (unknown keys are
//! refused) and [`LabConfig`], which holds only what makes sense together.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::net::MacAddr;
use crate::node::{NodeName, ParseNameError};

/// The file the program falls back to; the same one the repository shows.
pub const BUILT_IN: &str = include_str!("../../config/lab.toml");

/// Machines in one lab. Each costs a QEMU process and up to its whole memory.
pub const MACHINES_MAX: usize = 32;

/// Least memory a machine boots the deploy ramdisk in, in MiB.
const MEMORY_MIN_MIB: u32 = 256;

/// Bytes of an interface name (`IFNAMSIZ` less the NUL).
const INTERFACE_NAME_MAX: usize = 15;

#[derive(Clone, Debug, PartialEq)]
pub struct LabConfig {
    pub bridge: String,
    /// The appliance's address on the bridge.
    pub address: Ipv4Network,
    /// The host's address on the bridge.
    pub host: Ipv4Addr,
    pub operator: SocketAddr,
    pub accel: AccelWish,
    /// Machines booting at the same time; `None` is all.
    pub at_once: Option<usize>,
    /// Laid over the appliance's configuration.
    pub appliance: toml::Table,
    pub machines: Vec<MachineConfig>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct MachineConfig {
    pub name: NodeName,
    pub firmware: LabFirmware,
    pub mac: MacAddr,
    /// What its UUID and serial number are made of: its MAC, unless it is to claim another machine's.
    pub identity: MacAddr,
    pub memory_mib: u32,
    /// Size of its empty disk.
    pub disk_bytes: Option<u64>,
}

/// Firmware a lab machine can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabFirmware {
    Bios,
    Uefi,
    UefiHttp,
    UefiSecure,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccelWish {
    #[default]
    Auto,
    Kvm,
    Tcg,
}

impl LabFirmware {
    pub const ALL: [LabFirmware; 4] =
        [LabFirmware::Bios, LabFirmware::Uefi, LabFirmware::UefiHttp, LabFirmware::UefiSecure];

    pub fn as_str(self) -> &'static str {
        match self {
            LabFirmware::Bios => "bios",
            LabFirmware::Uefi => "uefi",
            LabFirmware::UefiHttp => "uefi-http",
            LabFirmware::UefiSecure => "uefi-secure",
        }
    }
}

impl fmt::Display for LabFirmware {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl MachineConfig {
    /// SMBIOS UUID: our word and a MAC, so that a machine keeps it from one lab to the next.
    pub fn uuid(&self) -> Uuid {
        let mut bytes = *b"farrierlab\0\0\0\0\0\0";
        bytes[10..].copy_from_slice(&self.identity.0);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// SMBIOS serial number, and that of the disk.
    pub fn serial(&self) -> String {
        format!("LAB-{}", self.identity.dashed().replace('-', "").to_uppercase())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ParseLabError {
    #[error("lab configuration does not parse")]
    Toml(#[source] toml::de::Error),
    #[error("`lab.{key}` is `{value}`: {rule}")]
    Key { key: &'static str, value: String, rule: &'static str },
    #[error("machine name `{name}` does not work")]
    MachineName { name: String, source: ParseNameError },
    #[error("machine `{machine}`: `{key}` is `{value}`: {rule}")]
    Machine { machine: String, key: &'static str, value: String, rule: &'static str },
    #[error("a lab has 1 to {MACHINES_MAX} machines ([[machine]] tables); this one has {count}")]
    MachineCount { count: usize },
}

/// The file, key by key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLab {
    #[serde(default)]
    lab: FileLabTable,
    #[serde(default)]
    appliance: toml::Table,
    #[serde(default)]
    machine: Vec<FileMachine>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLabTable {
    bridge: String,
    address: Ipv4Network,
    host: Ipv4Addr,
    operator: SocketAddr,
    accel: AccelWish,
    memory: u32,
    at_once: usize,
}

impl Default for FileLabTable {
    fn default() -> Self {
        FileLabTable {
            bridge: "ooodemo".to_owned(),
            address: Ipv4Network::new_checked(Ipv4Addr::new(192, 168, 2, 2), 24)
                .unwrap_or(Ipv4Network::from(Ipv4Addr::new(192, 168, 2, 2))),
            host: Ipv4Addr::new(192, 168, 2, 1),
            operator: SocketAddr::from((Ipv4Addr::LOCALHOST, 8087)),
            accel: AccelWish::Auto,
            memory: 1024,
            at_once: 0,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMachine {
    name: String,
    firmware: LabFirmware,
    mac: MacAddr,
    #[serde(default = "default_disk")]
    disk: String,
    memory: Option<u32>,
}

fn default_disk() -> String {
    "8G".to_owned()
}

impl LabConfig {
    /// The four machines of `config/lab.toml`.
    pub fn built_in() -> Result<LabConfig, ParseLabError> {
        LabConfig::parse(BUILT_IN)
    }

    pub fn parse(text: &str) -> Result<LabConfig, ParseLabError> {
        let file: FileLab = toml::from_str(text).map_err(ParseLabError::Toml)?;
        let lab = file.lab;
        check_network(&lab)?;
        if file.machine.is_empty() || file.machine.len() > MACHINES_MAX {
            return Err(ParseLabError::MachineCount { count: file.machine.len() });
        }
        let mut names = BTreeSet::new();
        let mut macs = BTreeSet::new();
        let mut machines = Vec::with_capacity(file.machine.len());
        for machine in file.machine {
            let machine = machine.check(lab.memory)?;
            let refused = |key, value: String, rule| ParseLabError::Machine {
                machine: machine.name.to_string(),
                key,
                value,
                rule,
            };
            if !names.insert(machine.name.clone()) {
                return Err(refused("name", machine.name.to_string(), "two machines have this name"));
            }
            if !macs.insert(machine.mac) {
                return Err(refused("mac", machine.mac.to_string(), "two machines have this address"));
            }
            machines.push(machine);
        }
        Ok(LabConfig {
            bridge: lab.bridge,
            address: lab.address,
            host: lab.host,
            operator: lab.operator,
            accel: lab.accel,
            at_once: (lab.at_once > 0).then_some(lab.at_once),
            appliance: file.appliance,
            machines,
        })
    }
}

fn check_network(lab: &FileLabTable) -> Result<(), ParseLabError> {
    let refused = |key, value: String, rule| Err(ParseLabError::Key { key, value, rule });
    let letters = lab.bridge.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if !letters || lab.bridge.is_empty() || lab.bridge.len() > INTERFACE_NAME_MAX {
        return refused(
            "bridge",
            lab.bridge.clone(),
            "an interface name has 1 to 15 letters, digits, hyphens and underscores",
        );
    }
    if !(8..=28).contains(&lab.address.prefix()) {
        return refused("address", lab.address.to_string(), "a prefix of 8 to 28 leaves room for machines");
    }
    if !lab.address.contains(lab.host) || lab.host == lab.address.ip() {
        return refused("host", lab.host.to_string(), "another address of the same subnet is wanted");
    }
    if !lab.operator.ip().is_loopback() {
        return refused("operator", lab.operator.to_string(), "the lab shows itself on loopback only");
    }
    if lab.memory < MEMORY_MIN_MIB {
        return refused("memory", lab.memory.to_string(), "the deploy ramdisk needs at least 256 MiB");
    }
    Ok(())
}

impl FileMachine {
    fn check(self, memory: u32) -> Result<MachineConfig, ParseLabError> {
        let name = self
            .name
            .parse::<NodeName>()
            .map_err(|source| ParseLabError::MachineName { name: self.name.clone(), source })?;
        let refused = |key, value: String, rule| ParseLabError::Machine {
            machine: self.name.clone(),
            key,
            value,
            rule,
        };
        if !self.mac.is_station() {
            return Err(refused("mac", self.mac.to_string(), "one machine's own address is wanted"));
        }
        let memory_mib = self.memory.unwrap_or(memory);
        if memory_mib < MEMORY_MIN_MIB {
            return Err(refused(
                "memory",
                memory_mib.to_string(),
                "the deploy ramdisk needs at least 256 MiB",
            ));
        }
        let disk_bytes = parse_size(&self.disk).ok_or_else(|| {
            refused("disk", self.disk.clone(), "a size is wanted, as in \"8G\" or \"512M\"; \"0\" for none")
        })?;
        Ok(MachineConfig {
            name,
            firmware: self.firmware,
            mac: self.mac,
            identity: self.mac,
            memory_mib,
            disk_bytes: (disk_bytes > 0).then_some(disk_bytes),
        })
    }
}

/// `8G`, `512M`, `64K` or bytes; binary multiples, as everywhere with disks of virtual machines.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[lab]\n[[machine]]\nname = 'a'\nfirmware = 'uefi'\nmac = '52:54:00:00:00:01'\n";

    #[test]
    fn machines_alone_make_a_lab() {
        let without = LabConfig::parse(&ONE.replace("[lab]\n", "")).unwrap();
        assert_eq!(without, LabConfig::parse(ONE).unwrap());
    }

    #[test]
    fn the_built_in_lab_has_one_machine_per_firmware_and_says_its_defaults() {
        let config = LabConfig::built_in().unwrap();
        let firmware: Vec<_> = config.machines.iter().map(|machine| machine.firmware).collect();
        assert_eq!(firmware, LabFirmware::ALL);
        let terse = LabConfig::parse(ONE).unwrap();
        let mut shown = config.clone();
        shown.machines.clone_from(&terse.machines);
        assert_eq!(shown, terse, "the comments promise that every key shows its default");
        assert_eq!(terse.machines[0].memory_mib, 1024);
        assert_eq!(terse.machines[0].disk_bytes, Some(8 << 30));
    }

    #[test]
    fn a_machine_keeps_its_identity() {
        let machine = &LabConfig::parse(ONE).unwrap().machines[0];
        assert_eq!(machine.uuid().to_string(), "66617272-6965-826c-a162-525400000001");
        assert_eq!(machine.serial(), "LAB-525400000001");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (change, says) in [
            (ONE.replace("[lab]", "[lab]\nbridge = 'a b'"), "lab.bridge"),
            (ONE.replace("[lab]", "[lab]\naddress = '10.0.0.1/31'"), "lab.address"),
            (ONE.replace("[lab]", "[lab]\nhost = '10.0.0.1'"), "lab.host"),
            (ONE.replace("[lab]", "[lab]\noperator = '0.0.0.0:80'"), "lab.operator"),
            (ONE.replace("52:54", "53:54"), "`mac`"),
            (ONE.replace("'a'", "'A'"), "machine name"),
            (ONE.replace("'a'", "'a'\ndisk = '8 GB'"), "`disk`"),
            (ONE.replace("'a'", "'a'\nmemory = 64"), "`memory`"),
            (format!("{ONE}{}", ONE.replace("[lab]", "")), "two machines have this name"),
            ("[lab]\n".to_owned(), "has 0"),
        ] {
            let error = LabConfig::parse(&change).unwrap_err();
            assert!(error.to_string().contains(says), "{error}: {says}");
        }
        assert!(matches!(
            LabConfig::parse(&ONE.replace("[lab]", "[lab]\nx = 1")),
            Err(ParseLabError::Toml(_))
        ));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", Some(0)), ("64K", Some(65536)), ("8G", Some(8 << 30)), ("G", None)] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
        for text in ["", "-1", "1.5G", "99999999999999T", "8Ä"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
