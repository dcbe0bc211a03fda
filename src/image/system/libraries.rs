//! Programs out of packages, with every library they need, put where the dynamic loader looks.
//!
//! Libraries are looked for where a package manager would have found them: in the package, then in what it depends on,
//! nearest first. Nothing is taken from the machine that builds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use indicatif::ProgressBar;

use crate::image::elf::{ElfError, needs};
use crate::image::package::{Package, PackageError, Packages, Scratch};
use crate::image::system::recipe::Program;
use crate::image::system::tree::{Tree, TreeError};

/// Where Debian's packages for this architecture have libraries, and where its loader looks.
const LIBRARY_PLACES: [&str; 4] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64"];
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
/// A package with more behind it is not for a small image; bounds what is downloaded.
const PACKAGES_MAX: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum LibrariesError {
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{path} of package {package} cannot be used: {reason}")]
    Program { package: String, path: String, reason: ElfError },
    #[error("{path} of package {package} needs {library}, which none of the packages it depends on has")]
    Library { package: String, path: String, library: String },
}

/// Puts programs and libraries into `tree`; returns the version of every package that something came out of.
pub fn install(
    programs: &[Program],
    packages: &Packages,
    tree: &mut Tree,
    progress: &ProgressBar,
) -> Result<BTreeMap<String, String>, LibrariesError> {
    let mut shelf = Shelf {
        packages,
        progress,
        known: BTreeMap::new(),
        unpacked: BTreeMap::new(),
        used: BTreeMap::new(),
    };
    shelf.learn(programs.iter().map(|program| program.package.clone()).collect())?;
    for program in programs {
        for path in &program.files {
            shelf.program(&program.package, path, tree)?;
        }
    }
    Ok(shelf.used)
}

/// Packages heard of and unpacked so far.
struct Shelf<'a> {
    packages: &'a Packages,
    progress: &'a ProgressBar,
    known: BTreeMap<String, Package>,
    unpacked: BTreeMap<String, (Package, Scratch)>,
    used: BTreeMap<String, String>,
}

impl Shelf<'_> {
    /// Asks apt about all of them at once.
    fn learn(&mut self, mut names: Vec<String>) -> Result<(), LibrariesError> {
        names.retain(|name| !self.known.contains_key(name));
        if !names.is_empty() {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let found = self.packages.candidates(&names)?;
            self.known.extend(found.into_iter().map(|package| (package.name.clone(), package)));
        }
        Ok(())
    }

    fn unpack(&mut self, name: &str) -> Result<&(Package, Scratch), LibrariesError> {
        if !self.unpacked.contains_key(name) {
            self.progress.set_message(format!("fetching and unpacking {name}"));
            let package = match self.known.get(name) {
                Some(package) => package.clone(),
                None => self.packages.candidate(name)?,
            };
            let files = self.packages.unpack(&package, self.progress)?;
            self.unpacked.insert(name.to_owned(), (package, files));
        }
        // It is there by now.
        self.unpacked
            .get(name)
            .ok_or_else(|| PackageError::Name { name: name.to_owned() })
            .map_err(LibrariesError::from)
    }

    fn program(&mut self, package: &str, path: &str, tree: &mut Tree) -> Result<(), LibrariesError> {
        let (found, files) = self.unpack(package)?;
        let version = found.version.clone();
        let bytes = files
            .read(Path::new(path))?
            .ok_or_else(|| PackageError::NoFile { name: package.to_owned(), path: path.into() })?;
        self.used.insert(package.to_owned(), version);
        let reason =
            |reason| LibrariesError::Program { package: package.to_owned(), path: path.to_owned(), reason };
        let wanted = needs(&bytes).map_err(reason)?;
        tree.file(path.trim_start_matches('/'), 0o755, bytes)?;
        let mut missing: Vec<String> = wanted.libraries;
        if let Some(loader) = wanted.interpreter {
            self.loader(package, path, &loader, tree)?;
        }
        while let Some(library) = missing.pop() {
            let place = format!("{LIBRARIES}/{library}");
            if tree.get(&place).is_some() {
                continue;
            }
            let bytes = self.library(package, path, &library)?;
            missing.extend(needs(&bytes).map_err(reason)?.libraries);
            tree.file(&place, 0o644, bytes)?;
        }
        Ok(())
    }

    /// The dynamic loader goes where programs say it is.
    fn loader(
        &mut self,
        package: &str,
        path: &str,
        loader: &str,
        tree: &mut Tree,
    ) -> Result<(), LibrariesError> {
        let place = loader.trim_start_matches('/');
        if tree.get(place).is_none() {
            let name = loader.rsplit('/').next().unwrap_or(loader).to_owned();
            let bytes = self.library(package, path, &name)?;
            tree.file(place, 0o755, bytes)?;
        }
        Ok(())
    }

    fn library(&mut self, package: &str, path: &str, library: &str) -> Result<Vec<u8>, LibrariesError> {
        let mut queue = VecDeque::from([package.to_owned()]);
        let mut seen = BTreeSet::from([package.to_owned()]);
        while let Some(name) = queue.pop_front() {
            let (found, files) = self.unpack(&name)?;
            let version = found.version.clone();
            for place in LIBRARY_PLACES {
                if let Some(bytes) = files.read(&Path::new(place).join(library))? {
                    self.used.insert(name, version);
                    return Ok(bytes);
                }
            }
            // Only libraries: what else a package wants is for its scripts, which are not run.
            let depends: Vec<String> = found
                .depends
                .iter()
                .filter(|name| name.starts_with("lib") || name.starts_with("zlib"))
                .cloned()
                .collect();
            self.learn(depends.clone())?;
            for next in depends {
                if seen.len() < PACKAGES_MAX && seen.insert(next.clone()) {
                    queue.push_back(next);
                }
            }
        }
        let (package, path, library) = (package.to_owned(), path.to_owned(), library.to_owned());
        Err(LibrariesError::Library { package, path, library })
    }
}
