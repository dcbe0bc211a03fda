//! The agent's HTTP calls to the appliance, and what each answer means for it.

use std::io::Read;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::http::StatusCode;

use crate::agent::install::{Blob, Calls};
use crate::net::MacAddr;
use crate::node::install::intent::IntentId;
use crate::node::install::task::{AgentTask, Progress, Report, Seed, TargetDisk};
use crate::node::inventory::Inventory;
use crate::node::state::Order;
use crate::node::token::AgentNonce;

/// The appliance is one hop away: what takes longer to connect is not there.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A whole call; covers an appliance that waits for its disk.
const CALL_MAX: Duration = Duration::from_secs(20);
/// Answers are a few hundred bytes, a task with keys or a seed with user data more; what is beyond is not our appliance.
const ANSWER_MAX: u64 = 4 * 1024 * 1024;
/// Told twice a second: what is late is out of date, and the work shall not end by waiting for it.
const PROGRESS_MAX: Duration = Duration::from_secs(5);
/// A blob; what has come by then is kept, and the rest asked for.
const BLOB_MAX: Duration = Duration::from_secs(60);
/// One for each worker that fetches chunks.
const CONNECTIONS_KEPT: usize = 4;
/// Characters of a refusal's reason shown.
const REASON_MAX: usize = 300;

#[derive(Serialize)]
struct HelloBody<'a> {
    token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<AgentNonce>,
    mac: MacAddr,
    uptime_secs: f64,
}

/// The appliance knows us now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    pub session: String,
    /// The node's name or id, for the console.
    pub node: String,
    pub heartbeat_secs: u64,
}

#[derive(Serialize)]
struct InventoryBody<'a> {
    mac: MacAddr,
    inventory: &'a Inventory,
}

#[derive(Serialize)]
struct HeartbeatBody {
    mac: MacAddr,
}

/// What a waiting agent is to do, if anything.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Orders {
    #[serde(default)]
    pub order: Option<Order>,
    #[serde(default)]
    pub task: Option<AgentTask>,
}

#[derive(Serialize)]
struct BeginBody<'a> {
    mac: MacAddr,
    intent: IntentId,
    disks: &'a [TargetDisk],
}

#[derive(Serialize)]
struct SeedBody {
    mac: MacAddr,
    intent: IntentId,
}

#[derive(Serialize)]
struct ProgressBody<'a> {
    mac: MacAddr,
    intent: IntentId,
    progress: &'a Progress,
}

#[derive(Deserialize)]
struct ProgressAnswer {
    go_on: bool,
}

#[derive(Serialize)]
struct DoneBody<'a> {
    mac: MacAddr,
    intent: IntentId,
    report: &'a Report,
}

#[derive(Serialize)]
struct ObeyingBody {
    mac: MacAddr,
    order: Order,
}

#[derive(Serialize)]
struct FailureBody<'a> {
    mac: MacAddr,
    step: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    intent: Option<IntentId>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Ignored {}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nobody answered, or not yet; worth another try.
    #[error("{what}")]
    Later { what: String, retry_after: Option<Duration> },
    /// Token or session refused: this boot is over.
    #[error("the appliance refuses this machine: {reason}")]
    Refused { reason: String },
    /// The task is no longer this agent's: nothing more is written for it.
    #[error("the task is no longer this machine's: {reason}")]
    Superseded { reason: String },
    /// The appliance does not understand us; trying again would not help.
    #[error("the appliance rejected the call to {path}: {status} {reason}")]
    Rejected { path: &'static str, status: u16, reason: String },
}

/// The appliance, as one machine sees it.
pub struct Appliance {
    agent: ureq::Agent,
    /// For blobs, several at a time; each keeps its connection.
    downloads: ureq::Agent,
    server: String,
    mac: MacAddr,
}

impl Appliance {
    pub fn new(server: &str, mac: MacAddr) -> Self {
        let agent = |limit| {
            ureq::Agent::config_builder()
                .timeout_connect(Some(CONNECT_MAX))
                .timeout_global(Some(limit))
                .http_status_as_error(false)
                .max_redirects(0)
                .max_idle_connections_per_host(CONNECTIONS_KEPT)
                .proxy(None)
                .user_agent(concat!("farrier-agent/", env!("CARGO_PKG_VERSION")))
                .build()
                .new_agent()
        };
        let (agent, downloads) = (agent(CALL_MAX), agent(BLOB_MAX));
        Appliance { agent, downloads, server: server.to_owned(), mac }
    }

    /// With a nonce it may be repeated until it is answered: the token counts as used once.
    pub fn hello(
        &self,
        token: &str,
        nonce: Option<AgentNonce>,
        uptime_secs: f64,
    ) -> Result<Welcome, CallError> {
        self.post("/agent/v1/hello", None, &HelloBody { token, nonce, mac: self.mac, uptime_secs })
    }

    pub fn inventory(&self, session: &str, inventory: &Inventory) -> Result<(), CallError> {
        let body = InventoryBody { mac: self.mac, inventory };
        self.post::<_, Ignored>("/agent/v1/inventory", Some(session), &body).map(|_| ())
    }

    pub fn heartbeat(&self, session: &str) -> Result<Orders, CallError> {
        self.post("/agent/v1/heartbeat", Some(session), &HeartbeatBody { mac: self.mac })
    }

    pub fn obeying(&self, session: &str, order: Order) -> Result<(), CallError> {
        let body = ObeyingBody { mac: self.mac, order };
        self.post::<_, Ignored>("/agent/v1/obeying", Some(session), &body).map(|_| ())
    }

    /// `credential` is the session, or the boot token while there is none.
    pub fn failure(&self, credential: &str, step: &str, message: &str) -> Result<(), CallError> {
        let body = FailureBody { mac: self.mac, step, message, intent: None };
        self.post::<_, Ignored>("/agent/v1/failure", Some(credential), &body).map(|_| ())
    }

    fn post<B: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        credential: Option<&str>,
        body: &B,
    ) -> Result<A, CallError> {
        self.post_within(CALL_MAX, path, credential, body)
    }

    fn post_within<B: Serialize, A: DeserializeOwned>(
        &self,
        limit: Duration,
        path: &'static str,
        credential: Option<&str>,
        body: &B,
    ) -> Result<A, CallError> {
        let url = format!("{}{path}", self.server);
        let mut request = self.agent.post(&url).config().timeout_global(Some(limit)).build();
        if let Some(credential) = credential {
            request = request.header("Authorization", bearer(credential));
        }
        let response = request.send_json(body).map_err(|error| self.no_answer(error))?;
        read_answer(path, response)
    }

    fn no_answer(&self, error: ureq::Error) -> CallError {
        later(format!("no answer from the appliance at {}: {}", self.server, said(error)))
    }
}

fn bearer(credential: &str) -> String {
    format!("Bearer {credential}")
}

fn later(what: String) -> CallError {
    CallError::Later { what, retry_after: None }
}

fn read_answer<A: DeserializeOwned>(
    path: &'static str,
    mut response: ureq::http::Response<ureq::Body>,
) -> Result<A, CallError> {
    let retry_after = response
        .headers()
        .get("retry-after")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let status = response.status();
    let answer = response
        .body_mut()
        .with_config()
        .limit(ANSWER_MAX)
        .read_to_vec()
        .map_err(|error| later(format!("the appliance's answer to {path} broke off: {error}")))?;
    judge(path, status, retry_after, &answer)
}

/// The calls of one session about the task it was given.
pub struct TaskCalls<'a> {
    pub appliance: &'a Appliance,
    pub session: &'a str,
}

impl TaskCalls<'_> {
    fn post<B: Serialize, A: DeserializeOwned>(&self, path: &'static str, body: &B) -> Result<A, CallError> {
        self.appliance.post(path, Some(self.session), body)
    }
}

impl Calls for TaskCalls<'_> {
    fn begin(&self, intent: IntentId, disks: &[TargetDisk]) -> Result<(), CallError> {
        let body = BeginBody { mac: self.appliance.mac, intent, disks };
        self.post::<_, Ignored>("/agent/v1/begin", &body).map(drop)
    }

    fn seed(&self, intent: IntentId) -> Result<Seed, CallError> {
        self.post("/agent/v1/seed", &SeedBody { mac: self.appliance.mac, intent })
    }

    fn progress(&self, intent: IntentId, progress: &Progress) -> Result<bool, CallError> {
        let body = ProgressBody { mac: self.appliance.mac, intent, progress };
        self.appliance
            .post_within(PROGRESS_MAX, "/agent/v1/progress", Some(self.session), &body)
            .map(|answer: ProgressAnswer| answer.go_on)
    }

    fn done(&self, intent: IntentId, report: &Report) -> Result<(), CallError> {
        let body = DoneBody { mac: self.appliance.mac, intent, report };
        self.post::<_, Ignored>("/agent/v1/done", &body).map(drop)
    }

    fn failure(&self, intent: IntentId, step: &str, message: &str) -> Result<(), CallError> {
        let body = FailureBody { mac: self.appliance.mac, step, message, intent: Some(intent) };
        self.post::<_, Ignored>("/agent/v1/failure", &body).map(drop)
    }

    fn fetch(&self, blob: Blob, bytes: u64, into: &mut Vec<u8>) -> Result<(), CallError> {
        let (path, digest) = match blob {
            Blob::Manifest(digest) => ("/agent/v1/image/", digest),
            Blob::Chunk(digest) => ("/agent/v1/chunk/", digest),
        };
        let url = format!("{}{path}{digest}", self.appliance.server);
        let mut request = self.appliance.downloads.get(&url).header("Authorization", bearer(self.session));
        let from = into.len() as u64;
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let mut response = request.call().map_err(|error| self.appliance.no_answer(error))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(&response, from) => {}
            // A server that knows no ranges begins anew.
            StatusCode::OK => into.clear(),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                into.clear();
                return Err(later(format!("{path}{digest} came from another place than was asked for")));
            }
            // The pin on the image is gone, or never was: unlike with other calls, this is our appliance.
            StatusCode::NOT_FOUND => {
                let reason = format!("it has no blob {digest}");
                return Err(CallError::Rejected { path, status: 404, reason });
            }
            _ => return read_answer::<Ignored>(path, response).map(drop),
        }
        // One byte more shows a blob that is longer than it should be.
        let room = bytes.saturating_sub(into.len() as u64) + 1;
        into.reserve(usize::try_from(room).unwrap_or_default());
        let read = response.body_mut().as_reader().take(room).read_to_end(into);
        let have = into.len() as u64;
        match read {
            Ok(_) if have == bytes => Ok(()),
            Ok(_) if have > bytes => {
                into.clear();
                Err(later(format!("{path}{digest} is longer than {bytes} bytes")))
            }
            Ok(_) => Err(later(format!("{path}{digest} broke off after {have} of {bytes} bytes"))),
            Err(error) => {
                Err(later(format!("{path}{digest} broke off after {have} of {bytes} bytes: {error}")))
            }
        }
    }
}

/// RFC 9110 §14.4: `bytes 100-199/200`
fn begins_at(response: &ureq::http::Response<ureq::Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.trim().strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
    start == Some(from)
}

/// The system's own words where it is the system that failed.
fn said(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        // The crate adds variants in minor versions; each prints itself.
        other => other.to_string(),
    }
}

/// What an answer means. Pure, so that every status is one row in a test.
fn judge<A: DeserializeOwned>(
    path: &'static str,
    status: StatusCode,
    retry_after: Option<Duration>,
    answer: &[u8],
) -> Result<A, CallError> {
    if status.is_success() {
        // An empty answer is as good as an empty object.
        let answer = if answer.is_empty() { b"{}".as_slice() } else { answer };
        return serde_json::from_slice(answer).map_err(|error| CallError::Later {
            what: format!(
                "the answer to {path} is not what an appliance says ({error}); is this its address?"
            ),
            retry_after: None,
        });
    }
    let reason = serde_json::from_slice::<Refusal>(answer)
        .map(|refusal| refusal.reason)
        .unwrap_or_default()
        .chars()
        .take(REASON_MAX)
        .collect::<String>();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(CallError::Refused { reason }),
        StatusCode::CONFLICT => Err(CallError::Superseded { reason }),
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
            Err(CallError::Rejected { path, status: status.as_u16(), reason })
        }
        // 429 and 5xx pass; 404 and the rest come from something that is not (yet) our appliance.
        _ => Err(CallError::Later {
            what: format!("the appliance answered {path} with {status} {reason}").trim_end().to_owned(),
            retry_after,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, answer: &[u8]) -> Result<Welcome, CallError> {
        judge("/agent/v1/hello", StatusCode::from_u16(status).unwrap(), Some(Duration::from_secs(2)), answer)
    }

    #[test]
    fn every_status_has_one_meaning() {
        let welcome = br#"{"session":"s","node":"rack1-node07","heartbeat_secs":5,"later":"ignored"}"#;
        assert_eq!(judged(200, welcome).unwrap().heartbeat_secs, 5);
        assert!(matches!(judged(200, b"<html>"), Err(CallError::Later { .. })));
        assert_eq!(
            judged(401, br#"{"reason":"token spent"}"#).unwrap_err(),
            CallError::Refused { reason: "token spent".to_owned() }
        );
        assert!(matches!(judged(413, b""), Err(CallError::Rejected { status: 413, .. })));
        assert!(matches!(judged(400, b"{}"), Err(CallError::Rejected { status: 400, .. })));
        assert_eq!(
            judged(409, br#"{"reason":"aborted"}"#).unwrap_err(),
            CallError::Superseded { reason: "aborted".to_owned() }
        );
        for status in [404, 429, 500, 503, 302] {
            let Err(CallError::Later { retry_after, .. }) = judged(status, b"") else {
                panic!("{status} is worth another try")
            };
            assert_eq!(retry_after, Some(Duration::from_secs(2)));
        }
    }

    #[test]
    fn orders_are_read_by_their_wire_names() {
        let read = |text: &str| {
            judge::<Orders>("/", StatusCode::OK, None, text.as_bytes()).map(|orders| orders.order)
        };
        assert_eq!(read("{}"), Ok(None));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read(r#"{"order":null}"#), Ok(None));
        assert_eq!(read(r#"{"order":"power-off"}"#), Ok(Some(Order::PowerOff)));
        assert_eq!(read(r#"{"order":"local-boot"}"#), Ok(Some(Order::LocalBoot)));
    }

    #[test]
    fn nobody_listening_is_worth_another_try() {
        // Bound and dropped: the port is free and refuses.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let appliance = Appliance::new(&format!("http://127.0.0.1:{port}"), MacAddr([2, 0, 0, 0, 0, 1]));
        assert!(matches!(appliance.hello("t", None, 1.0), Err(CallError::Later { .. })));
    }
}
