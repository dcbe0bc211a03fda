//! Tokens of the operator plane: made once, shown once, kept as a hash.
//!
//! A token is `farrier_<id>_<secret>`: the id names its record, the secret is 160 random bits. The record keeps the
//! SHA-256 of the whole text; a secret of that many random bits needs no slow hash. The id is no secret, so that a
//! list, the log and the audit log can name the token.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::Role;
use crate::clock::Timestamp;
use crate::store::{Change, CommitError, Store};

/// More than a site has scrapers and people; each costs a few hundred bytes, for ever.
pub const TOKENS_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 63;
/// A token that lives longer than ten years is one without an end.
pub const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const SECRET_LEN: usize = 20;
const PREFIX: &str = "farrier_";

/// Names a token's record; no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 4]);

impl fmt::Display for TokenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl FromStr for TokenId {
    type Err = ();

    fn from_str(text: &str) -> Result<TokenId, ()> {
        unhex(text).map(TokenId).ok_or(())
    }
}

impl Serialize for TokenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|()| serde::de::Error::custom("a token id has 8 hexadecimal digits"))
    }
}

/// SHA-256 of a secret. Compared in constant time; its `Debug` tells nothing.
#[derive(Clone, Copy)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    pub fn of(secret: &str) -> SecretHash {
        SecretHash(Sha256::digest(secret.as_bytes()).into())
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &SecretHash) -> bool {
        let differing =
            self.0.iter().zip(&other.0).fold(0, |differing, (left, right)| differing | (left ^ right));
        std::hint::black_box(differing) == 0
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretHash(…)")
    }
}

/// What the store keeps of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    pub name: TokenName,
    pub role: Role,
    pub hash: SecretHash,
    pub created_at: Timestamp,
    /// Without one it holds until it is revoked.
    pub expires_at: Option<Timestamp>,
}

impl Token {
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// What a person calls a token: 1 to 63 letters, digits, `.`, `_`, `-`, `@`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct TokenName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name for a token: it has 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_`, `-` or `@`")]
pub struct BadTokenNameError(String);

impl TokenName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenName {
    type Err = BadTokenNameError;

    fn from_str(text: &str) -> Result<TokenName, BadTokenNameError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
        if (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(legal) {
            return Ok(TokenName(text.to_owned()));
        }
        Err(BadTokenNameError(text.chars().take(NAME_BYTES_MAX).collect()))
    }
}

impl<'de> Deserialize<'de> for TokenName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for TokenName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CreateTokenError {
    #[error("there is a token {0} already")]
    NameTaken(TokenName),
    #[error("there are {TOKENS_MAX} tokens already")]
    Full,
    #[error("the kernel gives no random bytes")]
    NoRandomness,
    #[error("the token is not kept")]
    Store(#[source] CommitError),
}

#[derive(Debug, thiserror::Error)]
pub enum RevokeTokenError {
    #[error("no token {0}")]
    NotFound(String),
    #[error("the token is not revoked")]
    Store(#[source] CommitError),
}

/// Why a presented token is no principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// Not a token's form, or no such id: never made, or revoked.
    Unknown,
    /// The id exists, the secret is another.
    WrongSecret(TokenId),
    Expired(TokenId),
}

/// All tokens, in memory and in the store.
pub struct TokenBook {
    tokens: RwLock<BTreeMap<TokenId, Token>>,
    store: Arc<dyn Store>,
}

impl TokenBook {
    pub fn new(tokens: Vec<Token>, store: Arc<dyn Store>) -> TokenBook {
        let tokens = tokens.into_iter().map(|token| (token.id, token)).collect();
        TokenBook { tokens: RwLock::new(tokens), store }
    }

    /// In order of creation.
    pub fn list(&self) -> Vec<Token> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<Token> = tokens.values().cloned().collect();
        list.sort_by_key(|token| (token.created_at, token.id));
        list
    }

    pub fn get(&self, id: TokenId) -> Option<Token> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// By id or by name.
    pub fn find(&self, reference: &str) -> Option<Token> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let by_name = tokens.values().find(|token| token.name.as_str() == reference);
        by_name.or_else(|| tokens.get(&reference.parse().ok()?)).cloned()
    }

    /// Makes a token and waits until it is on disk; the text is given out here and nowhere else.
    pub fn create(
        &self,
        name: TokenName,
        role: Role,
        lifetime: Option<Duration>,
        now: Timestamp,
    ) -> Result<(Token, String), CreateTokenError> {
        // Held over the commit: names stay unique, and tokens are made by people, one at a time.
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.retain(|_, token| !(token.name == name && token.is_expired(now)));
        if tokens.values().any(|token| token.name == name) {
            return Err(CreateTokenError::NameTaken(name));
        }
        if tokens.len() >= TOKENS_MAX {
            return Err(CreateTokenError::Full);
        }
        let id = loop {
            let id = TokenId(random().ok_or(CreateTokenError::NoRandomness)?);
            if !tokens.contains_key(&id) {
                break id;
            }
        };
        let secret: [u8; SECRET_LEN] = random().ok_or(CreateTokenError::NoRandomness)?;
        let text = format!("{PREFIX}{id}_{}", HEXLOWER.encode(&secret));
        let expires_at = lifetime.map(|lifetime| now.plus(lifetime));
        let hash = SecretHash::of(&text);
        let token = Token { id, name, role, hash, created_at: now, expires_at };
        let change = Change::PutToken(Box::new(token.clone()));
        self.store.commit(vec![change]).map_err(CreateTokenError::Store)?;
        tokens.insert(id, token.clone());
        Ok((token, text))
    }

    /// From now on nobody gets in with it.
    pub fn revoke(&self, reference: &str) -> Result<Token, RevokeTokenError> {
        let token = self.find(reference);
        let token = token.ok_or_else(|| RevokeTokenError::NotFound(reference.chars().take(80).collect()))?;
        self.store.commit(vec![Change::DropToken(token.id)]).map_err(RevokeTokenError::Store)?;
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).remove(&token.id);
        Ok(token)
    }

    pub fn verify(&self, text: &str, now: Timestamp) -> Result<Token, TokenRefusal> {
        let id = claimed_id(text).ok_or(TokenRefusal::Unknown)?;
        let token = self.get(id).ok_or(TokenRefusal::Unknown)?;
        if token.hash != SecretHash::of(text) {
            return Err(TokenRefusal::WrongSecret(id));
        }
        if token.is_expired(now) {
            return Err(TokenRefusal::Expired(id));
        }
        Ok(token)
    }
}

/// The id a text claims to be of; nothing if it has not a token's form.
pub(super) fn claimed_id(text: &str) -> Option<TokenId> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    unhex::<SECRET_LEN>(secret)?;
    id.parse().ok()
}

pub(super) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}

pub(super) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != N * 2 {
        return None;
    }
    HEXLOWER.decode_mut(text.as_bytes(), &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn book() -> (TokenBook, Arc<MemoryStore>) {
        let store = Arc::new(MemoryStore::new());
        (TokenBook::new(Vec::new(), Arc::clone(&store) as _), store)
    }

    fn name(text: &str) -> TokenName {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_is_good_until_it_expires_or_is_revoked() {
        let (book, store) = book();
        let hour = Duration::from_secs(3600);
        let (token, text) = book.create(name("scraper"), Role::Viewer, Some(hour), NOW).unwrap();
        assert_eq!(book.verify(&text, NOW), Ok(token.clone()));
        assert_eq!(book.verify(&text, NOW.plus(hour)), Err(TokenRefusal::Expired(token.id)));

        let again = TokenBook::new(store.load().unwrap().tokens, Arc::clone(&store) as _);
        assert_eq!(again.verify(&text, NOW), Ok(token.clone()), "after a restart");
        again.revoke("scraper").unwrap();
        assert_eq!(again.verify(&text, NOW), Err(TokenRefusal::Unknown));
        assert!(store.load().unwrap().tokens.is_empty());
        assert!(matches!(again.revoke("scraper"), Err(RevokeTokenError::NotFound(_))));
    }

    #[test]
    fn the_store_never_sees_the_secret() {
        let (book, store) = book();
        let (_, text) = book.create(name("a"), Role::Admin, None, NOW).unwrap();
        let secret = text.rsplit('_').next().unwrap();
        assert_eq!(secret.len(), SECRET_LEN * 2);
        assert!(!format!("{:?}", store.load().unwrap()).contains(secret));
    }

    #[test]
    fn whatever_else_is_presented_is_refused() {
        let (book, _) = book();
        let (token, text) = book.create(name("a"), Role::Admin, None, NOW).unwrap();
        let last = if text.ends_with('0') { "1" } else { "0" };
        let other = format!("{}{last}", &text[..text.len() - 1]);
        assert_eq!(book.verify(&other, NOW), Err(TokenRefusal::WrongSecret(token.id)));
        for text in [
            "",
            "farrier_",
            "farrier__",
            &text[..text.len() - 1],
            &text.to_uppercase(),
            "ä",
            "farrier_0000000ä_",
        ] {
            assert_eq!(book.verify(text, NOW), Err(TokenRefusal::Unknown), "{text}");
        }
    }

    #[test]
    fn names_are_unique_and_harmless() {
        let (book, store) = book();
        book.create(name("a"), Role::Admin, Some(Duration::from_secs(1)), NOW).unwrap();
        let again = |now| book.create(name("a"), Role::Viewer, None, now);
        assert!(matches!(again(NOW), Err(CreateTokenError::NameTaken(_))));
        store.fail_next_commits(1);
        let later = NOW.plus(Duration::from_secs(1));
        assert!(matches!(again(later), Err(CreateTokenError::Store(_))));
        again(later).expect("an expired token's name is free");
        for bad in ["", "a b", "<b>", "a\n", &"x".repeat(64)] {
            assert!(bad.parse::<TokenName>().is_err(), "{bad}");
        }
    }
}
