//! How a transfer ends when nobody says so, and what is to be told of it.

use std::time::Duration;

use super::content::Content;
use super::{
    DALLY_RETRANSMISSIONS_MAX, DALLY_WINDOW_RETRANSMISSIONS_MAX, PROGRESS_TIMEOUT, Phase,
    SLOW_RETRANSMISSIONS_MAX, Transfer, UNPROVEN_RETRANSMISSIONS_MAX,
};
use crate::node::timeline::{FileOutcome, aborted};

impl Transfer {
    /// Whether the silence has lasted long enough to end the transfer, and how.
    pub(super) fn verdict_of_silence(&self) -> Option<FileOutcome> {
        if !self.answered {
            return (self.unanswered >= UNPROVEN_RETRANSMISSIONS_MAX)
                .then(|| FileOutcome::Aborted(aborted::NO_ANSWER.to_owned()));
        }
        let everything_sent = self.fresh > self.base && self.is_last(self.fresh - 1);
        let one_left = self.fresh - self.base == 1;
        let patience = if one_left { DALLY_RETRANSMISSIONS_MAX } else { DALLY_WINDOW_RETRANSMISSIONS_MAX };
        if everything_sent && self.unanswered >= patience {
            return Some(FileOutcome::Complete);
        }
        (self.unanswered_at_ceiling >= SLOW_RETRANSMISSIONS_MAX
            || self.now.saturating_duration_since(self.progress_at) >= PROGRESS_TIMEOUT)
            .then(|| FileOutcome::Aborted(aborted::FELL_SILENT.to_owned()))
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&FileOutcome> {
        match &self.phase {
            Phase::Finished(outcome) => Some(outcome),
            Phase::Negotiating | Phase::Sending => None,
        }
    }

    /// How it ends if its peer asks for something else now: a client that has all of it never says so twice.
    pub fn outcome_if_abandoned(&self) -> FileOutcome {
        match &self.phase {
            Phase::Finished(outcome) => outcome.clone(),
            Phase::Sending if self.answered && self.base < self.fresh && self.is_last(self.fresh - 1) => {
                FileOutcome::Complete
            }
            Phase::Negotiating | Phase::Sending => FileOutcome::Aborted(aborted::BEGAN_ANEW.to_owned()),
        }
    }

    /// Whether the client has answered at all.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the file the client has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        match (&self.phase, &self.content) {
            (Phase::Finished(FileOutcome::Complete), _) => self.size,
            (_, Content::Octet { .. }) => ((self.base - 1) * u64::from(self.blksize)).min(self.size),
            (_, Content::Netascii(_)) => self.netascii_acknowledged,
        }
    }

    /// How long the client takes to answer, once that was measured.
    pub fn round_trip(&self) -> Option<Duration> {
        self.timer.round_trip()
    }

    pub fn blksize(&self) -> u16 {
        self.blksize
    }

    pub fn windowsize(&self) -> u16 {
        self.windowsize
    }

    pub fn retransmissions(&self) -> u32 {
        self.retransmissions
    }
}
