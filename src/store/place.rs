//! Whether a state directory can be used, found out before anything is made in it or around it.

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// The mistake is in the configuration, whatever the file system says about it.
#[derive(Debug, thiserror::Error)]
#[error(
    "configuration refused\n  key:     store.path\n  value:   {:?}\n  rule:    the state directory is one that exists or can be made, and that can be written: {reason}\n  way out: {way_out}",
    path.display().to_string()
)]
pub struct UnusablePlaceError {
    pub path: PathBuf,
    pub reason: String,
    pub way_out: String,
}

/// Looks only. What changes between this look and the first write is told by the write.
pub fn check(path: &Path) -> Result<(), UnusablePlaceError> {
    let refuse =
        |reason: String, way_out: String| Err(UnusablePlaceError { path: path.to_owned(), reason, way_out });
    // Its nearest ancestor, itself included, that there is.
    let mut there = path;
    let metadata = loop {
        match (std::fs::metadata(there), there.parent()) {
            (Ok(metadata), _) => break metadata,
            (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => there = parent,
            // Something that is no directory lies on the way; the next look says what.
            (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotADirectory => there = parent,
            (Err(error), _) => {
                let reason = format!("{} cannot be looked at: {error}", there.display());
                return refuse(reason, "name a directory of the appliance's own user".to_owned());
            }
        }
    };
    let shown = there.display();
    if !metadata.is_dir() {
        return refuse(
            format!("{shown} is no directory"),
            "write path = \"/var/lib/farrier\" under [store], or another directory".to_owned(),
        );
    }
    match access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Ok(()),
        Err(errno) => refuse(
            format!("{shown} cannot be written: {}", errno.desc()),
            "name a directory on a writable file system, or `chown` it to the appliance's user".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_or_one_to_be_made_will_do_and_nothing_is_made() {
        let here = tempfile::tempdir().unwrap();
        let file = here.path().join("file");
        std::fs::write(&file, "x").unwrap();
        check(here.path()).unwrap();
        check(&here.path().join("state/of/it")).unwrap();
        assert_eq!(std::fs::read_dir(here.path()).unwrap().count(), 1);
        for (path, word) in
            [(file.clone(), "file is no directory"), (file.join("below"), "file is no directory")]
        {
            let told = check(&path).unwrap_err().to_string();
            for part in
                ["store.path", "rule:", "way out:", word, &format!("{:?}", path.display().to_string())]
            {
                assert!(told.contains(part), "{part}: {told}");
            }
        }
        // Not even root makes a directory in there.
        let told = check(Path::new("/proc/1/farrier")).unwrap_err().to_string();
        assert!(told.contains("/proc/1 cannot be"), "{told}");
    }
}
