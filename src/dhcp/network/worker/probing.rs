//! What the wire said, or did not say, about addresses that are to be offered.

use std::sync::Arc;
use std::time::Instant;

use super::Worker;
use crate::clock::Timestamp;
use crate::dhcp::network::desk::Batch;
use crate::dhcp::network::outbound::Outbound;
use crate::net::arp::ArpAnswer;

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
            self.desk.server.address_silent(address, now);
            if let Some(waiting) = self.questions.release(address) {
                self.serve(&waiting.received(), now, &mut batch);
            }
        }
        self.dispatch(batch, outbound);
    }

    fn hear(&mut self, answer: ArpAnswer, now: Timestamp, batch: &mut Batch) {
        let ArpAnswer { address, mac } = answer;
        let in_use = self.desk.address_answered(address, mac, batch, now);
        if let Some(waiting) = self.questions.release(address) {
            if let Some(report) = waiting.report.as_ref().filter(|_| in_use) {
                self.desk.note_in_use(report, address, now);
            }
            self.serve(&waiting.received(), now, batch);
        }
    }
}
