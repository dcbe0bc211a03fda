//! The agent's calls, as an agent and as somebody who would like to be one makes them.

use farrier::node::inventory::Inventory;
use farrier::node::registry::NodeRef;
use farrier::node::state::{Order, ProvisionState};
use farrier::node::timeline::{AgentCall, Happening};
use serde_json::{Value, json};

use crate::support::{Answer, Client, NODE, OTHER_IP, Plane, STRANGER_IP, until};

const MAC: &str = "52:54:00:00:00:01";

async fn call(client: &mut Client, call: &str, credential: Option<&str>, body: &Value) -> Answer {
    let headers =
        credential.map_or_else(String::new, |credential| format!("Authorization: Bearer {credential}\r\n"));
    client.post(&format!("/agent/v1/{call}"), &headers, &body.to_string()).await
}

fn said(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

async fn boot_token(plane: &Plane) -> String {
    let script = plane.get("/boot/52-54-00-00-00-01/script.ipxe").await.text();
    // Its last event is on its way to the store while the script is already here.
    plane.file_event("boot/52-54-00-00-00-01/script.ipxe").await;
    script.split_ascii_whitespace().find_map(|word| word.strip_prefix("farrier.token=")).unwrap().to_owned()
}

async fn hello(plane: &Plane, client: &mut Client) -> String {
    let token = boot_token(plane).await;
    let answer =
        call(client, "hello", None, &json!({ "token": token, "mac": MAC, "uptime_secs": 2.5 })).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(said(&answer)["node"], "rack1-node07");
    assert_eq!(said(&answer)["heartbeat_secs"], 5);
    said(&answer)["session"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_agent_calls_home_reports_and_obeys() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    let session = hello(&plane, &mut client).await;
    let session = Some(session.as_str());
    let body = json!({ "mac": MAC, "inventory": Inventory::default() });
    let answer = call(&mut client, "inventory", session, &body).await;
    assert_eq!((answer.status, said(&answer)), (200, json!({})));
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    let node = plane.registry.find(&NodeRef::Mac(NODE)).unwrap();
    assert_eq!(node.state, ProvisionState::Manageable);
    let beat = json!({ "mac": MAC });
    assert_eq!(said(&call(&mut client, "heartbeat", session, &beat).await), json!({}));
    plane.registry.order(&NodeRef::Mac(NODE), Order::LocalBoot, plane.clock.now()).unwrap();
    let ordered = call(&mut client, "heartbeat", session, &beat).await;
    assert_eq!(said(&ordered), json!({ "order": "local-boot" }));
    let obeying = call(&mut client, "obeying", session, &json!({ "mac": MAC, "order": "local-boot" })).await;
    assert_eq!(obeying.status, 200, "{}", obeying.text());
    assert_eq!(said(&call(&mut client, "heartbeat", session, &beat).await), json!({}));
    let failure = json!({ "mac": MAC, "step": "reboot", "message": "the firmware\u{1b}[31m refuses" });
    assert_eq!(call(&mut client, "failure", session, &failure).await.status, 200);
}

#[tokio::test]
async fn a_failure_before_hello_is_told_with_the_boot_token() {
    let plane = Plane::start().await;
    let token = boot_token(&plane).await;
    let body = json!({ "mac": MAC, "step": "drivers", "message": "no network card" });
    let answer = call(&mut plane.connect().await, "failure", Some(&token), &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let node = plane.registry.find(&NodeRef::Mac(NODE)).unwrap();
    assert_eq!(node.state, ProvisionState::InspectFailed);
}

#[tokio::test]
async fn a_token_is_good_once_and_only_from_its_own_address() {
    let plane = Plane::start().await;
    let token = boot_token(&plane).await;
    let body = json!({ "token": token, "mac": MAC, "uptime_secs": 1.0 });
    let thief = call(&mut plane.connect_from(OTHER_IP).await, "hello", None, &body).await;
    assert_eq!((thief.status, said(&thief)["code"].as_str().unwrap()), (401, "not-its-address"));
    let mine = json!({ "token": token, "mac": "52:54:00:00:00:02", "uptime_secs": 1.0 });
    assert_eq!(call(&mut plane.connect_from(OTHER_IP).await, "hello", None, &mine).await.status, 401);
    let unleased = call(&mut plane.connect_from(STRANGER_IP).await, "hello", None, &body).await;
    assert_eq!((unleased.status, unleased.header("Retry-After")), (503, Some("2")));
    let mut client = plane.connect().await;
    assert_eq!(call(&mut client, "hello", None, &body).await.status, 200);
    let again = call(&mut client, "hello", None, &body).await;
    assert_eq!((again.status, said(&again)["code"].as_str().unwrap()), (401, "token-spent"));
    assert_eq!(plane.tally.value("agent", "token-spent"), 1);
}

#[tokio::test]
async fn s_03_a_hello_whose_answer_was_lost_may_be_repeated_by_the_same_agent_alone() {
    let plane = Plane::start().await;
    let token = boot_token(&plane).await;
    let body = |nonce: &str| json!({ "token": token, "nonce": nonce, "mac": MAC, "uptime_secs": 1.0 });
    let mine = body("000102030405060708090a0b0c0d0e0f");
    // The disk is slow, and the connection is cut before it is done.
    plane.store.hold();
    let mut cut = plane.connect().await;
    let (text, length) = (mine.to_string(), mine.to_string().len());
    cut.send(format!("POST /agent/v1/hello HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{text}"))
        .await;
    let hellos = || {
        let all = plane.happenings().into_iter();
        all.filter(|happening| matches!(happening, Happening::Agent { call: AgentCall::Hello { .. } }))
            .count()
    };
    until(|| (hellos() == 1).then_some(())).await;
    drop(cut);
    plane.store.release();
    let mut client = plane.connect().await;
    let welcome = call(&mut client, "hello", None, &mine).await;
    assert_eq!(welcome.status, 200, "{}", welcome.text());
    let again = call(&mut client, "hello", None, &mine).await;
    assert_eq!((again.status, said(&again)), (200, said(&welcome)));
    assert_eq!(hellos(), 1);
    let thief = call(&mut plane.connect_from(OTHER_IP).await, "hello", None, &mine).await;
    assert_eq!((thief.status, said(&thief)["code"].as_str().unwrap()), (401, "not-its-address"));
    for nonsense in ["", "00", "000102030405060708090A0B0C0D0E0F"] {
        assert_eq!(call(&mut client, "hello", None, &body(nonsense)).await.status, 400);
    }
    let session = said(&again)["session"].as_str().unwrap().to_owned();
    let report = json!({ "mac": MAC, "inventory": Inventory::default() });
    for _ in 0..2 {
        assert_eq!(call(&mut client, "inventory", Some(&session), &report).await.status, 200);
    }
    // Whoever else comes with the token ends the boot for both: one of the two is not the machine.
    let none = json!({ "token": token, "mac": MAC, "uptime_secs": 1.0 });
    for other in [body("ffffffffffffffffffffffffffffffff"), none] {
        let refused = call(&mut client, "hello", None, &other).await;
        assert_eq!((refused.status, said(&refused)["code"].as_str().unwrap()), (401, "token-spent"));
    }
    assert_eq!(plane.tally.value("agent", "token-spent"), 2);
    let ended = call(&mut client, "inventory", Some(&session), &report).await;
    assert_eq!((ended.status, said(&ended)["code"].as_str().unwrap()), (401, "session-replaced"));
}

#[tokio::test]
async fn no_call_works_without_its_credential() {
    let plane = Plane::start().await;
    for (name, body) in [
        ("inventory", json!({ "mac": MAC, "inventory": Inventory::default() })),
        ("heartbeat", json!({ "mac": MAC })),
        ("failure", json!({ "mac": MAC, "step": "s", "message": "m" })),
        ("obeying", json!({ "mac": MAC, "order": "reboot" })),
    ] {
        for credential in [None, Some("00"), Some("")] {
            let answer = call(&mut plane.connect().await, name, credential, &body).await;
            assert_eq!(answer.status, 401, "{name} {credential:?}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn a_call_that_cannot_be_made_durable_is_worth_another_try() {
    let plane = Plane::start().await;
    let body = json!({ "token": boot_token(&plane).await, "mac": MAC, "uptime_secs": 1.0 });
    let mut client = plane.connect().await;
    plane.store.fail_next_commits(1);
    let failed = call(&mut client, "hello", None, &body).await;
    assert_eq!((failed.status, failed.header("Retry-After")), (503, Some("2")), "{}", failed.text());
    let again = call(&mut client, "hello", None, &body).await;
    assert_eq!(again.status, 200, "{}", again.text());
}

#[tokio::test]
async fn s_12_bodies_that_are_not_calls_are_refused() {
    let plane = Plane::start().await;
    let deep = format!("{{\"mac\":{}", "[".repeat(100_000));
    for (path, body, status) in [
        ("/agent/v1/hello", "", 400),
        ("/agent/v1/hello", "{", 400),
        ("/agent/v1/hello", "[]", 400),
        ("/agent/v1/hello", "{\"token\":1}", 400),
        ("/agent/v1/heartbeat", "{\"mac\":\"52:54:00:00:00:01\",\"more\":1}", 400),
        ("/agent/v1/heartbeat", "\u{0}\u{1}\u{2}", 400),
        ("/agent/v1/inventory", deep.as_str(), 400),
        ("/agent/v1/nothing", "{}", 404),
        ("/agent/", "{}", 404),
    ] {
        let answer = plane.connect().await.post(path, "", body).await;
        assert_eq!(answer.status, status, "{path} {}: {}", &body[..body.len().min(40)], answer.text());
        assert!(said(&answer)["reason"].is_string());
    }
    let mut client = plane.connect().await;
    let get = client.request("GET", "/agent/v1/hello", "").await;
    assert_eq!((get.status, get.header("Allow")), (405, Some("POST")));
}

#[tokio::test]
async fn s_12_a_body_without_end_is_not_read_to_its_end() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    client.send("POST /agent/v1/inventory HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n").await;
    client.send(vec![b' '; 2 * 1024 * 1024]).await;
    assert_eq!(client.answer().await.status, 413);
    client.read_to_close().await;
}

#[tokio::test]
async fn a_peer_that_calls_without_pause_is_slowed_down_alone() {
    let plane = Plane::start().await;
    let mut slowed = None;
    for _ in 0..1000 {
        let answer = call(&mut plane.connect().await, "heartbeat", Some("00"), &json!({ "mac": MAC })).await;
        if answer.status != 401 {
            slowed = Some(answer);
            break;
        }
    }
    let slowed = slowed.expect("a limit");
    assert_eq!((slowed.status, slowed.header("Retry-After")), (429, Some("2")));
    let other = call(
        &mut plane.connect_from(OTHER_IP).await,
        "heartbeat",
        Some("00"),
        &json!({ "mac": "52:54:00:00:00:02" }),
    )
    .await;
    assert_eq!(other.status, 401);
}
