//! What a request says, read strictly: path, query, body and conditions. Whatever is wrong is named, with the way out.

use std::fmt::Display;
use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use serde::de::DeserializeOwned;

use super::access::BODY_BYTES_MAX;
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use super::views::{PAGE_DEFAULT, PAGE_MAX, Paging};
use crate::node::registry::{Expected, NodeRef};

/// Characters of a wrong value that are told back.
const TOLD_MAX: usize = 80;

fn told(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TOLD_MAX).collect()
}

/// The one variable part of a path, as text.
pub(super) struct Segment(pub(super) String);

impl FromRequestParts<Shared> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Problem> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(text)| Segment(text)).map_err(|_| bad_path())
    }
}

/// A node named in the path and one of its boots.
pub(super) struct NodeAndBoot(pub(super) NodeRef, pub(super) u32);

impl FromRequestParts<Shared> for NodeAndBoot {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Problem> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((node, number)) = path.map_err(|_| bad_path())?;
        let number = number.parse().map_err(|_| {
            Problem::new(ProblemKind::Invalid, format!("`{}` is not the number of a boot", told(&number)))
                .field("number")
                .way_out("boots are numbered from 1; 0 is what happened outside any boot")
        })?;
        Ok(NodeAndBoot(reference(&node)?, number))
    }
}

fn bad_path() -> Problem {
    Problem::new(ProblemKind::Invalid, "the path is not UTF-8 once its %-escapes are undone")
        .field("path")
        .way_out("write each byte of a UTF-8 text that is no letter or digit as % and two digits")
}

/// A node named in the path.
pub(super) struct Reference(pub(super) NodeRef);

impl FromRequestParts<Shared> for Reference {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Problem> {
        let Segment(text) = Segment::from_request_parts(parts, state).await?;
        reference(&text).map(Reference)
    }
}

pub(crate) fn reference(text: &str) -> Result<NodeRef, Problem> {
    text.parse().map_err(|error| {
        Problem::new(ProblemKind::Invalid, format!("{error}"))
            .field("ref")
            .way_out("name a node by its name, MAC address, id or SMBIOS UUID")
    })
}

/// The query, taken apart: each parameter is taken once, and none may be left over.
pub(super) struct Asked {
    path: String,
    all: Vec<(String, String)>,
    left: Vec<(String, String)>,
}

impl FromRequestParts<Shared> for Asked {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        Asked::of(&parts.uri)
    }
}

impl Asked {
    fn of(uri: &Uri) -> Result<Asked, Problem> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
        let Query(all) = pairs.map_err(|error| {
            Problem::new(
                ProblemKind::Invalid,
                format!("the query is not understood: {}", told(&error.body_text())),
            )
            .field("query")
        })?;
        Ok(Asked { path: uri.path().to_owned(), left: all.clone(), all })
    }

    /// The parameter's text, if it is there.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        let mut found = None;
        let mut twice = false;
        self.left.retain(|(key, value)| {
            if key != name {
                return true;
            }
            twice |= found.replace(value.clone()).is_some();
            false
        });
        if twice {
            let detail = format!("{name} stands in the query more than once");
            return Err(Problem::new(ProblemKind::Invalid, detail).field(name).way_out("name it once"));
        }
        Ok(found)
    }

    /// The parameter, read as its type is.
    pub(super) fn read<T>(&mut self, name: &'static str, wanted: &str) -> Result<Option<T>, Problem>
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|error| {
            let detail = format!("{name}=`{}`: {error}", told(&text));
            Problem::new(ProblemKind::Invalid, detail).field(name).way_out(format!("{wanted} is wanted"))
        })
    }

    /// The parameter, one of the words its type is written as.
    pub(super) fn word<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let read = serde_json::from_value(serde_json::Value::String(text.clone()));
        read.map(Some).map_err(|error| {
            let detail = format!("{name}=`{}`: {}", told(&text), told_whole(&error.to_string()));
            Problem::new(ProblemKind::Invalid, detail).field(name).way_out("use one of the words named")
        })
    }

    pub(super) fn paging<C: FromStr>(&mut self) -> Result<Paging<C>, Problem> {
        let limit: Option<usize> = self.read("limit", &format!("a number from 1 to {PAGE_MAX}"))?;
        let limit = limit.unwrap_or(PAGE_DEFAULT);
        if !(1..=PAGE_MAX).contains(&limit) {
            let detail = format!("limit={limit} is not from 1 to {PAGE_MAX}");
            let way_out = "ask for less, and follow `next`";
            return Err(Problem::new(ProblemKind::Invalid, detail).field("limit").way_out(way_out));
        }
        let Some(text) = self.text("cursor")? else { return Ok(Paging { after: None, limit }) };
        match text.parse() {
            Ok(after) => Ok(Paging { after: Some(after), limit }),
            Err(_) => {
                let detail = format!("cursor=`{}` is no place in this list", told(&text));
                let way_out = "leave it out for the first page, else use what the page before called `next`";
                Err(Problem::new(ProblemKind::Invalid, detail).field("cursor").way_out(way_out))
            }
        }
    }

    /// Refuses what nobody took.
    pub(super) fn finish(&self) -> Result<(), Problem> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name = told(name);
                let detail = format!("there is no query parameter `{name}` here");
                let way_out = "/api/v1/openapi.json names those there are";
                Err(Problem::new(ProblemKind::Invalid, detail).field(name).way_out(way_out))
            }
        }
    }

    /// Address of the next page: the same question, from this cursor on.
    pub(super) fn next_page(&self, cursor: &str) -> String {
        let kept = self.all.iter().filter(|(name, _)| name != "cursor");
        let pairs = kept.map(|(name, value)| (name.as_str(), value.as_str())).chain([("cursor", cursor)]);
        let pairs: Vec<String> =
            pairs.map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        format!("{}?{}", self.path, pairs.join("&"))
    }
}

/// A list of words is longer than a value.
fn told_whole(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(4 * TOLD_MAX).collect()
}

/// Everything but unreserved characters percent-encoded (RFC 3986 §2.3).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

/// A request that may have no query.
pub(super) struct NoQuery;

impl FromRequestParts<Shared> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        Asked::of(&parts.uri)?.finish().map(|()| NoQuery)
    }
}

/// A body that says it is JSON, whole, and the headers it came with.
pub(super) struct JsonBytes {
    pub(super) headers: HeaderMap,
    pub(super) bytes: Bytes,
}

impl FromRequest<Shared> for JsonBytes {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &Shared) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        if !is_json(&headers) {
            let detail = match headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
                Some(kind) => format!("a body of {} is not read here", told(&String::from_utf8_lossy(kind))),
                None => "the body does not say of what kind it is".to_owned(),
            };
            return Err(Problem::new(ProblemKind::UnsupportedMediaType, detail)
                .field("Content-Type")
                .way_out("send JSON, with Content-Type: application/json"));
        }
        let bytes =
            Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => {
                    let detail = format!("a body has at most {BODY_BYTES_MAX} bytes");
                    Problem::new(ProblemKind::TooLarge, detail)
                }
                _ => Problem::new(ProblemKind::Invalid, rejection.body_text()).field("body"),
            })?;
        Ok(JsonBytes { headers, bytes })
    }
}

/// A body that is one JSON document of this type, and says so.
pub(super) struct Document<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Shared> for Document<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &Shared) -> Result<Self, Problem> {
        let JsonBytes { bytes, .. } = JsonBytes::from_request(request, state).await?;
        document(&bytes).map(Document)
    }
}

/// `application/json`, or something that is JSON by its suffix, as a merge patch is (RFC 6839 §3.1).
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

pub(super) fn document<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let refused = |field: String, error: &serde_json::Error| {
        let detail = format!("the body is not the document wanted: {}", told_whole(&error.to_string()));
        Problem::new(ProblemKind::Invalid, detail)
            .field(field)
            .way_out("/api/v1/openapi.json says what is wanted")
    };
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = told(&error.path().to_string());
        let field = if path == "." { "body".to_owned() } else { format!("body.{path}") };
        refused(field, error.inner())
    })?;
    // What comes behind the document is no part of it.
    reader.end().map_err(|error| refused("body".to_owned(), &error))?;
    Ok(read)
}

/// If-Match and If-None-Match of a request that changes a node.
pub(super) struct Conditions(pub(super) Expected);

impl FromRequestParts<Shared> for Conditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        conditions(&parts.headers).map(Conditions)
    }
}

fn conditions(headers: &HeaderMap) -> Result<Expected, Problem> {
    let wanted = tags(headers, header::IF_MATCH)?;
    let unwanted = tags(headers, header::IF_NONE_MATCH)?;
    match (wanted, unwanted) {
        (None, None) => Ok(Expected::Anything),
        (Some(Tags::Any), None) => Ok(Expected::Something),
        (Some(Tags::These(tags)), None) => {
            Ok(Expected::Versions(tags.iter().filter_map(|tag| version_of(tag)).collect()))
        }
        (None, Some(Tags::Any)) => Ok(Expected::Nothing),
        (None, Some(Tags::These(_))) | (Some(_), Some(_)) => Err(Problem::new(
            ProblemKind::Invalid,
            "a change is asked for with If-Match, or with `If-None-Match: *` if nothing is to be there yet",
        )
        .field("If-None-Match")),
    }
}

/// A list of entity tags (RFC 9110 §13.1.1), without quotes and the mark of weakness.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tags {
    Any,
    These(Vec<String>),
}

pub(super) fn tags(headers: &HeaderMap, name: HeaderName) -> Result<Option<Tags>, Problem> {
    let mut tags = Vec::new();
    let mut present = false;
    for value in headers.get_all(&name) {
        present = true;
        let refused = || {
            let detail = format!("{name} is neither * nor a list of tags in quotes");
            Problem::new(ProblemKind::Invalid, detail)
                .field(name.to_string())
                .way_out("send back the ETag of an answer as it came")
        };
        let text = value.to_str().map_err(|_| refused())?.trim();
        if text == "*" {
            return Ok(Some(Tags::Any));
        }
        for tag in text.split(',').map(str::trim) {
            let opaque = tag.strip_prefix("W/").unwrap_or(tag);
            let opaque =
                opaque.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(refused)?;
            if opaque.contains('"') {
                return Err(refused());
            }
            // A weak tag is equal to nothing when a change depends on it (RFC 9110 §8.8.3.2).
            if !(tag.starts_with("W/") && name == header::IF_MATCH) {
                tags.push(opaque.to_owned());
            }
        }
    }
    Ok(present.then_some(Tags::These(tags)))
}

/// The record's version, which is the first part of a node's tag: `v7-…`.
fn version_of(tag: &str) -> Option<u64> {
    tag.strip_prefix('v')?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests;
