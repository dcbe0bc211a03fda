//! Who may: every request on the operator plane passes here before a handler sees it.
//!
//! A request comes with a [`Principal`] or without one. On the Unix socket the kernel vouches for the peer: root,
//! the appliance's own user and the members of `operator.group` are administrators, everybody else is nobody. On TCP
//! it takes a token, or a browser session that began with one. Routes declare the [`Role`] they need with
//! [`viewer`], [`operator`] or [`admin`]; what declares nothing still needs a principal, but for a few open paths.
//!
//! - `principal`: roles, principals, and what a route needs of them
//! - [`tokens`]: made once, shown once, kept as a hash; `sessions`: browsers; `attempts`: failing to get in
//! - `names`: `Host` and `Origin`; `depth`: nesting; `form`: fields of a form
//! - `gate`: all of it, in order, around the routes
//! - `login`, `handlers`: the paths of this layer's own; [`documents`]: what they say

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, header};

use crate::clock::{Clock, Timestamp};
use crate::operator::access::attempts::{Attempts, Trier};
use crate::operator::access::names::Names;
use crate::operator::access::sessions::Sessions;
use crate::operator::access::tokens::{Token, TokenBook, TokenId, TokenRefusal, claimed_id};
use crate::operator::problem::{Problem, ProblemKind};
use crate::operator::socket::{Peer, UnixPeer};
use crate::store::Store;
use crate::telemetry::Tally;

mod attempts;
pub mod depth;
pub mod documents;
mod form;
mod gate;
mod handlers;
mod login;
pub mod names;
mod principal;
mod sessions;
pub mod tokens;

pub use gate::{BODY_BYTES_MAX, guard};
pub(super) use handlers::{endpoints, routes};
pub use principal::{Csrf, Means, Principal, Role, admin, operator, require, viewer};

/// The service's name among the counters.
const SERVICE: &str = "operator";

/// What the listeners and the configuration say of themselves.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// Members of this group are let in by the Unix socket.
    pub group: Option<u32>,
    pub names: Names,
    /// Where TCP is listened on.
    pub address: Option<SocketAddr>,
    /// What a person's browser should ask for, if not the address.
    pub public_name: Option<String>,
    pub tls: bool,
    /// `/metrics` takes no token.
    pub metrics_open: bool,
}

impl Door {
    /// Where a browser on this machine, or on another when we listen for it, finds the page.
    fn url(&self) -> Option<String> {
        let address = self.address?;
        let scheme = if self.tls { "https" } else { "http" };
        let host = match (&self.public_name, address.ip()) {
            (Some(name), ip) if !ip.is_loopback() => name.clone(),
            (_, ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
            (_, IpAddr::V4(ip)) => ip.to_string(),
            (_, IpAddr::V6(ip)) => format!("[{ip}]"),
        };
        Some(format!("{scheme}://{host}:{}", address.port()))
    }

    /// Browsers do not part cookies by port: each appliance on a host needs a name of its own. `__Host-` makes them
    /// refuse what another host, or a listener without TLS, would set (RFC 6265bis §4.1.3.2).
    fn cookie_name(&self) -> String {
        let port = self.address.map_or(0, |address| address.port());
        let prefix = if self.tls { "__Host-" } else { "" };
        format!("{prefix}farrier_session_{port}")
    }
}

/// What decides who may: tokens, sessions, and the bounds on trying.
pub struct Access {
    pub tokens: TokenBook,
    sessions: Sessions,
    attempts: Attempts,
    door: Door,
    own_uid: u32,
    clock: Clock,
    tally: Arc<Tally>,
}

/// A request's principal, and what a session adds to it.
#[derive(Clone, Debug)]
struct Known {
    principal: Principal,
    /// The cookie, and what a change has to carry beside it.
    session: Option<(SessionCookie, Csrf)>,
}

/// The value of a session's cookie; logging out needs it.
#[derive(Clone, Debug)]
struct SessionCookie(String);

impl Access {
    /// `tokens` as the store held them.
    pub fn new(
        tokens: Vec<Token>,
        store: Arc<dyn Store>,
        tally: Arc<Tally>,
        clock: Clock,
        door: Door,
    ) -> Arc<Access> {
        Arc::new(Access {
            tokens: TokenBook::new(tokens, store),
            sessions: Sessions::default(),
            attempts: Attempts::default(),
            door,
            own_uid: nix::unistd::geteuid().as_raw(),
            clock,
            tally,
        })
    }

    /// Who sends this request; nobody if it says nothing of it.
    fn identify(&self, peer: &Peer, headers: &HeaderMap) -> Result<Option<Known>, Problem> {
        match peer {
            Peer::Unix(peer) => self.by_credentials(peer).map(Some),
            Peer::Tcp(address) => match headers.get(header::AUTHORIZATION) {
                Some(value) => {
                    let text = value.to_str().unwrap_or_default();
                    let token =
                        text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
                    let token = token.map_or("", |(_, token)| token.trim());
                    let token = self.by_token(token, address.ip())?;
                    let means = Means::Token { id: token.id };
                    let principal = Principal { name: token.name.to_string(), role: token.role, means };
                    Ok(Some(Known { principal, session: None }))
                }
                None => Ok(self.by_cookie(headers)),
            },
        }
    }

    /// The kernel's word for who is at the other end.
    fn by_credentials(&self, peer: &UnixPeer) -> Result<Known, Problem> {
        let in_group = self.door.group.is_some_and(|group| peer.gid == group || peer.groups.contains(&group));
        if peer.uid == 0 || peer.uid == self.own_uid || in_group {
            let means = Means::Socket { uid: peer.uid };
            let principal = Principal { name: peer.name.to_string(), role: Role::Admin, means };
            return Ok(Known { principal, session: None });
        }
        self.tally.count(SERVICE, "peer-refused");
        let detail =
            "only root, the appliance's own user and the group of operator.group may use this socket";
        Err(Problem::new(ProblemKind::Forbidden, detail)
            .way_out("run the command with sudo, or have an administrator put you into that group"))
    }

    /// A token that is presented, or why it is not let in. Failures are counted and limited.
    fn by_token(&self, text: &str, address: IpAddr) -> Result<Token, Problem> {
        let now = self.clock.now();
        let known = claimed_id(text).filter(|id| self.tokens.get(*id).is_some());
        let trier = Trier::new(address, known);
        if !self.attempts.may_try(trier, now) {
            self.tally.count(SERVICE, "token-limited");
            let detail = "too many attempts with tokens that are not valid came from this address";
            return Err(Problem::new(ProblemKind::TooMany, detail).way_out("wait a minute"));
        }
        self.tokens.verify(text, now).map_err(|refusal| {
            self.attempts.failed(trier, now);
            self.refused(refusal)
        })
    }

    fn refused(&self, refusal: TokenRefusal) -> Problem {
        let (outcome, detail) = match refusal {
            TokenRefusal::Unknown => {
                ("token-unknown", "no such token: it was never made, or is revoked".to_owned())
            }
            TokenRefusal::WrongSecret(_) => ("token-wrong", "no such token".to_owned()),
            TokenRefusal::Expired(id) => ("token-expired", format!("the token {id} has expired")),
        };
        self.tally.count(SERVICE, outcome);
        Problem::new(ProblemKind::Unauthorized, detail)
            .way_out("`farrier token create` makes one; send it as `Authorization: Bearer TOKEN`")
    }

    fn by_cookie(&self, headers: &HeaderMap) -> Option<Known> {
        let now = self.clock.now();
        let name = self.door.cookie_name();
        let cookie = cookies(headers).find(|(found, _)| *found == name)?.1;
        let (principal, csrf) = self.sessions.find(cookie, now)?;
        if let Means::Session { token: Some(id) } = principal.means
            && !self.token_holds(id, now)
        {
            self.sessions.end(cookie);
            return None;
        }
        Some(Known { principal, session: Some((SessionCookie(cookie.to_owned()), csrf)) })
    }

    /// What a page made for the bearer of this cookie would know.
    #[cfg(test)]
    pub(super) fn session_of(&self, headers: &HeaderMap) -> Option<(Role, String)> {
        let known = self.by_cookie(headers)?;
        Some((known.principal.role, known.session?.1.0))
    }

    fn token_holds(&self, id: TokenId, now: Timestamp) -> bool {
        self.tokens.get(id).is_some_and(|token| !token.is_expired(now))
    }

    fn set_cookie(&self, value: &str, lifetime_secs: u64) -> String {
        let secure = if self.door.tls { "; Secure" } else { "" };
        let name = self.door.cookie_name();
        format!("{name}={value}; Path=/; Max-Age={lifetime_secs}; HttpOnly; SameSite=Strict{secure}")
    }
}

/// Every `name=value` of the Cookie headers.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn access(door: Door) -> Arc<Access> {
        Access::new(Vec::new(), Arc::new(MemoryStore::new()), Arc::default(), Clock::start(), door)
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> UnixPeer {
        UnixPeer { uid, gid, groups: groups.into(), name: "x".into() }
    }

    #[test]
    fn the_socket_lets_in_root_our_own_user_and_the_group() {
        let access = access(Door { group: Some(7000), ..Door::default() });
        let own = access.own_uid;
        for allowed in [peer(0, 0, &[]), peer(own, 1, &[]), peer(4000, 7000, &[]), peer(4000, 1, &[5, 7000])]
        {
            assert_eq!(access.by_credentials(&allowed).unwrap().principal.role, Role::Admin, "{allowed:?}");
        }
        for refused in [peer(own + 4000, 1, &[]), peer(own + 4000, 1, &[5, 6999])] {
            assert_eq!(access.by_credentials(&refused).unwrap_err().kind, ProblemKind::Forbidden);
        }
        let without = self::access(Door::default());
        assert!(without.by_credentials(&peer(own + 4000, 7000, &[7000])).is_err());
        assert_eq!(without.tally.value(SERVICE, "peer-refused"), 1);
    }

    #[test]
    fn guessing_is_limited_and_real_tokens_still_get_in() {
        let access = access(Door::default());
        let here: IpAddr = [127, 0, 0, 1].into();
        let (_, good) =
            access.tokens.create("a".parse().unwrap(), Role::Viewer, None, access.clock.now()).unwrap();
        let guess = format!("farrier_00000000_{}", "0".repeat(40));
        let outcomes: Vec<ProblemKind> =
            (0..=attempts::FAILURES_MAX).map(|_| access.by_token(&guess, here).unwrap_err().kind).collect();
        let (last, before) = outcomes.split_last().unwrap();
        assert!(before.iter().all(|kind| *kind == ProblemKind::Unauthorized));
        assert_eq!(*last, ProblemKind::TooMany);
        assert!(access.by_token(&good, here).is_ok());
        assert_eq!(access.tally.value(SERVICE, "token-unknown"), u64::from(attempts::FAILURES_MAX));
        assert_eq!(access.tally.value(SERVICE, "token-limited"), 1);
    }

    #[test]
    fn a_session_ends_when_its_token_is_revoked() {
        let access = access(Door::default());
        let now = access.clock.now();
        let (token, _) = access.tokens.create("a".parse().unwrap(), Role::Operator, None, now).unwrap();
        let cookie = access.sessions.begin("a".to_owned(), token.role, Some(token.id), None, now).unwrap();
        let mut headers = HeaderMap::new();
        let line = format!("other=1; {}={cookie}; last=2", access.door.cookie_name());
        headers.insert(header::COOKIE, line.parse().unwrap());
        assert_eq!(access.by_cookie(&headers).unwrap().principal.role, Role::Operator);
        access.tokens.revoke("a").unwrap();
        assert!(access.by_cookie(&headers).is_none());
    }

    #[test]
    fn the_url_is_one_a_browser_can_open() {
        let door = |address: &str, name: Option<&str>, tls| Door {
            address: address.parse().ok(),
            public_name: name.map(str::to_owned),
            tls,
            ..Door::default()
        };
        assert_eq!(
            door("127.0.0.1:8067", Some("boot.example"), false).url().unwrap(),
            "http://127.0.0.1:8067"
        );
        assert_eq!(door("[::1]:1", None, false).url().unwrap(), "http://[::1]:1");
        assert_eq!(
            door("10.0.0.5:443", Some("boot.example"), true).url().unwrap(),
            "https://boot.example:443"
        );
        assert_eq!(door("0.0.0.0:443", None, true).url().unwrap(), "https://127.0.0.1:443");
        assert_eq!(Door::default().url(), None);
        assert!(door("10.0.0.5:443", None, true).cookie_name().starts_with("__Host-"));
    }
}
