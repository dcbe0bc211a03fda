//! The agent's side: boot tokens, sessions, inventory, orders obeyed.
//!
//! A token is spent by its issue time alone: redeeming one stores that time in the node, and every token issued then
//! or earlier is spent with it. The session it buys names the same time, so that a newer redemption ends it. What the
//! agent is told has happened is on disk before it is told.
//!
//! An answer can be lost: the appliance dies after the commit, or the connection breaks. An agent that repeats its
//! token with the nonce it redeemed it with gets the same session again, and nothing else happens a second time; nor
//! is its redemption taken back when it cannot be stored, since its next try stores it. Without a nonce a redemption
//! that cannot be stored is none, and the token is good for another try.

use std::net::Ipv4Addr;
use std::sync::MutexGuard;
use std::time::Duration;

use crate::boot::decision::NextBoot;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::install::intent::{IntentId, IntentRefusal};
use crate::node::inventory::{Inventory, clean_text};
use crate::node::registry::Registry;
use crate::node::registry::book::Book;
use crate::node::registry::entry::{Act, Entry};
use crate::node::registry::install::Instructions;
use crate::node::state::Order;
use crate::node::timeline::{AgentCall, EVENT_TEXT_MAX, Happening};
use crate::node::token::{AgentNonce, BootToken, Redeemer, Session, TOKEN_LIFETIME, TokenFault};
use crate::node::transition::Event;
use crate::node::{Node, NodeId, NodeName, Port};
use crate::store::{Change, CommitError};

/// Why a node's boot ended that was halted.
const HALTED: &str =
    "its boot token was used twice, so the boot was halted: find who else uses its MAC, then boot it again";

/// What an agent says when it calls home.
#[derive(Clone, Copy, Debug)]
pub struct Hello<'a> {
    pub token: &'a str,
    pub nonce: Option<AgentNonce>,
    pub uptime_secs: f64,
}

/// What an agent says when it cannot go on.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    pub step: &'a str,
    pub message: &'a str,
    /// The task it failed in.
    pub intent: Option<IntentId>,
}

/// What a redeemed token buys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSession {
    /// Goes into `Authorization: Bearer …`.
    pub session: String,
    pub node: NodeId,
    pub name: Option<NodeName>,
}

/// A boot token as it goes into a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedToken {
    pub text: String,
    /// As the token says it; the time it was asked for, or later.
    pub issued_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentRefusal {
    #[error("the token is not one this appliance writes")]
    TokenMalformed,
    #[error("the token was altered, or issued by another appliance")]
    TokenForged,
    #[error("the token is older than half an hour: boot again for a new one")]
    TokenExpired,
    #[error("the token was used before, or a newer one was: boot again for a new one")]
    TokenSpent,
    #[error("the token was issued to another MAC address")]
    WrongMac,
    #[error("the token was issued to another IP address")]
    WrongAddress,
    #[error("a boot of this machine is under way behind another port of the bridge")]
    WrongPort,
    #[error("no node has this MAC address")]
    UnknownNode,
    #[error("an operator has to approve this node first")]
    NotApproved,
    #[error("the session is not one this appliance opened for this node")]
    SessionForged,
    #[error("the node has called home again since: this session is over")]
    SessionReplaced,
    #[error("no inventory is awaited from this node: boot it again")]
    NotAwaited,
    #[error("this is not the machine that was enrolled with this MAC address")]
    OtherMachine,
    #[error("{0}")]
    Task(IntentRefusal),
    /// The only one worth a retry with the same credentials: 503, not 401.
    #[error("the appliance cannot write to its disk")]
    NotDurable(#[from] CommitError),
}

impl AgentRefusal {
    pub fn as_str(&self) -> &'static str {
        match self {
            AgentRefusal::TokenMalformed => "token-malformed",
            AgentRefusal::TokenForged => "token-forged",
            AgentRefusal::TokenExpired => "token-expired",
            AgentRefusal::TokenSpent => "token-spent",
            AgentRefusal::WrongMac => "wrong-mac",
            AgentRefusal::WrongAddress => "wrong-address",
            AgentRefusal::WrongPort => "wrong-port",
            AgentRefusal::UnknownNode => "unknown-node",
            AgentRefusal::NotApproved => "not-approved",
            AgentRefusal::SessionForged => "session-forged",
            AgentRefusal::SessionReplaced => "session-replaced",
            AgentRefusal::NotAwaited => "not-awaited",
            AgentRefusal::OtherMachine => "other-machine",
            AgentRefusal::Task(refusal) => refusal.as_str(),
            AgentRefusal::NotDurable(_) => "not-durable",
        }
    }
}

impl Registry {
    /// A boot token for the kernel command line of an approved node that is to boot the ramdisk; `None` for others.
    pub fn issue_token(&self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) -> Option<IssuedToken> {
        // Before the lock, which every script takes: this asks the kernel for randomness and hashes.
        let text = self.tokens.issue_boot_token(mac, address, now)?;
        let port = self.port_of(mac);
        let mut book = self.lock_at(now);
        let entry = book.owner_of(mac).and_then(|id| book.get(id))?;
        if !book.lets_in(entry) || entry.node.boots_next() != NextBoot::Ramdisk {
            return None;
        }
        let id = entry.node.id;
        let issued_at = earliest_issue(&entry.node).max(now);
        if self.is_elsewhere(entry, mac, port, now) {
            let _told = self.refuse(&mut book, "", mac, address, AgentRefusal::WrongPort, now);
            return None;
        }
        let issue = |act: &mut Act<'_>| {
            act.entry.token_until = Some(now.plus(TOKEN_LIFETIME));
            act.entry.token_port = port.map(|port| (mac, port));
        };
        let ((), effects) = book.change(id, now, issue)?;
        self.settle(id, effects);
        let text = match issued_at == now {
            true => text,
            false => self.tokens.issue_boot_token(mac, address, issued_at)?,
        };
        Some(IssuedToken { text, issued_at })
    }

    /// Redeems a boot token. Durable before it returns. A second use is refused and shown on the timeline, unless
    /// the one who redeemed it repeats its call.
    pub fn hello(
        &self,
        hello: &Hello<'_>,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Result<AgentSession, AgentRefusal> {
        let Hello { token, nonce, uptime_secs } = *hello;
        let port = self.port_of(mac);
        let mut book = self.lock_at(now);
        let redeemer = nonce.map(|nonce| Redeemer::of(token, &nonce));
        let (id, token) = match self.admit_token(&book, token, mac, address, now) {
            Ok(admitted) => admitted,
            Err(AgentRefusal::TokenSpent) if is_redeemer(&book, mac, redeemer.as_ref()) => {
                return self.welcome_again(book, mac);
            }
            Err(refusal) => {
                if refusal == AgentRefusal::TokenSpent {
                    self.halt_boot(&mut book, token, mac, now);
                }
                return Err(self.refuse(&mut book, token, mac, address, refusal, now));
            }
        };
        let before = book.get(id).map(|entry| entry.node.clone()).ok_or(AgentRefusal::UnknownNode)?;
        if book.get(id).is_some_and(|entry| self.is_elsewhere(entry, mac, port, now)) {
            return Err(self.refuse(&mut book, hello.token, mac, address, AgentRefusal::WrongPort, now));
        }
        let redeem = |act: &mut Act<'_>| {
            let node = &mut act.entry.node;
            node.redeemed_token_at = Some(token.issued_at);
            node.redeemed_by = redeemer.clone();
            node.last_seen_at = Some(now);
            // Whom policy let in and who called home is no stranger any more, also if policy changes later.
            node.approved = true;
            // It did boot again; whoever ordered that has what he wanted.
            node.order = node.order.filter(|order| *order != Order::Reboot);
            act.node_changed = true;
            let token_issued_at = Some(token.issued_at);
            act.note(Happening::Agent { call: AgentCall::Hello { uptime_secs, token_issued_at } });
            let _ = act.step(Event::AgentHello);
        };
        let ((), effects) = book.change(id, now, redeem).ok_or(AgentRefusal::UnknownNode)?;
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            if redeemer.is_some() {
                // It will be back; taken back now, it could overtake a repeated call that has been stored since.
                return Err(error.into());
            }
            self.undo(id, now, |node| {
                if node.redeemed_token_at == Some(token.issued_at) {
                    node.redeemed_token_at = before.redeemed_token_at;
                    node.redeemed_by = before.redeemed_by;
                    node.approved = before.approved;
                    node.order = before.order;
                }
            });
            return Err(error.into());
        }
        let session = self.tokens.issue_session(Session { mac, token_issued_at: token.issued_at });
        Ok(AgentSession { session, node: id, name: before.name })
    }

    /// Whether a token of this machine is under way behind another port than it is now heard from.
    pub(super) fn is_elsewhere(
        &self,
        entry: &Entry,
        mac: MacAddr,
        port: Option<u32>,
        now: Timestamp,
    ) -> bool {
        let under_way = entry.token_until.is_some_and(|until| until > now);
        let before = entry.token_port.filter(|(owner, _)| under_way && *owner == mac);
        self.is_another(before.map(|(_, port)| port), port)
    }

    /// Two agents came with one token, and one of them is not the machine: neither goes on. The session ends, every token
    /// issued so far is spent, and the next boot begins anew.
    fn halt_boot(&self, book: &mut Book, token: &str, mac: MacAddr, now: Timestamp) {
        let Ok(token) = self.tokens.read_boot_token(token) else { return };
        let redeemed =
            |id: &NodeId| book.get(*id).is_some_and(|it| it.node.redeemed_token_at == Some(token.issued_at));
        // An older token tells of an older boot; the one that is under way has nothing to do with it.
        let Some(id) = book.owner_of(mac).filter(redeemed) else { return };
        let halt = |act: &mut Act<'_>| {
            let node = &mut act.entry.node;
            node.redeemed_token_at = Some(now.max(token.issued_at));
            node.redeemed_by = None;
            act.node_changed = true;
            let _ = act.step(Event::AgentFailed);
            act.entry.node.failure = Some(HALTED.to_owned());
        };
        if let Some(((), effects)) = book.change(id, now, halt) {
            tracing::error!(%mac, "a boot token was used twice: the boot is halted; somebody else on the bridge has seen it");
            self.settle(id, effects);
        }
    }

    /// The session of the redemption that stands, once more. The first call's commit may still be under way, or have
    /// failed; writing the same record again tells.
    fn welcome_again(&self, book: MutexGuard<'_, Book>, mac: MacAddr) -> Result<AgentSession, AgentRefusal> {
        let entry = book.owner_of(mac).and_then(|id| book.get(id)).ok_or(AgentRefusal::UnknownNode)?;
        let node = entry.node.clone();
        let token_issued_at = node.redeemed_token_at.ok_or(AgentRefusal::TokenSpent)?;
        let pending = self.submit_and_wait_later(node.id, vec![Change::PutNode(Box::new(node.clone()))]);
        drop(book);
        pending.wait()?;
        tracing::info!(%mac, "agent repeats its first call: it has the same session again");
        let session = self.tokens.issue_session(Session { mac, token_issued_at });
        Ok(AgentSession { session, node: node.id, name: node.name })
    }

    /// Stores what the agent found; its NICs become ports unless they are another node's. Durable before it returns.
    pub fn report_inventory(
        &self,
        session: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        inventory: Inventory,
        now: Timestamp,
    ) -> Result<Node, AgentRefusal> {
        let inventory = inventory.sanitize();
        let mut book = self.lock_at(now);
        let id = self.admit_session(&mut book, session, mac, address, now)?;
        self.recognise(&mut book, id, &inventory, session, mac, address, now)?;
        let (ports, conflicts) = book.sort_nics(id, inventory.nics.iter().map(|nic| nic.mac));
        let before = book.get(id).map(|entry| entry.node.clone()).ok_or(AgentRefusal::UnknownNode)?;
        let store = |act: &mut Act<'_>| -> Result<(), AgentRefusal> {
            act.step(Event::InventoryReported).map_err(|_| AgentRefusal::NotAwaited)?;
            let node = &mut act.entry.node;
            node.uuid = node.uuid.or(inventory.system.uuid);
            node.ports.extend(ports.iter().map(|mac| Port { mac: *mac, reserved: None }));
            node.inventory = Some(inventory);
            node.enrolled_at = node.enrolled_at.or(Some(now));
            node.last_seen_at = Some(now);
            node.failure = None;
            act.node_changed = true;
            act.note(Happening::Agent { call: AgentCall::Inventory });
            for (port, owner) in conflicts {
                act.note(Happening::PortConflict { port, owner });
            }
            Ok(())
        };
        let (outcome, effects) = book.change(id, now, store).ok_or(AgentRefusal::UnknownNode)?;
        if let Err(refusal) = outcome {
            return Err(self.refuse(&mut book, session, mac, address, refusal, now));
        }
        let node = book.view(id);
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            // State and inventory stay: they are true, and marked unsaved. The agent reports them again.
            self.undo(id, now, |node| node.enrolled_at = before.enrolled_at);
            return Err(error.into());
        }
        node.ok_or(AgentRefusal::UnknownNode)
    }

    /// What went wrong in the ramdisk. Taken with a session, or with an unspent boot token if `hello` never
    /// succeeded; the token stays unspent.
    pub fn report_failure(
        &self,
        credential: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        failure: &Failure<'_>,
        now: Timestamp,
    ) -> Result<Node, AgentRefusal> {
        let mut book = self.lock_at(now);
        let id = match self.tokens.read_session(credential) {
            Err(TokenFault::Malformed) => match self.admit_token(&book, credential, mac, address, now) {
                Ok((id, _)) => id,
                Err(refusal) => return Err(self.refuse(&mut book, credential, mac, address, refusal, now)),
            },
            Ok(_) | Err(TokenFault::Forged) => {
                self.admit_session(&mut book, credential, mac, address, now)?
            }
        };
        let (step, message) =
            (clean_text(failure.step, EVENT_TEXT_MAX), clean_text(failure.message, EVENT_TEXT_MAX));
        let fail = |act: &mut Act<'_>| {
            act.entry.node.last_seen_at = Some(now);
            act.note(Happening::Agent {
                call: AgentCall::Failure { step: step.clone(), message: message.clone() },
            });
            let _ = act.step(Event::AgentFailed);
            act.task_failed(failure.intent, format!("{step}: {message}"));
            act.entry.node.failure = Some(format!("{step}: {message}"));
            act.node_changed = true;
        };
        let ((), effects) = book.change(id, now, fail).ok_or(AgentRefusal::UnknownNode)?;
        self.settle(id, effects);
        book.view(id).ok_or(AgentRefusal::UnknownNode)
    }

    /// The agent is alive; tells it what waits for it.
    pub fn heartbeat(
        &self,
        session: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Result<Instructions, AgentRefusal> {
        let mut book = self.lock_at(now);
        let id = self.admit_session(&mut book, session, mac, address, now)?;
        // Heartbeats are too many to store; `last_seen_at` goes to disk with the next change that does.
        let beat = |act: &mut Act<'_>| {
            act.entry.node.last_seen_at = Some(now);
            Instructions { order: act.entry.node.order, task: act.entry.task() }
        };
        let (instructions, effects) = book.change(id, now, beat).ok_or(AgentRefusal::UnknownNode)?;
        self.settle(id, effects);
        Ok(instructions)
    }

    /// The agent is about to act on an order: it will not be given again. Durable before it returns.
    pub fn obeying(
        &self,
        session: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        order: Order,
        now: Timestamp,
    ) -> Result<Node, AgentRefusal> {
        let mut book = self.lock_at(now);
        let id = self.admit_session(&mut book, session, mac, address, now)?;
        let before = book.get(id).and_then(|entry| entry.node.order);
        let obey = |act: &mut Act<'_>| {
            act.entry.node.last_seen_at = Some(now);
            act.entry.node.order = before.filter(|waiting| *waiting != order);
            act.node_changed = true;
            act.note(Happening::Agent { call: AgentCall::Obeying { order } });
        };
        let ((), effects) = book.change(id, now, obey).ok_or(AgentRefusal::UnknownNode)?;
        let node = book.view(id);
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            self.undo(id, now, |node| node.order = node.order.or(before));
            return Err(error.into());
        }
        node.ok_or(AgentRefusal::UnknownNode)
    }

    /// Whether this boot token is genuine, fresh, unspent, and used by whom it was issued to.
    fn admit_token(
        &self,
        book: &Book,
        token: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Result<(NodeId, BootToken), AgentRefusal> {
        let token = self.tokens.read_boot_token(token).map_err(|fault| match fault {
            TokenFault::Malformed => AgentRefusal::TokenMalformed,
            TokenFault::Forged => AgentRefusal::TokenForged,
        })?;
        if token.mac != mac {
            return Err(AgentRefusal::WrongMac);
        }
        if token.address != address {
            return Err(AgentRefusal::WrongAddress);
        }
        let entry = book.owner_of(mac).and_then(|id| book.get(id)).ok_or(AgentRefusal::UnknownNode)?;
        // Spent comes before expired: a replay is the graver news.
        if entry.node.redeemed_token_at.is_some_and(|redeemed| token.issued_at <= redeemed) {
            return Err(AgentRefusal::TokenSpent);
        }
        if token.is_expired(now) && !outran_clock(entry, &token, now) {
            return Err(AgentRefusal::TokenExpired);
        }
        // A token outlives neither the removal of its node nor the approval; a new node of the same MAC is another.
        if token.issued_at < entry.node.created_at {
            return Err(AgentRefusal::TokenExpired);
        }
        if !book.lets_in(entry) {
            return Err(AgentRefusal::NotApproved);
        }
        Ok((entry.node.id, token))
    }

    pub(super) fn admit_session(
        &self,
        book: &mut Book,
        session: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Result<NodeId, AgentRefusal> {
        let admit = |book: &Book| {
            let session = self.tokens.read_session(session).map_err(|_| AgentRefusal::SessionForged)?;
            if session.mac != mac {
                return Err(AgentRefusal::WrongMac);
            }
            let entry = book.owner_of(mac).and_then(|id| book.get(id)).ok_or(AgentRefusal::UnknownNode)?;
            if entry.node.redeemed_token_at != Some(session.token_issued_at) {
                return Err(AgentRefusal::SessionReplaced);
            }
            Ok(entry.node.id)
        };
        admit(book).map_err(|refusal| self.refuse(book, session, mac, address, refusal, now))
    }

    /// Puts a refusal into the log and on the timeline of the node the caller claims to be.
    pub(super) fn refuse(
        &self,
        book: &mut Book,
        credential: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        refusal: AgentRefusal,
        now: Timestamp,
    ) -> AgentRefusal {
        let reason = refusal.as_str();
        tracing::warn!(%mac, ip = %address, reason, "agent refused");
        if let Some(id) = book.owner_of(mac) {
            let genuine = self.tokens.read_boot_token(credential).ok().filter(|token| token.mac == mac);
            let token_issued_at = genuine.map(|token| token.issued_at);
            let refused = Happening::AgentRefused { reason: reason.to_owned(), token_issued_at };
            let note = |act: &mut Act<'_>| act.note(refused);
            if let Some(((), effects)) = book.change(id, now, note) {
                self.settle(id, effects);
            }
        }
        refusal
    }
}

/// The first issue time that this node's token may have. If the clock was set back between two starts, what the node
/// redeemed, and its own beginning, lie ahead of it: a token as of now would be spent before it was used.
fn earliest_issue(node: &Node) -> Timestamp {
    let unspent = node.redeemed_token_at.map(|redeemed| redeemed.plus(Duration::from_millis(1)));
    unspent.unwrap_or_default().max(node.created_at)
}

/// Whether a token from the future is one that had to be: see [`earliest_issue`]. Its issue time says nothing of its
/// age, so memory decides how long it is good.
fn outran_clock(entry: &Entry, token: &BootToken, now: Timestamp) -> bool {
    now < token.issued_at
        && token.issued_at == earliest_issue(&entry.node)
        && entry.token_until.is_some_and(|until| now <= until)
}

/// Whether the redemption that stands is this one's own.
fn is_redeemer(book: &Book, mac: MacAddr, redeemer: Option<&Redeemer>) -> bool {
    let entry = book.owner_of(mac).and_then(|id| book.get(id));
    redeemer.is_some() && entry.is_some_and(|entry| entry.node.redeemed_by.as_ref() == redeemer)
}
