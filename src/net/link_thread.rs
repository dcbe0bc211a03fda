//! A thread that looks after something on the bridge, sleeps until the kernel tells of a change to a link, and is woken
//! and waited for when its owner is done with it.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::net::link::LinkWatch;
use crate::net::sys::run_like_others;

/// Ends the thread when dropped, and waits for it.
pub struct LinkThread {
    waker: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl LinkThread {
    /// `run` returns as soon as `waker` can be read; `watch` can be when a link has changed.
    pub fn start(
        name: &str,
        run: impl FnOnce(&EventFd, &LinkWatch) + Send + 'static,
    ) -> io::Result<LinkThread> {
        let waker = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let watch = LinkWatch::open()?;
        let thread = {
            let waker = Arc::clone(&waker);
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                run_like_others();
                run(&waker, &watch);
            })?
        };
        Ok(LinkThread { waker, thread: Some(thread) })
    }
}

impl Drop for LinkThread {
    fn drop(&mut self) {
        // Fails only if the counter overflows, that is never.
        let _ = self.waker.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
