//! Metadata on the wire: NoCloud, our own JSON, installers' answers, the call home, and EC2's tree with its sessions.
//!
//! | path | what | how often |
//! |---|---|---|
//! | `/metadata/v1/nocloud/meta-data` | instance id, host name, keys; the token for its first reader | always |
//! | `/metadata/v1/nocloud/{user-data,vendor-data}` | | once |
//! | `/metadata/v1/nocloud/network-config` | network configuration version 2 | always |
//! | `/metadata/v1/{node.json,authorized_keys}` | what is public, as JSON; the keys alone | always |
//! | `/metadata/v1/{preseed.cfg,kickstart.cfg}`, `/metadata/v1/autoinstall/{meta-data,user-data}` | for installers | once |
//! | `/metadata/v1/last-step`, `/metadata/v1/first-boot/…` | what an installer's last step runs, and leaves behind | always |
//! | `POST /metadata/v1/installed` | an installer is done: as the next | |
//! | `POST /metadata/v1/phone-home` | `{instance_id, token, hostname?, ssh_host_keys?}` → `{}` | |
//! | `POST /metadata/v1/phone-home/<token>` | the same from cloud-init, as a form | |
//! | `PUT /latest/api/token` | a session, for as long as `X-aws-ec2-metadata-token-ttl-seconds` says | |
//! | `/<version>/…` | EC2's tree ([`ec2`]), with `X-aws-ec2-metadata-token` | user data once |
//!
//! The asker is whom the address book says the address belongs to; nothing in a request can name another node. "Once"
//! is the [`gate`]'s; a client that sends a session's token with any of these requests is known by it, others by their
//! connection. What nobody may have is 404, whatever the reason; 410 is for what somebody was given. 503 means "later".
//!
//! `X-Forwarded-For` is refused everywhere: it comes from programs that fetch for others.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::bootplane::allowance::Allowances;
use crate::bootplane::content::REFUSALS_PER_MINUTE;
use crate::bootplane::per_minute::PerMinute;
use crate::bootplane::service::Plain;
use crate::clock::{Clock, Timestamp};
use crate::config::MetadataConfig;
use crate::dhcp::address_book::AddressBook;
use crate::metadata::document::Document;
use crate::metadata::ec2;
use crate::metadata::gate::{
    self, Answered, Decision, Grant, Part, Phase, PhoneCall, PhoneRefusal, ReadRefusal, Reader, Secret,
};
use crate::metadata::installer::{self, Kind};
use crate::metadata::seed::Secrets;
use crate::metadata::session::{self, SessionFault, SessionKey};
use crate::metadata::source::MetadataSource;
use crate::metadata::ssh_key::SshKey;
use crate::net::MacAddr;
use crate::telemetry::Tally;

const PREFIX: &str = "/metadata/";
const V1: &str = "/metadata/v1/";
const PHONE_HOME: &str = "phone-home";
const INSTALLED: &str = "installed";
const SESSION: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const SESSION_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Four host keys of 1 KB are the most a system has.
const BODY_BYTES_MAX: usize = 16 * 1024;
const HOST_KEYS_MAX: usize = 16;
/// cloud-init reads some forty paths of the tree in a second, and may go over it twice …
const ASKED_AT_ONCE: f64 = 120.0;
/// … and then a program of the node asks now and then.
const ASKED_PER_SECOND: f64 = 10.0;
/// Notes that wait for the disk at once; the store commits them in groups, the rest queue here.
const NOTES_AT_ONCE: usize = 64;
/// For a client to come back after 429 or 503.
const RETRY: Duration = Duration::from_secs(2);

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The appliance's address on the bridge.
    Bridge,
    /// `169.254.169.254`, where nothing but EC2's tree is served.
    LinkLocal,
}

pub struct MetadataCalls {
    source: Arc<dyn MetadataSource>,
    addresses: Arc<AddressBook>,
    tally: Arc<Tally>,
    clock: Clock,
    config: MetadataConfig,
    key: SessionKey,
    /// Told in the log, and on the node's timeline.
    refusals: PerMinute<Ipv4Addr>,
    allowances: Allowances,
    notes: Arc<Semaphore>,
}

/// Why something is not answered as asked.
#[derive(Debug)]
enum Fault {
    TooManyRequests,
    /// `X-Forwarded-For`.
    Forwarded,
    WrongMethod {
        allowed: &'static str,
    },
    /// Whose the address is nobody knows.
    AddressUnknown,
    /// The node's state has no metadata, or there is no such node.
    NotGranted,
    NoSuchPart,
    /// A secret that has been read.
    Gone,
    NoSession,
    Session(SessionFault),
    BadTtl,
    TooLarge,
    /// The body broke off.
    Unread,
    Malformed(String),
    Phone(PhoneRefusal),
    NotDurable,
    /// No random bytes, an installer's file that cannot be made, a task that broke.
    Broken,
}

/// A machine with what there is for it.
struct Asker {
    peer: Ipv4Addr,
    mac: MacAddr,
    document: Arc<Document>,
    grant: Grant,
    reader: Reader,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PhoneBody {
    instance_id: String,
    token: String,
    #[serde(default)]
    hostname: Option<String>,
    #[serde(default)]
    ssh_host_keys: Vec<SshKey>,
}

impl MetadataCalls {
    /// Fails only if the kernel has no random bytes.
    pub fn new(
        source: Arc<dyn MetadataSource>,
        addresses: Arc<AddressBook>,
        tally: Arc<Tally>,
        clock: Clock,
        config: MetadataConfig,
    ) -> Result<MetadataCalls, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(MetadataCalls {
            source,
            addresses,
            tally,
            clock,
            config,
            key: SessionKey::from_bytes(key),
            refusals: PerMinute::new(REFUSALS_PER_MINUTE),
            allowances: Allowances::new(ASKED_AT_ONCE, ASKED_PER_SECOND),
            notes: Arc::new(Semaphore::new(NOTES_AT_ONCE)),
        })
    }

    /// Whether a path is answered here, and not looked for among the files.
    pub fn takes(&self, door: Door, path: &str) -> bool {
        door == Door::LinkLocal || path.starts_with(PREFIX) || self.config.ec2 && ec2::takes(path)
    }

    /// `connection` tells connections of this run apart.
    pub async fn answer(
        &self,
        peer: Ipv4Addr,
        door: Door,
        connection: u64,
        request: Request<Incoming>,
    ) -> Plain {
        let now = self.clock.now();
        let head = request.method() == Method::HEAD;
        let plain = match self.carry_out(peer, door, connection, request, now).await {
            Ok(plain) => {
                self.tally.count("metadata", "answered");
                plain
            }
            Err(fault) => self.refuse(peer, fault, now),
        };
        if head { plain.without_body() } else { plain }
    }

    fn refuse(&self, peer: Ipv4Addr, fault: Fault, now: Timestamp) -> Plain {
        let reason = fault.as_str();
        self.tally.count("metadata", reason);
        if !fault.is_remarkable() {
            tracing::debug!(ip = %peer, reason, "metadata refused");
        } else if self.refusals.may_note(peer, now) {
            tracing::info!(ip = %peer, reason, "metadata refused");
            if let Some(owner) = self.addresses.owner(peer) {
                self.source.refused(owner, reason, now);
            }
        } else {
            self.tally.count("metadata", "refusal-not-logged");
            tracing::debug!(ip = %peer, reason, "metadata refused");
        }
        fault.into_answer()
    }

    async fn carry_out(
        &self,
        peer: Ipv4Addr,
        door: Door,
        connection: u64,
        request: Request<Incoming>,
        now: Timestamp,
    ) -> Result<Plain, Fault> {
        if !self.allowances.take(peer, Instant::now()) {
            return Err(Fault::TooManyRequests);
        }
        if request.headers().contains_key(FORWARDED) {
            return Err(Fault::Forwarded);
        }
        let path = request.uri().path().to_owned();
        let is_call = door == Door::Bridge
            && path.strip_prefix(V1).is_some_and(|name| {
                name == INSTALLED || name == PHONE_HOME || name.starts_with("phone-home/")
            });
        let is_token = path == ec2::TOKEN_PATH && self.config.ec2;
        let allowed = match (is_call, is_token) {
            (true, _) => "POST",
            (false, true) => "PUT",
            (false, false) => "GET, HEAD",
        };
        if !allowed.split(", ").any(|method| request.method() == method) {
            return Err(Fault::WrongMethod { allowed });
        }
        let mac = self.addresses.owner(peer).ok_or(Fault::AddressUnknown)?;
        let grant = self.source.grant(mac, now);
        // Before anything else is said: to whom nothing is granted, nothing is there.
        let granted = grant.filter(|(_, grant)| grant.phase != Phase::None && grant.ports.contains(&mac));
        let (document, grant) = granted.ok_or(Fault::NotGranted)?;
        if is_token {
            return self.open_session(peer, mac, &request, now);
        }
        if is_call {
            return self.call(mac, request, now).await;
        }
        let session = self.session(peer, mac, request.headers(), now)?;
        let reader = session.unwrap_or_else(|| self.key.connection(connection));
        let asker = Asker { peer, mac, document, grant, reader };
        match path.strip_prefix(V1) {
            Some(name) if door == Door::Bridge => self.read(&asker, name, request.method(), now).await,
            _ if door == Door::Bridge && path.starts_with(PREFIX) => Err(Fault::NoSuchPart),
            _ if session.is_none() && !self.config.imds_v1 => Err(Fault::NoSession),
            _ => match ec2::look(&asker.document, mac, peer, &path).ok_or(Fault::NoSuchPart)? {
                ec2::Found::Text(text) => Ok(text_of(text)),
                ec2::Found::UserData => self.user_data(&asker, request.method(), now).await,
            },
        }
    }

    /// The session a request came with, if it came with any.
    fn session(
        &self,
        peer: Ipv4Addr,
        mac: MacAddr,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<Option<Reader>, Fault> {
        let Some(value) = headers.get(SESSION) else { return Ok(None) };
        let text = value.to_str().map_err(|_| Fault::Session(SessionFault::Malformed))?;
        self.key.read(text.trim(), mac, peer, now).map(Some).map_err(Fault::Session)
    }

    fn open_session(
        &self,
        peer: Ipv4Addr,
        mac: MacAddr,
        request: &Request<Incoming>,
        now: Timestamp,
    ) -> Result<Plain, Fault> {
        let wanted = request.headers().get(SESSION_TTL).and_then(|value| value.to_str().ok());
        let ttl = wanted.and_then(|text| session::ttl_from(text.trim())).ok_or(Fault::BadTtl)?;
        let mut nonce = [0; session::NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| Fault::Broken)?;
        let token = self.key.issue(mac, peer, now.plus(ttl), nonce);
        let plain = text_of(token).with(SESSION_TTL, &ttl.as_secs().to_string());
        // No client sends any; whatever came is not read.
        Ok(if request.body().is_end_stream() { plain } else { plain.closing() })
    }

    /// EC2 has none where nobody gave any.
    async fn user_data(&self, asker: &Asker, method: &Method, now: Timestamp) -> Result<Plain, Fault> {
        match &asker.document.user_data {
            None if asker.grant.phase != Phase::Active => Err(Fault::NoSuchPart),
            Some(_) | None => {
                self.secret(asker, Secret::UserData, method, now).await?;
                Ok(text_of(asker.document.user_data_text().to_owned()))
            }
        }
    }

    async fn read(&self, asker: &Asker, name: &str, method: &Method, now: Timestamp) -> Result<Plain, Fault> {
        let document = &asker.document;
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.path() == name) {
            let text = document.answers(kind).map_err(|error| {
                tracing::error!(%error, file = name, "an installer's file cannot be made");
                Fault::Broken
            })?;
            self.secret(asker, Secret::Installer, method, now).await?;
            return Ok(text_of(text));
        }
        match name {
            "nocloud/meta-data" => {
                let secrets = match self.secret(asker, Secret::Token, method, now).await {
                    Ok(()) => Secrets::Included,
                    Err(Fault::Gone) => Secrets::LeftOut,
                    Err(fault) => return Err(fault),
                };
                Ok(text_of(document.meta_data(secrets)))
            }
            "nocloud/user-data" => {
                self.secret(asker, Secret::UserData, method, now).await?;
                Ok(text_of(document.user_data_text().to_owned()))
            }
            "nocloud/vendor-data" => {
                self.secret(asker, Secret::VendorData, method, now).await?;
                Ok(text_of(document.vendor_data_text()))
            }
            // The installer's own system is no instance of anything, but cloud-init wants the file.
            "autoinstall/meta-data" => Ok(text_of(document.meta_data(Secrets::LeftOut))),
            "nocloud/network-config" => Ok(text_of(document.network_config())),
            "authorized_keys" => Ok(text_of(document.authorized_keys())),
            "node.json" => Ok(Plain::json(StatusCode::OK, &document.node_json())),
            name => {
                let text = installer::left_behind(name).ok_or(Fault::NoSuchPart)?;
                Ok(Plain::of(StatusCode::OK, "text/plain; charset=utf-8", text.into()))
            }
        }
    }

    /// Whether this asker may have a secret now; noted on disk when this returns, unless nothing of it is sent.
    async fn secret(
        &self,
        asker: &Asker,
        secret: Secret,
        method: &Method,
        now: Timestamp,
    ) -> Result<(), Fault> {
        match gate::decide(asker.mac, &asker.grant, Part::Secret(secret), asker.reader, now) {
            Decision::Allow => return Ok(()),
            Decision::Gone => return Err(Fault::Gone),
            Decision::NotFound => return Err(Fault::NotGranted),
            Decision::Record if method == Method::HEAD => return Ok(()),
            Decision::Record => {}
        }
        let (source, mac, reader) = (Arc::clone(&self.source), asker.mac, asker.reader);
        // What was decided above is decided once more there, where nobody can come between.
        let noted = self.on_disk(move || source.secret_read(mac, secret, reader, now)).await?;
        noted.map_err(|refusal| match refusal {
            ReadRefusal::Gone => Fault::Gone,
            ReadRefusal::NotFound => Fault::NotGranted,
            ReadRefusal::NotDurable => Fault::NotDurable,
        })?;
        tracing::info!(mac = %asker.mac, ip = %asker.peer, secret = secret.as_str(), "metadata read");
        Ok(())
    }

    /// An installer that is done, or an installed system that has come up.
    async fn call(&self, mac: MacAddr, request: Request<Incoming>, now: Timestamp) -> Result<Plain, Fault> {
        let path = request.uri().path().to_owned();
        let token = path.strip_prefix(V1).and_then(|name| name.strip_prefix(PHONE_HOME)?.strip_prefix('/'));
        let body = read_body(request.into_body()).await?;
        let call = match token {
            Some(token) => call_from_form(token, &body)?,
            None => call_from_json(&body)?,
        };
        let done = path == format!("{V1}{INSTALLED}");
        let source = Arc::clone(&self.source);
        let taken = move || match done {
            true => source.installer_done(mac, &call, now),
            false => source.phone_home(mac, &call, now),
        };
        let who = if done { "installer" } else { "installed system" };
        match self.on_disk(taken).await?.map_err(Fault::Phone)? {
            Answered::First => tracing::info!(%mac, who, "called for the first time"),
            Answered::Again => tracing::debug!(%mac, who, "called again"),
        }
        Ok(Plain::json(StatusCode::OK, &json!({})))
    }

    /// The source waits for the disk; the threads that serve the wire must not.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        // Never closed, so always granted.
        let _turn = self.notes.acquire().await.map_err(|_| Fault::Broken)?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Fault::Broken)
    }
}

fn text_of(text: String) -> Plain {
    Plain::of(StatusCode::OK, "text/plain; charset=utf-8", text.into())
}

async fn read_body(body: Incoming) -> Result<Bytes, Fault> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Fault::TooLarge),
        Err(_) => Err(Fault::Unread),
    }
}

fn call_from_json(body: &[u8]) -> Result<PhoneCall, Fault> {
    let body: PhoneBody = serde_json::from_slice(body).map_err(|error| {
        // The message quotes what was sent; it goes back to its sender, bounded and without control characters.
        let said = error.to_string();
        Fault::Malformed(said.chars().filter(|letter| !letter.is_control()).take(200).collect())
    })?;
    if body.ssh_host_keys.len() > HOST_KEYS_MAX {
        return Err(Fault::Malformed(format!("more than {HOST_KEYS_MAX} host keys")));
    }
    Ok(PhoneCall {
        instance_id: body.instance_id,
        token: body.token,
        host_name: body.hostname,
        ssh_host_keys: body.ssh_host_keys,
    })
}

/// As cloud-init's `phone_home` posts it. A host key it has not got is `N/A` there.
fn call_from_form(token: &str, body: &[u8]) -> Result<PhoneCall, Fault> {
    let mut call = PhoneCall {
        instance_id: String::new(),
        token: token.to_owned(),
        host_name: None,
        ssh_host_keys: Vec::new(),
    };
    for (name, value) in form_urlencoded::parse(body) {
        match &*name {
            "instance_id" => call.instance_id = value.into_owned(),
            "hostname" => call.host_name = Some(value.into_owned()),
            name if name.starts_with("pub_key_") && call.ssh_host_keys.len() < HOST_KEYS_MAX => {
                call.ssh_host_keys.extend(value.parse::<SshKey>());
            }
            _ => {}
        }
    }
    if call.instance_id.is_empty() {
        return Err(Fault::Malformed("`instance_id` is missing".to_owned()));
    }
    Ok(call)
}

impl Fault {
    /// The same word in log, counter and timeline.
    fn as_str(&self) -> &'static str {
        match self {
            Fault::TooManyRequests => "too-many-requests",
            Fault::Forwarded => "forwarded",
            Fault::WrongMethod { .. } => "wrong-method",
            Fault::AddressUnknown => "address-unknown",
            Fault::NotGranted => "not-granted",
            Fault::NoSuchPart => "no-such-part",
            Fault::Gone => "read-before",
            Fault::NoSession => "no-session",
            Fault::Session(SessionFault::Malformed) => "session-malformed",
            Fault::Session(SessionFault::Forged) => "session-forged",
            Fault::Session(SessionFault::Expired) => "session-expired",
            Fault::Session(SessionFault::Foreign) => "session-foreign",
            Fault::BadTtl => "bad-ttl",
            Fault::TooLarge => "body-too-large",
            Fault::Unread => "body-unread",
            Fault::Malformed(_) => "malformed",
            Fault::Phone(refusal) => refusal.as_str(),
            Fault::NotDurable => "not-durable",
            Fault::Broken => "broken",
        }
    }

    /// Whether an operator should hear of it. The others are what well-behaved clients try: cloud-init asks for much that
    /// is not there, and for sessions where it has none.
    fn is_remarkable(&self) -> bool {
        match self {
            Fault::NoSuchPart
            | Fault::NoSession
            | Fault::Session(SessionFault::Expired)
            | Fault::WrongMethod { .. } => false,
            Fault::TooManyRequests
            | Fault::Forwarded
            | Fault::AddressUnknown
            | Fault::NotGranted
            | Fault::Gone
            | Fault::Session(SessionFault::Malformed | SessionFault::Forged | SessionFault::Foreign)
            | Fault::BadTtl
            | Fault::TooLarge
            | Fault::Unread
            | Fault::Malformed(_)
            | Fault::Phone(_)
            | Fault::NotDurable
            | Fault::Broken => true,
        }
    }

    fn into_answer(self) -> Plain {
        let code = self.as_str();
        let answer = |status, reason: &str| Plain::json(status, &json!({ "reason": reason, "code": code }));
        let later = |status, reason: &str| {
            answer(status, reason).with(header::RETRY_AFTER, &RETRY.as_secs().to_string()).closing()
        };
        match self {
            Fault::TooManyRequests => {
                later(StatusCode::TOO_MANY_REQUESTS, "too many requests from this address")
            }
            Fault::Forwarded => {
                answer(StatusCode::FORBIDDEN, "nothing is given to those who ask for others").closing()
            }
            Fault::WrongMethod { allowed } => answer(StatusCode::METHOD_NOT_ALLOWED, "not with this method")
                .with(header::ALLOW, allowed)
                .closing(),
            // To strangers and to those who ask too early or too late, one answer.
            Fault::AddressUnknown | Fault::NotGranted | Fault::NoSuchPart => {
                Plain::json(StatusCode::NOT_FOUND, &json!({ "reason": "not found", "code": "not-found" }))
                    .closing()
            }
            Fault::Gone => answer(StatusCode::GONE, "this has been read, and is given once"),
            Fault::NoSession => answer(
                StatusCode::UNAUTHORIZED,
                "a session is needed: PUT /latest/api/token, then X-aws-ec2-metadata-token",
            ),
            Fault::Session(_) => answer(StatusCode::UNAUTHORIZED, "this session is not good: get another"),
            Fault::BadTtl => answer(
                StatusCode::BAD_REQUEST,
                "X-aws-ec2-metadata-token-ttl-seconds is a number of seconds from 1 to 21600",
            )
            .closing(),
            Fault::TooLarge => answer(StatusCode::PAYLOAD_TOO_LARGE, "a call has at most 16 KiB").closing(),
            Fault::Unread => answer(StatusCode::BAD_REQUEST, "the body broke off").closing(),
            Fault::Malformed(reason) => answer(StatusCode::BAD_REQUEST, &reason),
            Fault::Phone(PhoneRefusal::NotDurable) => {
                later(StatusCode::SERVICE_UNAVAILABLE, &PhoneRefusal::NotDurable.to_string())
            }
            Fault::Phone(
                refusal @ (PhoneRefusal::NotAwaited | PhoneRefusal::WrongInstance | PhoneRefusal::WrongToken),
            ) => answer(StatusCode::UNAUTHORIZED, &refusal.to_string()),
            Fault::NotDurable => later(StatusCode::SERVICE_UNAVAILABLE, &ReadRefusal::NotDurable.to_string()),
            Fault::Broken => later(StatusCode::SERVICE_UNAVAILABLE, "the appliance failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_form_is_read_as_cloud_init_writes_it() {
        let key = "ssh-ed25519+AAAAC3NzaC1lZDI1NTE5AAAAIMmETQO%2BuVZSIFDYBbUYOip7NwVrffHaml4BnS0O5hHV+root%40node07%0A";
        let body = format!("instance_id=i-1&hostname=node07&pub_key_rsa=N%2FA&pub_key_ed25519={key}&fqdn=x");
        let call = call_from_form("secret", body.as_bytes()).unwrap();
        assert_eq!((call.instance_id.as_str(), call.token.as_str()), ("i-1", "secret"));
        assert_eq!(call.host_name.as_deref(), Some("node07"));
        assert_eq!(call.ssh_host_keys.len(), 1);
        assert!(call.ssh_host_keys[0].to_string().ends_with(" root@node07"));
        assert!(matches!(call_from_form("secret", b"hostname=x"), Err(Fault::Malformed(_))));
    }

    #[test]
    fn json_that_is_no_call_is_refused() {
        assert!(call_from_json(br#"{"instance_id":"i","token":"t"}"#).is_ok());
        let deep = "[".repeat(BODY_BYTES_MAX);
        for body in [
            "",
            "{}",
            "[]",
            r#"{"instance_id":"i"}"#,
            r#"{"instance_id":"i","token":"t","more":1}"#,
            r#"{"instance_id":1,"token":"t"}"#,
            r#"{"instance_id":"i","token":"t","ssh_host_keys":["ssh-rsa x"]}"#,
            &deep,
        ] {
            assert!(matches!(call_from_json(body.as_bytes()), Err(Fault::Malformed(_))), "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_body_breaks_anything(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (call_from_json(&body).is_ok(), call_from_form("t", &body).is_ok());
        }
    }
}
