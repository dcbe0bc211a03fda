//! Browser sessions and one-time login links, kept on this side only.
//!
//! A cookie is 160 random bits; what is kept is its hash, so that looking it up tells nothing by its time. Sessions
//! end after half a day, with their token, with a logout, and with the appliance.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::HEXLOWER;

use super::tokens::{SecretHash, TokenId, random};
use super::{Csrf, Means, Principal, Role};
use crate::clock::Timestamp;

/// A working day; then the token is asked for again.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// Browsers one token is used in at once; the oldest session goes.
const SESSIONS_PER_OWNER: usize = 16;
/// Long enough to copy a link from one window to another.
pub const LINK_LIFETIME: Duration = Duration::from_secs(5 * 60);
/// Links given out and not used; the oldest goes.
const LINKS_MAX: usize = 32;
const SECRET_LEN: usize = 20;

#[derive(Default)]
pub struct Sessions {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sessions: HashMap<[u8; 32], Session>,
    links: HashMap<[u8; 32], Link>,
}

#[derive(Clone, Debug)]
struct Session {
    principal: Principal,
    csrf: Csrf,
    expires_at: Timestamp,
}

struct Link {
    name: String,
    role: Role,
    expires_at: Timestamp,
}

/// The kernel gave no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel gives no random bytes")]
pub struct NoRandomnessError;

impl Sessions {
    /// A new session; the answer is the cookie's value.
    pub fn begin(
        &self,
        name: String,
        role: Role,
        token: Option<TokenId>,
        ends_by: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<String, NoRandomnessError> {
        let (cookie, csrf) = (secret()?, Csrf(secret()?));
        let lasts = now.plus(SESSION_LIFETIME);
        let expires_at = ends_by.map_or(lasts, |end| end.min(lasts));
        let principal = Principal { name, role, means: Means::Session { token } };
        let mut state = self.lock();
        state.sessions.retain(|_, session| session.expires_at > now);
        // Sessions of links share one owner: none.
        let of_owner =
            state.sessions.iter().filter(|(_, session)| session.principal.means == principal.means);
        let mut of_owner: Vec<([u8; 32], Timestamp)> =
            of_owner.map(|(hash, session)| (*hash, session.expires_at)).collect();
        of_owner.sort_by_key(|(_, expires_at)| *expires_at);
        for (oldest, _) in of_owner.iter().rev().skip(SESSIONS_PER_OWNER - 1) {
            state.sessions.remove(oldest);
        }
        state.sessions.insert(SecretHash::of(&cookie).0, Session { principal, csrf, expires_at });
        Ok(cookie)
    }

    pub fn find(&self, cookie: &str, now: Timestamp) -> Option<(Principal, Csrf)> {
        let state = self.lock();
        let session = state.sessions.get(&SecretHash::of(cookie).0)?;
        (session.expires_at > now).then(|| (session.principal.clone(), session.csrf.clone()))
    }

    pub fn end(&self, cookie: &str) {
        self.lock().sessions.remove(&SecretHash::of(cookie).0);
    }

    /// Ends every session that began with a token.
    pub fn end_all_of(&self, token: TokenId) {
        let means = Means::Session { token: Some(token) };
        self.lock().sessions.retain(|_, session| session.principal.means != means);
    }

    /// A code that begins one session, for whoever comes with it first.
    pub fn link(
        &self,
        name: String,
        role: Role,
        now: Timestamp,
    ) -> Result<(String, Timestamp), NoRandomnessError> {
        let code = secret()?;
        let expires_at = now.plus(LINK_LIFETIME);
        let mut state = self.lock();
        state.links.retain(|_, link| link.expires_at > now);
        if state.links.len() >= LINKS_MAX {
            let oldest = state.links.iter().min_by_key(|(_, link)| link.expires_at).map(|(hash, _)| *hash);
            oldest.and_then(|oldest| state.links.remove(&oldest));
        }
        state.links.insert(SecretHash::of(&code).0, Link { name, role, expires_at });
        Ok((code, expires_at))
    }

    /// Spends a code: whose it is.
    pub fn redeem(&self, code: &str, now: Timestamp) -> Option<(String, Role)> {
        let link = self.lock().links.remove(&SecretHash::of(code).0)?;
        (link.expires_at > now).then_some((link.name, link.role))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn secret() -> Result<String, NoRandomnessError> {
    random::<SECRET_LEN>().map(|bytes| HEXLOWER.encode(&bytes)).ok_or(NoRandomnessError)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    const TOKEN: TokenId = TokenId([1; 4]);

    fn begin(sessions: &Sessions, token: Option<TokenId>, now: Timestamp) -> String {
        sessions.begin("a".to_owned(), Role::Viewer, token, None, now).unwrap()
    }

    #[test]
    fn a_session_ends_in_time_and_with_its_token() {
        let sessions = Sessions::default();
        let cookie = begin(&sessions, Some(TOKEN), NOW);
        let (principal, csrf) = sessions.find(&cookie, NOW).unwrap();
        assert_eq!(principal.means, Means::Session { token: Some(TOKEN) });
        assert!(csrf.0.len() == 40 && csrf.0 != cookie);
        assert!(sessions.find(&cookie, NOW.plus(SESSION_LIFETIME)).is_none());
        assert!(sessions.find("", NOW).is_none());
        let soon = NOW.plus(Duration::from_secs(5));
        let short = sessions.begin("a".to_owned(), Role::Viewer, Some(TOKEN), Some(soon), NOW).unwrap();
        assert!(sessions.find(&short, soon).is_none(), "a session outlives no token");
        sessions.end_all_of(TOKEN);
        assert!(sessions.find(&cookie, NOW).is_none());
    }

    #[test]
    fn one_owner_pushes_out_only_its_own_sessions() {
        let sessions = Sessions::default();
        let other = begin(&sessions, None, NOW);
        let millis = |number: u64| NOW.plus(Duration::from_millis(number));
        let cookies: Vec<String> = (0..=SESSIONS_PER_OWNER as u64)
            .map(|number| begin(&sessions, Some(TOKEN), millis(number)))
            .collect();
        let now = millis(100);
        assert!(sessions.find(&cookies[0], now).is_none(), "the oldest is gone");
        assert!(cookies[1..].iter().all(|cookie| sessions.find(cookie, now).is_some()));
        assert!(sessions.find(&other, now).is_some());
    }

    #[test]
    fn a_link_is_good_once_and_for_five_minutes() {
        let sessions = Sessions::default();
        let (code, expires_at) = sessions.link("root".to_owned(), Role::Admin, NOW).unwrap();
        assert_eq!(sessions.redeem(&code, NOW), Some(("root".to_owned(), Role::Admin)));
        assert_eq!(sessions.redeem(&code, NOW), None);
        let (late, _) = sessions.link("root".to_owned(), Role::Admin, NOW).unwrap();
        assert_eq!(sessions.redeem(&late, expires_at), None);
        for _ in 0..2 * LINKS_MAX {
            sessions.link("root".to_owned(), Role::Admin, NOW).unwrap();
        }
        assert_eq!(sessions.lock().links.len(), LINKS_MAX);
    }
}
