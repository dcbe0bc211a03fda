//! Refusals on the operator plane: each is one RFC 9457 document; the one place that chooses status codes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::api::ProblemDocument;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// The request itself is malformed or holds a value that breaks a rule.
    Invalid,
    /// Not by this peer, or not under this host name.
    Forbidden,
    NotFound,
    MethodNotAllowed,
    /// Well-formed, but it contradicts what is recorded.
    Conflict,
    TooLarge,
    /// The appliance cannot do it now: store or services.
    Unavailable,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub kind: ProblemKind,
    pub detail: String,
    pub field: Option<&'static str>,
    pub way_out: Option<String>,
}

impl Problem {
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Problem {
        Problem { kind, detail: detail.into(), field: None, way_out: None }
    }

    pub fn field(self, field: &'static str) -> Problem {
        Problem { field: Some(field), ..self }
    }

    pub fn way_out(self, way_out: impl Into<String>) -> Problem {
        Problem { way_out: Some(way_out.into()), ..self }
    }

    fn document(self) -> (StatusCode, ProblemDocument) {
        let (status, kind, title) = match self.kind {
            ProblemKind::Invalid => (StatusCode::BAD_REQUEST, "invalid", "The request is not valid"),
            ProblemKind::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "Not allowed"),
            ProblemKind::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            ProblemKind::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "This path is not for that method")
            }
            ProblemKind::Conflict => (StatusCode::CONFLICT, "conflict", "It contradicts what is recorded"),
            ProblemKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large"),
            ProblemKind::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The appliance cannot do this now")
            }
        };
        let document = ProblemDocument {
            kind: format!("urn:farrier:problem:{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail,
            field: self.field.map(str::to_owned),
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
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
