//! One request, one answer: the routes of the boot plane in one screen.
//!
//! ```text
//!  GET, HEAD  /<name>          a file of the namespace           [`content`](crate::bootplane::content)
//!  POST       /agent/v1/<call> the agent's calls                 [`agent_calls`](crate::bootplane::agent_calls)
//!  GET, HEAD  /agent/v1/{image,chunk}/<digest>                   what an agent installs
//!  any        /metadata/v1/…   what an installed system reads    [`metadata`](crate::bootplane::metadata)
//!  any        /latest/…        the same as EC2 has it
//! ```
//! Nothing else is here. No answer redirects, and none asks a peer to prove more than its address and its token.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::Instant;

use crate::bootplane::agent_calls::{AgentCalls, PREFIX, is_part_of_image};
use crate::bootplane::body::{AnswerBody, WhenDone};
use crate::bootplane::content::REFUSALS_PER_MINUTE;
use crate::bootplane::content::{BootContent, Served, Unserved};
use crate::bootplane::downloads::{Downloads, Patience, Place};
use crate::bootplane::files::{self, FileFacts};
use crate::bootplane::head::HeadFault;
use crate::bootplane::limits::Limits;
use crate::bootplane::line::{Line, Mapped};
use crate::bootplane::metadata::{Door, MetadataCalls};
use crate::bootplane::per_minute::PerMinute;
use crate::bootplane::workers;
use crate::clock::Clock;
use crate::image::library::Blob;
use crate::node::timeline::{FileOutcome, Transport, aborted};
use crate::telemetry::Tally;

/// Our longest name has 60 bytes; the namespace stops at 255, each of which may be escaped.
const PATH_BYTES_MAX: usize = 2048;
/// Files from this size on count as bulk.
const BULK_BYTES: u64 = 1024 * 1024;
/// A commit takes milliseconds; whose disk takes this long is told to come again.
const DURABLE_WITHIN: Duration = Duration::from_secs(5);
/// Between two tries where the disk refused the first.
const DURABLE_PAUSE: Duration = Duration::from_millis(5);
/// What iPXE is told to wait when too many download at once; it understands whole seconds only.
const BULK_RETRY: Duration = Duration::from_secs(5);

pub struct BootService {
    content: Arc<BootContent>,
    agents: AgentCalls,
    metadata: Option<MetadataCalls>,
    tally: Arc<Tally>,
    clock: Clock,
    /// Told in the log.
    refusals: PerMinute<Ipv4Addr>,
    downloads: Arc<Downloads>,
    /// See [`Limits::bulk_wait`].
    bulk_wait: Duration,
}

impl BootService {
    pub fn new(
        content: Arc<BootContent>,
        agents: AgentCalls,
        tally: Arc<Tally>,
        clock: Clock,
        limits: &Limits,
    ) -> BootService {
        BootService {
            content,
            agents,
            metadata: None,
            downloads: Downloads::new(limits, &tally),
            bulk_wait: limits.bulk_wait,
            tally,
            clock,
            refusals: PerMinute::new(REFUSALS_PER_MINUTE),
        }
    }

    pub fn with_metadata(self, metadata: MetadataCalls) -> BootService {
        BootService { metadata: Some(metadata), ..self }
    }

    pub async fn answer(
        &self,
        peer: Ipv4Addr,
        door: Door,
        line: Arc<Line>,
        request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        let now = Instant::now();
        workers::give_way(now.into_std());
        let plain = match line.pulse.exchange_began(now) {
            Err(fault) => self.refuse_head(peer, fault),
            Ok(()) if request.uri().path().len() > PATH_BYTES_MAX => {
                Plain::text(StatusCode::URI_TOO_LONG, "path too long").closing()
            }
            Ok(()) => match &self.metadata {
                Some(metadata) if metadata.takes(door, request.uri().path()) => {
                    return metadata.answer(peer, door, line.number(), request).await.into_response(line);
                }
                _ if is_part_of_image(request.method(), request.uri().path()) => {
                    return self.answer_image(peer, line, &request).await;
                }
                _ if request.uri().path().starts_with(PREFIX) => self.agents.answer(peer, request).await,
                Some(_) | None => match *request.method() {
                    Method::GET | Method::HEAD => return self.answer_file(peer, line, &request).await,
                    _ => Plain::text(StatusCode::METHOD_NOT_ALLOWED, "files are read with GET or HEAD")
                        .with(header::ALLOW, "GET, HEAD")
                        // Whatever body came with it is not read.
                        .closing(),
                },
            },
        };
        self.tally.count("http", word_for(plain.status));
        plain.into_response(line)
    }

    fn refuse_head(&self, peer: Ipv4Addr, fault: HeadFault) -> Plain {
        let status = match fault {
            HeadFault::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            HeadFault::Encoding => StatusCode::LENGTH_REQUIRED,
            HeadFault::BareLineEnd
            | HeadFault::Nul
            | HeadFault::Folded
            | HeadFault::NoName
            | HeadFault::BadLength
            | HeadFault::LengthAndEncoding
            | HeadFault::Host => StatusCode::BAD_REQUEST,
        };
        self.tally.count("http", fault.as_str());
        if self.refusals.may_note(peer, self.clock.now()) {
            tracing::info!(ip = %peer, reason = fault.as_str(), "request refused");
        } else {
            self.tally.count("http", "refusal-not-logged");
            tracing::debug!(ip = %peer, reason = fault.as_str(), "request refused");
        }
        Plain::text(status, fault.as_str()).closing()
    }

    async fn answer_file(
        &self,
        peer: Ipv4Addr,
        line: Arc<Line>,
        request: &Request<Incoming>,
    ) -> Response<AnswerBody> {
        let head = request.method() == Method::HEAD;
        let opened = match files::decode_path(request.uri().path()) {
            Err(refusal) => Err(Plain::text(StatusCode::BAD_REQUEST, &refusal.to_string())),
            Ok(name) => self
                .open(peer, &name)
                .await
                .map_err(|unserved| Plain::text(status_for(unserved), unserved.as_str())),
        };
        match opened {
            Ok(served) if head || served.ticket.size < BULK_BYTES => {
                self.send_file(served, None, line, request)
            }
            Ok(served) => match self.place_for(served.ticket.size, request.headers()).await {
                Some(place) => self.send_file(served, Some(place), line, request),
                None => self.busy(line),
            },
            Err(plain) => {
                self.tally.count("http", word_for(plain.status));
                let plain = if head { plain.without_body() } else { plain };
                plain.into_response(line)
            }
        }
    }

    /// Waits for the disk where the answer rests on it.
    async fn open(&self, peer: Ipv4Addr, name: &[u8]) -> Result<Served, Unserved> {
        let open = || self.content.open(peer, name, Transport::Http, self.clock.now());
        let opened = open();
        if !matches!(opened, Err(Unserved::NotYet)) {
            return opened;
        }
        let mut settled = self.content.settled();
        let until = Instant::now() + DURABLE_WITHIN;
        loop {
            match open() {
                Err(Unserved::NotYet) => {}
                opened => return opened,
            }
            // Each turn takes a commit, or its failure; a disk that fails over and over ends the wait.
            if tokio::time::timeout_at(until, settled.changed()).await.is_err() {
                return Err(Unserved::NotYet);
            }
            tokio::time::sleep(DURABLE_PAUSE).await;
        }
    }

    /// A part of the disk image that this agent installs.
    async fn answer_image(
        &self,
        peer: Ipv4Addr,
        line: Arc<Line>,
        request: &Request<Incoming>,
    ) -> Response<AnswerBody> {
        let blob = match self.agents.image_blob(peer, request.uri().path(), request.headers()) {
            Ok(blob) => blob,
            Err(plain) => {
                self.tally.count("http", word_for(plain.status));
                let head = request.method() == Method::HEAD;
                let plain = if head { plain.without_body() } else { *plain };
                return plain.into_response(line);
            }
        };
        let Blob { bytes, file, digest, size, modified } = blob;
        let media_type = "application/octet-stream";
        let facts = FileFacts { size, digest: Some(digest), modified: Some(modified), media_type };
        let answer = files::answer(request.method(), request.headers(), &facts);
        let Some(part) = answer.part.filter(|_| request.method() == Method::GET) else {
            self.tally.count("http", word_for(answer.status));
            return response(answer.status, answer.headers, AnswerBody::text(Bytes::new(), line));
        };
        let bulk = part.end - part.start >= BULK_BYTES;
        let place = match self.place_for(size, request.headers()).await {
            None if bulk => return self.busy(line),
            place => place,
        };
        let body = bytes.slice(part.start as usize..part.end as usize);
        let tally = Arc::clone(&self.tally);
        tally.http_transfer_begins();
        let when_done: WhenDone = Box::new(move |sent| {
            drop(place);
            tally.http_transfer_ends();
            tally.add("http", "bytes", sent);
            tally.count("http", "image-part");
        });
        let mapped = file.map(|file| Mapped { file, bytes });
        response(answer.status, answer.headers, AnswerBody::file(body, mapped, line, when_done))
    }

    fn busy(&self, line: Arc<Line>) -> Response<AnswerBody> {
        let seconds = BULK_RETRY.as_secs().to_string();
        Plain::text(StatusCode::SERVICE_UNAVAILABLE, "busy")
            .with(header::RETRY_AFTER, &seconds)
            .into_response(line)
    }

    /// The right to send a large file: now, after a while, or not at all to whoever understands that.
    async fn place_for(&self, size: u64, headers: &HeaderMap) -> Option<Place> {
        if let Some(place) = self.downloads.try_enter(size) {
            return Some(place);
        }
        let agent = headers.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
        self.tally.count("http", "queued");
        match Patience::of(agent) {
            Patience::Returns => {
                let place = self.downloads.enter_within(size, self.bulk_wait).await;
                if place.is_none() {
                    self.tally.count("http", "busy");
                }
                place
            }
            Patience::Waits(patience) => Some(self.downloads.enter(size, patience).await),
        }
    }

    fn send_file(
        &self,
        served: Served,
        place: Option<Place>,
        line: Arc<Line>,
        request: &Request<Incoming>,
    ) -> Response<AnswerBody> {
        let Served { bytes, file, digest, modified, media_type, ticket, restraint } = served;
        let size = bytes.len() as u64;
        let facts = FileFacts { size, digest, modified, media_type };
        let answer = files::answer(request.method(), request.headers(), &facts);
        let now = self.clock.now();
        let Some(part) = answer.part.filter(|_| request.method() == Method::GET) else {
            match answer.status {
                StatusCode::OK => {
                    self.content.finished(&ticket, 0, Duration::ZERO, FileOutcome::Probe, now);
                }
                status => self.tally.count("http", word_for(status)),
            }
            return response(answer.status, answer.headers, AnswerBody::text(Bytes::new(), line));
        };
        self.content.began(&ticket, now);
        self.tally.http_transfer_begins();
        let tally = Arc::clone(&self.tally);
        // Both ends fit: the bytes are in memory.
        let body = bytes.slice(part.start as usize..part.end as usize);
        let expected = part.end - part.start;
        let (content, clock, began) = (Arc::clone(&self.content), self.clock, Instant::now());
        line.paced_by(restraint.pace);
        let judged = Arc::clone(&line);
        let when_done: WhenDone = Box::new(move |sent| {
            drop(place);
            tally.http_transfer_ends();
            let outcome = if sent < expected {
                FileOutcome::Aborted(how_it_broke_off(&judged).to_owned())
            } else if expected < size {
                FileOutcome::Range
            } else {
                FileOutcome::Complete
            };
            content.finished(&ticket, sent, began.elapsed(), outcome, clock.now());
        });
        let mapped = file.map(|file| Mapped { file, bytes });
        response(answer.status, answer.headers, AnswerBody::file(body, mapped, line, when_done))
    }
}

fn how_it_broke_off(line: &Line) -> &'static str {
    if line.pulse.was_too_slow() { aborted::TOO_SLOW } else { aborted::CLOSED }
}

/// A real 404 for whatever is not there: GRUB, iPXE and shim branch on it.
fn status_for(unserved: Unserved) -> StatusCode {
    match unserved {
        Unserved::UnknownPeer => StatusCode::FORBIDDEN,
        Unserved::BadName(_)
        | Unserved::NoSuchName
        | Unserved::NotInstalled
        | Unserved::ForeignMac
        | Unserved::NoToken
        | Unserved::NotAssigned => StatusCode::NOT_FOUND,
        Unserved::NotYet => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The counter's word for an answer without a file.
fn word_for(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "agent-answered",
        304 => "not-modified",
        400 => "bad-request",
        401 => "agent-refused",
        403 => "forbidden",
        404 => "not-found",
        405 => "method-not-allowed",
        411 => "length-required",
        412 => "precondition-failed",
        413 => "body-too-large",
        414 => "path-too-long",
        416 => "range-not-satisfiable",
        429 => "too-many-calls",
        431 => "head-too-large",
        503 => "unavailable",
        _ => "other",
    }
}

/// A short answer that is not a file.
#[derive(Debug)]
pub struct Plain {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Plain {
    pub fn text(status: StatusCode, text: &str) -> Plain {
        Plain::of(status, "text/plain", format!("{text}\n").into())
    }

    pub fn json(status: StatusCode, value: &serde_json::Value) -> Plain {
        Plain::of(status, "application/json", value.to_string().into())
    }

    pub(super) fn of(status: StatusCode, media_type: &'static str, body: Bytes) -> Plain {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Plain { status, headers, body }
    }

    /// With a header of ours; the value is visible ASCII.
    pub fn with(mut self, name: header::HeaderName, value: &str) -> Plain {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The connection ends with this answer.
    pub fn closing(self) -> Plain {
        self.with(header::CONNECTION, "close")
    }

    /// For HEAD: the same headers, length included.
    pub(super) fn without_body(mut self) -> Plain {
        self.body = Bytes::new();
        self
    }

    fn into_response(self, line: Arc<Line>) -> Response<AnswerBody> {
        response(self.status, self.headers, AnswerBody::text(self.body, line))
    }
}

fn response(status: StatusCode, headers: HeaderMap, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
