//! The agent's five HTTP calls to the appliance, and what each answer means for it.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::http::StatusCode;

use crate::net::MacAddr;
use crate::node::inventory::Inventory;
use crate::node::state::Order;
use crate::node::token::AgentNonce;

/// The appliance is one hop away: what takes longer to connect is not there.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A whole call; covers an appliance that waits for its disk.
const CALL_MAX: Duration = Duration::from_secs(20);
/// Answers are a few hundred bytes; more is not our appliance.
const ANSWER_MAX: u64 = 64 * 1024;
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

#[derive(Default, Deserialize)]
struct HeartbeatAnswer {
    #[serde(default)]
    order: Option<Order>,
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
    /// The appliance does not understand us; trying again would not help.
    #[error("the appliance rejected the call to {path}: {status} {reason}")]
    Rejected { path: &'static str, status: u16, reason: String },
}

/// The appliance, as one machine sees it.
pub struct Appliance {
    agent: ureq::Agent,
    server: String,
    mac: MacAddr,
}

impl Appliance {
    pub fn new(server: &str, mac: MacAddr) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_global(Some(CALL_MAX))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("farrier-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Appliance { agent, server: server.to_owned(), mac }
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

    pub fn heartbeat(&self, session: &str) -> Result<Option<Order>, CallError> {
        self.post("/agent/v1/heartbeat", Some(session), &HeartbeatBody { mac: self.mac })
            .map(|answer: HeartbeatAnswer| answer.order)
    }

    pub fn obeying(&self, session: &str, order: Order) -> Result<(), CallError> {
        let body = ObeyingBody { mac: self.mac, order };
        self.post::<_, Ignored>("/agent/v1/obeying", Some(session), &body).map(|_| ())
    }

    /// `credential` is the session, or the boot token while there is none.
    pub fn failure(&self, credential: &str, step: &str, message: &str) -> Result<(), CallError> {
        let body = FailureBody { mac: self.mac, step, message };
        self.post::<_, Ignored>("/agent/v1/failure", Some(credential), &body).map(|_| ())
    }

    fn post<B: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        credential: Option<&str>,
        body: &B,
    ) -> Result<A, CallError> {
        let url = format!("{}{path}", self.server);
        let mut request = self.agent.post(&url);
        if let Some(credential) = credential {
            request = request.header("Authorization", format!("Bearer {credential}"));
        }
        let later = |what: String| CallError::Later { what, retry_after: None };
        let mut response = request.send_json(body).map_err(|error| {
            later(format!("no answer from the appliance at {}: {}", self.server, said(error)))
        })?;
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
            judge::<HeartbeatAnswer>("/", StatusCode::OK, None, text.as_bytes()).map(|answer| answer.order)
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
