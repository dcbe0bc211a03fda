//! The state directory becomes the appliance's own: 0700, and everything in it its user's.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use nix::unistd::Uid;

use super::user::User;

/// `images/blobs/<digest>`, `loaders/usr/lib/…/x.efi`: nothing of ours lies deeper.
const DEPTH_MAX: usize = 10;

/// Makes the directory if there is none: Landlock knows only what is there.
pub(super) fn make(state: &Path) -> io::Result<()> {
    if state.exists() { Ok(()) } else { DirBuilder::new().recursive(true).mode(0o700).create(state) }
}

/// Gives the directory to the user with all that is in it. A directory that is the
/// user's already is left alone: whoever owns it could have put links to other people's files there.
pub(super) fn hand_over(state: &Path, user: &User) -> io::Result<()> {
    let owner = fs::metadata(state)?.uid();
    if owner == user.uid || !Uid::effective().is_root() {
        return Ok(());
    }
    give(state, user, DEPTH_MAX)
}

/// Contents first: a start that is interrupted begins again.
fn give(path: &Path, user: &User, depth: usize) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() && depth > 0 {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user, depth - 1)?;
        }
    }
    // A second name of a file may be somewhere else, and its owner somebody else.
    if metadata.is_file() && metadata.nlink() > 1 {
        return Ok(());
    }
    lchown(path, Some(user.uid), Some(user.gid))
}

/// Takes the directory away from group and others. What is in it names machines, tokens and keys.
pub(super) fn keep_to_ourselves(state: &Path) {
    let Ok(metadata) = fs::metadata(state) else { return };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return;
    }
    match fs::set_permissions(state, Permissions::from_mode(mode & 0o7700)) {
        Ok(()) => {
            tracing::info!(path = %state.display(), "the state directory is for the appliance alone now: mode 0700")
        }
        Err(error) => {
            tracing::warn!(path = %state.display(), %error, "the state directory can be read by others: `chmod 0700` it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_is_closed_to_others() {
        let here = tempfile::tempdir().unwrap();
        let state = here.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, Permissions::from_mode(0o755)).unwrap();
        keep_to_ourselves(&state);
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o7777, 0o700);
        keep_to_ourselves(&here.path().join("absent"));
        make(&here.path().join("new/state")).unwrap();
        assert_eq!(fs::metadata(here.path().join("new/state")).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn everything_is_given_but_files_with_another_name() {
        if !Uid::effective().is_root() {
            // Only root gives away; for others there is nothing to do, and nothing fails.
            let here = tempfile::tempdir().unwrap();
            let user = User { name: "nobody".into(), uid: 65534, gid: 65534, groups: Vec::new() };
            hand_over(here.path(), &user).unwrap();
            assert_eq!(fs::metadata(here.path()).unwrap().uid(), Uid::effective().as_raw());
            return;
        }
        let here = tempfile::tempdir().unwrap();
        let state = here.path().join("state");
        fs::create_dir_all(state.join("images")).unwrap();
        let (file, elsewhere) = (state.join("images/blob"), here.path().join("elsewhere"));
        fs::write(&file, "x").unwrap();
        fs::write(&elsewhere, "y").unwrap();
        fs::hard_link(&elsewhere, state.join("second-name")).unwrap();
        std::os::unix::fs::symlink(&elsewhere, state.join("link")).unwrap();
        let user = User { name: "nobody".into(), uid: 65534, gid: 65534, groups: Vec::new() };
        hand_over(&state, &user).unwrap();
        for given in [&state, &file, &state.join("link")] {
            assert_eq!(fs::symlink_metadata(given).unwrap().uid(), 65534, "{}", given.display());
        }
        assert_eq!(fs::metadata(&elsewhere).unwrap().uid(), 0);
        // And what root put there later stays: the directory is the user's by now.
        fs::write(state.join("later"), "z").unwrap();
        hand_over(&state, &user).unwrap();
        assert_eq!(fs::metadata(state.join("later")).unwrap().uid(), 0);
    }
}
