//! The last events of all nodes, newest last: what the events page shows before anything else happens.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::node::install::event::InstallEvent;
use crate::node::timeline::{Happening, TimelineEvent};

/// A dozen boots; each node's own page has its whole history.
const RECENT_MAX: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Recent {
    events: Mutex<VecDeque<Arc<TimelineEvent>>>,
}

impl Recent {
    /// Keeps what is received, until the sender is gone.
    pub(super) fn follow(mut receiver: Receiver<Arc<TimelineEvent>>) -> Arc<Recent> {
        let recent = Arc::new(Recent::default());
        let kept = Arc::clone(&recent);
        tokio::spawn(async move {
            loop {
                match receiver.recv().await {
                    Ok(event) => kept.push(event),
                    // The oldest are what a bounded list loses anyway.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        recent
    }

    fn push(&self, event: Arc<TimelineEvent>) {
        // How far an install is, every second: its own panel shows that.
        if matches!(&event.happening, Happening::Install { install: InstallEvent::Progress { .. }, .. }) {
            return;
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == RECENT_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// Newest first.
    pub(super) fn newest_first(&self) -> Vec<Arc<TimelineEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}
