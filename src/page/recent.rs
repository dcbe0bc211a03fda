//! The last events of all nodes, newest last: what the events page shows before anything else happens.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::node::NodeId;
use crate::node::timeline::{ADDRESS_ELSEWHERE, Happening, TimelineEvent};

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
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == RECENT_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// DHCP servers besides ours that machines listened to, each with the last such machine.
    pub(super) fn other_servers(&self) -> Vec<(NodeId, Ipv4Addr)> {
        let mut servers: Vec<(NodeId, Ipv4Addr)> = Vec::new();
        for event in self.newest_first() {
            // One that is to give the addresses is no rival.
            if let Happening::Dhcp { other_server: Some(server), answer: Err(reason), .. } = &event.happening
                && reason != ADDRESS_ELSEWHERE
                && servers.iter().all(|(_, known)| known != server)
            {
                servers.push((event.node, *server));
            }
        }
        servers
    }

    /// Newest first.
    pub(super) fn newest_first(&self) -> Vec<Arc<TimelineEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}
