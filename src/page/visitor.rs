//! Who looks at the page, and what was asked of it.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::response::Response;
use maud::{Markup, html};

use crate::operator::access::{Csrf, Means, Principal, Role};
use crate::page::problem;

/// Who is looking: decides which buttons there are, and what the forms carry.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    /// May change something.
    pub(super) may_change: bool,
    /// Came with a session, which can be ended.
    pub(super) may_leave: bool,
    /// For the operator's eye: under which name the audit log has what is done now.
    pub(super) name: String,
    /// What every form carries, so that another site's form is told from ours.
    csrf: String,
    /// Only the body of the page is wanted, to lay over the one shown.
    pub(super) fragment: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Ok(Csrf(csrf)) = Csrf::from_request_parts(parts, state).await;
        let principal = parts.extensions.get::<Principal>();
        let means = principal.map(|principal| &principal.means);
        Ok(Visitor {
            may_change: principal.is_some_and(|principal| principal.role >= Role::Operator),
            may_leave: matches!(means, Some(Means::Session { .. })),
            name: principal.map(|principal| principal.name.clone()).unwrap_or_default(),
            csrf,
            fragment: parts
                .uri
                .query()
                .is_some_and(|query| query.split('&').any(|pair| pair == "fragment=main")),
        })
    }
}

impl Visitor {
    /// The hidden fields of every form that changes something.
    pub(super) fn form_fields(&self) -> Markup {
        html! { input type="hidden" name="csrf" value=(self.csrf); }
    }
}

/// A visitor who may change something; the routes let nobody else through.
pub(super) struct Writer {
    pub(super) visitor: Visitor,
    pub(super) principal: Principal,
}

impl<S: Send + Sync> FromRequestParts<S> for Writer {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Ok(visitor) = Visitor::from_request_parts(parts, state).await;
        let principal = Principal::from_request_parts(parts, state).await.map_err(problem::page)?;
        Ok(Writer { visitor, principal })
    }
}
