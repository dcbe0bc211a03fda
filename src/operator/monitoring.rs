//! Health, readiness, metrics, status and the OpenAPI document.

use std::sync::LazyLock;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::api::{Health, Status};
use super::asked::NoQuery;
use super::routes::Shared;
use super::{metrics, openapi, views};

/// The same for as long as the program runs.
static OPENAPI: LazyLock<String> = LazyLock::new(openapi::text);

/// Alive: this program answers.
pub(super) async fn healthz(_: NoQuery) -> Json<Health> {
    Json(Health { ok: true, reason: None })
}

/// Ready: every service runs, what is told is durable, and machines can be booted.
pub(super) async fn readyz(State(parts): State<Shared>, _: NoQuery) -> Response {
    let health = views::readiness(&parts);
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

pub(super) async fn metrics_text(State(parts): State<Shared>, _: NoQuery) -> Response {
    let media_type = [(header::CONTENT_TYPE, metrics::MEDIA_TYPE)];
    (media_type, metrics::render(&parts)).into_response()
}

pub(super) async fn status(State(parts): State<Shared>, _: NoQuery) -> Json<Status> {
    Json(views::status(&parts))
}

pub(super) async fn openapi(_: NoQuery) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI.as_str()).into_response()
}
