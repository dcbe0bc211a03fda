//! The state directory's disk: room, and how long it takes until a write is there to stay.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;

use crate::doctor::facts::StateFact;
use crate::store::place;

/// The median of so many synced writes is told.
const SYNCS: usize = 5;
/// About what one lease writes.
const BLOCK: [u8; 4096] = [0x5a; 4096];

pub(super) fn look(path: &Path) -> StateFact {
    // What is not there yet will be made within its nearest ancestor.
    let there = path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("/"));
    StateFact {
        unusable: place::check(path).err().map(|error| error.reason),
        free_bytes: statvfs(there)
            .map(|disk| disk.blocks_available().saturating_mul(disk.fragment_size()))
            .map_err(|error| error.to_string()),
        sync: time_syncs(there).map_err(|error| error.to_string()),
    }
}

/// In a file without a name: it is gone when we are, however we end.
fn time_syncs(directory: &Path) -> io::Result<Duration> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(directory)?;
    let mut took = [Duration::ZERO; SYNCS];
    for one in &mut took {
        *one = time_sync(&file)?;
    }
    took.sort_unstable();
    Ok(took[SYNCS / 2])
}

fn time_sync(mut file: &File) -> io::Result<Duration> {
    let started = Instant::now();
    file.write_all(&BLOCK)?;
    file.sync_data()?;
    Ok(started.elapsed())
}

/// A directory of our own that goes when it is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn make() -> io::Result<Scratch> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!("farrier-doctor-{:016x}", u64::from_ne_bytes(random));
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Scratch(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let seen = look(&directory.path().join("to/be/made"));
        assert_eq!(seen.unusable, None);
        assert!(seen.free_bytes.unwrap() > 0);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let scratch = Scratch::make().unwrap();
        let path = scratch.path().to_owned();
        assert!(path.is_dir());
        drop(scratch);
        assert!(!path.exists());
    }
}
