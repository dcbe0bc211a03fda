//! What the parts of one connection share: its pulse, and the file its answer comes from.
//!
//! hyper is given an answer's body as memory, a blob's mapping. The connection's stream gets that memory back, slice
//! by slice and behind the head, to write it to the socket. A slice that lies within the mapping *is* a part of the
//! file, so the stream has the kernel send that part with sendfile(2), and no byte of it is read here.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::bootplane::pulse::Pulse;
use crate::net::pace::Pace;

/// Shared by a connection's stream, its service and its task; all three run on the task that drives the connection.
#[derive(Debug)]
pub struct Line {
    /// Of this run; no two connections have the same.
    number: u64,
    pub pulse: Pulse,
    /// What the answer under way is sent from. Answers follow one another: hyper asks for the next one only when
    /// all of this one is with the kernel.
    source: Mutex<Option<Source>>,
    /// The worker's permit to send files, while this connection has it.
    turn: Mutex<Option<OwnedSemaphorePermit>>,
    /// How fast the answer under way may be sent, if that is bounded.
    pace: Mutex<Option<Arc<Pace>>>,
}

/// A file, and the mapping of all of it.
#[derive(Clone, Debug)]
pub struct Mapped {
    pub file: Arc<File>,
    pub bytes: Bytes,
}

/// What an answer is sent from: it lies in the mapping, or is no part of it at all.
#[derive(Clone, Debug)]
pub struct Source {
    pub mapped: Mapped,
    pub answer: Bytes,
}

/// A part of a file that is to be sent.
#[derive(Clone, Debug)]
pub struct Place {
    pub file: Arc<File>,
    pub offset: u64,
    /// Bytes of the answer from here on.
    pub left: usize,
}

impl Line {
    pub fn new(now: Instant) -> Line {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Line {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            pulse: Pulse::new(now),
            source: Mutex::new(None),
            turn: Mutex::new(None),
            pace: Mutex::new(None),
        }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn sending_from(&self, source: Option<Source>) {
        *self.lock() = source;
    }

    pub fn sends_from_file(&self) -> bool {
        self.lock().is_some()
    }

    pub fn paced_by(&self, pace: Option<Arc<Pace>>) {
        *self.lock_pace() = pace;
    }

    pub fn pace(&self) -> Option<Arc<Pace>> {
        self.lock_pace().clone()
    }

    pub fn begin_turn(&self, permit: OwnedSemaphorePermit) {
        *self.lock_turn() = Some(permit);
    }

    pub fn has_turn(&self) -> bool {
        self.lock_turn().is_some()
    }

    /// The permit goes to whoever has waited longest.
    pub fn end_turn(&self) {
        *self.lock_turn() = None;
    }

    /// The file that `slice` is a part of, and where in it; `None` for memory that is no file.
    pub fn place_of(&self, slice: &[u8]) -> Option<Place> {
        let source = self.lock();
        let Source { mapped, answer } = source.as_ref()?;
        let within = mapped.bytes.as_ptr_range();
        let part = slice.as_ptr_range();
        let inside = !slice.is_empty() && within.start <= part.start && part.end <= within.end;
        inside.then(|| Place {
            file: Arc::clone(&mapped.file),
            // No larger than the mapping.
            offset: (part.start.addr() - within.start.addr()) as u64,
            left: answer.as_ptr_range().end.addr().saturating_sub(part.start.addr()),
        })
    }

    fn lock_turn(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_pace(&self) -> MutexGuard<'_, Option<Arc<Pace>>> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Source>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_mapping_have_a_place_in_the_file_and_nothing_else_has() {
        let line = Line::new(Instant::now());
        let bytes = Bytes::from(vec![7; 100]);
        assert!(line.place_of(&bytes).is_none(), "no file is being sent");
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mapped = Mapped { file, bytes: bytes.slice(10..90) };
        line.sending_from(Some(Source { mapped, answer: bytes.slice(10..70) }));
        let place = |part: &[u8]| line.place_of(part).map(|place| (place.offset, place.left));
        assert_eq!(place(&bytes[10..90]), Some((0, 60)));
        assert_eq!(place(&bytes[50..51]), Some((40, 20)));
        assert_eq!(place(&bytes[89..90]), Some((79, 0)));
        for outside in [&bytes[9..90], &bytes[10..91], &bytes[0..5], &bytes[95..], &bytes[50..50], &[7; 10]] {
            assert_eq!(place(outside), None);
        }
        line.sending_from(None);
        assert_eq!(place(&bytes[50..51]), None);
    }
}
