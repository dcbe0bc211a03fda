//! Idempotency-Key: a POST whose answer was lost is sent again, and is done once.
//!
//! The first request with a key is done, and its answer kept for [`KEPT_FOR`]; the same request with the same key gets
//! that answer. One that comes while the first is still under way waits for it, also if whoever sent the first has gone
//! away. Another request with the same key is refused (422). Keys belong to who sent them: nobody learns of another's
//! answers.
//!
//! The answer is in the same transaction of the store as what it tells of, so a repetition after a restart finds both
//! or neither. A refusal changed nothing and has a transaction of its own.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, oneshot};

use super::access::{BODY_BYTES_MAX, Principal};
use super::problem::{Problem, ProblemKind};
use crate::clock::{Clock, Timestamp};
use crate::image::digest::Digest;
use crate::store::{Change, Store};

/// As long as a client may be expected to try again.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
/// Keys kept at once, the oldest goes first: with nodes of a few kilobytes some megabytes.
const KEYS_MAX: usize = 4096;
/// Longer than any identifier in use.
const KEY_BYTES_MAX: usize = 255;

pub(super) const HEADER: &str = "idempotency-key";

/// A key, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestKey {
    pub who: String,
    pub key: String,
}

/// An answer as it is given again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// An answer as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    pub key: RequestKey,
    /// Of the request's body.
    pub request: Digest,
    pub kept_until: Timestamp,
    pub answer: Answer,
}

pub struct Keys {
    store: Arc<dyn Store>,
    clock: Clock,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    slots: HashMap<RequestKey, Slot>,
    by_age: VecDeque<(Timestamp, RequestKey)>,
}

#[derive(Clone)]
struct Slot {
    request: Digest,
    kept_until: Timestamp,
    answer: Arc<OnceCell<Answer>>,
}

/// A request with a key that is being done: what is to be written together with its change.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    key: RequestKey,
    request: Digest,
    kept_until: Timestamp,
}

impl Ticket {
    pub(super) fn keep(&self, answer: &Answer) -> Change {
        Change::PutAnswer(Box::new(KeptAnswer {
            key: self.key.clone(),
            request: self.request,
            kept_until: self.kept_until,
            answer: answer.clone(),
        }))
    }
}

impl Keys {
    /// `answers` as the store held them.
    pub fn new(answers: Vec<KeptAnswer>, store: Arc<dyn Store>, clock: Clock) -> Keys {
        let mut book = Book::default();
        for KeptAnswer { key, request, kept_until, answer } in answers {
            let answer = Arc::new(OnceCell::new_with(Some(answer)));
            book.by_age.push_back((kept_until, key.clone()));
            book.slots.insert(key, Slot { request, kept_until, answer });
        }
        Keys { store, clock, book: Mutex::new(book) }
    }

    /// Does `work` unless this request was done before; `body` is what came with it. With a ticket, `work` sees to it
    /// that its answer is written together with what it changes; what it refuses is written here.
    pub(super) async fn once<W>(
        self: &Arc<Self>,
        principal: &Principal,
        headers: &HeaderMap,
        body: &[u8],
        work: impl FnOnce(Option<Ticket>) -> W + Send + 'static,
    ) -> Response
    where
        W: Future<Output = Result<Answer, Problem>> + Send,
    {
        let key = match key(headers) {
            Ok(Some(key)) => RequestKey { who: principal.name.clone(), key },
            Ok(None) => return work(None).await.into_response(),
            Err(problem) => return problem.into_response(),
        };
        let slot = match self.slot(key.clone(), Digest::of(body)) {
            Ok(slot) => slot,
            Err(problem) => return problem.into_response(),
        };
        let ticket = Ticket { key, request: slot.request, kept_until: slot.kept_until };
        let keys = Arc::clone(self);
        // A task of its own: who hangs up in the middle is the very one that will ask again.
        let done = tokio::spawn(async move {
            let first = || async {
                match work(Some(ticket.clone())).await {
                    Ok(answer) => Ok(answer),
                    Err(problem) => keys.refused(&ticket, problem).await,
                }
            };
            slot.answer.get_or_try_init(first).await.cloned()
        });
        match done.await {
            Ok(Ok(answer)) => answer.into_response(),
            Ok(Err(problem)) => problem.into_response(),
            Err(_) => Problem::new(
                ProblemKind::Unavailable,
                "the request failed inside the appliance; its log says why",
            )
            .into_response(),
        }
    }

    /// A refusal is kept as well, unless the fault is ours: then the same request may succeed next time.
    async fn refused(&self, ticket: &Ticket, problem: Problem) -> Result<Answer, Problem> {
        if problem.is_ours() {
            return Err(problem);
        }
        let answer = Answer::of(problem.into_response()).await?;
        let (sender, written) = oneshot::channel();
        let when_durable = move |result| {
            let _ = sender.send(result);
        };
        self.store.submit(vec![ticket.keep(&answer)], Box::new(when_durable));
        if let Ok(Err(error)) = written.await {
            // It is right all the same, and kept as long as this run lasts.
            tracing::warn!(reason = %error, "a refused request is forgotten with the next start");
        }
        Ok(answer)
    }

    fn slot(&self, key: RequestKey, request: Digest) -> Result<Slot, Problem> {
        let now = self.clock.now();
        let mut book = self.lock();
        let mut dropped = Vec::new();
        while book.by_age.front().is_some_and(|(until, _)| *until < now || book.slots.len() >= KEYS_MAX) {
            if let Some((_, old)) = book.by_age.pop_front() {
                book.slots.remove(&old);
                dropped.push(Change::DropAnswer(old));
            }
        }
        let found = match book.slots.get(&key) {
            Some(slot) if slot.request == request => Ok(slot.clone()),
            Some(_) => {
                let detail = "this Idempotency-Key came with another request before";
                Err(Problem::new(ProblemKind::KeyReused, detail)
                    .field("Idempotency-Key")
                    .way_out("choose a new key for a new request, such as a random UUID"))
            }
            None => {
                let slot = Slot { request, kept_until: now.plus(KEPT_FOR), answer: Arc::default() };
                book.by_age.push_back((slot.kept_until, key.clone()));
                book.slots.insert(key, slot.clone());
                Ok(slot)
            }
        };
        drop(book);
        if !dropped.is_empty() {
            // What the disk does not drop now is dropped after the next start: it is too old, or too many, then as well.
            self.store.submit(dropped, Box::new(|_| {}));
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer {
    /// What a response says, if it can be said again.
    async fn of(response: Response) -> Result<Answer, Problem> {
        let failed = || Problem::new(ProblemKind::Unavailable, "the answer could not be kept");
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 8 * BODY_BYTES_MAX).await.map_err(|_| failed())?;
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            Some((name.to_string(), value.to_str().ok()?.to_owned()))
        };
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers.iter().filter_map(header).collect(),
            body: String::from_utf8(body.to_vec()).map_err(|_| failed())?,
        })
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let header = |(name, value): (String, String)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        };
        let headers: HeaderMap = self.headers.into_iter().filter_map(header).collect();
        (status, headers, Body::from(self.body)).into_response()
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

#[cfg(test)]
mod tests;
