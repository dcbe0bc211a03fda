//! The API as its clients see it: pages, conditions, repetitions, refusals, streams.

use super::*;

/// Two profiles that share a kernel, and one that is broken.
pub(super) fn images() -> Vec<ImageEntry> {
    let blob = |digit: &str, used_by: &str| BlobEntry {
        digest: digit.repeat(64),
        bytes: 10,
        modified_at: Timestamp::default(),
        used_by: vec![used_by.to_owned()],
    };
    let image = |profile: &str, ramdisk: &str| ImageEntry {
        profile: profile.to_owned(),
        in_use: profile == "metal",
        served: true,
        damage: None,
        kernel: Some(blob("a", &format!("{profile}/kernel"))),
        ramdisk: Some(blob(ramdisk, &format!("{profile}/ramdisk"))),
        arguments: Vec::new(),
        built_from: Default::default(),
    };
    let broken = ImageEntry {
        served: false,
        damage: Some("x.json: no manifest".to_owned()),
        kernel: None,
        ramdisk: None,
        ..image("x", "c")
    };
    vec![image("metal", "b"), image("vm", "c"), broken]
}

/// A request with headers and a body, over the Unix socket; status, headers and body of the answer.
async fn ask(rig: &Rig, head: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, String) {
    let mut request = format!("{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        let length = body.len();
        request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"));
    }
    let answer = rig.raw(&format!("{request}\r\n{body}")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

fn mac(last: u16) -> MacAddr {
    let [high, low] = last.to_be_bytes();
    MacAddr([0x52, 0x54, 0, 1, high, low])
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_every_node_once_while_others_come() {
    let rig = Rig::start();
    for number in 0..25 {
        let name = format!("n{number:02}");
        let _: NodeDetail =
            rig.client.post("/api/v1/nodes", &request(&name, mac(number), None)).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut path = "/api/v1/nodes?limit=7&approved=true".to_owned();
    for turn in 0.. {
        let (status, head, body) = ask(&rig, &format!("GET {path}"), &[], "").await;
        assert_eq!(status, 200, "{body}");
        let page: Page<NodeSummary> = serde_json::from_str(&body).unwrap();
        seen.extend(page.items.iter().filter_map(|node| node.name.clone()).map(|name| name.to_string()));
        assert_eq!(page.next.is_some(), header(&head, "link").is_some());
        let Some(link) = header(&head, "link") else { break };
        assert!(link.ends_with(">; rel=\"next\""), "{link}");
        path = link[1..link.find('>').unwrap()].to_owned();
        assert!(path.contains("approved=true") && path.contains("limit=7"), "{path}");
        let late = request(&format!("late{turn}"), mac(100 + turn), None);
        let _: NodeDetail = rig.client.post("/api/v1/nodes", &late).await.unwrap();
    }
    let expected: Vec<String> = (0..25).map(|number| format!("n{number:02}")).collect();
    // Those of one millisecond are in the order of their ids.
    let mut first = seen[..25].to_vec();
    first.sort();
    assert_eq!(first, expected);
    assert_eq!(seen.len(), std::collections::BTreeSet::from_iter(&seen).len());

    for (query, count) in [
        ("q=N07", 1),
        ("q=52-54-00-01-00-07", 1),
        ("q=late", 3),
        ("approved=false", 0),
        ("state=manageable", 0),
        ("firmware=bios", 0),
        ("state=enroll&q=n1", 10),
    ] {
        let found: Vec<NodeSummary> = rig.client.list(&format!("/api/v1/nodes?{query}")).await.unwrap();
        assert_eq!(found.len(), count, "{query}");
    }
    let ports: Vec<PortEntry> = rig.client.list("/api/v1/ports?node=n03").await.unwrap();
    assert_eq!((ports.len(), ports[0].mac), (1, mac(3)));
    let all: Page<PortEntry> = rig.client.get("/api/v1/ports?limit=3").await.unwrap();
    assert_eq!(all.next.as_deref(), Some(mac(2).dashed().as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_hold_only_on_what_the_operator_saw() {
    let rig = Rig::start();
    rig.register("old").await;
    let (_, head, _) = ask(&rig, "GET /api/v1/nodes/old", &[], "").await;
    let tag = header(&head, "etag").unwrap().to_owned();
    let (status, head, body) = ask(&rig, "GET /api/v1/nodes/old", &[("If-None-Match", &tag)], "").await;
    assert_eq!((status, body.as_str(), header(&head, "etag")), (304, "", Some(tag.as_str())));

    let rename = "{\"name\":\"new\"}";
    let (status, head, body) = ask(&rig, "PATCH /api/v1/nodes/old", &[("If-Match", &tag)], rename).await;
    assert_eq!(status, 200, "{body}");
    assert_ne!(header(&head, "etag"), Some(tag.as_str()));
    for (what, body) in [("PATCH /api/v1/nodes/new", rename), ("DELETE /api/v1/nodes/new", "")] {
        for tag in [tag.as_str(), "W/\"v2-0\"", "\"another\""] {
            let (status, _, answer) = ask(&rig, what, &[("If-Match", tag)], body).await;
            assert_eq!(status, 412, "{what} {tag}: {answer}");
            assert!(answer.contains("If-Match"), "{answer}");
        }
    }
    let (status, ..) = ask(&rig, "PATCH /api/v1/nodes/gone", &[("If-Match", "*")], rename).await;
    assert_eq!(status, 412);
    // Without a condition it is made whatever is there; with null the name goes.
    let (status, ..) = ask(&rig, &format!("PATCH /api/v1/nodes/{MAC}"), &[], "{\"name\":null}").await;
    assert_eq!(status, 200);
    let node: NodeDetail = rig.client.get(&format!("/api/v1/nodes/{MAC}")).await.unwrap();
    assert_eq!(node.summary.name, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn put_makes_a_node_once_and_changes_nothing_again() {
    let rig = Rig::start();
    let body = format!("{{\"ports\":[{{\"mac\":\"{MAC}\",\"address\":\"192.168.2.20\"}}]}}");
    let (status, first, text) = ask(&rig, "PUT /api/v1/nodes/anvil", &[("If-None-Match", "*")], &body).await;
    assert_eq!(status, 201, "{text}");
    let (status, again, _) = ask(&rig, "PUT /api/v1/nodes/anvil", &[], &body).await;
    assert_eq!((status, header(&again, "etag")), (200, header(&first, "etag")));
    assert_eq!(ask(&rig, "PUT /api/v1/nodes/anvil", &[("If-None-Match", "*")], &body).await.0, 412);
    assert_eq!(ask(&rig, "PUT /api/v1/nodes/other", &[], &body).await.0, 409);
    let other = format!("{{\"ports\":[{{\"mac\":\"{}\"}}]}}", mac(9));
    let (status, _, text) = ask(&rig, "PUT /api/v1/nodes/anvil", &[], &other).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(ask(&rig, &format!("GET /api/v1/ports/{MAC}"), &[], "").await.0, 404);

    let reserve = format!("{{\"mac\":\"{}\"}}", mac(9));
    for _ in 0..2 {
        let (status, _, text) = ask(&rig, "PUT /api/v1/reservations/192.168.2.21", &[], &reserve).await;
        assert_eq!(status, 200, "{text}");
    }
    let kept: Vec<ReservationEntry> = rig.client.list("/api/v1/reservations").await.unwrap();
    assert_eq!((kept.len(), kept[0].mac, kept[0].source), (1, mac(9), ReservationSource::Operator));
    assert_eq!(ask(&rig, "DELETE /api/v1/reservations/192.168.2.21", &[], "").await.0, 200);
    assert_eq!(ask(&rig, "DELETE /api/v1/reservations/192.168.2.21", &[], "").await.0, 404);
    assert_eq!(ask(&rig, "PUT /api/v1/reservations/192.168.3.1", &[], &reserve).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_post_registers_once() {
    let rig = Rig::start();
    let body = format!("{{\"name\":\"once\",\"ports\":[{{\"mac\":\"{MAC}\"}}]}}");
    let key = [("Idempotency-Key", "7f0a")];
    let (status, _, first) = ask(&rig, "POST /api/v1/nodes", &key, &body).await;
    assert_eq!(status, 201, "{first}");
    assert_eq!(ask(&rig, "POST /api/v1/nodes", &key, &body).await.2, first);
    assert_eq!(ask(&rig, "POST /api/v1/nodes", &key, &body.replace("once", "twice")).await.0, 422);
    assert_eq!(ask(&rig, "POST /api/v1/nodes", &[], &body).await.0, 409);
    let nodes: Vec<NodeSummary> = rig.client.list("/api/v1/nodes").await.unwrap();
    assert_eq!(nodes.len(), 1);

    // Also if the first was answered by an earlier run, whatever has become of the node since.
    let again = Rig::start_on(Arc::clone(&rig.store), |_| {});
    assert_eq!(ask(&again, "DELETE /api/v1/nodes/once", &[], "").await.0, 200);
    let (status, headers, repeated) = ask(&again, "POST /api/v1/nodes", &key, &body).await;
    assert_eq!((status, repeated), (201, first));
    let location = format!("/api/v1/nodes/{}", nodes[0].id);
    assert_eq!(header(&headers, "location"), Some(location.as_str()));
    assert_eq!(ask(&again, "POST /api/v1/nodes", &key, &body.replace("once", "twice")).await.0, 422);
    assert!(again.registry.nodes().is_empty());

    // Node and answer are on disk both, or neither is.
    let key = [("Idempotency-Key", "7f0b")];
    let answers = |rig: &Rig| rig.store.load().unwrap().answers.len();
    let before = answers(&again);
    again.store.fail_next_commits(1);
    assert_eq!(ask(&again, "POST /api/v1/nodes", &key, &body).await.0, 503);
    assert_eq!((answers(&again), again.store.load().unwrap().nodes.len()), (before, 0));
    assert_eq!(ask(&again, "POST /api/v1/nodes", &key, &body).await.0, 201);
    assert_eq!(answers(&again), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_names_the_field_and_the_way_out() {
    let rig = Rig::start();
    let post = "POST /api/v1/nodes";
    for (head, headers, body, status, field) in [
        ("GET /nowhere", &[][..], "", 404, "path"),
        ("TRACE /api/v1/nodes", &[], "", 405, "method"),
        ("GET /api/v1/nodes?colour=red", &[], "", 400, "colour"),
        ("GET /api/v1/nodes?state=red", &[], "", 400, "state"),
        ("GET /api/v1/nodes?limit=0", &[], "", 400, "limit"),
        ("GET /api/v1/nodes?limit=1&limit=2", &[], "", 400, "limit"),
        ("GET /api/v1/nodes?cursor=x", &[], "", 400, "cursor"),
        ("GET /api/v1/leases?mac=1", &[], "", 400, "mac"),
        ("GET /api/v1/status?x", &[], "", 400, "x"),
        ("GET /api/v1/nodes/%ff", &[], "", 400, "path"),
        ("GET /api/v1/nodes/a/boots/x", &[], "", 400, "number"),
        (post, &[], "{\"name\":", 400, "body"),
        (post, &[], "{\"ports\":[{\"mac\":\"52:54\"}]}", 400, "body.ports[0].mac"),
        (post, &[], "{\"ports\":[],\"x\":1}", 400, "body"),
        (post, &[], "{\"ports\":[]} {}", 400, "body"),
        (post, &[("Content-Type", "text/plain")], "", 415, "Content-Type"),
        (post, &[], "", 415, "Content-Type"),
        ("DELETE /api/v1/nodes/a", &[("If-Match", "v1")], "", 400, "if-match"),
    ] {
        let (got, answer, text) = ask(&rig, head, headers, body).await;
        assert_eq!(got, status, "{head} {body}: {text}");
        let problem: ProblemDocument = serde_json::from_str(&text).unwrap();
        assert!(
            problem.field.as_deref().is_some_and(|it| it.starts_with(field)),
            "{head} {body}: {problem:?}"
        );
        assert!(problem.way_out.is_some(), "{head} {body}: {problem:?}");
        if status == 405 {
            assert_eq!(header(&answer, "allow"), Some("GET,HEAD,POST"));
        }
        if body == "{\"name\":" {
            assert!(problem.detail.contains("line 1 column 8"), "{problem:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_blobs_are_listed() {
    let rig = Rig::start();
    let served: Vec<ImageEntry> = rig.client.list("/api/v1/images?served=true").await.unwrap();
    assert_eq!(served.len(), 2);
    let broken: ImageEntry = rig.client.get("/api/v1/images/x").await.unwrap();
    assert!(broken.damage.is_some());
    let blobs: Vec<BlobEntry> = rig.client.list("/api/v1/blobs").await.unwrap();
    assert_eq!(blobs.len(), 3);
    assert_eq!(blobs[0].used_by, ["metal/kernel", "vm/kernel"]);
    let blob: BlobEntry = rig.client.get(&format!("/api/v1/blobs/{}", "c".repeat(64))).await.unwrap();
    assert_eq!(blob.used_by, ["vm/ramdisk"]);
    assert_eq!(ask(&rig, "GET /api/v1/blobs/c", &[], "").await.0, 400);
    assert_eq!(ask(&rig, "GET /api/v1/images/none", &[], "").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_the_disk_and_the_bridge() {
    let rig = Rig::start();
    *rig.ailing.disk_full.lock().unwrap() = Some("no space left on device".to_owned());
    let (status, _, body) = ask(&rig, "GET /readyz", &[], "").await;
    assert_eq!(status, 503);
    assert!(body.contains("degraded") && body.contains("no space left on device"), "{body}");
    *rig.ailing.disk_full.lock().unwrap() = None;
    rig.ailing.bridge_down.store(true, Ordering::Relaxed);
    let (status, _, body) = ask(&rig, "GET /readyz", &[], "").await;
    assert!(status == 503 && body.contains("bridge br-test: the bridge is down"), "{body}");
    rig.ailing.bridge_down.store(false, Ordering::Relaxed);
    assert_eq!(ask(&rig, "GET /readyz", &[], "").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_what_a_strict_scraper_reads() {
    let rig = Rig::start();
    let (_, head, text) = ask(&rig, "GET /metrics", &[], "").await;
    assert_eq!(header(&head, "content-type"), Some(metrics::MEDIA_TYPE));
    let series = metrics::tests::parse(&text).unwrap();
    assert_eq!(series["farrier_nodes{state=enroll}"], 0.0);
    assert_eq!(series["farrier_outcomes_total{service=dhcp}{outcome=ack}"], 1.0);
    for stage in ["dhcp-reply", "tftp-transfer", "http-request", "script-render", "store-commit"] {
        assert_eq!(series[&format!("farrier_duration_seconds_count{{stage={stage}}}")], 0.0);
    }
}

/// The stream's text up to and with this word.
async fn stream_until(stream: &mut tokio::net::UnixStream, text: &mut String, word: &str) {
    let mut buffer = [0; 4096];
    while !text.contains(word) {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
        let count = read.unwrap_or_else(|_| panic!("no {word} in {text}")).unwrap();
        assert!(count > 0, "ended without {word}: {text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
}

async fn watch(rig: &Rig, query: &str, last: Option<&str>) -> (tokio::net::UnixStream, String) {
    let mut stream = tokio::net::UnixStream::connect(rig.socket()).await.unwrap();
    let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
    let request = format!("GET /api/v1/events{query} HTTP/1.1\r\nHost: localhost\r\n{last}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream_until(&mut stream, &mut text, "retry: 2000\n").await;
    (stream, text)
}

fn ids(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_comes_back_misses_nothing() {
    let rig = Rig::start();
    let (mut stream, mut text) = watch(&rig, "", None).await;
    rig.register("first").await;
    stream_until(&mut stream, &mut text, "\"registered\"").await;
    let seen = ids(&text).last().unwrap().clone();
    drop(stream);
    for number in 0..3 {
        let name = format!("more{number}");
        let _: NodeDetail =
            rig.client.post("/api/v1/nodes", &request(&name, mac(number), None)).await.unwrap();
    }
    let (mut stream, mut text) = watch(&rig, "", Some(&seen)).await;
    stream_until(&mut stream, &mut text, "more2").await;
    let names = ["more0", "more1", "more2"].map(|name| text.matches(name).count());
    assert_eq!((names, text.matches("event: gap").count()), ([1, 1, 1], 0), "{text}");
    // Only what concerns one node, from the same place.
    let (mut stream, mut text) = watch(&rig, "?node=more1", Some(&seen)).await;
    stream_until(&mut stream, &mut text, "more1").await;
    assert!(!text.contains("more0") && !text.contains("more2"), "{text}");
    for stale in ["0-1", "nonsense"] {
        let (mut stream, mut text) = watch(&rig, "", Some(stale)).await;
        stream_until(&mut stream, &mut text, "\"restarted\"").await;
        assert!(text.contains("event: gap"), "{text}");
    }
    assert_eq!(ask(&rig, "GET /api/v1/events?node=nobody", &[], "").await.0, 404);
    assert_eq!(ask(&rig, "GET /api/v1/events?stage=x", &[], "").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_the_bridge_is_streamed_listed_and_kept() {
    use crate::bridge_log::event::{BridgeEvent, BridgeFault, BridgeHappening};
    use crate::guard::rivals::Kind;
    let rig = Rig::start();
    let (mut all, mut text) = watch(&rig, "", None).await;
    let node = rig.register("one").await;
    let (mut of_node, mut text_of_node) = watch(&rig, &format!("?node={}", node.summary.id), None).await;
    let at = crate::clock::Clock::start().now();
    rig.bridge_log.record(BridgeHappening::BridgeOut { fault: BridgeFault::Down }, at);
    let rival = BridgeHappening::RivalAppeared {
        kind: Kind::Dhcp,
        address: [192, 168, 2, 9].into(),
        mac: Some(mac(9)),
        port: Some("tap1".to_owned()),
    };
    rig.bridge_log.record(rival, at);
    stream_until(&mut all, &mut text, "\"rival-appeared\"").await;
    assert_eq!((text.matches("event: bridge\n").count(), text.matches("event: timeline\n").count()), (2, 1));
    assert!(text.contains("\"event\":\"bridge-out\",\"fault\":\"down\""), "{text}");
    let seen = ids(&text);
    assert_eq!(seen.len(), 4, "one to come back to, and one of each: {text}");
    // Who follows a node is told of that node.
    let _: NodeDetail = rig.client.post("/api/v1/nodes/one/approve", &()).await.unwrap();
    stream_until(&mut of_node, &mut text_of_node, "\"approved\"").await;
    assert!(!text_of_node.contains("event: bridge"), "{text_of_node}");
    // Who comes back misses neither.
    let (mut back, mut missed) = watch(&rig, "", Some(&seen[2])).await;
    stream_until(&mut back, &mut missed, "\"approved\"").await;
    assert!(missed.contains("rival-appeared") && !missed.contains("bridge-out"), "{missed}");

    let listed: Vec<BridgeEvent> = rig.client.list("/api/v1/bridge/events").await.unwrap();
    assert_eq!(listed.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2]);
    let (status, _, page) = ask(&rig, "GET /api/v1/bridge/events?limit=1", &[], "").await;
    assert!(status == 200 && page.contains("\"next\":\"1\""), "{page}");
    let (_, _, page) = ask(&rig, "GET /api/v1/bridge/events?cursor=1", &[], "").await;
    assert!(page.contains("rival-appeared") && !page.contains("bridge-out"), "{page}");
    assert_eq!(ask(&rig, "GET /api/v1/bridge/events?cursor=x", &[], "").await.0, 400);
    let again = Rig::start_on(Arc::clone(&rig.store), |_| {});
    let kept: Vec<BridgeEvent> = again.client.list("/api/v1/bridge/events").await.unwrap();
    assert_eq!(kept, listed);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_patched_and_lists_chosen_by_them() {
    let rig = Rig::start();
    rig.register("anvil").await;
    let other: RegisterRequest = request("hammer", mac(9), None);
    let _: NodeDetail = rig.client.post("/api/v1/nodes", &other).await.unwrap();
    let patch = "PATCH /api/v1/nodes/anvil";
    let (status, _, text) = ask(&rig, patch, &[], "{\"labels\":{\"rack\":\"r1\",\"x.org/a\":\"\"}}").await;
    assert_eq!(status, 200, "{text}");
    assert!(text.contains("\"labels\":{\"rack\":\"r1\",\"x.org/a\":\"\"}"), "{text}");
    let (_, _, text) = ask(&rig, patch, &[], "{\"labels\":{\"x.org/a\":null}}").await;
    assert!(text.contains("\"labels\":{\"rack\":\"r1\"}"), "{text}");
    let named = async |query: &str| {
        let nodes: Vec<NodeSummary> = rig.client.list(&format!("/api/v1/nodes?{query}")).await.unwrap();
        nodes.iter().map(|node| node.name.as_ref().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(named("label=rack=r1").await, ["anvil"]);
    assert_eq!(named("label=rack").await, ["anvil"]);
    assert!(named("label=rack=r1,owner").await.is_empty());
    assert_eq!(named("q=rack%3Dr1").await, ["anvil"]);
    for (body, field) in [
        ("{\"labels\":{\"-bad\":\"x\"}}", "body.labels"),
        ("{\"labels\":{\"rack\":\"a b\"}}", "body.labels"),
        ("{\"labels\":{\"rack\":7}}", "body.labels"),
    ] {
        let (status, _, text) = ask(&rig, patch, &[], body).await;
        let problem: ProblemDocument = serde_json::from_str(&text).unwrap();
        assert!(status == 400 && problem.field.as_deref().is_some_and(|it| it.starts_with(field)), "{text}");
    }
    let many: Vec<String> = (0..65).map(|number| format!("\"k{number}\":\"v\"")).collect();
    let (status, _, text) = ask(&rig, patch, &[], &format!("{{\"labels\":{{{}}}}}", many.join(","))).await;
    assert!(status == 400 && text.contains("\"field\":\"labels\""), "{text}");
    assert_eq!(ask(&rig, "GET /api/v1/nodes?label=a%20b", &[], "").await.0, 400);
}
