//! Paths of this layer's own: tokens, login links, the audit log, and who the caller is.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};

use super::documents::{CreatedToken, LoginLink, LoginLinkRequest, TokenEntry, TokenRequest, WhoAmI};
use super::sessions::NoRandomnessError;
use super::tokens::{CreateTokenError, LIFETIME_MAX, RevokeTokenError};
use super::{Principal, Role, login, require};
use crate::clock::Timestamp;
use crate::operator::asked::{Asked, Document, NoQuery, Segment, document};
use crate::operator::audit::{AuditEntry, AuditQuery};
use crate::operator::endpoints::Endpoint;
use crate::operator::nodes::waiting;
use crate::operator::openapi::Told;
use crate::operator::problem::{Problem, ProblemKind};
use crate::operator::{OperatorParts, answer, views};

type Shared = Arc<OperatorParts>;

/// Paths that are pages, not documents.
pub(in crate::operator) fn routes() -> Router<Shared> {
    let everybodys = Router::new().route("/logout", post(login::logout));
    let open = Router::new().route("/login", get(login::form).post(login::submit));
    super::viewer(everybodys).merge(open)
}

/// What this layer adds to the API.
pub(in crate::operator) fn endpoints() -> Vec<Endpoint> {
    let admin =
        |method, path, handler, told: fn() -> Told| Endpoint::new(method, path, Role::Admin, handler, told);
    let everybody =
        |method, path, handler, told: fn() -> Told| Endpoint::new(method, path, Role::Viewer, handler, told);
    vec![
        admin(Method::GET, "/api/v1/tokens", get(list), || {
            Told::page_of::<TokenEntry>("list_tokens", "access", "Tokens, without their secrets").listed()
        }),
        admin(Method::POST, "/api/v1/tokens", post(create), || {
            Told::new("create_token", "access", "Make a token; its text is in this answer and nowhere else")
                .also::<CreatedToken>(201, "Made.")
                .reads::<TokenRequest>()
                .refuses(&[409])
        }),
        admin(Method::GET, "/api/v1/tokens/{token}", get(show), || {
            Told::answers::<TokenEntry>("show_token", "access", "One token").refuses(&[404])
        }),
        admin(Method::DELETE, "/api/v1/tokens/{token}", delete(revoke), || {
            Told::answers::<TokenEntry>(
                "revoke_token",
                "access",
                "End a token, and the sessions that began with it",
            )
            .refuses(&[404])
        }),
        admin(Method::GET, "/api/v1/audit", get(audit), || {
            Told::page_of::<AuditEntry>("list_audit", "access", "Who changed what, newest first")
                .listed()
                .query_of::<Timestamp>("since", "Only entries from this time on.")
        }),
        everybody(Method::GET, "/api/v1/whoami", get(whoami), || {
            Told::answers::<WhoAmI>("who_am_i", "access", "Who asks, as the appliance sees it")
        }),
        everybody(Method::POST, "/api/v1/login-links", post(login_link), || {
            Told::new("create_login_link", "access", "A link that opens the page in a browser, once")
                .also::<LoginLink>(201, "Made.")
                .reads::<LoginLinkRequest>()
                .refuses(&[409])
        }),
    ]
}

async fn list(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let paging = asked.paging::<u32>()?;
    asked.finish()?;
    // Tokens are few, and keep the order in which they were made.
    let seen = paging.after.unwrap_or_default() as usize;
    let now = parts.clock.now();
    let tokens = parts.access.tokens.list();
    let entries =
        tokens.iter().enumerate().skip(seen).map(|(place, token)| (place, TokenEntry::of(token, now)));
    let page = views::page(entries, paging.limit, |(place, _)| (place + 1).to_string());
    Ok(answer::listed(&asked, page.map(|(_, entry)| entry)))
}

async fn show(
    State(parts): State<Shared>,
    Segment(text): Segment,
    _: NoQuery,
) -> Result<axum::Json<TokenEntry>, Problem> {
    let token = parts.access.tokens.find(&text).ok_or_else(|| no_token(&text))?;
    Ok(axum::Json(TokenEntry::of(&token, parts.clock.now())))
}

async fn create(
    State(parts): State<Shared>,
    principal: Principal,
    _: NoQuery,
    Document(request): Document<TokenRequest>,
) -> Result<Response, Problem> {
    let lifetime = request.expires_secs.map(Duration::from_secs);
    if lifetime.is_some_and(|lifetime| lifetime.is_zero() || lifetime > LIFETIME_MAX) {
        let detail = format!("a token holds for 1 to {} seconds, or for ever", LIFETIME_MAX.as_secs());
        return Err(Problem::new(ProblemKind::Invalid, detail)
            .field("expires_secs")
            .way_out("leave it out for a token without an end"));
    }
    let created = waiting(parts, move |parts| {
        let now = parts.clock.now();
        let (token, text) = parts.access.tokens.create(request.name, request.role, lifetime, now)?;
        let entry = TokenEntry::of(&token, now);
        parts.audit.record(
            &principal,
            "token.create",
            token.name.to_string(),
            None,
            serde_json::to_value(&entry).ok(),
        );
        Ok(CreatedToken { entry, token: text })
    })
    .await?;
    Ok((StatusCode::CREATED, axum::Json(created)).into_response())
}

async fn revoke(
    State(parts): State<Shared>,
    principal: Principal,
    Segment(text): Segment,
    _: NoQuery,
) -> Result<axum::Json<TokenEntry>, Problem> {
    waiting(parts, move |parts| {
        let token = parts.access.tokens.revoke(&text)?;
        parts.access.sessions.end_all_of(token.id);
        let entry = TokenEntry::of(&token, parts.clock.now());
        parts.audit.record(
            &principal,
            "token.revoke",
            token.name.to_string(),
            serde_json::to_value(&entry).ok(),
            None,
        );
        Ok(axum::Json(entry))
    })
    .await
}

async fn login_link(
    State(parts): State<Shared>,
    principal: Principal,
    body: Bytes,
) -> Result<Response, Problem> {
    let request: LoginLinkRequest =
        if body.is_empty() { LoginLinkRequest::default() } else { document(&body)? };
    let role = request.role.unwrap_or(principal.role);
    require(&principal, role)?;
    let access = &parts.access;
    let url = access.door.url().ok_or_else(|| {
        Problem::new(ProblemKind::Conflict, "there is no page to log in to: operator.listen is \"off\"")
            .way_out("set operator.listen = \"127.0.0.1:8067\" and restart the appliance")
    })?;
    // A link is as long-lived as what it was asked with: a session of a token's would outlive the token.
    if !matches!(principal.means, super::Means::Socket { .. }) {
        return Err(Problem::new(
            ProblemKind::Forbidden,
            "login links are given out by the Unix socket only",
        )
        .way_out("log in with the token itself, at /login"));
    }
    let (code, expires_at) = access.sessions.link(principal.name.clone(), role, parts.clock.now())?;
    parts.audit.record(
        &principal,
        "login-link.create",
        principal.name.clone(),
        None,
        Some(serde_json::json!({ "role": role, "expires_at": expires_at })),
    );
    let link = LoginLink { url: format!("{url}/login?code={code}"), role, expires_at };
    Ok((StatusCode::CREATED, axum::Json(link)).into_response())
}

async fn whoami(principal: Principal) -> axum::Json<WhoAmI> {
    axum::Json(WhoAmI::from(&principal))
}

/// `cursor` is the sequence number the page before ended with.
async fn audit(State(parts): State<Shared>, mut asked: Asked) -> Result<Response, Problem> {
    let paging = asked.paging::<u64>()?;
    let since = asked.word("since")?;
    asked.finish()?;
    let query = AuditQuery { before: paging.after, since, limit: paging.limit + 1 };
    let entries = parts.audit.list(&query).into_iter();
    Ok(answer::listed(&asked, views::page(entries, paging.limit, |entry| entry.sequence.to_string())))
}

fn no_token(text: &str) -> Problem {
    let told: String = text.chars().filter(|character| !character.is_control()).take(80).collect();
    Problem::new(ProblemKind::NotFound, format!("no token {told}"))
        .way_out("`farrier token list` shows those there are")
}

impl From<CreateTokenError> for Problem {
    fn from(error: CreateTokenError) -> Problem {
        let detail = error.to_string();
        match error {
            CreateTokenError::NameTaken(_) => Problem::new(ProblemKind::Conflict, detail)
                .field("name")
                .way_out("choose another name, or revoke that one first"),
            CreateTokenError::Full => {
                Problem::new(ProblemKind::Conflict, detail).way_out("revoke those nobody needs any more")
            }
            CreateTokenError::NoRandomness => Problem::new(ProblemKind::Unavailable, detail),
            CreateTokenError::Store(source) => not_kept(&detail, &source),
        }
    }
}

impl From<RevokeTokenError> for Problem {
    fn from(error: RevokeTokenError) -> Problem {
        let detail = error.to_string();
        match error {
            RevokeTokenError::NotFound(text) => no_token(&text),
            RevokeTokenError::Store(source) => not_kept(&detail, &source),
        }
    }
}

impl From<NoRandomnessError> for Problem {
    fn from(error: NoRandomnessError) -> Problem {
        Problem::new(ProblemKind::Unavailable, error.to_string())
    }
}

fn not_kept(detail: &str, source: &crate::store::CommitError) -> Problem {
    Problem::new(ProblemKind::Unavailable, format!("{detail}: {source}"))
        .way_out("`farrier status` shows the state of the store")
}
