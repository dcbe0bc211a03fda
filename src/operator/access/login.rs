//! Logging in with a browser: a token in a form, or a one-time link, becomes a session cookie.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{DOCTYPE, html};

use super::sessions::SESSION_LIFETIME;
use super::tokens::TokenId;
use super::{Access, Role, SERVICE, SessionCookie, form as fields};
use crate::clock::Timestamp;
use crate::operator::OperatorParts;
use crate::operator::problem::Problem;
use crate::operator::socket::Peer;

type Shared = Arc<OperatorParts>;

/// `GET /login`: the form, or with `?code=` what a one-time link is good for.
pub(super) async fn form(State(parts): State<Shared>, request: Request) -> Result<Response, Problem> {
    let query = request.uri().query().unwrap_or_default();
    let Some(code) = fields::field(query.as_bytes(), "code") else {
        return Ok(page(None).into_response());
    };
    let access = &parts.access;
    let Some((name, role)) = access.sessions.redeem(&code, parts.clock.now()) else {
        access.tally.count(SERVICE, "link-refused");
        let told = "This link has been used, or is older than five minutes.";
        return Ok((StatusCode::UNAUTHORIZED, page(Some(told))).into_response());
    };
    let cookie = begin(access, name, role, None, None, parts.clock.now())?;
    let site = request.headers().get("sec-fetch-site").and_then(|site| site.to_str().ok());
    Ok(match site {
        // A strict cookie does not travel with a redirect that began on another site; with a new load it does.
        Some("cross-site" | "same-site") => (cookie, onward()).into_response(),
        _ => (cookie, Redirect::to("/")).into_response(),
    })
}

/// `POST /login`: the token of the form.
pub(super) async fn submit(
    State(parts): State<Shared>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let access = &parts.access;
    let text = fields::field(&body, "token").unwrap_or_default();
    let address = match peer {
        Peer::Tcp(address) => address.ip(),
        // Behind a Unix socket nobody needs this form; its failures count together.
        Peer::Unix(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
    };
    match access.by_token(text.trim(), address) {
        Ok(token) => {
            let now = parts.clock.now();
            let name = token.name.to_string();
            let cookie = begin(access, name, token.role, Some(token.id), token.expires_at, now)?;
            Ok((cookie, Redirect::to("/")).into_response())
        }
        Err(problem) => {
            let is_page = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            if is_page.is_some_and(|accept| accept.contains("text/html")) {
                let told = format!("Not let in: {}.", problem.detail);
                let status = problem.into_response().status();
                return Ok((status, page(Some(&told))).into_response());
            }
            Err(problem)
        }
    }
}

/// `POST /logout`
pub(super) async fn logout(
    State(parts): State<Shared>,
    session: Option<Extension<SessionCookie>>,
) -> ([(header::HeaderName, String); 1], Redirect) {
    if let Some(Extension(SessionCookie(cookie))) = session {
        parts.access.sessions.end(&cookie);
    }
    ([(header::SET_COOKIE, parts.access.set_cookie("", 0))], Redirect::to("/login"))
}

fn begin(
    access: &Access,
    name: String,
    role: Role,
    token: Option<TokenId>,
    ends_by: Option<Timestamp>,
    now: Timestamp,
) -> Result<[(header::HeaderName, String); 1], Problem> {
    tracing::info!(who = ?name, %role, "a browser has logged in");
    let cookie = access.sessions.begin(name, role, token, ends_by, now)?;
    access.tally.count(SERVICE, "login");
    Ok([(header::SET_COOKIE, access.set_cookie(&cookie, SESSION_LIFETIME.as_secs()))])
}

fn page(told: Option<&str>) -> Html<String> {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Log in · farrier" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/page.css";
            }
            body.login {
                main.login {
                    h1 { "farrier" }
                    @if let Some(told) = told {
                        p.login-refused role="alert" { (told) }
                    }
                    form.login method="post" action="/login" {
                        label for="token" { "Token" }
                        input #token type="password" name="token" required autofocus autocomplete="current-password"
                            spellcheck="false";
                        button type="submit" { "Log in" }
                    }
                    p.login-hint {
                        "On the appliance, " code { "farrier token login-link" } " prints a link that opens this page, and "
                        code { "farrier token create NAME --role viewer" } " makes a token."
                    }
                }
            }
        }
    };
    Html(markup.into_string())
}

/// A page that loads the overview anew.
fn onward() -> Html<String> {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="refresh" content="0; url=/";
                title { "farrier" }
            }
            body.login { main.login { p { a href="/" { "Go on to the overview" } } } }
        }
    };
    Html(markup.into_string())
}
