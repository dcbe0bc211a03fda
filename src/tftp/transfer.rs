//! One transfer, from the server's side, as a state machine without socket and clock.
//!
//! ```text
//!            options granted                        last block acknowledged, or
//!   RRQ ───────────────────────▶ Negotiating        everything sent and the client is silent
//!    │                            │      │ ERROR 8          │
//!    │ none asked for, none usable│ACK 0 └──────▶ Finished ◀┘◀── ERROR, silence
//!    └──────────────────────────▶ Sending ──────────▲
//! ```
//!
//! The caller feeds datagrams and time, then sends what [`Transfer::poll_transmit`] hands out until it is `None`.
//!
//! Blocks are counted from 1 in 64 bits; the wire's 16 bits roll over to 0. Sending is go-back-n (RFC 7440 §4): an ACK
//! inside the window says that the next block was lost and everything from there is sent again. What protects from
//! the sorcerer's apprentice (RFC 1123 §4.2.3.1): with a window of one block only the timer sends anything twice, and
//! with a larger one a repeated ACK brings the window back at most once per round trip.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::net::pace::Pace;
use crate::node::timeline::{FileOutcome, aborted};
use crate::tftp::Restraint;
use crate::tftp::wire::{self, BLKSIZE_DEFAULT, DATA_HEADER_LEN, Datagram, GrantedOptions, Mode, Request};

mod burst;
mod content;
mod ending;
mod recovery;
pub mod timer;

pub use burst::{Burst, Transmit};
use content::Content;
use timer::RetransmissionTimer;

/// Until the client has proved that it is there, its address may be forged: one packet and this many more.
pub const UNPROVEN_RETRANSMISSIONS_MAX: u32 = 3;
/// The last ACK is often never sent. After this many repetitions of the last block the client has it or is gone.
pub const DALLY_RETRANSMISSIONS_MAX: u32 = 5;
/// The same when the last ACK covers several blocks: a gap among them may need more than one answer.
pub const DALLY_WINDOW_RETRANSMISSIONS_MAX: u32 = 8;
/// Unanswered repetitions at the longest interval before we give up. Those of the quick start are not counted: at
/// 20 % loss each way eight in a row would end one transfer in fourteen.
pub const SLOW_RETRANSMISSIONS_MAX: u32 = 8;
/// Whatever else happens, a transfer that does not move for this long ends.
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// The kernel cuts one send into at most this many datagrams (UDP_MAX_SEGMENTS).
pub const BURST_SEGMENTS_MAX: usize = 64;
/// One send is at most one IPv4 datagram large before it is cut.
pub const BURST_BYTES_MAX: usize = 65_000;
/// Added to two round trips before a repeated ACK is believed, for networks faster than our timer.
const HINT_DELAY: Duration = Duration::from_millis(1);

/// What the network allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest block that leaves in one frame: MTU − 32.
    pub blksize_max: u16,
    pub windowsize_max: u16,
}

impl Limits {
    /// For a peer that gets less.
    pub fn within(self, restraint: &Restraint) -> Limits {
        Limits {
            blksize_max: restraint.blksize_max.map_or(self.blksize_max, |max| max.min(self.blksize_max)),
            windowsize_max: restraint
                .windowsize_max
                .map_or(self.windowsize_max, |max| max.min(self.windowsize_max)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// OACK sent, ACK 0 awaited.
    Negotiating,
    Sending,
    Finished(FileOutcome),
}

/// A block whose answer is timed.
#[derive(Clone, Copy, Debug)]
struct Timed {
    block: u64,
    /// For the first time.
    sent_at: Instant,
    /// The timer has sent it again.
    repeated: bool,
}

#[derive(Debug)]
pub struct Transfer {
    content: Content,
    size: u64,
    blksize: u16,
    windowsize: u16,
    oack: Bytes,
    tsize_granted: bool,
    /// Times the OACK was handed out, and whether it is to go out (again).
    oack_sent: u32,
    oack_due: bool,
    phase: Phase,
    /// A valid ACK has come: the client's address is not forged.
    answered: bool,
    /// Lowest block not acknowledged.
    base: u64,
    /// Next block to send; goes back to `base` when blocks were lost.
    next: u64,
    /// Lowest block never sent.
    fresh: u64,
    timer: RetransmissionTimer,
    /// The round trip being measured.
    timed: Option<Timed>,
    /// When the burst that begins with `base` left.
    flight_at: Instant,
    /// `fresh` when we went back last: an ACK below it may answer what was sent before.
    recovery_until: u64,
    /// A repeated ACK hints at loss: go back then, unless the window is acknowledged before.
    hint_at: Option<Instant>,
    /// With a window of one: how long the timer had become when a repeated block was answered at last.
    backed_off_to: Option<Duration>,
    /// That block was answered twice: it was not lost, only late.
    too_early: bool,
    deadline: Instant,
    progress_at: Instant,
    unanswered: u32,
    unanswered_at_ceiling: u32,
    retransmissions: u32,
    netascii_acknowledged: u64,
    pace: Option<Arc<Pace>>,
    /// Nothing leaves before this, although the window has room.
    paced_until: Option<Instant>,
    now: Instant,
}

impl Transfer {
    /// Begins a read request's transfer. The caller has refused `mail` and writes.
    pub fn new(request: &Request<'_>, limits: &Limits, bytes: Bytes, now: Instant) -> Self {
        let size = bytes.len() as u64;
        let asked = request.options;
        let text = match request.mode {
            Mode::Netascii => true,
            Mode::Octet | Mode::Mail => false,
        };
        let granted = GrantedOptions {
            blksize: asked.blksize.map(|blksize| blksize.min(limits.blksize_max)),
            tsize: (asked.tsize && !text).then_some(size),
            timeout: asked.timeout,
            // A window of one is what everybody has who is granted none.
            windowsize: asked
                .windowsize
                .filter(|_| !text && limits.windowsize_max > 1)
                .map(|window| window.min(limits.windowsize_max)),
        };
        let blksize = granted.blksize.unwrap_or(BLKSIZE_DEFAULT);
        let windowsize = granted.windowsize.unwrap_or(1);
        let content = if text { Content::text(bytes) } else { Content::octets(bytes, blksize) };
        let negotiating = !granted.is_empty();
        let timer = RetransmissionTimer::new(
            granted.timeout.map(|timeout| Duration::from_secs(timeout.seconds.into())),
        );
        Self {
            content,
            size,
            blksize,
            windowsize,
            oack: if negotiating { wire::emit_oack(&granted).into() } else { Bytes::new() },
            tsize_granted: granted.tsize.is_some(),
            oack_sent: 0,
            oack_due: negotiating,
            phase: if negotiating { Phase::Negotiating } else { Phase::Sending },
            answered: false,
            base: 1,
            next: 1,
            fresh: 1,
            deadline: now + timer.current(),
            timer,
            timed: None,
            flight_at: now,
            recovery_until: 0,
            hint_at: None,
            backed_off_to: None,
            too_early: false,
            progress_at: now,
            unanswered: 0,
            unanswered_at_ceiling: 0,
            retransmissions: 0,
            netascii_acknowledged: 0,
            pace: None,
            paced_until: None,
            now,
        }
    }

    /// Sends no faster than this allows.
    pub fn paced(self, pace: Option<Arc<Pace>>) -> Self {
        Self { pace, ..self }
    }

    /// A datagram from the client. What means nothing here is ignored.
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Instant) {
        self.now = now;
        match (&self.phase, wire::parse_datagram(datagram)) {
            (Phase::Finished(_), _) | (_, None) => {}
            (Phase::Negotiating, Some(Datagram::Ack(0))) => {
                if self.oack_sent == 1 {
                    self.timer.sample(now.saturating_duration_since(self.flight_at));
                }
                self.phase = Phase::Sending;
                self.progressed();
            }
            (Phase::Negotiating, Some(Datagram::Ack(_))) => {}
            (Phase::Sending, Some(Datagram::Ack(block))) => self.handle_ack(block),
            (Phase::Negotiating, Some(Datagram::Error { code, .. }))
                if code == wire::ErrorCode::OptionNegotiation.code()
                    || (code == wire::ErrorCode::Undefined.code() && self.tsize_granted) =>
            {
                self.phase = Phase::Finished(FileOutcome::Probe);
            }
            (Phase::Negotiating | Phase::Sending, Some(Datagram::Error { code, message })) => {
                let end = message.len().min(wire::ERROR_MESSAGE_LEN_MAX);
                let text = format!("{} {code}: {}", aborted::CLIENT_ERROR, message[..end].escape_ascii());
                self.phase = Phase::Finished(FileOutcome::Aborted(text));
            }
        }
    }

    fn handle_ack(&mut self, block: u16) {
        let acknowledged = self.base - 1;
        // At most a window is in flight, far less than half the circle: the distance is unambiguous.
        let distance = u64::from(block.wrapping_sub(acknowledged as u16));
        if distance == 0 {
            self.handle_repeated_ack();
        } else if distance <= self.fresh - self.base {
            let complete = self.is_last(acknowledged + distance);
            self.base += distance;
            self.next = self.next.max(self.base);
            if let Content::Netascii(reader) = &self.content {
                self.netascii_acknowledged = reader.consumed() as u64;
            }
            self.measure();
            self.progressed();
            if complete {
                self.phase = Phase::Finished(FileOutcome::Complete);
            } else if self.base < self.fresh {
                self.handle_gap();
            }
        }
    }

    fn progressed(&mut self) {
        self.answered = true;
        self.unanswered = 0;
        self.unanswered_at_ceiling = 0;
        self.hint_at = None;
        self.progress_at = self.now;
        self.deadline = self.now + self.timer.current();
    }

    /// The same request came again: the client has not seen our first packet. Ignored once it has answered.
    pub fn handle_repeated_request(&mut self, now: Instant) {
        self.now = now;
        if !self.answered {
            self.send_again();
        }
    }

    fn send_again(&mut self) {
        match self.phase {
            Phase::Negotiating => self.oack_due = true,
            Phase::Sending => self.go_back(),
            Phase::Finished(_) => {}
        }
    }

    /// To be called when [`Self::next_deadline`] has passed; early calls do nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if matches!(self.phase, Phase::Finished(_)) {
            return;
        }
        if self.paced_until.take_if(|until| *until <= now).is_some() {
            // What waited may leave; nothing of it is overdue.
            return;
        }
        if self.hint_at.is_some_and(|hint_at| hint_at <= now) {
            self.go_back();
            self.deadline = now + self.timer.current();
        } else if self.deadline <= now {
            match self.verdict_of_silence() {
                Some(outcome) => self.phase = Phase::Finished(outcome),
                None => {
                    self.unanswered += 1;
                    self.unanswered_at_ceiling += u32::from(self.timer.is_at_ceiling());
                    self.timer.back_off();
                    self.deadline = (now + self.timer.current()).min(self.progress_at + PROGRESS_TIMEOUT);
                    let timed = self.timed.map(|timed| Timed { repeated: true, ..timed });
                    self.send_again();
                    self.timed = timed;
                }
            }
        }
    }

    fn is_last(&self, block: u64) -> bool {
        self.content.is_last(block, self.blksize)
    }

    /// The next thing to send now, or `None`. To be drained after every call of a `handle_` function.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        match self.phase {
            Phase::Finished(_) => None,
            Phase::Negotiating => {
                if !std::mem::take(&mut self.oack_due) {
                    return None;
                }
                self.retransmissions += u32::from(self.oack_sent > 0);
                self.oack_sent += 1;
                self.flight_at = self.now;
                Some(Transmit::OptionAck(self.oack.clone()))
            }
            Phase::Sending => {
                let first = self.next;
                let room = self.room()?;
                let count = self.burst_len(room);
                if count == 0 {
                    return None;
                }
                self.mark_sent(first, count);
                let payload = self.content.blocks(first, count, self.blksize);
                if let Some(pace) = &self.pace {
                    pace.sent(payload.len() + count as usize * DATA_HEADER_LEN, self.now);
                }
                Some(Transmit::Blocks(Burst {
                    first,
                    count: count as usize,
                    payload,
                    blksize: self.blksize.into(),
                }))
            }
        }
    }

    /// Bytes that the peer's pace lets leave now; `None` if it has to wait for what the window would allow.
    fn room(&mut self) -> Option<usize> {
        let Some(pace) = &self.pace else { return Some(usize::MAX) };
        match pace.room(self.now) {
            Ok(room) => Some(room),
            Err(until) => {
                let in_window = self.next < self.base + u64::from(self.windowsize);
                let there = match &self.content {
                    Content::Octet { last, .. } => self.next <= *last,
                    Content::Netascii(_) => true,
                };
                if in_window && there {
                    self.paced_until = Some(until);
                    // The client's answer waits for what we hold back.
                    self.deadline = self.deadline.max(until + self.timer.current());
                }
                None
            }
        }
    }

    /// Blocks that may leave now in one burst.
    fn burst_len(&mut self, room: usize) -> u64 {
        let window_end = self.base + u64::from(self.windowsize);
        let end = match &mut self.content {
            Content::Octet { last, .. } => window_end.min(*last + 1),
            Content::Netascii(reader) => {
                if self.next == self.fresh && self.next < window_end {
                    reader.advance(self.blksize.into());
                }
                window_end
            }
        };
        let burst_max = (BURST_BYTES_MAX.min(room) / (usize::from(self.blksize) + DATA_HEADER_LEN))
            .clamp(1, BURST_SEGMENTS_MAX);
        end.saturating_sub(self.next).min(burst_max as u64)
    }

    fn mark_sent(&mut self, first: u64, count: u64) {
        self.next = first + count;
        if first == self.base {
            self.flight_at = self.now;
        }
        let again = self.fresh.saturating_sub(first).min(count);
        if again > 0 {
            self.retransmissions = self.retransmissions.saturating_add(again as u32);
        }
        if again < count && self.timed.is_none() {
            self.timed = Some(Timed { block: self.next - 1, sent_at: self.now, repeated: false });
        }
        self.fresh = self.fresh.max(self.next);
    }

    /// When [`Self::handle_timeout`] is to be called; `None` once finished.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Finished(_) => None,
            Phase::Negotiating | Phase::Sending => {
                let sooner = [self.hint_at, self.paced_until].into_iter().flatten().min();
                Some(sooner.map_or(self.deadline, |sooner| sooner.min(self.deadline)))
            }
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
