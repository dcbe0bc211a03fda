//! Style, scripts and icon: embedded, named by path, told apart by ETag.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::image::digest::Digest;
use crate::operator::problem::{Problem, ProblemKind};
use crate::page::problem;

struct Asset {
    name: &'static str,
    media_type: &'static str,
    text: &'static str,
    etag: String,
}

static ASSETS: LazyLock<[Asset; 4]> = LazyLock::new(|| {
    [
        ("page.css", "text/css; charset=utf-8", include_str!("assets/page.css")),
        ("theme.js", "text/javascript; charset=utf-8", include_str!("assets/theme.js")),
        ("live.js", "text/javascript; charset=utf-8", include_str!("assets/live.js")),
        ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ]
    .map(|(name, media_type, text)| {
        let digest = Digest::of(text.as_bytes()).to_string();
        Asset { name, media_type, text, etag: format!("\"{}\"", &digest[..16]) }
    })
});

pub(super) async fn show(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return problem::page(Problem::new(ProblemKind::NotFound, "there is no such file"));
    };
    let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let fixed = [
        (header::ETAG, asset.etag.as_str()),
        // Asked for again each time, and answered without a body: a new version is never mixed with an old page.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_TYPE, asset.media_type),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    if known.is_some_and(|known| known.split(',').any(|tag| tag.trim() == asset.etag)) {
        return (StatusCode::NOT_MODIFIED, fixed).into_response();
    }
    (fixed, asset.text).into_response()
}
