//! Answers: pages of a list with their `Link`, nodes with their tag.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::api::{NodeDetail, Page};
use super::asked::{Asked, Tags, tags};
use super::idempotency::Answer;
use super::problem::{Problem, ProblemKind};
use crate::image::digest::Digest;

/// Hexadecimal digits of a document's digest that stand in its tag.
const TAG_DIGITS: usize = 16;

/// A page, and the address of the next one (RFC 8288).
pub(super) fn listed<T: Serialize>(asked: &Asked, page: Page<T>) -> Response {
    let link = page.next.as_deref().map(|cursor| format!("<{}>; rel=\"next\"", asked.next_page(cursor)));
    let mut response = axum::Json(page).into_response();
    // Everything in it is percent-encoded: it always is a header's value.
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

/// A node and its tag: `"v<version of the record>-<digest of the document>"`. The whole of it changes with anything in
/// the document, such as how far its boot has come; what an edit depends on is the version alone.
pub(super) fn node(status: StatusCode, node: &NodeDetail) -> Result<Response, Problem> {
    let (text, tag) = tagged(node)?;
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), (header::ETAG, tag)];
    Ok((status, headers, Body::from(text)).into_response())
}

/// A node that is known now, and where it is found.
pub(super) fn new_node(node: &NodeDetail) -> Result<Answer, Problem> {
    let (text, tag) = tagged(node)?;
    let header = |name: HeaderName, value: &str| (name.to_string(), value.to_owned());
    Ok(Answer {
        status: StatusCode::CREATED.as_u16(),
        headers: vec![
            header(header::CONTENT_TYPE, "application/json"),
            header(header::ETAG, tag.to_str().unwrap_or_default()),
            header(header::LOCATION, &format!("/api/v1/nodes/{}", node.summary.id)),
        ],
        body: String::from_utf8(text).map_err(|_| unwritten())?,
    })
}

/// The same for GET: nothing but the tag if the client has it already (RFC 9110 §13.1.2).
pub(super) fn node_unless_known(headers: &HeaderMap, detail: &NodeDetail) -> Result<Response, Problem> {
    let (text, tag) = tagged(detail)?;
    let opaque = tag.to_str().unwrap_or_default().trim_matches('"').to_owned();
    let known = match tags(headers, header::IF_NONE_MATCH)? {
        None => false,
        Some(Tags::Any) => true,
        Some(Tags::These(tags)) => tags.contains(&opaque),
    };
    if known {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), (header::ETAG, tag)];
    Ok((headers, Body::from(text)).into_response())
}

fn tagged(detail: &NodeDetail) -> Result<(Vec<u8>, HeaderValue), Problem> {
    let text = serde_json::to_vec(detail).map_err(|_| unwritten())?;
    let digest = Digest::of(&text).to_string();
    let tag = format!("\"v{}-{}\"", detail.version, &digest[..TAG_DIGITS]);
    Ok((text, HeaderValue::try_from(tag).map_err(|_| unwritten())?))
}

fn unwritten() -> Problem {
    Problem::new(ProblemKind::Unavailable, "the document could not be written")
}
