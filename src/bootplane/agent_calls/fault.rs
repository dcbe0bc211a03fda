//! Why a call is not carried out, under the word that is logged and counted, and what its maker is answered.

use hyper::{StatusCode, header};
use serde_json::json;

use crate::bootplane::agent_calls::RETRY;
use crate::bootplane::service::Plain;
use crate::node::registry::AgentRefusal;

/// Why a call is not carried out.
#[derive(Debug)]
pub(super) enum CallFault {
    NoSuchCall,
    /// The image has no such part, or it is damaged.
    NoSuchBlob,
    NotPost,
    TooManyCalls,
    TooLarge,
    /// The body broke off.
    Unread,
    Malformed(String),
    NoCredential,
    /// We do not know the caller's address: it has to get one (again) first.
    AddressUnknown,
    /// The address belongs to another MAC than the body claims.
    NotItsAddress,
    Refused(AgentRefusal),
    /// The call itself broke; a defect of ours.
    Broken,
}

impl CallFault {
    /// The same word in log and counter.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            CallFault::NoSuchCall => "no-such-call",
            CallFault::NoSuchBlob => "no-such-blob",
            CallFault::NotPost => "not-post",
            CallFault::TooManyCalls => "too-many-calls",
            CallFault::TooLarge => "body-too-large",
            CallFault::Unread => "body-unread",
            CallFault::Malformed(_) => "malformed",
            CallFault::NoCredential => "no-credential",
            CallFault::AddressUnknown => "address-unknown",
            CallFault::NotItsAddress => "not-its-address",
            CallFault::Refused(refusal) => refusal.as_str(),
            CallFault::Broken => "broken",
        }
    }

    pub(super) fn into_answer(self) -> Plain {
        let code = self.as_str();
        let answer = |status, reason: &str| Plain::json(status, &json!({ "reason": reason, "code": code }));
        let later = |status, reason: &str| {
            answer(status, reason).with(header::RETRY_AFTER, &RETRY.as_secs().to_string())
        };
        match self {
            CallFault::NoSuchCall => answer(StatusCode::NOT_FOUND, "no such call").closing(),
            CallFault::NoSuchBlob => answer(
                StatusCode::NOT_FOUND,
                "the image has no such part, or it was found damaged: `farrier image verify` tells",
            ),
            CallFault::NotPost => answer(StatusCode::METHOD_NOT_ALLOWED, "calls are made with POST")
                .with(header::ALLOW, "POST")
                .closing(),
            CallFault::TooManyCalls => {
                later(StatusCode::TOO_MANY_REQUESTS, "too many calls from this address").closing()
            }
            CallFault::TooLarge => {
                answer(StatusCode::PAYLOAD_TOO_LARGE, "a call has at most 1 MiB").closing()
            }
            CallFault::Unread => answer(StatusCode::BAD_REQUEST, "the body broke off").closing(),
            CallFault::Malformed(reason) => answer(StatusCode::BAD_REQUEST, &reason),
            CallFault::NoCredential => answer(StatusCode::UNAUTHORIZED, "Authorization: Bearer is missing"),
            CallFault::AddressUnknown => later(
                StatusCode::SERVICE_UNAVAILABLE,
                "this address is not leased to anyone: get an address by DHCP first",
            )
            .closing(),
            CallFault::NotItsAddress => {
                answer(StatusCode::UNAUTHORIZED, "this address is leased to another MAC address")
            }
            CallFault::Refused(refusal @ AgentRefusal::NotDurable(_)) => {
                later(StatusCode::SERVICE_UNAVAILABLE, &refusal.to_string())
            }
            CallFault::Refused(
                refusal @ (AgentRefusal::TokenMalformed
                | AgentRefusal::TokenForged
                | AgentRefusal::TokenExpired
                | AgentRefusal::TokenSpent
                | AgentRefusal::WrongMac
                | AgentRefusal::WrongAddress
                | AgentRefusal::WrongPort
                | AgentRefusal::UnknownNode
                | AgentRefusal::NotApproved
                | AgentRefusal::SessionForged
                | AgentRefusal::SessionReplaced
                | AgentRefusal::OtherMachine
                | AgentRefusal::NotAwaited),
            ) => answer(StatusCode::UNAUTHORIZED, &refusal.to_string()),
            CallFault::Refused(refusal @ AgentRefusal::Task(_)) => {
                answer(StatusCode::CONFLICT, &refusal.to_string())
            }
            CallFault::Broken => later(StatusCode::SERVICE_UNAVAILABLE, "the appliance failed"),
        }
    }
}
