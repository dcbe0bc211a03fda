//! Boot loaders: which one a firmware gets, under which name it is served, and where the distribution keeps it.
//!
//! The table is `pxe/loaders.toml`, embedded; an operator's `[boot.loaders]` replaces single rows. Whoever reads the
//! files says which are there ([`LoaderTable::with_installed`]): a firmware whose chain is not complete has no loader,
//! so that nothing is advertised which cannot be served.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::boot::client::{ClientClass, Firmware};

const BUILT_IN: &str = include_str!("../../pxe/loaders.toml");

/// The name a loader is served under, e.g. `undionly.kpxe` or `uefi-x64/shimx64.efi`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoaderName(pub String);

impl fmt::Display for LoaderName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// One file of the table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderFile {
    pub name: LoaderName,
    /// What it runs on.
    pub platform: Firmware,
    /// By a key that firmware trusts, so that it starts under Secure Boot.
    #[serde(default)]
    pub signed: bool,
    /// Debian package that holds it, or would.
    pub package: String,
    /// False where Debian's package lacks it: an operator has to bring it.
    #[serde(default = "yes")]
    pub packaged: bool,
    pub path: PathBuf,
    /// The file this one fetches next.
    pub second: Option<LoaderName>,
    pub note: String,
}

fn yes() -> bool {
    true
}

/// A GRUB that iPXE can start without shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrubFile {
    /// As iPXE's `${buildarch}` has it.
    pub architecture: &'static str,
    pub name: LoaderName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderTable {
    by_firmware: BTreeMap<Firmware, LoaderName>,
    files: BTreeMap<LoaderName, LoaderFile>,
    /// Files of the table that cannot be served.
    not_installed: BTreeSet<LoaderName>,
    /// Signed files that were changed since.
    altered: BTreeSet<LoaderName>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a loader farrier knows for {firmware}; known are {known}")]
pub struct UnknownLoaderError {
    pub firmware: Firmware,
    pub name: LoaderName,
    pub known: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TableFile {
    firmware: BTreeMap<Firmware, String>,
    file: Vec<LoaderFile>,
}

impl LoaderTable {
    /// The table shipped with farrier.
    pub fn built_in() -> LoaderTable {
        // A test parses the embedded file, so this cannot fail in a build that passed its tests.
        Self::parse(BUILT_IN).expect("pxe/loaders.toml is valid")
    }

    fn parse(text: &str) -> Result<LoaderTable, toml::de::Error> {
        let table: TableFile = toml::from_str(text)?;
        Ok(LoaderTable {
            by_firmware: table
                .firmware
                .into_iter()
                .map(|(firmware, name)| (firmware, LoaderName(name)))
                .collect(),
            files: table.file.into_iter().map(|file| (file.name.clone(), file)).collect(),
            not_installed: BTreeSet::new(),
            altered: BTreeSet::new(),
        })
    }

    /// This table with an operator's choices in place of its own.
    pub fn with_overrides(
        &self,
        overrides: &BTreeMap<Firmware, LoaderName>,
    ) -> Result<LoaderTable, UnknownLoaderError> {
        let mut table = self.clone();
        for (firmware, name) in overrides {
            if !self.files.contains_key(name) {
                let known: Vec<_> = self.files.keys().map(|name| format!("`{name}`")).collect();
                return Err(UnknownLoaderError {
                    firmware: *firmware,
                    name: name.clone(),
                    known: known.join(", "),
                });
            }
            table.by_firmware.insert(*firmware, name.clone());
        }
        Ok(table)
    }

    /// This table as it works beside another server that gives the addresses: GRUB takes the server it loads from out of
    /// that server's answer and never sees a proxy's, so iPXE, which asks anew and hears the proxy, takes its place where
    /// a package has it.
    pub fn beside_another_server(&self) -> LoaderTable {
        let mut table = self.clone();
        for (firmware, name) in &self.by_firmware {
            let by_chain = self.chain(name).len() > 1;
            let ipxe = self.full_ipxe_row(*firmware).filter(|_| by_chain);
            if let Some(file) = ipxe.and_then(|name| self.file(name)).filter(|file| file.packaged) {
                table.by_firmware.insert(*firmware, file.name.clone());
            }
        }
        table
    }

    /// This table as it can be served where only some of its files are installed.
    pub fn with_installed(&self, installed: impl Fn(&LoaderName) -> bool) -> LoaderTable {
        let not_installed = self.files.keys().filter(|name| !installed(name)).cloned().collect();
        LoaderTable { not_installed, ..self.clone() }
    }

    /// This table with files whose signature is of other bytes.
    pub fn with_altered(&self, is_altered: impl Fn(&LoaderName) -> bool) -> LoaderTable {
        let altered = self.files.keys().filter(|name| is_altered(name)).cloned().collect();
        LoaderTable { altered, ..self.clone() }
    }

    /// Files that were changed after they were signed: Secure Boot refuses them.
    pub fn altered(&self) -> impl Iterator<Item = &LoaderFile> {
        self.altered.iter().filter_map(|name| self.file(name))
    }

    /// The loader a firmware gets; none if a file of its chain is not installed.
    pub fn for_firmware(&self, firmware: Firmware) -> Option<&LoaderName> {
        self.by_firmware.get(&firmware).filter(|name| self.lacking_in_chain(name).is_none())
    }

    /// The full iPXE that replaces a ROM build without HTTP or without its platform's kernel format.
    pub fn full_ipxe(&self, firmware: Firmware) -> Option<&LoaderName> {
        self.full_ipxe_row(firmware).filter(|name| self.lacking_in_chain(name).is_none())
    }

    /// The GRUBs that can be served, each with what iPXE calls its platform.
    pub fn grubs(&self) -> Vec<GrubFile> {
        let platforms = [("x86_64", Firmware::UefiX64), ("arm64", Firmware::UefiArm64)];
        let grub = |(architecture, platform)| {
            let shim = self.files.values().find(|file| file.platform == platform && file.second.is_some())?;
            let name = shim.second.clone().filter(|name| !self.not_installed.contains(name))?;
            Some(GrubFile { architecture, name })
        };
        platforms.into_iter().filter_map(grub).collect()
    }

    /// The file whose absence leaves a client of this class without a loader.
    pub fn lacking(&self, class: ClientClass) -> Option<&LoaderFile> {
        let row = match class {
            ClientClass::Firmware { firmware } => self.by_firmware.get(&firmware),
            ClientClass::Ipxe { firmware, can_boot: false } => self.full_ipxe_row(firmware),
            ClientClass::Ipxe { can_boot: true, .. }
            | ClientClass::UnknownFirmware { .. }
            | ClientClass::Ramdisk
            | ClientClass::OperatingSystem => None,
        };
        row.and_then(|name| self.lacking_in_chain(name))
    }

    fn full_ipxe_row(&self, firmware: Firmware) -> Option<&LoaderName> {
        let name = match firmware {
            Firmware::Bios | Firmware::BiosHttp => "undionly.kpxe",
            Firmware::UefiX64 | Firmware::UefiX64Http => "ipxe.efi",
            Firmware::UefiIa32 | Firmware::UefiIa32Http => "ipxe-i386.efi",
            Firmware::UefiArm32 | Firmware::UefiArm32Http => "ipxe-arm32.efi",
            Firmware::UefiArm64 | Firmware::UefiArm64Http => "ipxe-arm64.efi",
            Firmware::UefiRiscv64 | Firmware::UefiRiscv64Http => "ipxe-riscv64.efi",
            Firmware::UefiLoongarch64 | Firmware::UefiLoongarch64Http => "ipxe-loong64.efi",
        };
        self.files.keys().find(|known| known.0 == name)
    }

    fn lacking_in_chain(&self, name: &LoaderName) -> Option<&LoaderFile> {
        self.chain(name).into_iter().find(|file| self.not_installed.contains(&file.name))
    }

    /// A loader's file and those fetched after it, in order.
    pub fn chain(&self, name: &LoaderName) -> Vec<&LoaderFile> {
        let mut chain: Vec<&LoaderFile> = Vec::new();
        let mut next = self.files.get(name);
        while let Some(file) = next.filter(|file| !chain.iter().any(|seen| seen.name == file.name)) {
            chain.push(file);
            next = file.second.as_ref().and_then(|name| self.files.get(name));
        }
        chain
    }

    pub fn file(&self, name: &LoaderName) -> Option<&LoaderFile> {
        self.files.get(name)
    }

    pub fn files(&self) -> impl Iterator<Item = &LoaderFile> {
        self.files.values()
    }

    /// Every file the current choices can lead to: each chosen loader and what it fetches next.
    pub fn files_in_use(&self) -> Vec<&LoaderFile> {
        let mut in_use: Vec<&LoaderFile> = Vec::new();
        for file in self.by_firmware.values().flat_map(|name| self.chain(name)) {
            if !in_use.iter().any(|seen| seen.name == file.name) {
                in_use.push(file);
            }
        }
        in_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_another_server_no_firmware_is_sent_to_grub_that_could_have_ipxe() {
        let table = LoaderTable::built_in();
        let beside = table.beside_another_server();
        let of = |table: &LoaderTable, firmware| table.by_firmware[&firmware].0.clone();
        assert_eq!(of(&table, Firmware::UefiX64), "uefi-x64/shimx64.efi");
        assert_eq!(of(&beside, Firmware::UefiX64), "ipxe.efi");
        assert_eq!(of(&beside, Firmware::Bios), of(&table, Firmware::Bios));
        // No package has iPXE for it: shim and GRUB may still work, no file at all cannot.
        assert_eq!(of(&beside, Firmware::UefiArm64), of(&table, Firmware::UefiArm64));
    }

    #[test]
    fn the_shipped_table_names_only_files_it_has_and_every_firmware() {
        let table = LoaderTable::parse(BUILT_IN).unwrap();
        for name in table.by_firmware.values() {
            assert!(table.file(name).is_some(), "{name}");
        }
        for file in table.files() {
            assert!(file.second.as_ref().is_none_or(|second| table.file(second).is_some()), "{}", file.name);
        }
        for firmware in Firmware::ALL {
            assert!(table.for_firmware(*firmware).is_some(), "{firmware} has no loader");
            assert!(table.full_ipxe(*firmware).is_some(), "{firmware} has no full iPXE");
        }
    }

    #[test]
    fn ipxe_is_told_of_the_grubs_that_are_there() {
        let table = LoaderTable::built_in();
        let of = |table: &LoaderTable| -> Vec<String> {
            table.grubs().iter().map(|grub| format!("{} {}", grub.architecture, grub.name)).collect()
        };
        assert_eq!(of(&table), ["x86_64 uefi-x64/grubx64.efi", "arm64 uefi-arm64/grubaa64.efi"]);
        assert_eq!(
            of(&table.with_installed(|name| name.0 == "uefi-x64/grubx64.efi")),
            ["x86_64 uefi-x64/grubx64.efi"]
        );
        // Chosen for no firmware, it is still there to be started.
        let ipxe = BTreeMap::from([(Firmware::UefiX64, LoaderName("ipxe.efi".into()))]);
        assert_eq!(table.with_overrides(&ipxe).unwrap().grubs(), table.grubs());
    }

    #[test]
    fn an_override_replaces_one_row_and_must_be_known() {
        let table = LoaderTable::built_in();
        let ipxe = BTreeMap::from([(Firmware::UefiX64, LoaderName("ipxe.efi".into()))]);
        let changed = table.with_overrides(&ipxe).unwrap();
        assert_eq!(changed.for_firmware(Firmware::UefiX64), Some(&LoaderName("ipxe.efi".into())));
        assert_eq!(changed.for_firmware(Firmware::Bios), table.for_firmware(Firmware::Bios));
        let typo = BTreeMap::from([(Firmware::UefiX64, LoaderName("ipex.efi".into()))]);
        assert!(table.with_overrides(&typo).unwrap_err().to_string().contains("`ipxe.efi`"));
    }

    #[test]
    fn a_chain_that_is_not_complete_is_no_loader() {
        let grub = "uefi-x64/grubx64.efi";
        let table = LoaderTable::built_in().with_installed(|name| name.0 != grub && name.0 != "ipxe.efi");
        assert_eq!(table.for_firmware(Firmware::UefiX64), None, "shim alone boots nothing");
        let lacking = |class| table.lacking(class).map(|file| file.name.0.as_str());
        assert_eq!(lacking(ClientClass::Firmware { firmware: Firmware::UefiX64 }), Some(grub));
        let limited = ClientClass::Ipxe { firmware: Firmware::UefiX64, can_boot: false };
        assert_eq!((table.full_ipxe(Firmware::UefiX64), lacking(limited)), (None, Some("ipxe.efi")));
        assert!(table.for_firmware(Firmware::Bios).is_some() && table.full_ipxe(Firmware::Bios).is_some());
        assert_eq!(lacking(ClientClass::Firmware { firmware: Firmware::Bios }), None);
        assert!(table.files_in_use().iter().any(|file| file.name.0 == grub), "still what is to be fetched");
    }

    #[test]
    fn files_in_use_follow_the_chain_to_its_second_stage() {
        let names: Vec<_> =
            LoaderTable::built_in().files_in_use().iter().map(|file| file.name.0.clone()).collect();
        assert!(names.contains(&"uefi-x64/grubx64.efi".to_owned()));
        assert!(!names.contains(&"snponly.efi".to_owned()));
    }
}
