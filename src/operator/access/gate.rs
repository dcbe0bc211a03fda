//! The gate around all routes: what is checked before a handler runs, in order, and the headers every answer carries.
//!
//! Cheap checks come first, and nobody's body is read before it is known whose it is: `Host`, `Origin`, principal,
//! length, the body itself within its time, its depth, and for browser sessions the token against forged requests.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use http_body_util::LengthLimitError;

use super::principal::nobody;
use super::tokens::SecretHash;
use super::{Access, Csrf, Known, Means, Principal, Role, SERVICE, depth, form, names};
use crate::operator::problem::{Problem, ProblemKind};
use crate::operator::socket::Peer;

/// No document of ours comes near; a larger body is no request but an attack on memory.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// A token in a form; the body of somebody who is not known yet is kept this small.
const OPEN_BODY_BYTES_MAX: usize = 8 * 1024;
/// A megabyte at 1 Mbit/s; whoever needs longer holds a place others need.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// A commit takes milliseconds; a request that takes this long holds a place others need.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Paths that take no principal: is it alive, is it ready, who are you, and what the login page looks like.
const OPEN_PATHS: [&str; 3] = ["/healthz", "/readyz", "/login"];
const OPEN_PREFIX: &str = "/assets/";

/// Nothing is loaded, framed or sent but from and to ourselves; no script or style stands in a page.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Puts the gate around a whole router, fallbacks included.
pub fn guard(router: Router, access: Arc<Access>) -> Router {
    router.layer(middleware::from_fn_with_state(access, gate))
}

async fn gate(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let is_page = wants_page(&request);
    let mut response = match admit(&access, request).await {
        Ok(request) => match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                let secs = ANSWER_WITHIN.as_secs();
                let detail = format!("not done within {secs} s: the store is stuck");
                Problem::new(ProblemKind::Unavailable, detail).into_response()
            }
        },
        Err(problem) if problem.kind == ProblemKind::Unauthorized && is_page => {
            Redirect::to("/login").into_response()
        }
        Err(problem) => problem.into_response(),
    };
    add_headers(response.headers_mut());
    response
}

/// A browser that opens a page, not a program that asks for a document.
fn wants_page(request: &Request) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    request.method() == Method::GET
        && !request.uri().path().starts_with("/api/")
        && accept.is_some_and(|accept| accept.contains("text/html"))
}

fn add_headers(headers: &mut HeaderMap) {
    let always = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not `no-referrer`: under that browsers send our own forms with `Origin: null`, which is refused.
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in always {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// The request with its principal in it, or why it goes no further.
async fn admit(access: &Access, mut request: Request) -> Result<Request, Problem> {
    let counted = |outcome: &'static str| {
        move |problem: Problem| {
            access.tally.count(SERVICE, outcome);
            problem
        }
    };
    let peer = request.extensions().get::<Peer>().cloned();
    let peer =
        peer.ok_or_else(|| Problem::new(ProblemKind::Unavailable, "the connection's peer is not known"))?;
    if let Peer::Tcp(_) = peer {
        let headers = request.headers();
        access.door.names.check_host(request.uri(), headers).map_err(counted("host-refused"))?;
        names::check_origin(request.method(), headers).map_err(counted("origin-refused"))?;
    }
    let path = request.uri().path();
    let open = OPEN_PATHS.contains(&path) || path.starts_with(OPEN_PREFIX);
    let known = match access.identify(&peer, request.headers()) {
        Ok(known) => known,
        // Whatever came with the request, these say the same to all.
        Err(_) if open => None,
        Err(problem) => return Err(problem),
    };
    let known = known.or_else(|| (path == "/metrics" && access.door.metrics_open).then(scraper));
    if known.is_none() && !open {
        return Err(nobody());
    }
    let limit = if known.is_some() { BODY_BYTES_MAX } else { OPEN_BODY_BYTES_MAX };
    let body = read(&mut request, limit).await?;
    if let Some((_, csrf)) = known.as_ref().and_then(|known| known.session.as_ref()) {
        check_csrf(&request, &body, csrf).map_err(counted("csrf-refused"))?;
    }
    *request.body_mut() = Body::from(body);
    if let Some(Known { principal, session }) = known {
        request.extensions_mut().insert(principal);
        if let Some((cookie, csrf)) = session {
            request.extensions_mut().insert(cookie);
            request.extensions_mut().insert(csrf);
        }
    }
    Ok(request)
}

/// Nobody in particular, who may read `/metrics`.
fn scraper() -> Known {
    let principal = Principal { name: "anybody".to_owned(), role: Role::Viewer, means: Means::Open };
    Known { principal, session: None }
}

/// The whole body, if it is no larger, no slower and no deeper than it may be.
async fn read(request: &mut Request, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(ProblemKind::TooLarge, format!("a body has at most {limit} bytes"));
    let body = std::mem::replace(request.body_mut(), Body::empty());
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    // What is announced as too large is answered before it arrives.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let body = tokio::time::timeout(BODY_WITHIN, axum::body::to_bytes(body, limit)).await.map_err(|_| {
        let detail = format!("the body did not arrive within {} s", BODY_WITHIN.as_secs());
        Problem::new(ProblemKind::TooSlow, detail)
    })?;
    let body = body.map_err(|error| {
        let is_too_large =
            std::error::Error::source(&error).is_some_and(|source| source.is::<LengthLimitError>());
        if is_too_large { too_large() } else { Problem::new(ProblemKind::Invalid, "the body broke off") }
    })?;
    let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = media_type.is_some_and(|media_type| media_type.contains("json"));
    if (is_json || depth::looks_like_json(&body)) && depth::is_too_deep(&body) {
        let detail = format!("the body is nested deeper than {} levels", depth::LEVELS_MAX);
        return Err(Problem::new(ProblemKind::Invalid, detail).field("body"));
    }
    Ok(body)
}

/// A change made with a cookie carries what only our own pages know.
fn check_csrf(request: &Request, body: &[u8], csrf: &Csrf) -> Result<(), Problem> {
    if names::is_safe(request.method()) {
        return Ok(());
    }
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let is_form = text(header::CONTENT_TYPE)
        .is_some_and(|media_type| media_type.starts_with("application/x-www-form-urlencoded"));
    let sent = match text(HeaderName::from_static("x-csrf-token")) {
        Some(sent) => Some(sent.to_owned()),
        None => is_form.then(|| form::field(body, "csrf")).flatten(),
    };
    if sent.is_some_and(|sent| SecretHash::of(&sent) == SecretHash::of(&csrf.0)) {
        return Ok(());
    }
    Err(Problem::new(
        ProblemKind::Forbidden,
        "the request does not carry this session's token against forgery",
    )
    .field("X-CSRF-Token")
    .way_out("reload the page and try again; programs use `Authorization: Bearer` and need none"))
}
