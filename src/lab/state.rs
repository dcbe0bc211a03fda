//! The state directory: everything a lab leaves on disk is below it, and nothing else anywhere.
//!
//! ```text
//! <state>/plan.json              what the supervisor is to build and start
//!         run.json               what it did start; present while (or since) a lab runs
//!         lock                   held by the supervisor as long as it lives
//!         lab.log appliance.log  what they said
//!         farrier.toml farrier.sock
//!         appliance/             the appliance's own state: farrier.db, images/, loaders/
//!         consoles/<mac>.log  -> machines/<name>/serial.log
//!         machines/<name>/       disk.raw vars.fd serial.log qemu.log qmp.sock console.sock
//! ```

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::lab::plan::Plan;
use crate::lab::process::ProcessId;
use crate::net::MacAddr;

/// Bytes of a Unix socket's path (`sun_path` less the NUL).
pub const SOCKET_PATH_MAX: usize = 107;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

/// One machine's corner of the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDir(pub PathBuf);

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state directory `{}` cannot be made", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("`{}` cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("`{}` was not written by this version of farrier; remove it to go on", path.display())]
    Foreign { path: PathBuf, source: serde_json::Error },
}

/// What a supervisor wrote about itself and its children.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    pub supervisor: ProcessId,
    /// Inode of the lab's network namespace.
    pub namespace: u64,
    pub bridge: String,
    /// Where the operator's page appears on the host.
    pub operator: Option<SocketAddr>,
    pub programs: Vec<ProgramRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramRecord {
    pub name: String,
    /// Absent once it has ended.
    pub process: Option<ProcessId>,
    /// How it ended last, in the system's words.
    pub ended: Option<String>,
    /// Times it was started.
    pub starts: u32,
}

impl StateDir {
    /// Makes the directory if there is none; its path is absolute from here on.
    pub fn open(root: &Path) -> Result<StateDir, StateError> {
        let made = fs::create_dir_all(root).and_then(|()| fs::canonicalize(root));
        let root = made.map_err(|source| StateError::Make { path: root.to_owned(), source })?;
        Ok(StateDir { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn plan(&self) -> PathBuf {
        self.root.join("plan.json")
    }

    pub fn run_record(&self) -> PathBuf {
        self.root.join("run.json")
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub fn log(&self) -> PathBuf {
        self.root.join("lab.log")
    }

    /// The machines' serial logs under the names the appliance looks for: by MAC.
    pub fn consoles(&self) -> PathBuf {
        self.root.join("consoles")
    }

    /// Shows a machine's serial log there; a link of an earlier lab gives way.
    pub fn show_console(&self, mac: MacAddr, machine: &MachineDir) -> Result<(), StateError> {
        let path = self.consoles().join(format!("{}.log", mac.dashed()));
        let made = fs::create_dir_all(self.consoles()).and_then(|()| {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            std::os::unix::fs::symlink(machine.serial_log(), &path)
        });
        made.map_err(|source| StateError::Write { path, source })
    }

    pub fn appliance_log(&self) -> PathBuf {
        self.root.join("appliance.log")
    }

    pub fn appliance_config(&self) -> PathBuf {
        self.root.join("farrier.toml")
    }

    pub fn appliance_state(&self) -> PathBuf {
        self.root.join("appliance")
    }

    pub fn operator_socket(&self) -> PathBuf {
        self.root.join("farrier.sock")
    }

    pub fn short_operator_socket(&self) -> io::Result<ShortPath> {
        ShortPath::of(&self.operator_socket())
    }

    pub fn machine(&self, name: &str) -> MachineDir {
        MachineDir(self.root.join("machines").join(name))
    }

    /// Takes the lock a supervisor holds while it lives; `None` if another one does.
    pub fn try_lock(&self) -> Result<Option<Flock<File>>, StateError> {
        let path = self.lock();
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|source| StateError::Write { path: path.clone(), source })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(StateError::Write { path, source: errno.into() }),
        }
    }

    pub fn read_plan(&self) -> Result<Plan, StateError> {
        let path = self.plan();
        let bytes = fs::read(&path).map_err(|source| StateError::Read { path: path.clone(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| StateError::Foreign { path, source })
    }

    pub fn read_run_record(&self) -> Result<Option<RunRecord>, StateError> {
        let path = self.run_record();
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(record) => Ok(Some(record)),
                Err(source) => Err(StateError::Foreign { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    pub fn write_run_record(&self, record: &RunRecord) -> Result<(), StateError> {
        write_json(&self.run_record(), record)
    }

    /// Removes what only makes sense while a lab runs: sockets and the run record.
    pub fn remove_runtime_files(&self) -> Result<(), StateError> {
        let mut paths = vec![self.operator_socket(), self.run_record()];
        if let Ok(machines) = fs::read_dir(self.root.join("machines")) {
            for machine in machines.flatten().map(|entry| MachineDir(entry.path())) {
                paths.extend([machine.qmp_socket(), machine.console_socket()]);
            }
        }
        for path in paths {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::Write { path, source });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

impl MachineDir {
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk.raw")
    }

    /// Everything the machine wrote to its serial port since power-on of the lab.
    pub fn serial_log(&self) -> PathBuf {
        self.0.join("serial.log")
    }

    pub fn qemu_log(&self) -> PathBuf {
        self.0.join("qemu.log")
    }

    pub fn qmp_socket(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }

    pub fn console_socket(&self) -> PathBuf {
        self.0.join("console.sock")
    }
}

/// Written beside and renamed, so that a reader never sees half of it.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let failed = |source| StateError::Write { path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(value).map_err(|error| failed(io::Error::other(error)))?;
    let beside = path.with_extension("new");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).map_err(failed)
}

/// A path to a Unix socket that fits into its 107 bytes: a longer one leads through its directory's descriptor, and
/// is good as long as this lives.
pub struct ShortPath {
    path: PathBuf,
    _directory: Option<File>,
}

impl ShortPath {
    pub fn of(path: &Path) -> io::Result<ShortPath> {
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(ShortPath { path: path.to_owned(), _directory: None });
        }
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let directory = File::open(directory)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(ShortPath { path, _directory: Some(directory) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Connects to a Unix socket however long its path is.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(ShortPath::of(path)?.path())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn one_supervisor_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("a/b")).unwrap();
        let held = state.try_lock().unwrap();
        assert!(held.is_some());
        assert!(state.try_lock().unwrap().is_none());
        drop(held);
        assert!(state.try_lock().unwrap().is_some());
    }

    #[test]
    fn runtime_files_go_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let machine = state.machine("a");
        fs::create_dir_all(&machine.0).unwrap();
        let gone =
            [state.run_record(), state.operator_socket(), machine.qmp_socket(), machine.console_socket()];
        for path in gone.iter().chain([&machine.disk()]) {
            fs::write(path, "x").unwrap();
        }
        assert!(matches!(state.read_run_record(), Err(StateError::Foreign { .. })));
        state.remove_runtime_files().unwrap();
        state.remove_runtime_files().unwrap();
        assert!(gone.iter().all(|path| !path.exists()));
        assert!(machine.disk().exists());
        assert_eq!(state.read_run_record().unwrap(), None);
    }

    #[test]
    fn a_socket_with_a_long_path_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("x".repeat(120));
        fs::create_dir(&deep).unwrap();
        let held = File::open(&deep).unwrap();
        let _listener = UnixListener::bind(format!("/proc/self/fd/{}/long.sock", held.as_raw_fd())).unwrap();
        connect(&deep.join("long.sock")).unwrap();
    }
}
