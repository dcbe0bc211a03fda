//! The body of every answer: one piece of memory, whose way into the kernel is counted and whose end is always told.
//!
//! hyper takes the whole body as one frame and advances it by what the socket took. So what has been sent is known
//! to the byte, and an answer ends when its last byte is with the kernel or its connection is gone.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::bootplane::line::{Line, Mapped, Source};

/// Bytes the socket is offered at a time, and so the most a connection sends before others have their turn. With 128
/// downloads a quarter of it costs half as much processor time again per byte; a script waits for two of them, some
/// 2 ms, since downloads queue among themselves (see `connection`).
pub const TURN_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Told once, with the bytes the kernel took, when the answer is complete or its connection is gone.
pub type WhenDone = Box<dyn FnOnce(u64) + Send>;

/// A slice of a mapped blob, or a few words; never copied here.
pub struct AnswerBody {
    unsent: Option<Unsent>,
}

/// What of an answer the kernel has not taken yet.
pub struct Unsent {
    rest: Bytes,
    sent: u64,
    line: Arc<Line>,
    when_done: Option<WhenDone>,
}

impl AnswerBody {
    /// Words that are in memory and nowhere else.
    pub fn text(bytes: Bytes, line: Arc<Line>) -> AnswerBody {
        AnswerBody { unsent: Some(Unsent { rest: bytes, sent: 0, line, when_done: None }) }
    }

    /// A file or a part of it; `mapped` if there is one on disk that `bytes` lies in.
    pub fn file(bytes: Bytes, mapped: Option<Mapped>, line: Arc<Line>, when_done: WhenDone) -> AnswerBody {
        line.sending_from(mapped.map(|mapped| Source { mapped, answer: bytes.clone() }));
        AnswerBody { unsent: Some(Unsent { rest: bytes, sent: 0, line, when_done: Some(when_done) }) }
    }
}

impl Body for AnswerBody {
    type Data = Unsent;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unsent>, Infallible>>> {
        Poll::Ready(self.unsent.take().map(|unsent| Ok(Frame::data(unsent))))
    }

    fn is_end_stream(&self) -> bool {
        self.unsent.as_ref().is_none_or(|unsent| !unsent.has_remaining())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.unsent.as_ref().map_or(0, |unsent| unsent.rest.len() as u64))
    }
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.rest[..self.rest.len().min(TURN_BYTES_MAX)]
    }

    fn advance(&mut self, count: usize) {
        self.rest.advance(count);
        self.sent += count as u64;
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.line.sending_from(None);
        self.line.paced_by(None);
        self.line.pulse.exchange_ended(Instant::now());
        if let Some(when_done) = self.when_done.take() {
            when_done(self.sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_was_taken_is_told_once_at_the_end() {
        let told = Arc::new(Mutex::new(Vec::new()));
        for (size, taken) in [(0, 0), (1, 0), (1, 1), (TURN_BYTES_MAX * 2 + 1, TURN_BYTES_MAX + 7)] {
            let (note, line) = (Arc::clone(&told), Arc::new(Line::new(Instant::now())));
            let when_done: WhenDone = Box::new(move |sent| note.lock().unwrap().push(sent));
            let mut body = AnswerBody::file(Bytes::from(vec![7; size]), None, line, when_done);
            assert_eq!((body.is_end_stream(), body.size_hint().exact()), (size == 0, Some(size as u64)));
            let mut unsent = body.frame().await.unwrap().unwrap().into_data().unwrap_or_else(|_| panic!());
            assert!(body.is_end_stream() && body.frame().await.is_none());
            drop(body);
            while unsent.sent < taken as u64 {
                let count = unsent.chunk().len().min(taken - unsent.sent as usize);
                assert!((1..=TURN_BYTES_MAX).contains(&count));
                unsent.advance(count);
            }
            assert!(told.lock().unwrap().is_empty());
            drop(unsent);
            assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [taken as u64]);
        }
    }

    #[test]
    fn a_body_nobody_takes_is_told_as_well() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let (note, line) = (Arc::clone(&told), Arc::new(Line::new(Instant::now())));
        let when_done: WhenDone = Box::new(move |sent| note.lock().unwrap().push(sent));
        drop(AnswerBody::file(Bytes::from_static(b"seven"), None, line, when_done));
        assert_eq!(*told.lock().unwrap(), [0]);
    }
}
