//! The limit of open files: a rack that loads at once has more connections than the usual soft limit of 1024.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A rack powered on at once, four times over, and what else is open.
const WANTED: u64 = 4096 + 1024;

/// Raises the soft limit as far as the hard one allows. Beyond that connections wait, as at any other limit.
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < WANTED
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, WANTED.min(hard), hard)
    {
        tracing::warn!(soft, wanted = WANTED, %error, "limit of open files stays low");
    }
}
