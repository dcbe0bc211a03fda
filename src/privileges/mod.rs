//! What the appliance may do to the rest of the machine once it serves: next to nothing.
//!
//! ```text
//!  root ── bridge's sockets, operator's socket, state directory ──► give_up() ──► threads, store, wire, operators
//!          (appliance::Ground, one thread)                          │
//!                                                                   ├─ user    its own, if there is one
//!                                                                   ├─ capabilities   CAP_NET_RAW
//!                                                                   ├─ no_new_privs   no file can give any back
//!                                                                   ├─ Landlock       its own files, no TCP of its own
//!                                                                   └─ seccomp        a list of system calls, no exec
//! ```
//!
//! Capabilities, Landlock and seccomp belong to threads, and threads inherit them: so all of it happens before the
//! second thread exists, and after what takes more.
//!
//! What is kept, and why:
//! - `CAP_NET_RAW`: a bridge that was deleted and made anew is served again. Sockets that are bound to a device may only
//!   be moved with it, and the packet socket of replies to machines without an address is opened anew.
//!
//! What is not, though it looks needed:
//! - `CAP_NET_BIND_SERVICE`: ports below 1024 are bound once, before; afterwards those sockets are moved, never reopened.
//! - `CAP_NET_ADMIN`: the length of receive queues takes it, and a socket keeps its queue when it is moved; and the rule for
//!   169.254.169.254, which another process takes away in the end ([`link_local`](crate::net::link_local)). That one has
//!   this capability alone, and no file, no path and next to no system call ([`Keeper`]).
//! - `CAP_CHOWN`: the operator's socket has been given to its group by then.
//! - `CAP_SYS_NICE`: this thread puts itself before others while it may, and those it makes inherit that. DHCP and the store
//!   keep it; every other one goes back to its place, which takes nothing.
//! - `CAP_DAC_OVERRIDE`: everything the appliance writes is its own.
//!
//! A kernel that lacks Landlock or seccomp is served on all the same; the log and `farrier status` say what is on.

use std::io;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::unistd::Uid;

use crate::config::Config;

mod files;
mod keeper;
mod landlock;
mod system_calls;
mod user;

pub use keeper::Keeper;
pub use user::UserError;

/// See the top of the file.
const KEPT: [Capability; 1] = [Capability::CAP_NET_RAW];

/// What a confined appliance has to reach, beside its state directory.
pub struct Reach<'a> {
    pub config: &'a Config,
    /// Read again on SIGHUP.
    pub config_file: &'a Path,
    /// Boot loaders, as packages have them.
    pub loaders: Vec<PathBuf>,
}

/// What is on; the log and `farrier status` tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    pub user: String,
    /// In the kernel's spelling: `CAP_NET_RAW`.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    /// What of it the kernel enforces: `full`, `partial`, or `off`.
    pub landlock: String,
    pub seccomp: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error(transparent)]
    User(#[from] UserError),
    #[error("store.path: {path} cannot be {what}")]
    State { path: String, what: &'static str, source: io::Error },
    #[error("capabilities cannot be given up: {reason}")]
    Capabilities { reason: String },
    #[error("no_new_privs cannot be set")]
    NoNewPrivileges { source: io::Error },
    #[error("system calls cannot be restricted: {reason}")]
    Seccomp { reason: String },
}

/// Gives up all that serving does not take. Call it while there is one thread.
pub fn give_up(reach: &Reach<'_>) -> Result<Confinement, PrivilegeError> {
    crate::net::sys::run_before_others();
    crate::net::descriptors::raise_limit();
    let wanted = user::wanted(reach.config.user.as_deref())?;
    let state = &reach.config.store.path;
    let unusable =
        |what| move |source| PrivilegeError::State { path: state.display().to_string(), what, source };
    files::make(state).map_err(unusable("made"))?;
    if let Some(user) = &wanted {
        files::hand_over(state, user).map_err(unusable("given to the user of process.user"))?;
    }
    files::keep_to_ourselves(state);
    // While we are still root: afterwards the bounding set cannot be changed.
    bound_capabilities(&KEPT);
    if let Some(user) = &wanted {
        user::become_user(user)?;
    }
    keep_capabilities(&KEPT)?;
    gain_nothing()?;
    let landlock = landlock::restrict(reach);
    let (user, capabilities) = (own_name(), held_capabilities());
    let no_new_privileges = prctl::get_no_new_privs().unwrap_or(false);
    let seccomp = system_calls::restrict_appliance()?;
    let confinement =
        Confinement { user, capabilities, no_new_privileges, landlock: landlock.to_owned(), seccomp };
    tell(&confinement);
    Ok(confinement)
}

fn tell(confinement: &Confinement) {
    tracing::info!(
        user = confinement.user,
        capabilities = confinement.capabilities.join(" "),
        landlock = confinement.landlock,
        seccomp = confinement.seccomp,
        "privileges given up"
    );
    if Uid::effective().is_root() {
        tracing::warn!(
            "the appliance stays root, without root's capabilities: make it a user with `useradd --system --user-group {}`, or name one in process.user",
            user::DEFAULT
        );
    }
    if confinement.landlock == "off" {
        tracing::warn!("this kernel has no Landlock: files are guarded by their modes alone");
    }
}

/// What no program we could ever start may have either; there is none to start, so this may fail quietly where
/// CAP_SETPCAP is lacking.
fn bound_capabilities(kept: &[Capability]) {
    for capability in caps::all() {
        if !kept.contains(&capability) {
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
}

fn keep_capabilities(wanted: &[Capability]) -> Result<(), PrivilegeError> {
    let failed = |error: caps::errors::CapsError| PrivilegeError::Capabilities { reason: error.to_string() };
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let kept: CapsHashSet =
        wanted.iter().copied().filter(|capability| permitted.contains(capability)).collect();
    // A kernel without ambient capabilities has none to clear.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}

fn gain_nothing() -> Result<(), PrivilegeError> {
    prctl::set_no_new_privs().map_err(|errno| PrivilegeError::NoNewPrivileges { source: errno.into() })
}

fn held_capabilities() -> Vec<String> {
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let mut names: Vec<String> = held.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

fn own_name() -> String {
    let uid = Uid::effective();
    user::by_number(uid.as_raw()).map_or_else(|| format!("uid {uid}"), |user| user.name)
}
