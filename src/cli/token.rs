//! `farrier token create|list|revoke|login-link`

use std::time::Duration;

use clap::Subcommand;

use super::client::{Client, segment};
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::{Style, Tone, ago, duration};
use crate::clock::{Clock, Timestamp};
use crate::operator::access::Role;
use crate::operator::access::documents::{
    CreatedToken, LoginLink, LoginLinkRequest, TokenEntry, TokenRequest,
};
use crate::operator::access::tokens::TokenName;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token for the page and the API; it is shown once
    Create {
        /// What the list and the audit log call it: letters, digits, `.`, `_`, `-`, `@`
        name: TokenName,
        /// What it allows: viewer reads, operator changes machines, admin gives out tokens
        #[arg(long, default_value = "viewer")]
        role: Role,
        /// How long it holds, such as 30d or 12h [default: until it is revoked]
        #[arg(long, value_name = "DURATION", value_parser = parse_lifetime)]
        expires: Option<Duration>,
    },
    /// List the tokens there are, without their secrets
    List,
    /// End a token, and the browser sessions that began with it
    Revoke {
        /// Name or id
        token: String,
    },
    /// Print a link that opens the page in a browser: once, within five minutes
    LoginLink {
        /// What the session allows
        #[arg(long, default_value = "admin")]
        role: Role,
    },
}

fn parse_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 30d"))?;
    if lifetime < Duration::from_secs(1) {
        return Err("a token holds for a second at least".to_owned());
    }
    Ok(lifetime)
}

pub(super) async fn run(
    command: TokenCommand,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    match command {
        TokenCommand::Create { name, role, expires } => {
            let request = TokenRequest { name, role, expires_secs: expires.map(|expires| expires.as_secs()) };
            let created: CreatedToken = client.post("/api/v1/tokens", &request).await?;
            Ok(if json { json_text(&created) } else { render_created(&created) })
        }
        TokenCommand::List => {
            let tokens: Vec<TokenEntry> = client.list("/api/v1/tokens").await?;
            Ok(if json { json_text(&tokens) } else { render(&tokens, style, Clock::start().now()) })
        }
        TokenCommand::Revoke { token } => {
            let revoked: TokenEntry = client.delete(&format!("/api/v1/tokens/{}", segment(&token))).await?;
            Ok(if json { json_text(&revoked) } else { format!("token {} revoked\n", revoked.name) })
        }
        TokenCommand::LoginLink { role } => {
            let link = login_link(client, role).await?;
            Ok(if json { json_text(&link) } else { format!("{}\n", link.url) })
        }
    }
}

/// A link for whoever may use the socket.
pub(super) async fn login_link(client: &Client, role: Role) -> Result<LoginLink, CommandError> {
    client.post("/api/v1/login-links", &LoginLinkRequest { role: Some(role) }).await
}

fn render_created(created: &CreatedToken) -> String {
    let entry = &created.entry;
    let end = entry
        .expires_at
        .map_or_else(|| "holds until it is revoked".to_owned(), |end| format!("expires {end}"));
    format!("token {} ({}, {end}); it is shown this once:\n{}\n", entry.name, entry.role, created.token)
}

fn render(tokens: &[TokenEntry], style: Style, now: Timestamp) -> String {
    if tokens.is_empty() {
        return "no tokens: `farrier token create NAME --role viewer` makes one\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "ID", "ROLE", "MADE", "EXPIRES"]);
    for token in tokens {
        let (tone, end) = match token.expires_at {
            None => (Tone::Plain, "never".to_owned()),
            Some(end) if end <= now => (Tone::Attention, ago(end, now)),
            Some(end) => (Tone::Plain, format!("in {}", duration(end.since(now)))),
        };
        let cells = [
            token.name.to_string(),
            token.id.to_string(),
            token.role.to_string(),
            ago(token.created_at, now),
            end,
        ];
        table.row(tone, cells);
    }
    table.render(style)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::access::tokens::TokenId;

    #[test]
    fn lists_and_new_tokens_read_well() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let hour = Duration::from_secs(3600);
        let entry = |name: &str, expires_at: Option<Timestamp>| TokenEntry {
            id: TokenId([0, 0x1a, 2, 3]),
            name: name.parse().unwrap(),
            role: Role::Operator,
            created_at: now.minus(hour),
            expires_at,
            expired: expires_at.is_some_and(|end| end <= now),
        };
        let tokens = [entry("ci", None), entry("ada@work", Some(now.plus(hour))), entry("old", Some(now))];
        assert_eq!(
            render(&tokens, Style::PLAIN, now),
            "NAME      ID        ROLE      MADE        EXPIRES\n\
             ci        001a0203  operator  1h 00m ago  never\n\
             ada@work  001a0203  operator  1h 00m ago  in 1h 00m\n\
             old       001a0203  operator  1h 00m ago  now\n"
        );
        let created = CreatedToken { entry: entry("ci", None), token: "farrier_x".to_owned() };
        assert_eq!(
            render_created(&created),
            "token ci (operator, holds until it is revoked); it is shown this once:\nfarrier_x\n"
        );
        assert_eq!(parse_lifetime("30d"), Ok(Duration::from_secs(30 * 86400)));
        assert!(parse_lifetime("0s").is_err() && parse_lifetime("soon").is_err());
    }
}
