//! A live transfer: whom it serves, by which of our ports, and what is to be told of it in the end.

use std::net::SocketAddrV4;
use std::time::Instant;

use crate::node::timeline::FileOutcome;
use crate::tftp::TransferReport;
use crate::tftp::ports::Port;
use crate::tftp::transfer::Transfer;
use crate::tftp::wire::{self, ErrorCode};

pub struct Session {
    peer: SocketAddrV4,
    /// Which of our [`super::ports::Ports`] is its TID.
    port_index: usize,
    transfer: Transfer,
    /// The request as it came, to recognise its repetition.
    request: Box<[u8]>,
    name: String,
    ticket: u64,
    started_at: Instant,
    /// The earliest deadline the server has been told of.
    pub armed_at: Option<Instant>,
}

/// What a session is made of.
pub struct Begun<'a> {
    pub peer: SocketAddrV4,
    pub port_index: usize,
    pub transfer: Transfer,
    pub request: &'a [u8],
    pub name: String,
    pub ticket: u64,
    pub now: Instant,
}

impl Session {
    pub fn start(begun: Begun<'_>, port: &mut Port) -> Self {
        let Begun { peer, port_index, transfer, request, name, ticket, now } = begun;
        let mut session = Self {
            peer,
            port_index,
            transfer,
            request: request.into(),
            name,
            ticket,
            started_at: now,
            armed_at: None,
        };
        session.transmit(port);
        session
    }

    pub fn peer(&self) -> SocketAddrV4 {
        self.peer
    }

    pub fn port_index(&self) -> usize {
        self.port_index
    }

    pub fn transfer(&self) -> &Transfer {
        &self.transfer
    }

    pub fn is_finished(&self) -> bool {
        self.transfer.outcome().is_some()
    }

    /// Whether `request` is the one this transfer answers.
    pub fn answers(&self, request: &[u8]) -> bool {
        *self.request == *request
    }

    pub fn started_at(&self) -> Instant {
        self.started_at
    }

    pub fn handle_repeated_request(&mut self, now: Instant, port: &mut Port) {
        self.transfer.handle_repeated_request(now);
        self.transmit(port);
    }

    pub fn handle_timeout(&mut self, now: Instant, port: &mut Port) {
        self.transfer.handle_timeout(now);
        self.transmit(port);
    }

    pub fn handle_datagram(&mut self, datagram: &[u8], now: Instant, port: &mut Port) {
        self.transfer.handle_datagram(datagram, now);
        self.transmit(port);
    }

    fn transmit(&mut self, port: &mut Port) {
        while let Some(transmit) = self.transfer.poll_transmit() {
            port.push(self.peer, transmit);
        }
    }

    /// Tells the client that this ends here, and why.
    pub fn refuse(&self, message: &str, port: &mut Port) {
        port.push_datagram(self.peer, wire::emit_error(ErrorCode::Undefined, message));
    }

    /// `outcome`: if the transfer did not finish by itself.
    pub fn into_report(self, outcome: Option<FileOutcome>, now: Instant) -> TransferReport {
        let finished = self.transfer.outcome().cloned();
        let unfinished = || outcome.unwrap_or_else(|| self.transfer.outcome_if_abandoned());
        TransferReport {
            peer: self.peer,
            ticket: self.ticket,
            size: self.transfer.size(),
            sent: self.transfer.acknowledged(),
            took: now.saturating_duration_since(self.started_at),
            outcome: finished.unwrap_or_else(unfinished),
            retransmissions: self.transfer.retransmissions(),
            blksize: self.transfer.blksize(),
            windowsize: self.transfer.windowsize(),
            name: self.name,
        }
    }
}

/// What a report's outcome is counted under.
pub fn outcome_word(outcome: &FileOutcome) -> &'static str {
    match outcome {
        FileOutcome::Complete => "complete",
        FileOutcome::Probe => "probe",
        FileOutcome::Range => "range",
        FileOutcome::NotFound => "not-found",
        FileOutcome::Aborted(_) => "aborted",
    }
}

pub fn log(report: &TransferReport) {
    tracing::debug!(
        peer = %report.peer,
        name = report.name,
        size = report.size,
        sent = report.sent,
        took = ?report.took,
        outcome = ?report.outcome,
        retransmissions = report.retransmissions,
        "TFTP transfer ended"
    );
}
