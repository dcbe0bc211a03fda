//! Refusals on the operator plane: each is one RFC 9457 document; the one place that chooses status codes.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::api::ProblemDocument;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// The request itself is malformed or holds a value that breaks a rule.
    Invalid,
    /// Nobody is known to have asked: no token, or one that is not valid.
    Unauthorized,
    /// Not by this peer, or not under this host name.
    Forbidden,
    NotFound,
    MethodNotAllowed,
    /// Well-formed, but it contradicts what is recorded.
    Conflict,
    /// It is not, or no longer, what If-Match or If-None-Match says.
    PreconditionFailed,
    /// The body is of a kind this path does not read.
    UnsupportedMediaType,
    /// The same Idempotency-Key came with another request before.
    KeyReused,
    TooLarge,
    /// The body did not arrive in time.
    TooSlow,
    /// Too many attempts failed from there; later ones are not looked at for a while.
    TooMany,
    /// The appliance cannot do it now: store or services.
    Unavailable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: ProblemKind,
    pub detail: String,
    pub field: Option<Cow<'static, str>>,
    pub way_out: Option<String>,
}

impl Problem {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Problem {
        Problem { kind, detail: detail.into(), field: None, way_out: None }
    }

    pub fn field(self, field: impl Into<Cow<'static, str>>) -> Problem {
        Problem { field: Some(field.into()), ..self }
    }

    pub fn way_out(self, way_out: impl Into<String>) -> Problem {
        Problem { way_out: Some(way_out.into()), ..self }
    }

    /// The same, of one line of a list.
    pub(super) fn in_line(self, line: usize) -> Problem {
        Problem { detail: format!("line {line}: {}", self.detail), ..self }
    }

    /// Whether the fault is the appliance's, so that the same request may succeed later.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self.kind, ProblemKind::Unavailable)
    }

    pub(crate) fn document(self) -> (StatusCode, ProblemDocument) {
        let (status, kind, title) = match self.kind {
            ProblemKind::Invalid => (StatusCode::BAD_REQUEST, "invalid", "The request is not valid"),
            ProblemKind::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "Who asks is not known"),
            ProblemKind::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "Not allowed"),
            ProblemKind::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            ProblemKind::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This path is not for that method")
            }
            ProblemKind::Conflict => (StatusCode::CONFLICT, "conflict", "It contradicts what is recorded"),
            ProblemKind::PreconditionFailed => {
                (StatusCode::PRECONDITION_FAILED, "precondition-failed", "It has changed in between")
            }
            ProblemKind::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The body is not of a kind that is read here",
            ),
            ProblemKind::KeyReused => {
                (StatusCode::UNPROCESSABLE_ENTITY, "key-reused", "This Idempotency-Key is taken")
            }
            ProblemKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large"),
            ProblemKind::TooSlow => {
                (StatusCode::REQUEST_TIMEOUT, "too-slow", "The request did not arrive in time")
            }
            ProblemKind::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too-many", "Too many failed attempts"),
            ProblemKind::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The appliance cannot do this now")
            }
        };
        let document = ProblemDocument {
            kind: format!("urn:farrier:problem:{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail,
            field: self.field.map(Cow::into_owned),
            way_out: self.way_out,
        };
        (status, document)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, document) = self.document();
        let mut response = (status, axum::Json(document)).into_response();
        let problem_json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem_json);
        let headers = response.headers_mut();
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
            }
            StatusCode::UNAUTHORIZED => {
                let bearer = HeaderValue::from_static("Bearer realm=\"farrier\"");
                headers.insert(header::WWW_AUTHENTICATE, bearer);
            }
            _ => {}
        }
        response
    }
}
