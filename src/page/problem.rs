//! Refusals as pages: what is wrong, and the way on.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use maud::html;

use crate::operator::api::ProblemDocument;
use crate::operator::problem::Problem;
use crate::page::layout::{self, Tab};

/// A problem is a few lines; anything longer is none of ours.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// The problem in the frame of every page.
pub(super) fn page(problem: Problem) -> Response {
    let (_, document) = problem.clone().document();
    let mut response = problem.into_response();
    dress(response.headers_mut());
    *response.body_mut() = rendered(&document).into();
    response
}

/// What the gate and the fallbacks refuse to a browser that opens a page is a page as well.
pub async fn as_pages(request: Request, next: Next) -> Response {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let is_page = accept.is_some_and(|accept| accept.contains("text/html"))
        && [Method::GET, Method::POST].contains(request.method())
        && !request.uri().path().starts_with("/api/");
    let response = next.run(request).await;
    let is_problem = response.headers().get(header::CONTENT_TYPE)
        == Some(&HeaderValue::from_static("application/problem+json"));
    if !(is_page && is_problem) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, DOCUMENT_BYTES_MAX).await.unwrap_or_default();
    let Ok(document) = serde_json::from_slice::<ProblemDocument>(&bytes) else {
        return (head, bytes).into_response();
    };
    dress(&mut head.headers);
    (head, rendered(&document)).into_response()
}

fn dress(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.remove(header::CONTENT_LENGTH);
}

fn rendered(document: &ProblemDocument) -> String {
    let body = html! {
        section.panel.problem {
            p.problem-code { (document.status) }
            h1 { (document.title) }
            p { (document.detail) "." }
            @if let Some(way_out) = &document.way_out {
                p.quiet { (way_out) }
            }
            p { a.button href="/" { "Overview" } " " a.button href="/nodes" { "Nodes" } }
        }
    };
    layout::bare(Tab::None, &document.title, body).0
}
