//! The operator API's client: HTTP over the Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::error::CommandError;
use crate::bridge_log::event::BridgeEvent;
use crate::operator::api::{EventMessage, LaggedMessage, Page, ProblemDocument};
use crate::operator::views::PAGE_MAX;

/// Longer than the store's slowest commit; an appliance that needs more is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Thousands of nodes with their inventories stay below.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// One event; the server's are a few kilobytes.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client { socket: socket.into() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CommandError> {
        self.document(Method::GET, path, Bytes::new()).await
    }

    /// Every item of a list, page after page.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, CommandError> {
        let mut items = Vec::new();
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut page: Page<T> = self.get(&format!("{path}{joint}limit={PAGE_MAX}")).await?;
        loop {
            items.append(&mut page.items);
            let Some(next) = page.next.take() else { return Ok(items) };
            page = self.get(&format!("{path}{joint}limit={PAGE_MAX}&cursor={}", segment(&next))).await?;
        }
    }

    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CommandError> {
        let body = serde_json::to_vec(body).map_err(|error| CommandError::Failed(error.to_string()))?;
        self.document(Method::PATCH, path, body.into()).await
    }

    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CommandError> {
        let body = serde_json::to_vec(body).map_err(|error| CommandError::Failed(error.to_string()))?;
        self.document(Method::PUT, path, body.into()).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CommandError> {
        self.document(Method::DELETE, path, Bytes::new()).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CommandError> {
        let body = serde_json::to_vec(body).map_err(|error| CommandError::Failed(error.to_string()))?;
        self.document(Method::POST, path, body.into()).await
    }

    /// The live event stream, from now on.
    pub async fn events(&self) -> Result<EventStream, CommandError> {
        self.events_of("").await
    }

    /// The same, of events that match the query.
    pub async fn events_of(&self, query: &str) -> Result<EventStream, CommandError> {
        let path = format!("/api/v1/events?{query}");
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.send(Method::GET, &path, Bytes::new()));
        let response = answer.await.map_err(|_| self.too_slow())??;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        Ok(EventStream {
            body: response.into_body(),
            parser: EventParser::default(),
            socket: self.socket.clone(),
        })
    }

    async fn document<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, CommandError> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            if !response.status().is_success() {
                return Err(self.refusal(response).await);
            }
            let text = self.read(response).await?;
            serde_json::from_slice(&text).map_err(|error| {
                CommandError::Failed(format!(
                    "the appliance's answer is not understood ({error}): are both of the same version?"
                ))
            })
        };
        tokio::time::timeout(ANSWER_WITHIN, exchange).await.map_err(|_| self.too_slow())?
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, CommandError> {
        let unreachable = |reason: &dyn ToString| CommandError::unreachable(&self.socket, reason.to_string());
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => CommandError::Refused(format!(
                "{}: permission denied\n  way out: run the command as root, as the appliance's user, or as a member of operator.group",
                self.socket.display()
            )),
            io::ErrorKind::NotFound => unreachable(&"there is no such socket"),
            io::ErrorKind::ConnectionRefused => unreachable(&"the socket is left over, nobody listens"),
            _ => unreachable(&error),
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        // Ends by itself with the exchange or the stream.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| CommandError::Usage(error.to_string()))?;
        sender.send_request(request).await.map_err(|error| unreachable(&error))
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, CommandError> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| CommandError::unreachable(&self.socket, error))
    }

    async fn refusal(&self, response: Response<Incoming>) -> CommandError {
        let status = response.status();
        match self.read(response).await {
            Err(error) => error,
            Ok(text) => match serde_json::from_slice::<ProblemDocument>(&text) {
                Ok(problem) => problem.into(),
                Err(_) => CommandError::Failed(format!("the appliance answered {status}")),
            },
        }
    }

    fn too_slow(&self) -> CommandError {
        let reason =
            format!("it took the connection but did not answer within {} s", ANSWER_WITHIN.as_secs());
        CommandError::unreachable(&self.socket, reason)
    }
}

/// A path segment with everything but unreserved characters percent-encoded (RFC 3986 §2.3).
pub fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    Timeline(Box<EventMessage>),
    Bridge(Box<BridgeEvent>),
    Lagged(LaggedMessage),
}

/// Server-sent events as they arrive.
pub struct EventStream {
    body: Incoming,
    parser: EventParser,
    socket: PathBuf,
}

impl EventStream {
    /// The next event; none when the appliance ended the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, CommandError> {
        loop {
            while let Some((kind, data)) = self.parser.next_event() {
                let understood = match kind.as_str() {
                    "timeline" => serde_json::from_str(&data).map(|event| Some(WatchEvent::Timeline(event))),
                    "bridge" => serde_json::from_str(&data).map(|event| Some(WatchEvent::Bridge(event))),
                    "lagged" => serde_json::from_str(&data).map(|event| Some(WatchEvent::Lagged(event))),
                    // A newer appliance may have more to tell.
                    _ => Ok(None),
                };
                match understood {
                    Ok(Some(event)) => return Ok(Some(event)),
                    Ok(None) => {}
                    Err(error) => return Err(CommandError::Failed(format!("event not understood: {error}"))),
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.parser.push(bytes);
                        self.parser.check()?;
                    }
                }
                Some(Err(error)) => return Err(CommandError::unreachable(&self.socket, error)),
            }
        }
    }
}

/// The part of the event stream format our server writes: `event`, `data`, `id`, comments; lines end in LF.
#[derive(Default)]
struct EventParser {
    received: Vec<u8>,
}

impl EventParser {
    fn push(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    fn check(&self) -> Result<(), CommandError> {
        if self.received.len() > EVENT_BYTES_MAX {
            return Err(CommandError::Failed(format!("an event has more than {EVENT_BYTES_MAX} bytes")));
        }
        Ok(())
    }

    /// Type and data of the next whole event; comments are skipped.
    fn next_event(&mut self) -> Option<(String, String)> {
        loop {
            let end = self.received.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.received.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block);
            let (mut kind, mut data) = ("message".to_owned(), Vec::new());
            for line in block.lines() {
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "event" => kind = value.to_owned(),
                    "data" => data.push(value),
                    _ => {}
                }
            }
            if !data.is_empty() {
                return Some((kind, data.join("\n")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let stream = b":\n\nevent: timeline\nid: a/1/2\ndata: {\"x\":1}\n\ndata: one\ndata: two\n\n:keep\n\n";
        for size in 1..stream.len() {
            let mut parser = EventParser::default();
            let mut events = Vec::new();
            for piece in stream.chunks(size) {
                parser.push(piece);
                while let Some(event) = parser.next_event() {
                    events.push(event);
                }
            }
            let expected = [("timeline", "{\"x\":1}"), ("message", "one\ntwo")]
                .map(|(a, b)| (a.to_owned(), b.to_owned()));
            assert_eq!(events, expected, "pieces of {size}");
        }
    }

    #[test]
    fn path_segments_are_encoded() {
        assert_eq!(segment("52:54:00:00:00:01"), "52:54:00:00:00:01");
        assert_eq!(segment("a/../b c"), "a%2F..%2Fb%20c");
    }
}
