//! Documents of tokens, login links and the caller: one struct each, written by the server and read by the CLI.

use serde::{Deserialize, Serialize};

use super::tokens::{Token, TokenId, TokenName};
use super::{Principal, Role};
use crate::clock::Timestamp;

/// One row of `GET /api/v1/tokens`; never the token itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenEntry {
    #[schema(value_type = String, pattern = "^[0-9a-f]{8}$")]
    pub id: TokenId,
    pub name: TokenName,
    pub role: Role,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Without one it holds until it is revoked.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    pub expired: bool,
}

impl TokenEntry {
    pub fn of(token: &Token, now: Timestamp) -> TokenEntry {
        TokenEntry {
            id: token.id,
            name: token.name.clone(),
            role: token.role,
            created_at: token.created_at,
            expires_at: token.expires_at,
            expired: token.is_expired(now),
        }
    }
}

/// `POST /api/v1/tokens`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    pub name: TokenName,
    pub role: Role,
    /// How long it holds, at most ten years; for ever if absent.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 315_360_000)]
    pub expires_secs: Option<u64>,
}

/// The answer to it: the one time the token is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CreatedToken {
    #[serde(flatten)]
    pub entry: TokenEntry,
    pub token: String,
}

/// `POST /api/v1/login-links`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginLinkRequest {
    /// Role of the session it begins; the asker's own if absent.
    #[serde(default)]
    pub role: Option<Role>,
}

/// Opens the page in a browser, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LoginLink {
    pub url: String,
    pub role: Role,
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

/// `GET /api/v1/whoami`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WhoAmI {
    pub name: String,
    pub role: Role,
    /// `socket`, `token` or `session`.
    pub means: String,
}

impl From<&Principal> for WhoAmI {
    fn from(principal: &Principal) -> WhoAmI {
        let means = principal.means.as_str().to_owned();
        WhoAmI { name: principal.name.clone(), role: principal.role, means }
    }
}
