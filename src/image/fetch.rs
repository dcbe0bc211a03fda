//! Boot loaders out of Debian's packages, for hosts where those packages are not installed.
//!
//! A loader's package often drags a boot setup along that a host with another firmware has no use for. One file of it
//! is enough for us, below `<state>/loaders`, where [`crate::image::loaders`] finds it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use crate::boot::loader::{LoaderFile, LoaderName};
use crate::image::executable::{self, Revoked};
use crate::image::package::{Package, PackageError, Packages};

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error("{package} {version} is not taken")]
    Revoked { package: String, version: String, source: Revoked },
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// What became of one loader.
#[derive(Debug)]
pub enum Fetched {
    /// Installed on this machine, or fetched before.
    Present(PathBuf),
    /// Taken out of this version of its package.
    Extracted { path: PathBuf, package: String, version: String },
    /// No package holds it; it is looked for here, should somebody bring it.
    NotPackaged(PathBuf),
    /// For example: this machine's apt does not know packages of that architecture.
    Failed(FetchError),
}

/// Gets every one of `files` that is neither installed nor fetched yet. One that cannot be had does not keep the
/// others away: machines of other firmware boot without it.
pub fn fetch_loaders<'a>(
    files: impl IntoIterator<Item = &'a LoaderFile>,
    state: &Path,
    progress: &ProgressBar,
) -> Result<BTreeMap<LoaderName, Fetched>, FetchError> {
    let packages = Packages::open(state)?;
    let mut results = BTreeMap::new();
    for file in files {
        let kept = kept_at(state, &file.path);
        // One that is revoked is not served either: its package may hold a newer one by now.
        let found = [&file.path, &kept].into_iter().find(|path| is_current(path));
        let result = match found {
            Some(path) => Fetched::Present(path.clone()),
            None if !file.packaged => Fetched::NotPackaged(kept),
            None => {
                progress.set_message(format!("fetching {} for {}", file.package, file.name));
                match extract(&packages, file, &kept, progress) {
                    Ok(package) => {
                        let Package { name, version, .. } = package;
                        Fetched::Extracted { path: kept, package: name, version }
                    }
                    Err(error) => Fetched::Failed(error),
                }
            }
        };
        results.insert(file.name.clone(), result);
    }
    Ok(results)
}

fn is_current(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| executable::check_generation(&bytes).is_ok())
}

/// Where a loader is kept that is not installed at `path`.
fn kept_at(state: &Path, path: &Path) -> PathBuf {
    state.join("loaders").join(path.strip_prefix("/").unwrap_or(path))
}

fn extract(
    packages: &Packages,
    file: &LoaderFile,
    kept: &Path,
    progress: &ProgressBar,
) -> Result<Package, FetchError> {
    let package = packages.candidate(&file.package)?;
    let bytes = packages.read_file(&package, &file.path, progress)?;
    let revoked = |source| FetchError::Revoked {
        package: package.name.clone(),
        version: package.version.clone(),
        source,
    };
    executable::check_generation(&bytes).map_err(revoked)?;
    write_whole(kept, &bytes).map_err(|source| FetchError::Write { path: kept.to_owned(), source })?;
    Ok(package)
}

/// Under its name only once it is complete.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let temporary = PathBuf::from(name);
    fs::write(&temporary, bytes)?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_is_not_fetched() {
        let state = tempfile::tempdir().unwrap();
        let path = Path::new("/nowhere/on/this/machine/loader.efi");
        let kept = kept_at(state.path(), path);
        assert!(kept.starts_with(state.path()));
        write_whole(&kept, b"loader").unwrap();
        let mut file = LoaderFile {
            name: LoaderName("loader.efi".to_owned()),
            platform: crate::boot::client::Firmware::UefiX64,
            signed: false,
            package: "no-such-package".to_owned(),
            packaged: true,
            path: path.to_owned(),
            second: None,
            note: String::new(),
        };
        let fetched = fetch_loaders([&file], state.path(), &ProgressBar::hidden()).unwrap();
        assert!(matches!(&fetched[&file.name], Fetched::Present(place) if *place == kept));

        fs::remove_file(&kept).unwrap();
        file.packaged = false;
        let fetched = fetch_loaders([&file], state.path(), &ProgressBar::hidden()).unwrap();
        assert!(matches!(&fetched[&file.name], Fetched::NotPackaged(place) if *place == kept));
    }
}
