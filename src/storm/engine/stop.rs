//! Ctrl-C as something to read: the storm ends and says how far it came.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGINT and SIGTERM, held back from this thread and those it starts from now on, and told here instead. They stay held
/// back: a second Ctrl-C must not cut the report off.
pub struct Stop {
    told: SignalFd,
}

impl Stop {
    pub fn listen() -> io::Result<Stop> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        let told = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Stop { told })
    }

    /// Whether one has come since the last look.
    pub fn is_wanted(&self) -> bool {
        matches!(self.told.read_signal(), Ok(Some(_)))
    }
}

impl AsRawFd for Stop {
    fn as_raw_fd(&self) -> RawFd {
        std::os::fd::AsFd::as_fd(&self.told).as_raw_fd()
    }
}
