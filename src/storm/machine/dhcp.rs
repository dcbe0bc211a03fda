//! A machine's side of DHCP: DISCOVER, the wait for offers, REQUEST, and the patience of each client.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::{Action, Conversation, Machine, Phase, Role, Stage, Trouble};
use crate::storm::message::{self, Ask, Reply, ReplyKind};

impl Machine {
    pub(super) fn discover(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.enter(
            match self.role {
                Role::Firmware | Role::Shim => Stage::FirmwareDhcp,
                Role::ScriptReader => Stage::IpxeDhcp,
                Role::Ramdisk => Stage::AgentDhcp,
            },
            now,
        );
        let dhcp = &self.manners().dhcp;
        if dhcp.router_wait > 0 && !self.router_seen {
            out.push(Action::SolicitRouter);
        }
        let xid = self.random.next_u32();
        out.push(Action::SendDhcp(message::emit(dhcp, &self.identity, Ask::Discover, xid, 0)));
        let resend_at = now + self.millis(dhcp.discover_waits[0]);
        self.phase = Phase::Discovering {
            talk: Conversation { xid, first_sent: now, attempt: 0, resend_at },
            offer: None,
        };
        self.wake_at = Some(resend_at);
    }

    pub(super) fn handle_reply(&mut self, reply: Reply, now: Instant, out: &mut Vec<Action>) {
        let dhcp = &self.manners().dhcp;
        match &mut self.phase {
            Phase::Discovering { talk, offer } if reply.kind == ReplyKind::Offer && reply.xid == talk.xid => {
                // edk2 drops an OFFER without option 54 (RFC 2131 §4.3.1: MUST).
                if offer.is_some() || reply.server.is_none() {
                    return;
                }
                self.record.replies.push(now.duration_since(talk.first_sent));
                let proxy_wait = if reply.settled || reply.for_http { 0 } else { dhcp.proxy_wait };
                let chosen_at = talk.first_sent + Duration::from_millis(dhcp.offer_window.max(proxy_wait));
                *offer = Some(reply);
                self.wake_at = Some(chosen_at.min(talk.resend_at));
                if chosen_at <= now {
                    self.request(now, out);
                }
            }
            Phase::Requesting { talk, offer } if reply.xid == talk.xid => match reply.kind {
                ReplyKind::Offer => {}
                ReplyKind::Nak => {
                    self.record.replies.push(now.duration_since(talk.first_sent));
                    self.give_up(Trouble::Nak, now);
                }
                ReplyKind::Ack if reply.server != offer.server => {}
                ReplyKind::Ack => {
                    self.record.replies.push(now.duration_since(talk.first_sent));
                    if reply.address != offer.address {
                        return self.give_up(Trouble::AddressChanged, now);
                    }
                    self.address = Some(reply.address);
                    self.record.address = Some(reply.address);
                    out.push(Action::Bind(reply.address));
                    if dhcp.router_wait > 0 && !self.router_seen {
                        self.wake_at = Some(now + self.millis(dhcp.router_wait));
                        self.phase = Phase::AwaitingRouter(reply);
                    } else {
                        self.use_lease(&reply, now, out);
                    }
                }
            },
            Phase::Off
            | Phase::Starting
            | Phase::Discovering { .. }
            | Phase::Requesting { .. }
            | Phase::AwaitingRouter(_)
            | Phase::Fetching(_)
            | Phase::Pausing(_)
            | Phase::Over => {}
        }
    }

    /// Takes the offer that is there.
    pub(super) fn request(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Phase::Discovering { talk, offer: Some(offer) } = &self.phase else { return };
        if self.role == Role::Firmware && offer.boot_file.is_none() {
            return self.give_up(Trouble::NoBootFile, now);
        }
        let (xid, offer) = (talk.xid, offer.clone());
        let dhcp = &self.manners().dhcp;
        let ask =
            Ask::Request { address: offer.address, server: offer.server.unwrap_or(Ipv4Addr::UNSPECIFIED) };
        out.push(Action::SendDhcp(message::emit(dhcp, &self.identity, ask, xid, 0)));
        let resend_at = now + self.millis(dhcp.request_waits[0]);
        self.phase =
            Phase::Requesting { talk: Conversation { xid, first_sent: now, attempt: 0, resend_at }, offer };
        self.wake_at = Some(resend_at);
    }

    pub(super) fn resend(&mut self, now: Instant, out: &mut Vec<Action>) {
        let dhcp = &self.manners().dhcp;
        let (Phase::Discovering { talk, .. } | Phase::Requesting { talk, .. }) = &self.phase else { return };
        let (xid, attempt) = (talk.xid, talk.attempt + 1);
        let (ask, waits, trouble) = match &self.phase {
            Phase::Requesting { offer, .. } => {
                let server = offer.server.unwrap_or(Ipv4Addr::UNSPECIFIED);
                (Ask::Request { address: offer.address, server }, dhcp.request_waits, Trouble::NoAck)
            }
            _ => (Ask::Discover, dhcp.discover_waits, Trouble::NoOffer),
        };
        let Some(wait) = waits.get(attempt) else {
            self.record.setbacks.push((self.stage, trouble));
            if !dhcp.insists {
                return self.give_up(trouble, now);
            }
            self.record.dhcp_resends += 1;
            let began = self.stage_began;
            self.discover(now, out);
            self.stage_began = began;
            return;
        };
        self.record.dhcp_resends += 1;
        out.push(Action::SendDhcp(message::emit(dhcp, &self.identity, ask, xid, attempt)));
        let next = now + self.millis(*wait);
        if let Phase::Discovering { talk, .. } | Phase::Requesting { talk, .. } = &mut self.phase {
            talk.attempt = attempt;
            talk.resend_at = next;
        }
        let mut wake_at = next;
        if let Phase::Discovering { talk, offer: Some(offer) } = &self.phase {
            let proxy_wait = if offer.settled || offer.for_http { 0 } else { dhcp.proxy_wait };
            wake_at = next.min(talk.first_sent + Duration::from_millis(dhcp.offer_window.max(proxy_wait)));
        }
        self.wake_at = Some(wake_at);
    }
}
