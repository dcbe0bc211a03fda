//! The ssh server of a rescue: Debian's dropbear and the libraries it is linked with, put into the ramdisk.
//!
//! 4.2 MB, 1.7 MB compressed: a profile may leave it out (`ssh = false`), and a rescue then has the console alone.

use std::path::Path;

use indicatif::ProgressBar;

use crate::agent::install::rescue::SSH_SERVER;
use crate::image::build::BuildError;
use crate::image::cpio::Archive;
use crate::image::package::{PackageError, Packages};

/// Where Debian keeps libraries, by architecture.
const TRIPLE: &str = if cfg!(target_arch = "aarch64") { "aarch64-linux-gnu" } else { "x86_64-linux-gnu" };
/// What the kernel starts a dynamic program with; the path is written in the program.
const LOADER: &str =
    if cfg!(target_arch = "aarch64") { "lib/ld-linux-aarch64.so.1" } else { "lib64/ld-linux-x86-64.so.2" };

/// Package and library, as Debian 12 splits them.
const LIBRARIES: &[(&str, &str)] = &[
    ("libtomcrypt1", "libtomcrypt.so.1"),
    ("libtommath1", "libtommath.so.1"),
    ("libgmp10", "libgmp.so.10"),
    ("zlib1g", "libz.so.1"),
    ("libcrypt1", "libcrypt.so.1"),
    ("libc6", "libc.so.6"),
];

/// Adds them; returns the server's version, for the manifest.
pub fn add(archive: &mut Archive, packages: &Packages, progress: &ProgressBar) -> Result<String, BuildError> {
    let server = packages.candidate("dropbear-bin")?;
    let program = packages.read_file(&server, Path::new(SSH_SERVER), progress)?;
    archive.file(SSH_SERVER.trim_start_matches('/'), 0o755, program)?;
    for (package, library) in LIBRARIES {
        let bytes = read_library(packages, package, library, progress)?;
        archive.file(&format!("lib/{TRIPLE}/{library}"), 0o755, bytes)?;
    }
    // From where the file itself is: what stands at its place is a link.
    let name = LOADER.rsplit('/').next().unwrap_or(LOADER);
    archive.file(LOADER, 0o755, read_library(packages, "libc6", name, progress)?)?;
    Ok(format!("{} {}", server.name, server.version))
}

fn read_library(
    packages: &Packages,
    package: &str,
    library: &str,
    progress: &ProgressBar,
) -> Result<Vec<u8>, BuildError> {
    let package = packages.candidate(package)?;
    let read =
        |place: &str| packages.read_file(&package, &Path::new(place).join(TRIPLE).join(library), progress);
    // Debian 12 has some of them in /lib, later ones all in /usr/lib.
    match read("/lib") {
        Err(PackageError::NoFile { .. }) => Ok(read("/usr/lib")?),
        other => Ok(other?),
    }
}
