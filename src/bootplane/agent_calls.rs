//! The agent's calls: JSON by POST, from a machine that has to say who it is and prove it.
//!
//! | path | body | answer |
//! |---|---|---|
//! | `/agent/v1/hello` | `{token, nonce?, mac, uptime_secs}` | `{session, node, heartbeat_secs}` |
//! | `/agent/v1/inventory` | `{mac, inventory}` | `{}` |
//! | `/agent/v1/heartbeat` | `{mac}` | `{order?, task?}` |
//! | `/agent/v1/failure` | `{mac, step, message, intent?}` | `{}` |
//! | `/agent/v1/obeying` | `{mac, order}` | `{}` |
//! | `/agent/v1/begin` | `{mac, intent, disks}` | `{}` |
//! | `/agent/v1/progress` | `{mac, intent, progress}` | `{go_on}` |
//! | `/agent/v1/seed` | `{mac, intent}` | `{files}` |
//! | `/agent/v1/done` | `{mac, intent, report}` | `{}` |
//!
//! All but `hello` carry `Authorization: Bearer <session>` (`failure`: or the boot token, when `hello` never
//! succeeded). The MAC claimed must be the one we gave the caller's address to. A refusal is 401 with a `reason`, and
//! final; 429 and 503 carry Retry-After and mean "later". What is answered with 200 is on disk.
//!
//! | GET `/agent/v1/image/<digest>` | | the manifest of the image that is installed |
//! | GET `/agent/v1/chunk/<digest>` | | one of its chunks |
//!
//! What the last six are about is in [`crate::node::install::task`]; a task that is not the caller's is 409.
//!
//! Every call may be repeated when its answer was lost: `hello` with the same token and the same nonce (32 hexadecimal
//! digits the agent made up for this boot) gives the same session, and an inventory replaces the one before it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::bootplane::allowance::Allowances;
use crate::bootplane::content::REFUSALS_PER_MINUTE;
use crate::bootplane::per_minute::PerMinute;
use crate::bootplane::service::Plain;
use crate::clock::{Clock, Timestamp};
use crate::dhcp::address_book::AddressBook;
use crate::image::disk::shelf::DiskShelf;
use crate::image::library::Blob;
use crate::net::MacAddr;
use crate::node::install::task::Seed;
use crate::node::inventory::DISKS_MAX;
use crate::node::registry::{AgentCaller, Failure, Hello, Registry, SeedMaterial};
use crate::node::timeline::Happening;
use crate::telemetry::Tally;

mod documents;
mod fault;

use documents::{
    BeginBody, Call, DoneBody, FailureBody, HeartbeatBody, HelloBody, ImagePart, InventoryBody, ObeyingBody,
    ProgressBody, SeedBody,
};
use fault::CallFault;

pub const PREFIX: &str = "/agent/";

/// An inventory of 256 disks and 64 NICs has 100 KB.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Our own bodies nest four deep; deeper ones only exist to exhaust a stack.
const JSON_DEPTH_MAX: usize = 32;
/// Calls that wait for the disk at once; the store commits them in groups, the rest queue here.
const CALLS_AT_ONCE: usize = 64;
/// How often a waiting agent asks for orders.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A peer's calls: this many at once …
const CALLS_BURST: f64 = 20.0;
/// … and this many per second in the long run; an agent that retries as fast as it can stays below.
const CALLS_PER_SECOND: f64 = 5.0;
/// For a caller to come back after 429 or 503.
const RETRY: Duration = Duration::from_secs(2);

pub struct AgentCalls {
    registry: Arc<Registry>,
    addresses: Arc<AddressBook>,
    tally: Arc<Tally>,
    clock: Clock,
    /// Told in the log.
    refusals: PerMinute<Ipv4Addr>,
    allowances: Allowances,
    calls: Arc<Semaphore>,
    parts: InstallParts,
}

/// What agents install from.
#[derive(Clone)]
pub struct InstallParts {
    /// Absent where there are no disk images.
    pub disks: Option<Arc<DiskShelf>>,
    pub seeds: SeedOf,
}

impl InstallParts {
    /// Nothing to install.
    pub fn none() -> InstallParts {
        InstallParts { disks: None, seeds: Arc::new(|_| Seed::default()) }
    }
}

/// What an installed system finds on its disk, from what is known of the node.
pub type SeedOf = Arc<dyn Fn(&SeedMaterial) -> Seed + Send + Sync>;

/// Whether this asks for a part of a disk image: the one thing of agents that is read, not called.
pub fn is_part_of_image(method: &Method, path: &str) -> bool {
    matches!(*method, Method::GET | Method::HEAD) && ImagePart::from_path(path).is_some()
}

impl AgentCalls {
    pub fn new(
        registry: Arc<Registry>,
        addresses: Arc<AddressBook>,
        tally: Arc<Tally>,
        clock: Clock,
        parts: InstallParts,
    ) -> AgentCalls {
        AgentCalls {
            registry,
            addresses,
            tally,
            clock,
            refusals: PerMinute::new(REFUSALS_PER_MINUTE),
            allowances: Allowances::new(CALLS_BURST, CALLS_PER_SECOND),
            calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
            parts,
        }
    }

    /// What a running deployment reads: `/agent/v1/image/<manifest>` and `/agent/v1/chunk/<blob>`. Not told on the
    /// timeline one by one, for there are hundreds: the agent tells how far it is.
    pub fn image_blob(&self, peer: Ipv4Addr, path: &str, headers: &HeaderMap) -> Result<Blob, Box<Plain>> {
        let now = self.clock.now();
        self.find_blob(peer, path, headers, now)
            .map_err(|fault| Box::new(self.conclude(peer, Err(fault), now)))
    }

    fn find_blob(
        &self,
        peer: Ipv4Addr,
        path: &str,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Blob, CallFault> {
        let asked = ImagePart::from_path(path).ok_or(CallFault::NoSuchCall)?;
        let mac = self.addresses.owner(peer).ok_or(CallFault::AddressUnknown)?;
        let session = bearer(headers).ok_or(CallFault::NoCredential)?;
        let caller = AgentCaller { session: &session, mac, address: peer, now };
        let chunks = matches!(asked, ImagePart::Chunk(_));
        let manifest = self.registry.image_for(&caller, chunks).map_err(CallFault::Refused)?;
        let disks = self.parts.disks.as_ref();
        let found = disks.and_then(|disks| match asked {
            ImagePart::Manifest(digest) if digest == manifest => disks.manifest(manifest),
            ImagePart::Manifest(_) => None,
            ImagePart::Chunk(digest) => disks.chunk(manifest, digest),
        });
        found.ok_or(CallFault::NoSuchBlob)
    }

    pub async fn answer(&self, peer: Ipv4Addr, request: Request<Incoming>) -> Plain {
        let outcome = self.carry_out(peer, request).await;
        self.conclude(peer, outcome, self.clock.now())
    }

    /// One call by POST whose body has been read, as of `now`. Waits for the disk.
    pub fn answer_read(
        &self,
        peer: Ipv4Addr,
        path: &str,
        credential: Option<String>,
        body: &[u8],
        now: Timestamp,
    ) -> Plain {
        let owner = self.addresses.owner(peer).ok_or(CallFault::AddressUnknown);
        let outcome = Call::from_path(path).ok_or(CallFault::NoSuchCall).and_then(|call| {
            let caller = Caller {
                registry: Arc::clone(&self.registry),
                seeds: Arc::clone(&self.parts.seeds),
                peer,
                owner: owner?,
                credential,
            };
            caller.carry_out(call, body, now)
        });
        self.conclude(peer, outcome, now)
    }

    fn conclude(&self, peer: Ipv4Addr, outcome: Result<Value, CallFault>, now: Timestamp) -> Plain {
        match outcome {
            Ok(answer) => Plain::json(StatusCode::OK, &answer),
            Err(fault) => {
                self.tally.count("agent", fault.as_str());
                if self.refusals.may_note(peer, now) {
                    tracing::info!(ip = %peer, reason = fault.as_str(), "agent call refused");
                } else {
                    self.tally.count("agent", "refusal-not-logged");
                    tracing::debug!(ip = %peer, reason = fault.as_str(), "agent call refused");
                }
                self.tell_timeline(peer, &fault, now);
                fault.into_answer()
            }
        }
    }

    /// What the registry refused it put on the timeline itself; what never reached it is told here, if it means
    /// that an agent will get no further.
    fn tell_timeline(&self, peer: Ipv4Addr, fault: &CallFault, now: Timestamp) {
        let is_final = match fault {
            CallFault::TooLarge
            | CallFault::Malformed(_)
            | CallFault::NoCredential
            | CallFault::NotItsAddress => true,
            CallFault::NoSuchCall
            | CallFault::NoSuchBlob
            | CallFault::NotPost
            | CallFault::TooManyCalls
            | CallFault::Unread
            | CallFault::AddressUnknown
            | CallFault::Refused(_)
            | CallFault::Broken => false,
        };
        if let Some(owner) = self.addresses.owner(peer).filter(|_| is_final) {
            let happening =
                Happening::AgentRefused { reason: fault.as_str().to_owned(), token_issued_at: None };
            self.registry.record(owner, happening, now);
        }
    }

    async fn carry_out(&self, peer: Ipv4Addr, request: Request<Incoming>) -> Result<Value, CallFault> {
        let call = Call::from_path(request.uri().path()).ok_or(CallFault::NoSuchCall)?;
        if request.method() != Method::POST {
            return Err(CallFault::NotPost);
        }
        if !self.allowances.take(peer, Instant::now()) {
            return Err(CallFault::TooManyCalls);
        }
        let owner = self.addresses.owner(peer).ok_or(CallFault::AddressUnknown)?;
        let credential = bearer(request.headers());
        let body = read_body(request.into_body()).await?;
        // Never closed, so always granted.
        let _turn = self.calls.acquire().await.map_err(|_| CallFault::Broken)?;
        let (registry, clock) = (Arc::clone(&self.registry), self.clock);
        let caller = Caller { registry, seeds: Arc::clone(&self.parts.seeds), peer, owner, credential };
        // The registry waits for the disk; the threads that serve the wire must not.
        let carried_out = tokio::task::spawn_blocking(move || caller.carry_out(call, &body, clock.now()));
        carried_out.await.unwrap_or(Err(CallFault::Broken))
    }
}

/// A call with everything that is known of who makes it.
struct Caller {
    registry: Arc<Registry>,
    seeds: SeedOf,
    peer: Ipv4Addr,
    owner: MacAddr,
    credential: Option<String>,
}

impl Caller {
    fn carry_out(&self, call: Call, body: &[u8], now: Timestamp) -> Result<Value, CallFault> {
        let registry = &self.registry;
        match call {
            Call::Hello => {
                let HelloBody { token, nonce, mac, uptime_secs } = parse(body)?;
                let mac = self.own(mac)?;
                let hello = Hello { token: &token, nonce, uptime_secs };
                let session = registry.hello(&hello, mac, self.peer, now).map_err(CallFault::Refused)?;
                let node = session.name.map_or_else(|| session.node.to_string(), |name| name.to_string());
                Ok(json!({
                    "session": session.session,
                    "node": node,
                    "heartbeat_secs": HEARTBEAT.as_secs(),
                }))
            }
            Call::Inventory => {
                let InventoryBody { mac, inventory } = parse(body)?;
                let (session, mac) = (self.credential()?, self.own(mac)?);
                registry
                    .report_inventory(session, mac, self.peer, inventory, now)
                    .map_err(CallFault::Refused)?;
                Ok(json!({}))
            }
            Call::Heartbeat => {
                let HeartbeatBody { mac } = parse(body)?;
                let (session, mac) = (self.credential()?, self.own(mac)?);
                let waiting = registry.heartbeat(session, mac, self.peer, now).map_err(CallFault::Refused)?;
                let mut answer = serde_json::Map::new();
                answer.extend(waiting.order.map(|order| ("order".to_owned(), json!(order))));
                answer.extend(waiting.task.map(|task| ("task".to_owned(), json!(task))));
                Ok(Value::Object(answer))
            }
            Call::Failure => {
                let FailureBody { mac, step, message, intent } = parse(body)?;
                let (credential, mac) = (self.credential()?, self.own(mac)?);
                registry
                    .report_failure(
                        credential,
                        mac,
                        self.peer,
                        &Failure { step: &step, message: &message, intent },
                        now,
                    )
                    .map_err(CallFault::Refused)?;
                Ok(json!({}))
            }
            Call::Obeying => {
                let ObeyingBody { mac, order } = parse(body)?;
                let (session, mac) = (self.credential()?, self.own(mac)?);
                registry.obeying(session, mac, self.peer, order, now).map_err(CallFault::Refused)?;
                Ok(json!({}))
            }
            Call::Begin => {
                let BeginBody { mac, intent, disks } = parse(body)?;
                if disks.len() > DISKS_MAX {
                    return Err(CallFault::Malformed(format!("more than {DISKS_MAX} disks")));
                }
                registry.begin_task(&self.agent(mac, now)?, intent, disks).map_err(CallFault::Refused)?;
                Ok(json!({}))
            }
            Call::Progress => {
                let ProgressBody { mac, intent, progress } = parse(body)?;
                let caller = self.agent(mac, now)?;
                let go_on = registry.task_progress(&caller, intent, progress).map_err(CallFault::Refused)?;
                Ok(json!({ "go_on": go_on }))
            }
            Call::Seed => {
                let SeedBody { mac, intent } = parse(body)?;
                let material =
                    registry.seed_for(&self.agent(mac, now)?, intent).map_err(CallFault::Refused)?;
                let seed = (self.seeds)(&material);
                serde_json::to_value(seed).map_err(|_| CallFault::Broken)
            }
            Call::Done => {
                let DoneBody { mac, intent, report } = parse(body)?;
                registry.report_task(&self.agent(mac, now)?, intent, &report).map_err(CallFault::Refused)?;
                Ok(json!({}))
            }
        }
    }

    /// The caller as one with a session.
    fn agent(&self, claimed: MacAddr, now: Timestamp) -> Result<AgentCaller<'_>, CallFault> {
        let (session, mac) = (self.credential()?, self.own(claimed)?);
        Ok(AgentCaller { session, mac, address: self.peer, now })
    }

    fn own(&self, claimed: MacAddr) -> Result<MacAddr, CallFault> {
        if claimed == self.owner { Ok(claimed) } else { Err(CallFault::NotItsAddress) }
    }

    fn credential(&self) -> Result<&str, CallFault> {
        self.credential.as_deref().ok_or(CallFault::NoCredential)
    }
}

/// RFC 6750 §2.1; the scheme's name is case-insensitive (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credential) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credential.trim().to_owned())
}

async fn read_body(body: Incoming) -> Result<Bytes, CallFault> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(CallFault::TooLarge),
        Err(_) => Err(CallFault::Unread),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, CallFault> {
    if json_depth(body) > JSON_DEPTH_MAX {
        return Err(CallFault::Malformed(format!("nested deeper than {JSON_DEPTH_MAX}")));
    }
    serde_json::from_slice(body).map_err(|error| {
        // The message quotes what was sent; it goes back to its sender, bounded and without control characters.
        let said = error.to_string();
        CallFault::Malformed(said.chars().filter(|c| !c.is_control()).take(200).collect())
    })
}

/// How deep brackets nest outside strings.
fn json_depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (true, b'"') => in_string = false,
            (false, b'"') => in_string = true,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (true | false, _) => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        for (text, depth) in [
            (r#"{"a":[1,{"b":2}]}"#, 3),
            (r#"{"a":"[[[[{{{"}"#, 1),
            (r#"{"a":"\"[[[\\"}"#, 1),
            ("]]][[", 2),
            ("", 0),
        ] {
            assert_eq!(json_depth(text.as_bytes()), depth, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(matches!(parse::<HeartbeatBody>(deep.as_bytes()), Err(CallFault::Malformed(_))));
    }

    #[test]
    fn a_bearer_is_read_as_agents_write_it() {
        let read = |value: &'static str| {
            bearer(&HeaderMap::from_iter([(header::AUTHORIZATION, header::HeaderValue::from_static(value))]))
        };
        assert_eq!(read("Bearer abc"), Some("abc".to_owned()));
        assert_eq!(read("bearer abc"), Some("abc".to_owned()));
        assert_eq!(read("Basic abc"), None);
        assert_eq!(read("abc"), None);
    }
}
