//! What the wire said, or did not say, about addresses that are to be offered.

use std::sync::Arc;
use std::time::Instant;

use super::{Batch, Worker};
use crate::clock::Timestamp;
use crate::dhcp::network::SERVICE;
use crate::dhcp::network::outbound::Outbound;
use crate::net::arp::ArpAnswer;

/// The word for an address that somebody uses without a lease: in counters, in timelines.
const IN_USE: &str = "address-in-use";

impl Worker {
    /// Hears what has been answered, and gives up on what was not; requests that waited for it go on.
    pub(super) fn settle_questions(&mut self, outbound: &Arc<Outbound>) {
        if self.questions.is_empty() {
            return;
        }
        let now = self.clock.now();
        let mut batch = Batch::default();
        // An answer that is in the queue counts, however late we come to read it.
        while let Ok(Some(answer)) = outbound.arp.receive() {
            self.hear(answer, now, &mut batch);
        }
        let instant = Instant::now();
        while let Some(address) = self.questions.next_over(instant) {
            self.server.address_silent(address, now);
            if let Some(waiting) = self.questions.release(address) {
                self.serve(&waiting.received(), now, &mut batch);
            }
        }
        self.dispatch(batch, outbound);
    }

    fn hear(&mut self, answer: ArpAnswer, now: Timestamp, batch: &mut Batch) {
        let ArpAnswer { address, mac } = answer;
        let changes = self.server.address_answered(address, mac, now);
        let in_use = !changes.is_empty();
        if in_use {
            self.tally.count(SERVICE, IN_USE);
            tracing::warn!(
                %address, %mac,
                "an address of dhcp.pool is used without a lease and is set aside for an hour: give that machine a lease, or take the address out of the pool"
            );
            self.note_addresses(&changes);
            batch.changes.extend(changes);
        }
        if let Some(waiting) = self.questions.release(address) {
            // The client's timeline says why its offer came later, and with another address.
            if let Some(report) = waiting.report.as_ref().filter(|_| in_use) {
                self.record(report, Err(IN_USE.to_owned()), Some(address), None, now);
            }
            self.serve(&waiting.received(), now, batch);
        }
    }
}
