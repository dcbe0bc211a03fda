//! The HTTP listeners follow the bridge. One that was deleted and made anew has our name and another index, and a socket
//! that is bound to a device goes nowhere by itself. (DHCP, TFTP and the advertiser own threads that watch links and see to
//! it themselves.)
//!
//! A thread of its own, which sleeps until the kernel tells of a change: tokio cannot wait for a netlink socket without
//! `unsafe`, and a look once a second would be half of the two seconds in which everything is to be served again.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use crate::net::bridge::Bridge;
use crate::net::link::LinkWatch;
use crate::net::link_thread::LinkThread;

/// While there is no bridge to be on we also look unasked, in milliseconds: what failed may succeed without a change.
const RETRY_MS: u16 = 1000;

/// Follows the bridge until what it gives is dropped.
pub(super) fn keep(bridge: Bridge, listeners: Vec<TcpListener>) -> io::Result<LinkThread> {
    LinkThread::start("farrier-door", move |waker, watch| follow(bridge, &listeners, waker, watch))
}

fn follow(mut bridge: Bridge, listeners: &[TcpListener], waker: &EventFd, watch: &LinkWatch) {
    // Something may have changed since the bridge was found.
    let mut is_home = false;
    loop {
        let mut polled =
            [waker.as_fd(), watch.as_fd()].map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        let timeout = if is_home { PollTimeout::NONE } else { PollTimeout::from(RETRY_MS) };
        // Interrupted is as good as woken.
        let _ = poll(&mut polled, timeout);
        if waker.read().is_ok() {
            return;
        }
        watch.clear();
        is_home = bridge.link().is_some() || move_to_it(&mut bridge, listeners);
    }
}

fn move_to_it(bridge: &mut Bridge, listeners: &[TcpListener]) -> bool {
    // Missing, down, or without our address: all of it may still change, and each change wakes us.
    let Ok(found) = bridge.again() else { return false };
    match listeners.iter().try_for_each(|listener| found.rebind(listener)) {
        Ok(()) => {
            tracing::info!(bridge = %found.name, "HTTP is back on the bridge");
            *bridge = found;
            true
        }
        Err(error) => {
            tracing::error!(bridge = %found.name, %error, "HTTP cannot return to the bridge");
            false
        }
    }
}
