//! Boot loaders: which one a firmware gets, under which name it is served, and where the distribution keeps it.
//!
//! The table is `pxe/loaders.toml`, embedded; an operator's `[boot.loaders]` replaces single rows. Whether a file
//! is really there is the boot plane's business, not this module's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::boot::client::Firmware;

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
    /// Debian package that holds it.
    pub package: String,
    pub path: PathBuf,
    /// The file this one fetches next.
    pub second: Option<LoaderName>,
    pub note: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoaderTable {
    by_firmware: BTreeMap<Firmware, LoaderName>,
    files: BTreeMap<LoaderName, LoaderFile>,
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
                .filter(|(_, name)| !name.is_empty())
                .map(|(firmware, name)| (firmware, LoaderName(name)))
                .collect(),
            files: table.file.into_iter().map(|file| (file.name.clone(), file)).collect(),
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

    pub fn for_firmware(&self, firmware: Firmware) -> Option<&LoaderName> {
        self.by_firmware.get(&firmware)
    }

    /// The full iPXE that replaces a ROM build without HTTP or without its platform's kernel format.
    pub fn full_ipxe(&self, firmware: Firmware) -> Option<LoaderName> {
        let name = match firmware {
            Firmware::Bios => "undionly.kpxe",
            Firmware::UefiX64 | Firmware::UefiX64Http => "ipxe.efi",
            Firmware::BiosHttp
            | Firmware::UefiIa32
            | Firmware::UefiIa32Http
            | Firmware::UefiArm32
            | Firmware::UefiArm32Http
            | Firmware::UefiArm64
            | Firmware::UefiArm64Http
            | Firmware::UefiRiscv64
            | Firmware::UefiRiscv64Http
            | Firmware::UefiLoongarch64
            | Firmware::UefiLoongarch64Http => return None,
        };
        self.files.keys().find(|known| known.0 == name).cloned()
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
        for name in self.by_firmware.values() {
            let mut next = self.files.get(name);
            while let Some(file) = next {
                if in_use.iter().any(|seen| seen.name == file.name) {
                    break;
                }
                in_use.push(file);
                next = file.second.as_ref().and_then(|name| self.files.get(name));
            }
        }
        in_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_table_names_only_files_it_has_and_every_firmware() {
        let table = LoaderTable::parse(BUILT_IN).unwrap();
        for name in table.by_firmware.values() {
            assert!(table.file(name).is_some(), "{name}");
        }
        for file in table.files() {
            assert!(file.second.as_ref().is_none_or(|second| table.file(second).is_some()), "{}", file.name);
        }
        let rows: TableFile = toml::from_str(BUILT_IN).unwrap();
        for firmware in Firmware::ALL {
            assert!(rows.firmware.contains_key(firmware), "{firmware} has no row");
        }
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
    fn files_in_use_follow_the_chain_to_its_second_stage() {
        let names: Vec<_> =
            LoaderTable::built_in().files_in_use().iter().map(|file| file.name.0.clone()).collect();
        assert!(names.contains(&"uefi-x64/grubx64.efi".to_owned()));
        assert!(!names.contains(&"snponly.efi".to_owned()));
    }
}
