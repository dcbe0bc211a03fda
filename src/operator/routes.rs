//! The table of endpoints and the pages as one router, the gate around all of it, and the pace in front of the gate.

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::{Extension, Router};
use tokio::sync::watch;

use super::problem::{Problem, ProblemKind};
use super::{OperatorParts, access, endpoints, events, pace};

pub(super) type Shared = Arc<OperatorParts>;

/// Every path, what it needs, and the gate around all of them.
pub(super) fn all(parts: Shared, stopped: watch::Receiver<bool>) -> Router {
    let watchers = events::Watchers::start(&parts, stopped);
    let access = Arc::clone(&parts.access);
    let router = endpoints::router()
        .merge(access::routes())
        .merge(crate::page::router(Arc::clone(&parts)))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(Extension(watchers))
        // The gate has read and bounded the body.
        .layer(DefaultBodyLimit::disable())
        .with_state(parts);
    let guarded = access::guard(router, access).layer(axum::middleware::from_fn(crate::page::as_pages));
    pace::paced(guarded)
}

async fn no_such_path() -> Problem {
    Problem::new(ProblemKind::NotFound, "no such path here")
        .field("path")
        .way_out("/api/v1/openapi.json names those there are")
}

async fn wrong_method() -> Problem {
    Problem::new(ProblemKind::MethodNotAllowed, "this path exists, but not for this method")
        .field("method")
        .way_out("the header Allow names those it has")
}
