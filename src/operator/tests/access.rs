//! Who may, asked of the real router over TCP, TLS and the Unix socket.

use std::os::unix::fs::MetadataExt;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::*;
use crate::config::TlsConfig;
use crate::operator::access::Role;
use crate::operator::access::documents::{CreatedToken, LoginLink, TokenEntry, TokenRequest, WhoAmI};
use crate::operator::audit::AuditEntry;

const CSP: &str = "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; \
                   img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; \
                   frame-ancestors 'none'\r\n";

impl Rig {
    async fn token(&self, name: &str, role: Role) -> CreatedToken {
        let request = TokenRequest { name: name.parse().unwrap(), role, expires_secs: None };
        self.client.post("/api/v1/tokens", &request).await.unwrap()
    }

    /// A request over TCP under our own name; `headers` are whole lines.
    async fn ask(&self, method: &str, path: &str, headers: &[String], body: &str) -> String {
        self.raw_loopback(&self.request(method, path, headers, body)).await
    }

    fn request(&self, method: &str, path: &str, headers: &[String], body: &str) -> String {
        let mut lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        if crate::operator::access::depth::looks_like_json(body.as_bytes()) {
            lines.push_str("Content-Type: application/json\r\n");
        }
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{lines}Content-Length: {}\r\n\r\n{body}",
            self.loopback,
            body.len()
        )
    }

    fn origin(&self) -> String {
        format!("Origin: http://{}", self.loopback)
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

#[track_caller]
fn expect(answer: &str, status: u16, told: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status} {told}: {answer}");
    assert!(answer.contains(told), "{told}: {answer}");
}

/// `Cookie: …` for what an answer has set.
#[track_caller]
fn cookie_of(answer: &str) -> String {
    let line = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="] {
        assert!(line.contains(attribute), "{attribute}: {line}");
    }
    format!("Cookie: {}", line.split(';').next().unwrap())
}

const REGISTER: &str = r#"{"name":"anvil","ports":[{"mac":"52:54:00:00:00:01"}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn tcp_takes_a_token_and_its_role_decides() {
    let rig = Rig::start();
    for path in ["/healthz", "/readyz"] {
        expect(&rig.ask("GET", path, &[], "").await, 200, CSP);
    }
    for path in
        ["/api/v1/nodes", "/api/v1/status", "/metrics", "/api/v1/events", "/api/v1/tokens", "/nowhere", "/"]
    {
        expect(&rig.ask("GET", path, &[], "").await, 401, "www-authenticate: Bearer");
    }
    let viewer = rig.token("eve", Role::Viewer).await.token;
    let operator = rig.token("ada", Role::Operator).await.token;
    let admin = rig.token("root", Role::Admin).await.token;
    for path in ["/api/v1/nodes", "/api/v1/status", "/metrics", "/api/v1/leases", "/api/v1/whoami"] {
        let answer = rig.ask("GET", path, &[bearer(&viewer)], "").await;
        expect(&answer, 200, "cache-control: no-store");
        assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
    }
    let refused = rig.ask("POST", "/api/v1/nodes", &[bearer(&viewer)], REGISTER).await;
    expect(&refused, 403, "the role operator");
    assert!(refused.contains("application/problem+json") && refused.contains(CSP), "{refused}");
    expect(&rig.ask("DELETE", "/api/v1/nodes/anvil", &[bearer(&viewer)], "").await, 403, "operator");
    expect(&rig.ask("POST", "/api/v1/nodes", &[bearer(&operator)], REGISTER).await, 201, "anvil");
    for (method, path) in
        [("GET", "/api/v1/tokens"), ("GET", "/api/v1/audit"), ("DELETE", "/api/v1/tokens/eve")]
    {
        expect(&rig.ask(method, path, &[bearer(&operator)], "").await, 403, "the role admin");
        expect(&rig.ask(method, path, &[bearer(&admin)], "").await, 200, "");
    }
    expect(&rig.ask("GET", "/nowhere", &[bearer(&admin)], "").await, 404, "not-found");
    expect(&rig.ask("GET", "/api/v1/status", &["Authorization: Basic eDp5".to_owned()], "").await, 401, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_expired_revoked_or_wrong_let_nobody_in() {
    let rig = Rig::start();
    let token = rig.token("eve", Role::Viewer).await;
    let ask = async |token: &str| rig.ask("GET", "/api/v1/whoami", &[bearer(token)], "").await;
    expect(&ask(&token.token).await, 200, r#"{"name":"eve","role":"viewer","means":"token"}"#);
    let last = if token.token.ends_with('0') { '1' } else { '0' };
    let wrong = format!("{}{last}", &token.token[..token.token.len() - 1]);
    expect(&ask(&wrong).await, 401, "no such token");
    expect(&ask("x").await, 401, "no such token");
    let listed: Vec<TokenEntry> = rig.client.list("/api/v1/tokens").await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&token.entry));
    let again: TokenEntry = rig.client.get(&format!("/api/v1/tokens/{}", token.entry.id)).await.unwrap();
    assert_eq!(again, token.entry);
    let _gone: TokenEntry = rig.client.delete("/api/v1/tokens/eve").await.unwrap();
    expect(&ask(&token.token).await, 401, "revoked");
    let missing = rig.client.delete::<TokenEntry>("/api/v1/tokens/eve").await.unwrap_err();
    assert_eq!(missing.exit_code(), 3, "{missing}");

    let request = TokenRequest { name: "short".parse().unwrap(), role: Role::Admin, expires_secs: Some(1) };
    let short: CreatedToken = rig.client.post("/api/v1/tokens", &request).await.unwrap();
    let clock = Clock::start();
    while clock.now() <= short.entry.expires_at.unwrap() {
        tokio::task::yield_now().await;
    }
    expect(&ask(&short.token).await, 401, "has expired");
    for (secs, name) in [(Some(0), "zero"), (Some(u64::MAX), "ages")] {
        let request = TokenRequest { name: name.parse().unwrap(), role: Role::Admin, expires_secs: secs };
        let error = rig.client.post::<CreatedToken>("/api/v1/tokens", &request).await.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_attempts_are_counted_and_limited() {
    let rig = Rig::start();
    let good = rig.token("eve", Role::Viewer).await.token;
    let guess = format!("farrier_00000000_{}", "0".repeat(40));
    for _ in 0..10 {
        expect(&rig.ask("GET", "/api/v1/whoami", &[bearer(&guess)], "").await, 401, "");
    }
    expect(&rig.ask("GET", "/api/v1/whoami", &[bearer(&guess)], "").await, 429, "retry-after: 60");
    expect(&rig.ask("POST", "/login", &[rig.origin()], &format!("token={guess}")).await, 429, "");
    let metrics = rig.ask("GET", "/metrics", &[bearer(&good)], "").await;
    expect(&metrics, 200, "farrier_outcomes_total{service=\"operator\",outcome=\"token-unknown\"} 10\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_hosts_and_other_origins_are_refused() {
    let rig = Rig::start_with(|config| config.operator.names = vec!["boot.example.org".to_owned()]);
    let admin = bearer(&rig.token("root", Role::Admin).await.token);
    let status = |host: &str| {
        format!("GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{admin}\r\n\r\n")
    };
    expect(&rig.raw_loopback(&status("boot.example.org")).await, 200, "");
    expect(&rig.raw_loopback(&status("localhost:9000")).await, 200, "");
    for host in ["rebound.example.org", "", "192.168.2.2"] {
        expect(&rig.raw_loopback(&status(host)).await, 403, "operator.names");
    }
    let open = "GET /healthz HTTP/1.1\r\nHost: rebound.example.org\r\nConnection: close\r\n\r\n";
    expect(&rig.raw_loopback(open).await, 403, "");
    for origin in ["Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"] {
        let headers = [admin.clone(), origin.to_owned()];
        expect(&rig.ask("POST", "/api/v1/nodes", &headers, REGISTER).await, 403, "another site");
        expect(&rig.ask("POST", "/login", &[origin.to_owned()], "token=x").await, 403, "another site");
    }
    expect(&rig.ask("POST", "/api/v1/nodes", &[admin, rig.origin()], REGISTER).await, 201, "anvil");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_with_a_token_and_changes_with_its_own_secret() {
    let rig = Rig::start();
    let token = rig.token("ada", Role::Operator).await.token;
    let html = "Accept: text/html".to_owned();
    expect(&rig.ask("GET", "/", std::slice::from_ref(&html), "").await, 303, "location: /login\r\n");
    expect(&rig.ask("GET", "/login", std::slice::from_ref(&html), "").await, 200, "name=\"token\"");
    let wrong = rig.ask("POST", "/login", &[html.clone(), rig.origin()], "token=%3Cb%3E").await;
    expect(&wrong, 401, "Not let in");
    assert!(!wrong.contains("set-cookie"), "{wrong}");

    let answer = rig.ask("POST", "/login", &[rig.origin()], &format!("token={token}")).await;
    expect(&answer, 303, "location: /\r\n");
    let cookie = cookie_of(&answer);
    assert!(!answer.contains("; Secure"), "not without TLS: {answer}");
    let who = rig.ask("GET", "/api/v1/whoami", std::slice::from_ref(&cookie), "").await;
    expect(&who, 200, r#"{"name":"ada","role":"operator","means":"session"}"#);

    let (_, csrf) = session(&rig, &cookie);
    for headers in [vec![cookie.clone()], vec![cookie.clone(), "X-CSRF-Token: 0".to_owned()]] {
        expect(&rig.ask("POST", "/api/v1/nodes", &headers, REGISTER).await, 403, "X-CSRF-Token");
    }
    let headers = [cookie.clone(), format!("X-CSRF-Token: {csrf}"), rig.origin()];
    expect(&rig.ask("POST", "/api/v1/nodes", &headers, REGISTER).await, 201, "anvil");
    expect(&rig.ask("GET", "/api/v1/tokens", &headers, "").await, 403, "the role admin");

    let form = "Content-Type: application/x-www-form-urlencoded".to_owned();
    let left = rig.ask("POST", "/logout", &[cookie.clone(), form.clone()], "csrf=0").await;
    expect(&left, 403, "");
    let left = rig.ask("POST", "/logout", &[cookie.clone(), form], &format!("csrf={csrf}")).await;
    expect(&left, 303, "Max-Age=0");
    expect(&rig.ask("GET", "/api/v1/whoami", &[cookie], "").await, 401, "");
}

/// What the page would put into its forms.
fn session(rig: &Rig, cookie: &str) -> (Role, String) {
    let mut headers = axum::http::HeaderMap::new();
    headers.insert("cookie", cookie.strip_prefix("Cookie: ").unwrap().parse().unwrap());
    rig.access.session_of(&headers).expect("a session")
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_a_token_ends_its_sessions() {
    let rig = Rig::start();
    let token = rig.token("ada", Role::Operator).await;
    let answer = rig.ask("POST", "/login", &[rig.origin()], &format!("token={}", token.token)).await;
    let cookie = [cookie_of(&answer)];
    expect(&rig.ask("GET", "/api/v1/whoami", &cookie, "").await, 200, "");
    let _: TokenEntry = rig.client.delete("/api/v1/tokens/ada").await.unwrap();
    expect(&rig.ask("GET", "/api/v1/whoami", &cookie, "").await, 401, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_link_works_once() {
    let rig = Rig::start();
    let link: LoginLink =
        rig.client.post("/api/v1/login-links", &serde_json::json!({"role": "viewer"})).await.unwrap();
    let path = link.url.strip_prefix(&format!("http://{}", rig.loopback)).expect(&link.url);
    let answer = rig.ask("GET", path, &["Sec-Fetch-Site: none".to_owned()], "").await;
    expect(&answer, 303, "location: /\r\n");
    let cookie = cookie_of(&answer);
    expect(
        &rig.ask("GET", "/api/v1/whoami", &[cookie], "").await,
        200,
        r#""role":"viewer","means":"session""#,
    );
    expect(&rig.ask("GET", path, &[], "").await, 401, "has been used");

    // From another site a redirect would go without the strict cookie; a page that loads the next one does not.
    let link: LoginLink = rig.client.post("/api/v1/login-links", &serde_json::json!({})).await.unwrap();
    assert_eq!(link.role, Role::Admin);
    let path = link.url.strip_prefix(&format!("http://{}", rig.loopback)).unwrap();
    let answer = rig.ask("GET", path, &["Sec-Fetch-Site: cross-site".to_owned()], "").await;
    expect(&answer, 200, "http-equiv=\"refresh\"");
    cookie_of(&answer);

    let admin = bearer(&rig.token("root", Role::Admin).await.token);
    expect(&rig.ask("POST", "/api/v1/login-links", &[admin], "{}").await, 403, "Unix socket only");
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_and_large_bodies_are_refused() {
    let rig = Rig::start();
    let admin = bearer(&rig.token("root", Role::Admin).await.token);
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    for (levels, told) in [(33, "deeper than 32 levels"), (32, "not the document wanted")] {
        let answer = rig.ask("POST", "/api/v1/nodes", std::slice::from_ref(&admin), &nested(levels)).await;
        expect(&answer, 400, told);
        let over_socket = rig.raw(&rig.request("POST", "/api/v1/nodes", &[], &nested(levels))).await;
        expect(&over_socket, 400, told);
    }
    let large = " ".repeat((1 << 20) + 1);
    let announced = rig.request("POST", "/api/v1/nodes", std::slice::from_ref(&admin), &large);
    let (head, _) = announced.split_at(announced.len() - large.len());
    expect(&rig.raw_loopback(head).await, 413, "1048576 bytes");
    let chunks = format!("{:x}\r\n{}\r\n", 1 << 19, "x".repeat(1 << 19)).repeat(3);
    let chunked = format!(
        "POST /api/v1/nodes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{admin}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    // The server may close while the rest is still being sent.
    let mut stream = tokio::net::TcpStream::connect(rig.loopback).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer = vec![0; 4096];
    let (_, read) =
        tokio::join!(async { writer.write_all(format!("{chunked}{chunks}").as_bytes()).await }, async {
            reader.read(&mut answer).await
        });
    expect(std::str::from_utf8(&answer[..read.unwrap()]).unwrap(), 413, "too-large");
    let login = format!("token={}", "x".repeat(10_000));
    expect(&rig.ask("POST", "/login", &[], &login).await, 413, "8192 bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_in_the_audit_log() {
    let rig = Rig::start();
    let operator = rig.token("ada", Role::Operator).await.token;
    expect(&rig.ask("POST", "/api/v1/nodes", &[bearer(&operator)], REGISTER).await, 201, "");
    let _: TokenEntry = rig.client.delete("/api/v1/tokens/ada").await.unwrap();
    let entries: Vec<AuditEntry> = rig.client.list("/api/v1/audit").await.unwrap();
    let of_tokens: Vec<_> = entries.iter().filter(|entry| entry.action.starts_with("token.")).collect();
    let [revoked, created] = of_tokens[..] else { panic!("{entries:?}") };
    assert_eq!((revoked.action.as_str(), created.action.as_str()), ("token.revoke", "token.create"));
    assert_eq!((created.subject.as_str(), created.means.as_str()), ("ada", "socket"));
    assert!(created.before.is_none() && created.after.as_ref().unwrap()["role"] == "operator");
    assert!(revoked.after.is_none() && revoked.before.as_ref().unwrap()["name"] == "ada");
    let secret = operator.rsplit('_').next().unwrap();
    assert!(!serde_json::to_string(&entries).unwrap().contains(secret));

    let page = rig.raw("GET /api/v1/audit?limit=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    expect(&page, 200, "rel=\"next\"");
    for query in ["limit=0", "limit=1001", "cursor=x", "colour=red"] {
        let error = rig.client.get::<Page<AuditEntry>>(&format!("/api/v1/audit?{query}")).await.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{query}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_lists_and_revokes_tokens() {
    let rig = Rig::start();
    let socket = rig.socket().display().to_string();
    let farrier = async |words: &[&str]| {
        let words: Vec<std::ffi::OsString> =
            ["farrier", "--socket", &socket].iter().chain(words).map(Into::into).collect();
        tokio::task::spawn_blocking(move || crate::cli::run(words)).await.unwrap()
    };
    let made = farrier(&["token", "create", "ci", "--role", "operator", "--expires", "30d"]).await;
    assert_eq!(made.code, 0, "{}", made.stderr);
    let token = made.stdout.lines().last().unwrap().to_owned();
    expect(&rig.ask("GET", "/api/v1/whoami", &[bearer(&token)], "").await, 200, r#""role":"operator""#);
    assert_eq!(farrier(&["token", "create", "ci"]).await.code, 4, "the name is taken");
    for wrong in [["token", "create", "a b"].as_slice(), &["token", "create", "x", "--expires", "soon"]] {
        assert_eq!(farrier(wrong).await.code, 2, "{wrong:?}");
    }
    let listed = farrier(&["token", "list"]).await;
    assert!(listed.stdout.contains("operator") && listed.stdout.contains("in 29d 23h"), "{}", listed.stdout);
    assert!(!listed.stdout.contains(token.rsplit('_').next().unwrap()), "shown once only");
    assert_eq!(farrier(&["token", "revoke", "ci"]).await.code, 0);
    assert_eq!(farrier(&["token", "revoke", "ci"]).await.code, 3);
    expect(&rig.ask("GET", "/api/v1/whoami", &[bearer(&token)], "").await, 401, "revoked");
    let link = farrier(&["token", "login-link", "--role", "viewer"]).await;
    assert!(link.stdout.starts_with(&format!("http://{}/login?code=", rig.loopback)), "{}", link.stdout);
    let audit = farrier(&["audit"]).await;
    let actions = ["token.create", "token.revoke", "login-link.create"];
    assert!(actions.iter().all(|action| audit.stdout.contains(action)), "{}", audit.stdout);
    let newest = farrier(&["audit", "--limit", "1", "--json"]).await;
    let newest: Vec<AuditEntry> = serde_json::from_str(&newest.stdout).unwrap();
    assert_eq!(newest[0].action, "login-link.create");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_open_only_if_the_configuration_says_so() {
    let rig = Rig::start_with(|config| config.operator.metrics_open = true);
    expect(&rig.ask("GET", "/metrics", &[], "").await, 200, "farrier_");
    expect(&rig.ask("GET", "/api/v1/status", &[], "").await, 401, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_given_to_the_group() {
    let own = nix::unistd::getegid().as_raw();
    let rig = Rig::start_with(|config| config.operator.group = Some(own.to_string()));
    assert_eq!(std::fs::metadata(rig.socket()).unwrap().gid(), own);
    let who: WhoAmI = rig.client.get("/api/v1/whoami").await.unwrap();
    assert_eq!((who.role, who.means.as_str()), (Role::Admin, "socket"));
    let uid = nix::unistd::geteuid();
    assert!(!uid.is_root() || who.name == "root", "{who:?}");
}

/// Takes any certificate and keeps it, as a person who clicks through would; signatures are checked.
#[derive(Debug)]
struct Keep(std::sync::Mutex<Option<CertificateDer<'static>>>, CryptoProvider);

impl ServerCertVerifier for Keep {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = Some(certificate.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.1.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.1.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection by TLS, and the fingerprint of the certificate that was presented.
async fn secured(rig: &Rig) -> (tokio_rustls::client::TlsStream<tokio::net::TcpStream>, String) {
    let verifier = Arc::new(Keep(std::sync::Mutex::new(None), ring::default_provider()));
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(rig.loopback).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let certificate = verifier.0.lock().unwrap().take().unwrap();
    (stream, crate::operator::tls::fingerprint(&certificate))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_served_without_a_restart() {
    let elsewhere = tempfile::tempdir().unwrap();
    let made = |name: &str| {
        let state = elsewhere.path().join(name);
        std::fs::create_dir(&state).unwrap();
        let listen = "127.0.0.1:1".parse().unwrap();
        Tls::load(&TlsConfig::SelfSigned, &state, listen, &[]).unwrap().keep().unwrap();
        std::fs::read(state.join("operator-tls.pem")).unwrap()
    };
    let path = elsewhere.path().join("both.pem");
    std::fs::write(&path, made("first")).unwrap();
    let files = TlsConfig::Files { certificate: path.clone(), key: path.clone() };
    let rig = Rig::start_with(|config| config.operator.tls = Some(files));
    let first = secured(&rig).await.1;

    std::fs::write(&path, made("second")).unwrap();
    let second = tokio::time::timeout(PATIENCE, async {
        loop {
            let now = secured(&rig).await.1;
            if now != first {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let second = second.await.expect("the new certificate is served");

    std::fs::write(&path, "none of these").unwrap();
    rig.handle.read_certificate();
    let ready = rig.raw(&get("/readyz", "localhost")).await;
    expect(&ready, 503, "degraded: operator.tls");
    assert_eq!(secured(&rig).await.1, second);
    std::fs::write(&path, made("third")).unwrap();
    rig.handle.read_certificate();
    expect(&rig.raw(&get("/readyz", "localhost")).await, 200, "");
    assert!(secured(&rig).await.1 != second);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_presents_the_certificate_whose_fingerprint_is_told() {
    let rig = Rig::start_with(|config| config.operator.tls = Some(TlsConfig::SelfSigned));
    let connect = async || secured(&rig).await.0;
    let (stream, fingerprint) = secured(&rig).await;
    let answer = exchange(stream, &get("/healthz", "localhost")).await;
    expect(&answer, 200, CSP);
    assert!(
        rig.described.starts_with("https://127.0.0.1:") && rig.described.contains(&fingerprint),
        "{} has not {fingerprint}",
        rig.described
    );
    let token = rig.token("ada", Role::Viewer).await.token;
    let login = rig.request(
        "POST",
        "/login",
        &[format!("Origin: https://{}", rig.loopback)],
        &format!("token={token}"),
    );
    let answer = exchange(connect().await, &login).await;
    expect(&answer, 303, "; Secure");
    assert!(cookie_of(&answer).starts_with("Cookie: __Host-farrier_session_"), "{answer}");
    let link: LoginLink = rig.client.post("/api/v1/login-links", &serde_json::json!({})).await.unwrap();
    assert!(link.url.starts_with("https://127.0.0.1:"), "{}", link.url);
    // Plain text on a TLS port is no request.
    let plain = tokio::net::TcpStream::connect(rig.loopback).await.unwrap();
    let answer = exchange(plain, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_listener_others_can_reach_takes_tls() {
    for address in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(check_plain(address.parse().unwrap()).is_ok(), "{address}");
    }
    for address in ["0.0.0.0:1", "[::]:1", "10.0.0.5:1", "[fe80::1]:1"] {
        let refused = check_plain(address.parse().unwrap());
        assert!(matches!(refused, Err(SocketError::Plain { .. })), "{address}");
    }
}

#[test]
fn a_group_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let text =
        "[network]\nbridge = \"br-test\"\naddress = \"192.168.2.2/24\"\n[operator]\nlisten = \"off\"\n";
    let mut config = Config::parse(text, Path::new("farrier.toml")).unwrap();
    config.operator.socket = directory.path().join("operator.sock");
    config.operator.group = Some("no-such-group-here".to_owned());
    let Err(error) = Listeners::open(&config, HandedOver::default()) else { panic!("opened") };
    assert!(matches!(error, SocketError::NoGroup { .. }), "{error}");
    assert!(!config.operator.socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_events_ends_with_the_token_it_was_opened_with() {
    let rig = Rig::start();
    let CreatedToken { token, .. } = rig.token("watcher", Role::Viewer).await;
    let mut stream = tokio::net::TcpStream::connect(rig.loopback).await.unwrap();
    let request = rig.request("GET", "/api/v1/events", &[bearer(&token)], "");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut told = String::new();
    let mut read = async |until: &str| {
        let mut buffer = [0; 4096];
        loop {
            let count =
                tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time").unwrap();
            told.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if count == 0 || (!until.is_empty() && told.contains(until)) {
                return std::mem::take(&mut told);
            }
        }
    };
    read("retry: ").await;
    rig.client.delete::<serde_json::Value>("/api/v1/tokens/watcher").await.unwrap();
    let register: serde_json::Value = serde_json::from_str(REGISTER).unwrap();
    rig.client.post::<serde_json::Value>("/api/v1/nodes", &register).await.unwrap();
    let rest = read("").await;
    assert!(!rest.contains("event: timeline"), "{rest}");
}
