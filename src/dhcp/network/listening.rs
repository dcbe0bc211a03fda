//! Other servers' replies, where we are not the server: counted, logged, and put on the timelines of the nodes they are for.

use std::time::Instant;

use crate::boot::decision::Standing;
use crate::clock::Timestamp;
use crate::dhcp::network::SERVICE;
use crate::dhcp::network::worker::{RETRY, Worker};
use crate::dhcp::rivals::OtherReply;
use crate::dhcp::server::Silence;
use crate::node::timeline::Happening;

impl Worker {
    /// What other servers say.
    pub(super) fn listen(&mut self) {
        /// Then it is the clients' turn again.
        const SAYINGS_MAX: usize = 64;
        let Some(mut ear) = self.ear.take() else { return };
        let now = self.clock.now();
        for _ in 0..SAYINGS_MAX {
            match ear.hear() {
                Ok(Some(saying)) => {
                    if let Some(reply) = OtherReply::read(saying.payload, saying.source, saying.mac) {
                        self.take_note_of(reply, now);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.desk.tally.count(SERVICE, "receive-failed");
                    tracing::error!(bridge = %self.bridge.name, reason = %error, "listening for other servers failed");
                    self.progress.muted_until = Some(Instant::now() + RETRY);
                    break;
                }
            }
        }
        self.ear = Some(ear);
    }

    fn take_note_of(&mut self, reply: OtherReply, now: Timestamp) {
        self.desk.tally.count(SERVICE, Silence::ReplyFromAnotherServer.as_str());
        if self.rivals.note(&reply, now) {
            tracing::info!(server = %reply.server, mac = %reply.server_mac, "another DHCP server answers here");
        }
        let ip = reply.address.map(tracing::field::display);
        let boot_file = reply.boot_file.as_deref();
        tracing::debug!(
            mac = %reply.client, server = %reply.server, answer = reply.message, ip, boot_file,
            "said by another DHCP server"
        );
        if matches!(self.desk.registry.standing(reply.client, now), Standing::Known(_)) {
            let happening = Happening::OtherServer {
                port: reply.client,
                server: reply.server,
                server_mac: reply.server_mac,
                message: reply.message.to_owned(),
                xid: reply.xid,
                address: reply.address,
                boot_file: reply.boot_file,
            };
            self.desk.registry.record(reply.client, happening, now);
        }
    }
}
