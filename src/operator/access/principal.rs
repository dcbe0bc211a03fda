//! Roles and principals: who asks, how the appliance knows, and what that allows.

use std::fmt;
use std::str::FromStr;

use axum::Router;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::tokens::{TokenBook, TokenId};
use crate::clock::Timestamp;
use crate::operator::problem::{Problem, ProblemKind};

/// What a principal may do; each role may do all that the one before it may.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Registers, approves, orders and removes machines.
    Operator,
    /// Gives out tokens and reads the audit log.
    Admin,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: write viewer, operator or admin")]
pub struct UnknownRoleError(String);

impl FromStr for Role {
    type Err = UnknownRoleError;

    fn from_str(text: &str) -> Result<Role, UnknownRoleError> {
        let roles = [Role::Viewer, Role::Operator, Role::Admin];
        let found = roles.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| UnknownRoleError(text.to_owned()))
    }
}

/// How the appliance knows who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Means {
    /// The kernel named the user at the other end of the Unix socket.
    Socket { uid: u32 },
    /// A token in the `Authorization` header.
    Token { id: TokenId },
    /// A browser's session; the token it began with, or none if it began with a login link.
    Session { token: Option<TokenId> },
    /// Nobody in particular: what the configuration opens to all (`operator.metrics_open`).
    Open,
}

impl Means {
    /// The token that all of it rests on.
    fn token(&self) -> Option<TokenId> {
        match self {
            Means::Token { id } => Some(*id),
            Means::Session { token } => *token,
            Means::Socket { .. } | Means::Open => None,
        }
    }

    /// The word the audit log keeps.
    pub fn as_str(&self) -> &'static str {
        match self {
            Means::Socket { .. } => "socket",
            Means::Token { .. } => "token",
            Means::Session { .. } => "session",
            Means::Open => "open",
        }
    }
}

/// Who asks. An axum extractor; the access layer put it into the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// For the audit log: a user's name, or a token's.
    pub name: String,
    pub role: Role,
    pub means: Means,
}

impl Principal {
    /// False once the token behind it is revoked or has expired: what was begun with it ends.
    pub fn still_may(&self, tokens: &TokenBook, now: Timestamp) -> bool {
        let Some(id) = self.means.token() else { return true };
        tokens.get(id).is_some_and(|token| !token.is_expired(now))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Principal, Problem> {
        parts.extensions.get::<Principal>().cloned().ok_or_else(nobody)
    }
}

/// The token a page puts into its forms and its `<meta>`. A request that changes something and is made with a session
/// cookie carries it in the header `X-CSRF-Token` or in the form field `csrf`; without a session it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Csrf(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Csrf {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Csrf, Self::Rejection> {
        Ok(parts.extensions.get::<Csrf>().cloned().unwrap_or_default())
    }
}

/// 401: it takes somebody, and nobody is known.
pub(super) fn nobody() -> Problem {
    Problem::new(ProblemKind::Unauthorized, "this takes a token")
        .way_out("`farrier token create` makes one; send it as `Authorization: Bearer TOKEN`")
}

/// 403 unless the principal has that role or a higher one.
pub fn require(principal: &Principal, role: Role) -> Result<(), Problem> {
    if principal.role >= role {
        return Ok(());
    }
    let detail = format!("this takes the role {role}; {} is {}", principal.name, principal.role);
    Err(Problem::new(ProblemKind::Forbidden, detail)
        .way_out(format!("use a token of role {role}: `farrier token create NAME --role {role}`")))
}

/// Routes for everybody who is known.
pub fn viewer<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    needing(Role::Viewer, router)
}

/// Routes that change machines.
pub fn operator<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    needing(Role::Operator, router)
}

/// Routes that decide who may.
pub fn admin<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    needing(Role::Admin, router)
}

fn needing<S: Clone + Send + Sync + 'static>(role: Role, router: Router<S>) -> Router<S> {
    // A table may have no route of some role yet.
    if !router.has_routes() {
        return router;
    }
    router.route_layer(middleware::from_fn(move |request: Request, next: Next| check(role, request, next)))
}

async fn check(role: Role, request: Request, next: Next) -> Response {
    let allowed = match request.extensions().get::<Principal>() {
        Some(principal) => require(principal, role),
        None => Err(nobody()),
    };
    match allowed {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_what_the_lower_ones_may() {
        let of = |role| Principal { name: "x".to_owned(), role, means: Means::Socket { uid: 0 } };
        let roles = [Role::Viewer, Role::Operator, Role::Admin];
        for (has, role) in roles.into_iter().enumerate() {
            for (needs, needed) in roles.into_iter().enumerate() {
                assert_eq!(require(&of(role), needed).is_ok(), has >= needs, "{role} for {needed}");
            }
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        let refused = require(&of(Role::Viewer), Role::Admin).unwrap_err();
        assert!(refused.detail.contains("the role admin"), "{}", refused.detail);
        assert!("root".parse::<Role>().is_err());
    }
}
