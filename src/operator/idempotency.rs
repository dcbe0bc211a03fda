//! Idempotency-Key: a POST whose answer was lost is sent again, and is done once.
//!
//! The first request with a key is done, and its answer kept for [`KEPT_FOR`]; the same request with the same key gets
//! that answer. One that comes while the first is still under way waits for it. Another request with the same key is
//! refused (422). Keys belong to who sent them: nobody learns of another's answers.
//!
//! Answers are kept in memory: a repetition after a restart is done anew. Registering twice is refused then as well,
//! for a MAC address is a port of one node only; but the answer is that refusal.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::sync::OnceCell;

use super::access::{BODY_BYTES_MAX, Principal};
use super::problem::{Problem, ProblemKind};
use crate::image::digest::Digest;

/// As long as a client may be expected to try again.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Keys kept at once, the oldest goes first: with nodes of a few kilobytes some megabytes.
const KEYS_MAX: usize = 4096;
/// Longer than any identifier in use.
const KEY_BYTES_MAX: usize = 255;

pub(super) const HEADER: &str = "idempotency-key";

#[derive(Default)]
pub(super) struct Keys(Mutex<Book>);

#[derive(Default)]
struct Book {
    slots: HashMap<(String, String), Slot>,
    by_age: VecDeque<(Instant, (String, String))>,
}

#[derive(Clone)]
struct Slot {
    request: Digest,
    answer: Arc<OnceCell<Kept>>,
}

#[derive(Clone)]
struct Kept {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// The answer was none that may be repeated: the store failed, say.
struct NotKept(Response);

impl Keys {
    /// Does `work` unless this request was done before; `body` is what came with it.
    pub(super) async fn once(
        &self,
        principal: &Principal,
        headers: &HeaderMap,
        body: &[u8],
        work: impl Future<Output = Response>,
    ) -> Response {
        let key = match key(headers) {
            Ok(Some(key)) => key,
            Ok(None) => return work.await,
            Err(problem) => return problem.into_response(),
        };
        let slot = match self.slot((principal.name.clone(), key), Digest::of(body)) {
            Ok(slot) => slot,
            Err(problem) => return problem.into_response(),
        };
        let kept = slot.answer.get_or_try_init(|| async { keep(work.await).await }).await;
        match kept {
            Ok(kept) => (kept.status, kept.headers.clone(), Body::from(kept.body.clone())).into_response(),
            Err(NotKept(response)) => response,
        }
    }

    fn slot(&self, key: (String, String), request: Digest) -> Result<Slot, Problem> {
        let now = Instant::now();
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while book
            .by_age
            .front()
            .is_some_and(|(since, _)| now.duration_since(*since) > KEPT_FOR || book.slots.len() >= KEYS_MAX)
        {
            if let Some((_, old)) = book.by_age.pop_front() {
                book.slots.remove(&old);
            }
        }
        if let Some(slot) = book.slots.get(&key) {
            if slot.request == request {
                return Ok(slot.clone());
            }
            let detail = "this Idempotency-Key came with another request before";
            return Err(Problem::new(ProblemKind::KeyReused, detail)
                .field("Idempotency-Key")
                .way_out("choose a new key for a new request, such as a random UUID"));
        }
        let slot = Slot { request, answer: Arc::default() };
        book.by_age.push_back((now, key.clone()));
        book.slots.insert(key, slot.clone());
        Ok(slot)
    }
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all(HEADER).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let text = key.to_str().unwrap_or_default();
    if text.is_empty() || text.len() > KEY_BYTES_MAX || keys.next().is_some() {
        let detail = format!("an Idempotency-Key is one text of 1 to {KEY_BYTES_MAX} visible characters");
        return Err(Problem::new(ProblemKind::Invalid, detail)
            .field("Idempotency-Key")
            .way_out("a random UUID will do"));
    }
    Ok(Some(text.to_owned()))
}

async fn keep(response: Response) -> Result<Kept, NotKept> {
    if response.status().is_server_error() {
        return Err(NotKept(response));
    }
    let (parts, body) = response.into_parts();
    match axum::body::to_bytes(body, 8 * BODY_BYTES_MAX).await {
        Ok(body) => Ok(Kept { status: parts.status, headers: parts.headers, body }),
        Err(_) => {
            let problem = Problem::new(ProblemKind::Unavailable, "the answer could not be kept");
            Err(NotKept(problem.into_response()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::operator::access::{Means, Role};

    fn somebody(name: &str) -> Principal {
        Principal { name: name.to_owned(), role: Role::Admin, means: Means::Socket { uid: 0 } }
    }

    fn with_key(key: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, key.parse().unwrap());
        headers
    }

    async fn body_of(response: Response) -> (u16, String) {
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_same_request_is_done_once_also_at_the_same_time() {
        let (keys, done) = (Keys::default(), AtomicU32::new(0));
        let (principal, headers) = (somebody("ann"), with_key("k1"));
        let work = || async {
            tokio::task::yield_now().await;
            (StatusCode::CREATED, done.fetch_add(1, Ordering::Relaxed).to_string()).into_response()
        };
        let once = || keys.once(&principal, &headers, b"{}", work());
        let (first, second) = tokio::join!(once(), once());
        for response in [first, second, once().await] {
            assert_eq!(body_of(response).await, (201, "0".to_owned()));
        }
        let another = keys.once(&principal, &headers, b"{\"x\":1}", work()).await;
        assert_eq!(another.status(), StatusCode::UNPROCESSABLE_ENTITY);
        // Somebody else's key is another key, and without one everything is done.
        assert_eq!(body_of(keys.once(&somebody("bob"), &headers, b"{}", work()).await).await.1, "1");
        assert_eq!(body_of(keys.once(&principal, &HeaderMap::new(), b"{}", work()).await).await.1, "2");
    }

    #[tokio::test]
    async fn a_failure_of_ours_may_be_tried_again_and_keys_are_bounded() {
        let (keys, principal) = (Keys::default(), somebody("ann"));
        let headers = with_key("k");
        let failed = async { StatusCode::SERVICE_UNAVAILABLE.into_response() };
        assert_eq!(keys.once(&principal, &headers, b"", failed).await.status(), 503);
        let well = async { StatusCode::CREATED.into_response() };
        assert_eq!(keys.once(&principal, &headers, b"", well).await.status(), 201);
        for number in 0..2 * KEYS_MAX {
            let well = async { StatusCode::CREATED.into_response() };
            keys.once(&principal, &with_key(&number.to_string()), b"", well).await;
        }
        let (slots, ages) = {
            let book = keys.0.lock().unwrap();
            (book.slots.len(), book.by_age.len())
        };
        assert!(slots <= KEYS_MAX && ages == slots);
        let too_long = with_key(&"x".repeat(KEY_BYTES_MAX + 1));
        let refused = keys.once(&principal, &too_long, b"", async { StatusCode::OK.into_response() }).await;
        assert_eq!(refused.status(), 400);
    }
}
