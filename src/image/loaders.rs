//! Boot loader files: where the distribution keeps them, or below the state directory, read once at start.
//!
//! They are copied into memory, not mapped: these files belong to other packages, and an upgrade that rewrote one
//! in place would change a transfer half way. A loader that is missing is reported with the package that holds it
//! and is otherwise no obstacle: machines of other firmware boot. So is one whose SBAT generation is revoked
//! ([`executable`](crate::image::executable)): it is not offered. The table that results names only what can be served.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::boot::client::{ClientClass, Firmware};
use crate::boot::loader::{LoaderFile, LoaderName, LoaderTable};
use crate::image::digest::Digest;
use crate::image::executable::{self, Revoked, Signature};
use crate::image::library::{Blob, modified_at};

/// The largest loader in use, a GRUB with all modules, has 4 MB.
const LOADER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What machines usually have here. A site without a loader for any of them boots nothing.
pub const USUAL: [Firmware; 3] = [Firmware::Bios, Firmware::UefiX64, Firmware::UefiX64Http];

#[derive(Clone, Debug)]
pub struct Loaders {
    /// Names only loaders whose whole chain is there.
    pub table: LoaderTable,
    blobs: BTreeMap<LoaderName, Blob>,
    missing: Vec<MissingLoader>,
}

/// A file of the table that is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("loader {name} {}: {}", self.what(), self.way_out())]
pub struct MissingLoader {
    pub name: LoaderName,
    pub path: PathBuf,
    pub package: String,
    /// False where no package holds it.
    pub packaged: bool,
    pub lack: Lack,
}

/// Why a loader is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    Unreadable(String),
    Revoked(Revoked),
}

impl MissingLoader {
    fn what(&self) -> String {
        let path = self.path.display();
        match &self.lack {
            Lack::Unreadable(reason) => format!("is not at {path} ({reason})"),
            Lack::Revoked(revoked) => format!("({path}) is not offered, {revoked}"),
        }
    }

    fn way_out(&self) -> String {
        match (&self.lack, self.packaged) {
            (Lack::Revoked(_), true) => format!(
                "machines with Secure Boot would refuse it; bring package {} up to date, then `farrier image build loaders` and `systemctl reload farrier`",
                self.package
            ),
            (Lack::Revoked(_), false) => {
                "machines with Secure Boot would refuse it; put a newer one there".to_owned()
            }
            (Lack::Unreadable(_), true) => {
                format!("install package {}, or run `farrier image build loaders`", self.package)
            }
            (Lack::Unreadable(_), false) => format!(
                "Debian's {} lacks it; put it there or at <state>/loaders{}",
                self.package,
                self.path.display()
            ),
        }
    }
}

impl Loaders {
    /// Reads every file of `table`: from its own path, else from the same path below `<state>/loaders`.
    pub fn read(table: LoaderTable, state: &Path) -> Loaders {
        let mut blobs = BTreeMap::new();
        let mut missing = Vec::new();
        for file in table.files() {
            match read_loader(file, state) {
                Ok(blob) => {
                    blobs.insert(file.name.clone(), blob);
                }
                Err(lack) => missing.push(MissingLoader {
                    name: file.name.clone(),
                    path: file.path.clone(),
                    package: file.package.clone(),
                    packaged: file.packaged,
                    lack,
                }),
            }
        }
        let altered = |name: &LoaderName| {
            blobs.get(name).is_some_and(|blob| executable::signature(&blob.bytes) == Signature::Broken)
        };
        let table = table.with_altered(altered).with_installed(|name| blobs.contains_key(name));
        Loaders { table, blobs, missing }
    }

    pub fn blob(&self, name: &LoaderName) -> Option<&Blob> {
        self.blobs.get(name)
    }

    /// What could not be read, needed or not.
    pub fn missing(&self) -> &[MissingLoader] {
        &self.missing
    }

    /// Every firmware that gets no loader because a file is missing.
    pub fn lacking(&self) -> Vec<(Firmware, &MissingLoader)> {
        let all = Firmware::ALL.iter().copied();
        let lacking = |firmware| {
            let file = self.table.lacking(ClientClass::Firmware { firmware })?;
            Some((firmware, self.missing.iter().find(|missing| missing.name == file.name)?))
        };
        all.filter_map(lacking).collect()
    }

    /// Those among [`Loaders::lacking`] that somebody has to know of: what the configuration names, and the usual
    /// ones where none of them can boot. The others are a choice: a site without arm64 needs no arm64 loader.
    pub fn wanting(&self, named: &BTreeSet<Firmware>) -> BTreeSet<Firmware> {
        let nothing_boots = USUAL.iter().all(|usual| self.table.for_firmware(*usual).is_none());
        let wanted =
            |firmware: &Firmware| named.contains(firmware) || (nothing_boots && USUAL.contains(firmware));
        self.lacking().into_iter().map(|(firmware, _)| firmware).filter(wanted).collect()
    }

    /// Says once what is missing, and how much that matters; firmware whose loader nobody packages shares a line.
    pub fn log_lacking(&self, named: &BTreeSet<Firmware>) {
        let wanting = self.wanting(named);
        for (firmware, missing) in self.lacking() {
            if wanting.contains(&firmware) || matches!(missing.lack, Lack::Revoked(_)) {
                tracing::warn!("machines with {firmware} get no loader: {missing}");
            } else if missing.packaged {
                tracing::info!("machines with {firmware} get no loader: {missing}");
            }
        }
        for file in self.table.altered() {
            tracing::warn!(
                "loader {} was changed after it was signed: machines with Secure Boot refuse it; install package {} again",
                file.name,
                file.package
            );
        }
        if let Some(line) = self.unpackaged_line(&wanting) {
            tracing::info!("{line}");
        }
    }

    fn unpackaged_line(&self, told: &BTreeSet<Firmware>) -> Option<String> {
        let lacking = self.lacking();
        let rare: Vec<String> = lacking
            .iter()
            .filter(|(firmware, missing)| !missing.packaged && !told.contains(firmware))
            .map(|(firmware, _)| firmware.to_string())
            .collect();
        (!rare.is_empty()).then(|| {
            format!(
                "machines with {} get no loader: no package has one, and none is below <state>/loaders; `farrier image build loaders` names the files",
                rare.join(", ")
            )
        })
    }
}

fn read_loader(file: &LoaderFile, state: &Path) -> Result<Blob, Lack> {
    let relative = file.path.strip_prefix("/").unwrap_or(&file.path);
    let kept = state.join("loaders").join(relative);
    match (read_current(&file.path), read_current(&kept)) {
        (Ok(blob), _) | (Err(_), Ok(blob)) => Ok(blob),
        // A file that is there is what is to be told of.
        (Err(revoked @ Lack::Revoked(_)), Err(_)) | (Err(_), Err(revoked @ Lack::Revoked(_))) => Err(revoked),
        // The first error names the place people are told to put the file; it is the one worth telling.
        (Err(unreadable), Err(_)) => Err(unreadable),
    }
}

fn read_current(path: &Path) -> Result<Blob, Lack> {
    let blob = read_blob(path).map_err(|error| Lack::Unreadable(error.to_string()))?;
    executable::check_generation(&blob.bytes).map_err(Lack::Revoked)?;
    Ok(blob)
}

fn read_blob(path: &Path) -> io::Result<Blob> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LOADER_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file of reasonable size"));
    }
    let mut bytes = Vec::new();
    file.take(LOADER_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Blob {
        size: bytes.len() as u64,
        digest: Digest::of(&bytes),
        modified: modified_at(&metadata),
        bytes: bytes.into(),
        file: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_named_or_leaves_nothing_to_boot_is_a_warning() {
        let state = tempfile::tempdir().unwrap();
        let table = LoaderTable::built_in();
        let loaders = |there: &[&str]| {
            let blob = |name: &str| {
                let blob = Blob {
                    bytes: Default::default(),
                    file: None,
                    digest: Digest::of(b""),
                    size: 0,
                    modified: crate::clock::Timestamp::from_millis(0),
                };
                (LoaderName(name.to_owned()), blob)
            };
            let missing = |file: &LoaderFile| MissingLoader {
                name: file.name.clone(),
                path: state.path().join(&file.path),
                package: file.package.clone(),
                packaged: file.packaged,
                lack: Lack::Unreadable("none".to_owned()),
            };
            let is_there = |name: &LoaderName| there.contains(&name.0.as_str());
            Loaders {
                table: table.with_installed(is_there),
                blobs: there.iter().map(|name| blob(name)).collect(),
                missing: table.files().filter(|file| !is_there(&file.name)).map(missing).collect(),
            }
        };
        let x86_bios = loaders(&["undionly.kpxe"]);
        let lacking: Vec<_> = x86_bios.lacking().into_iter().map(|(firmware, _)| firmware).collect();
        let (packaged, rare): (Vec<Firmware>, Vec<Firmware>) = lacking.into_iter().partition(|firmware| {
            x86_bios.lacking().iter().any(|(lacks, file)| lacks == firmware && file.packaged)
        });
        assert_eq!(packaged, [Firmware::UefiX64, Firmware::UefiX64Http, Firmware::UefiArm64]);
        assert_eq!(rare.len(), 9);
        let line = x86_bios.unpackaged_line(&BTreeSet::from([Firmware::UefiIa32])).unwrap();
        assert!(
            line.contains("uefi-riscv64-http, uefi-loongarch64,") && !line.contains("uefi-ia32,"),
            "{line}"
        );
        assert_eq!(x86_bios.wanting(&BTreeSet::new()), BTreeSet::new());
        let named = BTreeSet::from([Firmware::UefiArm64]);
        assert_eq!(x86_bios.wanting(&named), named);
        let none = loaders(&["uefi-x64/shimx64.efi"]);
        assert_eq!(none.wanting(&BTreeSet::new()), BTreeSet::from(USUAL));
        let x64 = x86_bios.lacking().into_iter().find(|(firmware, _)| *firmware == Firmware::UefiX64);
        assert_eq!(x64.unwrap().1.package, "shim-signed");
    }

    #[test]
    fn a_loader_below_the_state_directory_serves_when_the_package_is_not_installed() {
        let state = tempfile::tempdir().unwrap();
        let table = LoaderTable::built_in();
        let absent = Loaders::read(table.clone(), state.path());
        for missing in absent.missing() {
            let place = state.path().join("loaders").join(missing.path.strip_prefix("/").unwrap());
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, missing.name.0.as_bytes()).unwrap();
            assert!(missing.to_string().contains(&missing.package));
            assert_eq!(missing.to_string().contains("image build loaders"), missing.packaged);
        }
        let present = Loaders::read(table.clone(), state.path());
        assert_eq!(present.missing(), []);
        assert!(table.files().all(|file| present.blob(&file.name).is_some()));
    }
}
