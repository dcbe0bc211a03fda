//! The operator plane's Unix socket, and who is at the other end of a connection.
//!
//! The Unix socket is made under a temporary name, given its mode, and renamed into place: there is no moment at
//! which somebody else could connect, and none at which the path is missing. A socket left behind by a crash is
//! replaced only when nobody answers on it.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixStream;

use crate::net::sys::peer_groups;
use crate::operator::tls::TlsError;

/// Connections one listener serves at once; further ones wait in the kernel's backlog. Half of them may be watchers.
pub(super) const CONNECTIONS_MAX: usize = 2048;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "operator.socket: {path} already has an appliance that answers: stop it, or give this one another operator.socket"
    )]
    InUse { path: String },
    #[error(
        "operator.socket: {path} exists and is no socket: remove it, or choose another path for operator.socket"
    )]
    NotASocket { path: String },
    #[error("operator.socket: {path} cannot be {what}: check that its directory exists and is writable")]
    Path { path: String, what: &'static str, source: io::Error },
    #[error(
        "operator.group: this machine has no group {name}: make one with `groupadd {name}`, or name another, or its number"
    )]
    NoGroup { name: String },
    #[error(
        "operator.group: {path} cannot be given to group {name}: run the appliance as root with CAP_CHOWN, or as a member of the group"
    )]
    Group { path: String, name: String, source: io::Error },
    #[error(
        "operator.listen: the handed-over listener is on {address}, where others can listen in: set operator.tls, or hand over one on a loopback address"
    )]
    Plain { address: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(
        "operator.listen: {address} cannot be listened on: choose a free port for operator.listen, or \"off\""
    )]
    Listen { address: String, source: io::Error },
    #[error(
        "the handed-over {which} socket cannot be used: the supervisor must pass a listening stream socket"
    )]
    HandedOver { which: &'static str, source: io::Error },
}

/// A bound Unix socket and the file that names it; the file goes when we do.
pub(super) struct BoundSocket {
    pub(super) listener: StdUnixListener,
    pub(super) file: SocketFile,
}

pub(super) struct SocketFile {
    path: PathBuf,
    device_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Only if the path is still ours: another appliance may have replaced it.
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.device_inode);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens the socket: directory 0755 if it is missing, socket 0660 and of the group.
pub(super) fn bind_unix(path: &Path, group: Option<&Group>) -> Result<BoundSocket, SocketError> {
    let shown = path.display().to_string();
    let failed =
        |what: &'static str| move |source: io::Error| SocketError::Path { path: shown.clone(), what, source };
    refuse_if_taken(path)?;
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::create_dir_all(directory).map_err(failed.clone()("created"))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory, mode).map_err(failed.clone()("created"))?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let listener = StdUnixListener::bind(&temporary).map_err(failed.clone()("bound"))?;
    if let Some(group) = group
        && let Err(source) = std::os::unix::fs::chown(&temporary, None, Some(group.gid))
    {
        let _ = std::fs::remove_file(&temporary);
        let (path, name) = (path.display().to_string(), group.name.clone());
        return Err(SocketError::Group { path, name, source });
    }
    let bound = || -> io::Result<BoundSocket> {
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o660))?;
        listener.set_nonblocking(true)?;
        std::fs::rename(&temporary, path)?;
        let metadata = std::fs::symlink_metadata(path)?;
        let device_inode = (metadata.dev(), metadata.ino());
        Ok(BoundSocket { listener, file: SocketFile { path: path.to_owned(), device_inode } })
    };
    bound().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        failed("bound")(error)
    })
}

fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.display().to_string() });
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // Answered, or not ours to judge (permission denied): somebody may live there.
        Ok(_) | Err(_) => Err(SocketError::InUse { path: path.display().to_string() }),
    }
}

/// The group whose members the socket lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) gid: u32,
}

impl Group {
    /// By name or number. Reads the file: a static program cannot load what the C library would ask.
    pub(super) fn find(name: &str) -> Result<Group, SocketError> {
        let gid = name.parse().ok().or_else(|| {
            let groups = std::fs::read("/etc/group").ok()?;
            number_of(&String::from_utf8_lossy(&groups), name)
        });
        let gid = gid.ok_or_else(|| SocketError::NoGroup { name: name.to_owned() })?;
        Ok(Group { name: name.to_owned(), gid })
    }
}

/// Third field of the line whose first is `name`: /etc/group and /etc/passwd alike.
fn number_of(file: &str, name: &str) -> Option<u32> {
    let mut lines = file.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten())
}

/// What a user is called, for the audit log.
fn user_name(uid: u32) -> String {
    let users = std::fs::read("/etc/passwd").unwrap_or_default();
    let users = String::from_utf8_lossy(&users);
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("uid {uid}"))
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Unix(UnixPeer),
    Tcp(SocketAddr),
}

/// User at the other end of a Unix connection, as the kernel vouches for it: as of when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnixPeer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Arc<[u32]>,
    pub(super) name: Arc<str>,
}

impl UnixPeer {
    pub(super) fn of(stream: &UnixStream) -> io::Result<UnixPeer> {
        let credentials = stream.peer_cred()?;
        // An old kernel tells none; then the primary group alone counts.
        let groups = peer_groups(stream).unwrap_or_default();
        let uid = credentials.uid();
        Ok(UnixPeer { uid, gid: credentials.gid(), groups: groups.into(), name: user_name(uid).into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_users_are_found_by_name_and_number() {
        let file = "root:x:0:\n# no group\nstaff:x:50:ada,bob\nbroken:x\nnumber:x:many:\n";
        assert_eq!(number_of(file, "staff"), Some(50));
        for name in ["staf", "broken", "number", "", "x"] {
            assert_eq!(number_of(file, name), None, "{name}");
        }
        assert_eq!(Group::find("4711").unwrap().gid, 4711);
        let unknown = Group::find("no-such-group-here").unwrap_err();
        assert!(unknown.to_string().contains("groupadd"), "{unknown}");
        assert_eq!(user_name(0), "root");
        assert_eq!(user_name(4_000_000_000), "uid 4000000000");
    }
}
