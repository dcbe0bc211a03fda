//! Metadata over the real HTTP server: whose it is, when, how often, and in how many shapes.

use std::net::Ipv4Addr;
use std::sync::Arc;

use farrier::config::MetadataConfig;
use farrier::metadata::document::{Document, PhoneHome, PhoneHomeToken, UserData};
use farrier::metadata::gate::{Grant, Phase, Reads};
use farrier::metadata::memory::MemorySource;
use farrier::net::MacAddr;
use farrier::node::install::intent::{IntentId, IntentNonce};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Answer, Client, NODE, NODE_IP, OTHER_IP, OTHER_NODE, Plane, STRANGER_IP};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMmETQO+uVZSIFDYBbUYOip7NwVrffHaml4BnS0O5hHV operator@example";
const SECRET: &str = "#cloud-config\npassword: of-node07\n";

struct Bed {
    plane: Plane,
    source: Arc<MemorySource>,
}

fn intent(number: u128) -> IntentId {
    IntentId(Uuid::from_u128(number))
}

fn token(number: u128) -> PhoneHomeToken {
    PhoneHomeToken::of(&IntentNonce::from_bytes([9; 32]), intent(number))
}

fn put(source: &MemorySource, mac: MacAddr, number: u128, name: &str, secret: &str) {
    let phone_home = PhoneHome { server: Ipv4Addr::new(192, 168, 2, 2), token: token(number) };
    let mut document = Document::new(intent(number), name.parse().unwrap(), mac, phone_home);
    document.ssh_keys.push(KEY.parse().unwrap());
    document.user_data = Some(UserData::try_from(secret.to_owned()).unwrap());
    let grant = Grant {
        intent: intent(number),
        ports: vec![mac],
        phase: Phase::AwaitingFirstBoot,
        reads: Reads::default(),
    };
    source.put(document, grant);
}

impl Bed {
    async fn start() -> Bed {
        Bed::with(MetadataConfig::default()).await
    }

    async fn with(config: MetadataConfig) -> Bed {
        let source = Arc::new(MemorySource::default());
        put(&source, NODE, 1, "node07", SECRET);
        put(&source, OTHER_NODE, 2, "node08", "of-node08");
        let plane = Plane::start_with_metadata(Arc::clone(&source) as _, config).await;
        Bed { plane, source }
    }

    async fn get(&self, path: &str) -> Answer {
        self.plane.get(path).await
    }

    async fn status(&self, path: &str) -> u16 {
        self.get(path).await.status
    }

    async fn session_from(&self, ip: Ipv4Addr) -> String {
        let mut client = self.plane.connect_from(ip).await;
        let answer = client.request("PUT", "/latest/api/token", TTL).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("X-Aws-Ec2-Metadata-Token-Ttl-Seconds"), Some("60"));
        answer.text()
    }

    /// By EC2's second version, on a connection of its own.
    async fn ec2(&self, session: &str, path: &str) -> Answer {
        self.plane.connect().await.request("GET", path, &with_session(session)).await
    }
}

const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";

fn with_session(session: &str) -> String {
    format!("X-aws-ec2-metadata-token: {session}\r\n")
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
}

async fn installed(client: &mut Client, body: &Value) -> Answer {
    client.post("/metadata/v1/installed", "Content-Type: application/json\r\n", &body.to_string()).await
}

async fn phone_home(client: &mut Client, body: &Value) -> Answer {
    client.post("/metadata/v1/phone-home", "Content-Type: application/json\r\n", &body.to_string()).await
}

fn call() -> Value {
    json!({
        "instance_id": intent(1).to_string(),
        "token": token(1).as_str(),
        "hostname": "node07",
        "ssh_host_keys": [KEY],
    })
}

const EVERYTHING: [&str; 11] = [
    "/metadata/v1/nocloud/meta-data",
    "/metadata/v1/nocloud/user-data",
    "/metadata/v1/nocloud/vendor-data",
    "/metadata/v1/nocloud/network-config",
    "/metadata/v1/node.json",
    "/metadata/v1/authorized_keys",
    "/metadata/v1/preseed.cfg",
    "/metadata/v1/autoinstall/meta-data",
    "/latest/meta-data/instance-id",
    "/2021-03-23/user-data",
    "/latest/meta-data/",
];

#[tokio::test]
async fn a_first_boot_reads_its_nocloud_files_and_phones_home() {
    let bed = Bed::start().await;
    let meta = bed.get("/metadata/v1/nocloud/meta-data").await;
    assert_eq!((meta.status, meta.header("Cache-Control")), (200, Some("no-store")));
    assert_eq!(meta.header("Content-Type"), Some("text/plain; charset=utf-8"));
    let meta = json_of(&meta);
    assert_eq!(meta["instance-id"], intent(1).to_string());
    assert_eq!(meta["local-hostname"], "node07");
    assert_eq!(meta["public-keys"], json!([KEY]));
    assert_eq!(meta["farrier"]["token"], token(1).as_str());
    assert_eq!(bed.get("/metadata/v1/nocloud/user-data").await.text(), SECRET);
    assert!(bed.get("/metadata/v1/nocloud/vendor-data").await.text().contains("phone-home/"));
    let network = json_of(&bed.get("/metadata/v1/nocloud/network-config").await);
    assert_eq!(network["ethernets"]["port0"]["match"]["macaddress"], NODE.to_string());
    assert_eq!(json_of(&bed.get("/metadata/v1/node.json").await)["host_name"], "node07");
    assert_eq!(bed.get("/metadata/v1/authorized_keys").await.text(), format!("{KEY}\n"));
    let mut client = bed.plane.connect().await;
    let answer = phone_home(&mut client, &call()).await;
    assert_eq!((answer.status, json_of(&answer)), (200, json!({})), "{}", answer.text());
    assert_eq!(bed.source.phase(NODE), Some(Phase::Active));
    let told = bed.source.calls(NODE);
    assert_eq!(
        (told.len(), told[0].host_name.as_deref(), told[0].ssh_host_keys.len()),
        (1, Some("node07"), 1)
    );
    // Its answer may have been lost.
    assert_eq!(phone_home(&mut client, &call()).await.status, 200);
}

#[tokio::test]
async fn cloud_init_phones_home_with_a_form() {
    let bed = Bed::start().await;
    let vendor = bed.get("/metadata/v1/nocloud/vendor-data").await.text();
    let config: Value = serde_json::from_str(vendor.strip_prefix("#cloud-config\n").unwrap()).unwrap();
    let url = config["phone_home"]["url"].as_str().unwrap();
    let path = url.strip_prefix("http://192.168.2.2").unwrap();
    let mut client = bed.plane.connect().await;
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let body = format!("instance_id={}&hostname=node07&pub_key_rsa=N%2FA", intent(1));
    let answer = client.post(path, form, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(bed.source.phase(NODE), Some(Phase::Active));
    let wrong = client.post("/metadata/v1/phone-home/0000", form, &body).await;
    assert_eq!(wrong.status, 401);
}

#[tokio::test]
async fn s_07_nobody_reads_another_nodes_metadata() {
    let bed = Bed::start().await;
    for path in EVERYTHING {
        let stranger = bed.plane.get_from(STRANGER_IP, path).await;
        assert_eq!(
            (stranger.status, json_of(&stranger)["code"].as_str()),
            (404, Some("not-found")),
            "{path}"
        );
    }
    // The other node gets its own, whatever it says of itself.
    let mut other = bed.plane.connect_from(OTHER_IP).await;
    let headers = format!("X-Real-IP: {NODE_IP}\r\nX-Farrier-Mac: {NODE}\r\n");
    let meta = json_of(
        &other.request("GET", "/metadata/v1/nocloud/meta-data?mac=52:54:00:00:00:01", &headers).await,
    );
    assert_eq!(
        (meta["local-hostname"].as_str(), meta["farrier"]["token"].as_str()),
        (Some("node08"), Some(token(2).as_str()))
    );
    assert_eq!(other.request("GET", "/metadata/v1/nocloud/user-data", &headers).await.text(), "of-node08");
    // What it has read is still there for the other.
    assert_eq!(bed.get("/metadata/v1/nocloud/user-data").await.text(), SECRET);
    // A call with the other's token, or with another's session, is nobody's.
    assert_eq!(phone_home(&mut other, &call()).await.status, 401);
    assert_eq!(phone_home(&mut bed.plane.connect_from(STRANGER_IP).await, &call()).await.status, 404);
    assert_eq!(bed.source.phase(NODE), Some(Phase::AwaitingFirstBoot));
    let session = bed.session_from(NODE_IP).await;
    for path in ["/latest/user-data", "/latest/meta-data/instance-id", "/metadata/v1/nocloud/meta-data"] {
        let answer = other.request("GET", path, &with_session(&session)).await;
        assert_eq!(
            (answer.status, json_of(&answer)["code"].as_str()),
            (401, Some("session-foreign")),
            "{path}"
        );
    }
    let told = bed.source.refusals();
    assert!(
        told.contains(&(OTHER_NODE, "session-foreign")) && told.contains(&(OTHER_NODE, "wrong-instance")),
        "{told:?}"
    );
}

#[tokio::test]
async fn s_07_metadata_is_there_in_the_states_that_need_it_and_in_no_other() {
    let bed = Bed::with(MetadataConfig { imds_v1: true, ..MetadataConfig::default() }).await;
    bed.source.set_phase(NODE, Phase::None);
    for path in EVERYTHING {
        assert_eq!(bed.status(path).await, 404, "{path}");
    }
    let mut client = bed.plane.connect().await;
    assert_eq!(client.request("PUT", "/latest/api/token", TTL).await.status, 404);
    assert_eq!(phone_home(&mut bed.plane.connect().await, &call()).await.status, 404);
    bed.source.set_phase(NODE, Phase::Active);
    for path in EVERYTHING {
        let secret = path.contains("user-data") || path.contains("vendor-data") || path.contains("preseed");
        assert_eq!(bed.status(path).await, if secret { 410 } else { 200 }, "{path}");
    }
    let meta = json_of(&bed.get("/metadata/v1/nocloud/meta-data").await);
    assert!(meta["farrier"].get("token").is_none(), "{meta}");
    // Where the appliance has forgotten it by then, as well; and where there never was any, there is none.
    bed.source.forget_user_data(NODE);
    assert_eq!(bed.status("/latest/user-data").await, 410);
    bed.source.set_phase(NODE, Phase::AwaitingFirstBoot);
    assert_eq!(bed.status("/latest/user-data").await, 404);
    assert_eq!(bed.get("/metadata/v1/nocloud/user-data").await.text(), "#cloud-config\n{}\n");
}

#[tokio::test]
async fn s_07_a_secret_is_read_once_and_then_gone() {
    let bed = Bed::start().await;
    bed.source.set_phase(NODE, Phase::Installing);
    for (path, word) in [
        ("/metadata/v1/nocloud/user-data", "of-node07"),
        ("/metadata/v1/nocloud/vendor-data", token(1).as_str()),
        ("/metadata/v1/preseed.cfg", token(1).as_str()),
    ] {
        let mut client = bed.plane.connect().await;
        // To look is not to read.
        let head = client.request("HEAD", path, "").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        let read = client.request("GET", path, "").await;
        assert!(read.status == 200 && read.text().contains(word), "{path}: {}", read.text());
        assert_eq!(head.header("Content-Length"), read.header("Content-Length"));
        // Once more on the same connection is the same read; from anywhere else it is another.
        assert_eq!(client.request("GET", path, "").await.text(), read.text());
        let mut another = bed.plane.connect().await;
        for method in ["GET", "HEAD"] {
            let answer = another.request(method, path, "").await;
            assert!(answer.status == 410 && !answer.text().contains(word), "{path}: {}", answer.text());
        }
    }
    // One installer, one file: each of the others is gone with it.
    for path in ["/metadata/v1/kickstart.cfg", "/metadata/v1/autoinstall/user-data"] {
        assert_eq!(bed.status(path).await, 410);
    }
    // The token goes, what is public stays.
    assert!(bed.get("/metadata/v1/nocloud/meta-data").await.text().contains(token(1).as_str()));
    let again = bed.get("/metadata/v1/nocloud/meta-data").await;
    assert!(again.status == 200 && !again.text().contains(token(1).as_str()), "{}", again.text());
    assert!(bed.source.refusals().contains(&(NODE, "read-before")));
    bed.plane.counted("metadata", "read-before").await;
}

#[tokio::test]
async fn s_07_two_readers_at_once_get_one_secret() {
    let bed = Bed::start().await;
    let mut statuses = Vec::new();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut client = bed.plane.connect().await;
        running
            .spawn(async move { client.request("GET", "/metadata/v1/nocloud/user-data", "").await.status });
    }
    while let Some(status) = running.join_next().await {
        statuses.push(status.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 410, 410, 410, 410, 410, 410, 410]);
}

#[tokio::test]
async fn what_cannot_be_noted_is_not_given() {
    let bed = Bed::start().await;
    bed.source.set_phase(NODE, Phase::Installing);
    bed.source.fill_disk(true);
    for path in
        ["/metadata/v1/nocloud/user-data", "/metadata/v1/nocloud/meta-data", "/metadata/v1/preseed.cfg"]
    {
        let answer = bed.get(path).await;
        assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("2")), "{path}");
        assert!(!answer.text().contains(token(1).as_str()) && !answer.text().contains("of-node07"));
    }
    assert_eq!(installed(&mut bed.plane.connect().await, &call()).await.status, 503);
    assert_eq!(bed.source.phase(NODE), Some(Phase::Installing));
    bed.source.set_phase(NODE, Phase::AwaitingFirstBoot);
    assert_eq!(phone_home(&mut bed.plane.connect().await, &call()).await.status, 503);
    assert_eq!(bed.source.phase(NODE), Some(Phase::AwaitingFirstBoot));
    // What is public needs no disk.
    assert_eq!(bed.status("/metadata/v1/nocloud/network-config").await, 200);
    bed.source.fill_disk(false);
    assert_eq!(bed.status("/metadata/v1/nocloud/user-data").await, 200);
}

#[tokio::test]
async fn s_07_ec2_is_read_with_a_session_and_not_without() {
    let bed = Bed::start().await;
    for path in ["/latest/meta-data/", "/latest/user-data", "/2009-04-04/meta-data/instance-id"] {
        assert_eq!(bed.status(path).await, 401, "{path}");
    }
    let mut client = bed.plane.connect().await;
    let mut changed = bed.session_from(NODE_IP).await;
    let last = changed.pop().unwrap();
    changed.push(if last == '0' { '1' } else { '0' });
    for session in ["", "x", &changed] {
        let answer = client.request("GET", "/latest/meta-data/", &with_session(session)).await;
        assert_eq!(answer.status, 401, "{session}");
    }
    let session = bed.session_from(NODE_IP).await;
    assert_eq!(bed.ec2(&session, "/latest/meta-data/instance-id").await.text(), intent(1).to_string());
    assert_eq!(bed.ec2(&session, "/latest/meta-data/local-ipv4").await.text(), NODE_IP.to_string());
    assert_eq!(bed.ec2(&session, "/2021-03-23/meta-data/public-keys/0/openssh-key").await.text(), KEY);
    assert_eq!(bed.ec2(&session, "/latest/dynamic/instance-identity/document").await.status, 404);
    // The session is the reader, on whatever connection; another session is another reader.
    assert_eq!(bed.ec2(&session, "/latest/user-data").await.text(), SECRET);
    assert_eq!(bed.ec2(&session, "/2021-03-23/user-data").await.text(), SECRET);
    let another = bed.session_from(NODE_IP).await;
    assert_eq!(bed.ec2(&another, "/latest/user-data").await.status, 410);
    assert_eq!(bed.ec2(&another, "/latest/meta-data/hostname").await.text(), "node07");
    // Whichever way it was read.
    assert_eq!(bed.status("/metadata/v1/nocloud/user-data").await, 410);
}

#[tokio::test]
async fn at_169_254_169_254_there_is_ec2s_tree_and_nothing_else() {
    let bed = Bed::start().await;
    let mut client = bed.plane.connect_link_local().await;
    let session = client.request("PUT", "/latest/api/token", TTL).await.text();
    let headers = with_session(&session);
    assert!(client.request("GET", "/", &headers).await.text().lines().any(|version| version == "latest"));
    assert_eq!(client.request("GET", "/latest/meta-data/mac", &headers).await.text(), NODE.to_string());
    assert_eq!(client.request("GET", "/latest/user-data", &headers).await.text(), SECRET);
    for path in ["/boot.ipxe", "/boot/52-54-00-00-00-01/script.ipxe", "/metadata/v1/nocloud/meta-data"] {
        let answer = bed.plane.connect_link_local().await.request("GET", path, &headers).await;
        assert_eq!(answer.status, 404, "{path}");
    }
    for path in ["/agent/v1/hello", "/metadata/v1/phone-home"] {
        let answer = bed.plane.connect_link_local().await.post(path, &headers, &call().to_string()).await;
        assert_eq!(answer.status, 405, "{path}");
    }
    assert_eq!(
        bed.plane.connect_link_local().await.request("GET", "/latest/meta-data/", "").await.status,
        401
    );
    // Elsewhere boot files are where they were.
    assert_eq!(bed.plane.get("/boot/52-54-00-00-00-01/script.ipxe").await.status, 200);
}

#[tokio::test]
async fn sessions_are_opened_as_ec2_opens_them() {
    let bed = Bed::start().await;
    for ttl in ["", "0", "21601", "-1", "x"] {
        let headers = format!("X-aws-ec2-metadata-token-ttl-seconds: {ttl}\r\n");
        let answer = bed.plane.connect().await.request("PUT", "/latest/api/token", &headers).await;
        assert_eq!(answer.status, 400, "{ttl}");
    }
    assert_eq!(bed.plane.connect().await.request("PUT", "/latest/api/token", "").await.status, 400);
    for method in ["GET", "POST", "DELETE"] {
        let answer = bed.plane.connect().await.request(method, "/latest/api/token", TTL).await;
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("PUT")), "{method}");
    }
    for (method, path) in [("PUT", "/latest/user-data"), ("DELETE", "/metadata/v1/nocloud/user-data")] {
        let answer = bed.plane.connect().await.request(method, path, TTL).await;
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")), "{method} {path}");
    }
    let stranger = bed.plane.connect_from(STRANGER_IP).await.request("PUT", "/latest/api/token", TTL).await;
    assert_eq!(stranger.status, 404);
}

#[tokio::test]
async fn s_07_what_was_forwarded_is_refused() {
    let bed = Bed::start().await;
    let session = bed.session_from(NODE_IP).await;
    let headers = format!("{TTL}X-Forwarded-For: 10.0.0.1\r\n{}", with_session(&session));
    for (method, path) in [
        ("PUT", "/latest/api/token"),
        ("GET", "/latest/user-data"),
        ("GET", "/latest/meta-data/instance-id"),
        ("GET", "/metadata/v1/nocloud/user-data"),
    ] {
        let answer = bed.plane.connect().await.request(method, path, &headers).await;
        assert_eq!(
            (answer.status, json_of(&answer)["code"].as_str()),
            (403, Some("forwarded")),
            "{method} {path}"
        );
    }
    // Nothing was read by that.
    assert_eq!(bed.ec2(&session, "/latest/user-data").await.text(), SECRET);
}

#[tokio::test]
async fn ec2s_first_version_is_there_if_it_is_wanted_and_the_tree_if_not() {
    let bed = Bed::with(MetadataConfig { ec2: true, imds_v1: true }).await;
    assert_eq!(bed.get("/latest/meta-data/instance-id").await.text(), intent(1).to_string());
    assert_eq!(bed.get("/latest/user-data").await.text(), SECRET);
    assert_eq!(bed.status("/latest/user-data").await, 410);
    let bed = Bed::with(MetadataConfig { ec2: false, imds_v1: false }).await;
    assert_eq!(bed.status("/latest/meta-data/instance-id").await, 404);
    assert_eq!(bed.plane.connect().await.request("PUT", "/latest/api/token", TTL).await.status, 405);
    assert_eq!(bed.status("/metadata/v1/nocloud/user-data").await, 200);
}

/// Everything an installer asks for, in its order, and nothing before or after.
#[tokio::test]
async fn an_installer_reads_its_answers_runs_its_last_step_and_says_that_it_is_done() {
    let bed = Bed::start().await;
    let answers =
        ["/metadata/v1/preseed.cfg", "/metadata/v1/kickstart.cfg", "/metadata/v1/autoinstall/user-data"];
    bed.source.set_phase(NODE, Phase::None);
    for path in answers.into_iter().chain(["/metadata/v1/last-step", "/metadata/v1/first-boot/first-boot"]) {
        assert_eq!(bed.status(path).await, 404, "{path}: nothing is being installed");
    }
    assert_eq!(installed(&mut bed.plane.connect().await, &call()).await.status, 404);

    bed.source.set_phase(NODE, Phase::Installing);
    let preseed = bed.get(answers[0]).await.text();
    assert!(preseed.contains(token(1).as_str()) && preseed.contains("/metadata/v1/last-step"), "{preseed}");
    assert_eq!(bed.status(answers[0]).await, 410);
    let step = bed.get("/metadata/v1/last-step").await;
    assert!(step.text().starts_with("#!/bin/sh\n") && !step.text().contains(token(1).as_str()));
    for name in ["first-boot", "farrier-first-boot.service", "farrier-first-boot-finish.service"] {
        assert_eq!(bed.status(&format!("/metadata/v1/first-boot/{name}")).await, 200, "{name}");
    }
    assert_eq!(bed.status("/metadata/v1/first-boot/x").await, 404);
    assert_eq!(bed.get("/metadata/v1/nocloud/user-data").await.text(), SECRET);
    assert_eq!(bed.plane.get_from(STRANGER_IP, "/metadata/v1/last-step").await.status, 404);

    // The installed system has not come up yet, and nobody else says that it is there.
    let mut client = bed.plane.connect().await;
    assert_eq!(phone_home(&mut client, &call()).await.status, 401);
    let mut forged = call();
    forged["token"] = token(2).as_str().into();
    assert_eq!(installed(&mut client, &forged).await.status, 401);
    assert_eq!(installed(&mut bed.plane.connect_from(OTHER_IP).await, &call()).await.status, 401);
    assert_eq!(bed.source.phase(NODE), Some(Phase::Installing));
    assert_eq!(bed.status("/metadata/v1/installed").await, 405);

    let answer = installed(&mut client, &call()).await;
    assert_eq!((answer.status, json_of(&answer)), (200, json!({})), "{}", answer.text());
    assert_eq!(bed.source.phase(NODE), Some(Phase::AwaitingFirstBoot));
    assert_eq!(installed(&mut client, &call()).await.status, 200, "its answer may have been lost");
    for path in answers {
        assert_eq!(bed.status(path).await, 410, "{path}: no other installer has it");
    }
    assert_eq!(phone_home(&mut client, &call()).await.status, 200);
    assert_eq!(bed.source.phase(NODE), Some(Phase::Active));
}

#[tokio::test]
async fn installers_get_answers_with_this_nodes_names() {
    for (path, wanted) in [
        ("/metadata/v1/preseed.cfg", "d-i netcfg/get_hostname string node07"),
        ("/metadata/v1/kickstart.cfg", "--hostname=node07 --activate"),
        ("/metadata/v1/autoinstall/user-data", "\"hostname\": \"node07\""),
    ] {
        let bed = Bed::start().await;
        bed.source.set_phase(NODE, Phase::Installing);
        let answer = bed.get(path).await;
        assert!(answer.status == 200 && answer.text().contains(wanted), "{path}: {}", answer.text());
        assert!(answer.text().contains(token(1).as_str()) && !answer.text().contains("of-node07"));
    }
}

#[tokio::test]
async fn calls_that_are_none_are_refused_and_cost_little() {
    let bed = Bed::start().await;
    for (change, status, code) in [
        (json!({ "token": "0".repeat(64) }), 401, "wrong-token"),
        (json!({ "token": token(2).as_str() }), 401, "wrong-token"),
        (json!({ "instance_id": intent(2).to_string() }), 401, "wrong-instance"),
        (json!({ "ssh_host_keys": ["ssh-ed25519 x"] }), 400, "malformed"),
        (json!({ "ssh_host_keys": vec![KEY; 17] }), 400, "malformed"),
        (json!({ "more": true }), 400, "malformed"),
        (json!({ "hostname": "x".repeat(20_000) }), 413, "body-too-large"),
    ] {
        let mut body = call();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let answer = phone_home(&mut bed.plane.connect().await, &body).await;
        assert_eq!((answer.status, json_of(&answer)["code"].as_str()), (status, Some(code)), "{change}");
    }
    assert_eq!(bed.source.phase(NODE), Some(Phase::AwaitingFirstBoot));
    let mut client = bed.plane.connect().await;
    let answer = client.request("GET", "/metadata/v1/phone-home", "").await;
    assert_eq!((answer.status, answer.header("Allow")), (405, Some("POST")));
    for path in [
        "/metadata/",
        "/metadata/v1/",
        "/metadata/v2/node.json",
        "/metadata/v1/nocloud/",
        "/metadata/v1/../boot",
    ] {
        assert_eq!(bed.status(path).await, 404, "{path}");
    }
}

#[tokio::test]
async fn whoever_asks_without_end_is_held_back_and_others_are_not() {
    let bed = Bed::start().await;
    let mut client = bed.plane.connect().await;
    let mut statuses = Vec::new();
    loop {
        let answer = client.request("GET", "/metadata/v1/node.json", "").await;
        statuses.push(answer.status);
        if answer.status != 200 || statuses.len() > 5_000 {
            assert_eq!((answer.status, answer.header("Retry-After")), (429, Some("2")));
            break;
        }
    }
    assert!(statuses.len() > 100, "{}", statuses.len());
    assert_eq!(bed.plane.get_from(OTHER_IP, "/metadata/v1/node.json").await.status, 200);
}
