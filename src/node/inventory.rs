//! What the agent found in the machine. It comes from a stranger: every string and list is bounded on arrival.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::net::MacAddr;

/// Characters kept of any string the agent sends.
pub const TEXT_MAX: usize = 128;
pub const DISKS_MAX: usize = 256;
pub const NICS_MAX: usize = 64;

/// `text` without control characters (a terminal or a log would obey them), trimmed, at most `max` characters.
pub fn clean_text(text: &str, max: usize) -> String {
    let printable: String = text.chars().filter(|c| !c.is_control() && !is_invisible(*c)).take(max).collect();
    printable.trim().to_owned()
}

/// Direction marks and other format characters: they make text look like other text.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{2028}' | '\u{2029}')
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    pub system: System,
    pub cpu: Cpu,
    pub memory_bytes: u64,
    pub disks: Vec<Disk>,
    pub nics: Vec<Nic>,
    /// Seconds from kernel start to this report.
    pub uptime_secs: f64,
    pub kernel: String,
    /// `bios` or `uefi`, and whether Secure Boot was on, as the running kernel sees it.
    pub booted_by: BootedBy,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct System {
    pub vendor: Option<String>,
    pub product: Option<String>,
    pub version: Option<String>,
    pub serial: Option<String>,
    pub uuid: Option<Uuid>,
    pub bios_vendor: Option<String>,
    pub bios_version: Option<String>,
    pub bios_date: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    pub model: String,
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    pub logical: u32,
    pub cores: u32,
    pub sockets: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Kernel name, e.g. `vda`.
    pub name: String,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub bytes: u64,
    pub rotational: bool,
    pub removable: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    pub name: String,
    pub mac: MacAddr,
    pub driver: Option<String>,
    pub speed_mbps: Option<u32>,
    pub link: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BootedBy {
    #[default]
    Bios,
    Uefi,
    UefiSecureBoot,
}

impl Inventory {
    /// Bounds what a machine may say of itself: text is cut and cleaned, lists are cut, numbers are made sane, and
    /// NICs without an address of their own are left out, as is a MAC told twice.
    pub fn sanitize(mut self) -> Inventory {
        let system = &mut self.system;
        for text in [
            &mut system.vendor,
            &mut system.product,
            &mut system.version,
            &mut system.serial,
            &mut system.bios_vendor,
            &mut system.bios_version,
            &mut system.bios_date,
        ] {
            clean_option(text);
        }
        // All zeros and all ones are what a board says that was never given a UUID.
        system.uuid = system.uuid.filter(|uuid| !uuid.is_nil() && !uuid.is_max());
        self.cpu.model = clean_text(&self.cpu.model, TEXT_MAX);
        self.cpu.architecture = clean_text(&self.cpu.architecture, TEXT_MAX);
        self.kernel = clean_text(&self.kernel, TEXT_MAX);
        if !(self.uptime_secs.is_finite() && self.uptime_secs >= 0.0) {
            self.uptime_secs = 0.0;
        }
        self.disks.truncate(DISKS_MAX);
        for disk in &mut self.disks {
            disk.name = clean_text(&disk.name, TEXT_MAX);
            clean_option(&mut disk.model);
            clean_option(&mut disk.serial);
        }
        let mut told = std::collections::BTreeSet::new();
        self.nics.retain(|nic| nic.mac.is_station() && told.insert(nic.mac));
        self.nics.truncate(NICS_MAX);
        for nic in &mut self.nics {
            nic.name = clean_text(&nic.name, TEXT_MAX);
            clean_option(&mut nic.driver);
        }
        self
    }
}

fn clean_option(text: &mut Option<String>) {
    *text = text.take().map(|text| clean_text(&text, TEXT_MAX)).filter(|text| !text.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(last: u8) -> Nic {
        let mac = MacAddr([2, 0, 0, 0, 0, last]);
        Nic { name: "eth0".to_owned(), mac, driver: None, speed_mbps: None, link: true }
    }

    #[test]
    fn a_stranger_cannot_fill_the_record() {
        let mut wild = Inventory { uptime_secs: f64::NAN, kernel: "k".repeat(5000), ..Inventory::default() };
        wild.system.vendor = Some("\u{1b}[31mACME\n\u{202e}".to_owned());
        wild.system.serial = Some(" \u{0} ".to_owned());
        wild.system.uuid = Some(Uuid::nil());
        wild.disks = vec![Disk { name: "x".repeat(1000), ..Disk::default() }; 1000];
        wild.nics = vec![nic(1), nic(1), nic(2)];
        wild.nics.push(Nic { mac: MacAddr::BROADCAST, ..nic(3) });
        let tame = wild.sanitize();
        assert_eq!(tame.system.vendor.as_deref(), Some("[31mACME"));
        assert_eq!((tame.system.serial, tame.system.uuid), (None, None));
        assert_eq!((tame.kernel.len(), tame.uptime_secs), (TEXT_MAX, 0.0));
        assert_eq!((tame.disks.len(), tame.disks[0].name.len()), (DISKS_MAX, TEXT_MAX));
        assert_eq!(tame.nics, [nic(1), nic(2)]);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let mut value = serde_json::to_value(Inventory::default()).unwrap();
        assert!(serde_json::from_value::<Inventory>(value.clone()).is_ok());
        value["system"]["rootkit"] = true.into();
        assert!(serde_json::from_value::<Inventory>(value).is_err());
    }
}
