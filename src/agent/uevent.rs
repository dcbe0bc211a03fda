//! Waiting for the kernel to announce devices, with a bound: the event only wakes us, what counts is read from sysfs.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::agent::backoff::pause;

/// Events the kernel itself sends go to multicast group 1.
const KERNEL_GROUP: u32 = 1;

/// A subscription to kernel events. Without one (no privilege, a test) waits simply last their time.
pub struct Uevents {
    socket: Option<OwnedFd>,
}

impl Uevents {
    pub fn open() -> Self {
        Uevents { socket: subscribe().ok() }
    }

    /// Returns true as soon as anything was announced, false after `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let Some(socket) = &self.socket else {
            pause(limit);
            return false;
        };
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let announced = matches!(poll(&mut ready, timeout), Ok(count) if count > 0);
        // Drained, so that one burst of events is one wake-up; ENOBUFS means some were lost, which is no matter.
        let mut buffer = [0; 8192];
        while matches!(
            recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT),
            Ok(_) | Err(Errno::ENOBUFS)
        ) {}
        announced
    }
}

fn subscribe() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket =
        socket(AddressFamily::Netlink, SockType::Datagram, flags, Some(SockProtocol::NetlinkKObjectUEvent))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    Ok(socket)
}
