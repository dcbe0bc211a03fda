//! The body of every answer: bytes handed over in slices of what they are, and an end that is always noticed.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::bootplane::pulse::Pulse;

/// Bytes handed to hyper at a time: enough that system calls do not set the pace, little enough that 200 downloads
/// taking turns leave a script waiting for milliseconds.
const FRAME_BYTES: usize = 128 * 1024;

/// Told once, with the bytes handed over, when the answer is complete or its connection is gone.
pub type WhenDone = Box<dyn FnOnce(u64) + Send>;

/// A slice of a mapped blob, or a few words; never copied here.
pub struct AnswerBody {
    rest: Bytes,
    sent: u64,
    pulse: Arc<Pulse>,
    when_done: Option<WhenDone>,
}

impl AnswerBody {
    pub fn new(bytes: Bytes, pulse: Arc<Pulse>, when_done: Option<WhenDone>) -> AnswerBody {
        AnswerBody { rest: bytes, sent: 0, pulse, when_done }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let count = self.rest.len().min(FRAME_BYTES);
        self.sent += count as u64;
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(count)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.pulse.exchange_ended(Instant::now());
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
    async fn all_bytes_pass_and_the_end_is_told_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        for (size, polled) in
            [(0, 1), (1, 1), (FRAME_BYTES, 1), (FRAME_BYTES * 2 + 1, 1), (FRAME_BYTES * 2 + 1, 3)]
        {
            told.lock().unwrap().clear();
            let bytes = Bytes::from(vec![7; size]);
            let (note, pulse) = (Arc::clone(&told), Arc::new(Pulse::new(Instant::now())));
            let when_done: WhenDone = Box::new(move |sent| note.lock().unwrap().push(sent));
            let mut body = AnswerBody::new(bytes, pulse, Some(when_done));
            for _ in 0..polled {
                body.frame().await;
            }
            assert!(told.lock().unwrap().is_empty());
            drop(body);
            assert_eq!(*told.lock().unwrap(), [size.min(polled * FRAME_BYTES) as u64]);
        }
    }
}
