//! Boot loader files: where the distribution keeps them, or below the state directory, read once at start.
//!
//! They are copied into memory, not mapped: these files belong to other packages, and an upgrade that rewrote one
//! in place would change a transfer half way. A loader that is missing is reported with the package that holds it
//! and is otherwise no obstacle: machines of other firmware boot.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::boot::loader::{LoaderFile, LoaderName, LoaderTable};
use crate::image::digest::Digest;
use crate::image::library::{Blob, modified_at};

/// The largest loader in use, a GRUB with all modules, has 4 MB.
const LOADER_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Clone, Debug)]
pub struct Loaders {
    pub table: LoaderTable,
    blobs: BTreeMap<LoaderName, Blob>,
    missing: Vec<MissingLoader>,
}

/// A file of the table that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("loader {name} is not at {path} ({reason}): install package {package}")]
pub struct MissingLoader {
    pub name: LoaderName,
    pub path: PathBuf,
    pub package: String,
    pub reason: String,
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
                Err(reason) => missing.push(MissingLoader {
                    name: file.name.clone(),
                    path: file.path.clone(),
                    package: file.package.clone(),
                    reason: reason.to_string(),
                }),
            }
        }
        Loaders { table, blobs, missing }
    }

    pub fn blob(&self, name: &LoaderName) -> Option<&Blob> {
        self.blobs.get(name)
    }

    /// What could not be read, needed or not.
    pub fn missing(&self) -> &[MissingLoader] {
        &self.missing
    }

    /// What could not be read although some firmware is told to fetch it.
    pub fn missing_in_use(&self) -> impl Iterator<Item = &MissingLoader> {
        let in_use = self.table.files_in_use();
        self.missing.iter().filter(move |missing| in_use.iter().any(|file| file.name == missing.name))
    }
}

fn read_loader(file: &LoaderFile, state: &Path) -> io::Result<Blob> {
    match read_blob(&file.path) {
        Ok(blob) => Ok(blob),
        Err(error) => {
            let relative = file.path.strip_prefix("/").unwrap_or(&file.path);
            // The first error names the place people are told to put the file; it is the one worth telling.
            read_blob(&state.join("loaders").join(relative)).map_err(|_| error)
        }
    }
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
    fn a_loader_below_the_state_directory_serves_when_the_package_is_not_installed() {
        let state = tempfile::tempdir().unwrap();
        let table = LoaderTable::built_in();
        let absent = Loaders::read(table.clone(), state.path());
        for missing in absent.missing() {
            let place = state.path().join("loaders").join(missing.path.strip_prefix("/").unwrap());
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, missing.name.0.as_bytes()).unwrap();
            assert!(missing.to_string().contains(&missing.package));
        }
        let present = Loaders::read(table.clone(), state.path());
        assert_eq!(present.missing(), []);
        assert!(table.files().all(|file| present.blob(&file.name).is_some()));
    }
}
