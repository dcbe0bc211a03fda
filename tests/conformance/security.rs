//! Who is let in, what is kept to ourselves, and what is refused whatever it costs the sender to make it.

use std::net::Ipv4Addr;

use farrier::boot::namespace;
use serde_json::{Value, json};

use crate::browse::{Answer, connect, request};
use crate::dhcp::{ACK, Client, DISCOVER, OFFER, ipxe, rom};
use crate::ground::{Ground, Group, alone, with_files};
use crate::support::{SERVER, TestBed, eventually};

static GROUP: Group = Group::new("security", "", with_page);
const PAGE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 8067);

/// With the operator plane on loopback as well, as it is by default.
fn with_page(bed: &TestBed) {
    with_files(bed);
    let file = bed.path("farrier.toml");
    let text = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, text.replace("listen = \"off\"", "listen = \"127.0.0.1:8067\"")).expect("written");
}

fn ask(method: &str, path: &str, headers: &str, body: &str) -> Answer {
    request(&mut connect(PAGE), method, path, &format!("Connection: close\r\n{headers}"), body)
}

fn token(ground: &Ground, name: &str, role: &str, more: &[&str]) -> String {
    let made = ground.bed().farrier_json(&[&["token", "create", name, "--role", role], more].concat());
    made["token"].as_str().expect("a token").to_owned()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn s_02_no_call_without_its_token_and_its_role() {
    GROUP.check(|ground| {
        let admin = bearer(&token(ground, "s02-admin", "admin", &[]));
        let viewer = bearer(&token(ground, "s02-viewer", "viewer", &[]));
        let document: Value =
            serde_json::from_slice(&ask("GET", "/api/v1/openapi.json", &admin, "").body).expect("JSON");
        let mut calls = 0;
        for (path, methods) in document["paths"].as_object().expect("paths") {
            if ["/healthz", "/readyz"].contains(&path.as_str()) {
                continue;
            }
            let path = path.replace("{ref}", "x").replace("{number}", "1").replace(['{', '}'], "");
            for method in methods.as_object().expect("methods").keys() {
                let method = method.to_ascii_uppercase();
                let answer = ask(&method, &path, "", "");
                assert_eq!(answer.status, 401, "{method} {path} as nobody: {}", answer.text());
                calls += 1;
                let reads = method == "GET"
                    && !["/api/v1/tokens", "/api/v1/audit"].iter().any(|it| path.starts_with(it));
                if !reads && path != "/logout" && path != "/login" {
                    let answer = ask(&method, &path, &viewer, "");
                    assert_eq!(answer.status, 403, "{method} {path} as viewer: {}", answer.text());
                }
            }
        }
        assert!(calls > 20, "{calls}");
        // Nothing of it on the bridge.
        ground.booted().inside(|| {
            for path in ["/api/v1/status", "/api/v1/nodes", "/metrics", "/healthz", "/login", "/"] {
                let answer = request(&mut connect((SERVER, 80)), "GET", path, &admin, "");
                assert_eq!(answer.status, 404, "{path}");
            }
        });
    });
}

#[test]
fn s_02_tokens_that_ended_are_wrong_or_forgotten_let_nobody_in() {
    alone("", with_page, |ground| {
        let admin = bearer(&token(ground, "admin", "admin", &[]));
        let short = bearer(&token(ground, "short", "admin", &["--expires", "1s"]));
        let revoked = bearer(&token(ground, "revoked", "admin", &[]));
        assert!(ground.bed().farrier(&["token", "revoke", "revoked"]).status.success());
        eventually("the short one ends", || {
            (ask("GET", "/api/v1/status", &short, "").status == 401).then_some(())
        });
        let wrong = bearer("farrier_00000000_0000000000000000000000000000000000000000");
        for (credential, word) in [(&short, "expired"), (&revoked, "revoked"), (&wrong, "no such token")] {
            let answer = ask("GET", "/api/v1/status", credential, "");
            assert!(answer.status == 401 && answer.text().contains(word), "{word}: {}", answer.text());
        }
        // Then guessing is slowed down, and still denied; who has a token is not concerned.
        let guesses: Vec<u16> = (0..10).map(|_| ask("GET", "/api/v1/status", &wrong, "").status).collect();
        assert!(guesses.iter().all(|status| [401, 429].contains(status)) && guesses[9] == 429, "{guesses:?}");
        assert_eq!(ask("GET", "/api/v1/status", &admin, "").status, 200);
        let mut bed = ground.bed();
        bed.signal(nix::sys::signal::Signal::SIGTERM);
        bed.wait_server();
        for entry in std::fs::read_dir(bed.state()).expect("the state").map(|entry| entry.expect("a file")) {
            if entry.file_name().to_string_lossy().starts_with("farrier.db") {
                std::fs::remove_file(entry.path()).expect("removed");
            }
        }
        bed.start_server();
        assert_eq!(ask("GET", "/api/v1/status", &admin, "").status, 401);
        assert_eq!(ask("GET", "/api/v1/status", "", "").status, 401);
        drop(bed);
        ground.booted();
    });
}

fn boot_token_of(script: &str) -> String {
    let word = script.split_ascii_whitespace().find_map(|word| word.strip_prefix("farrier.token="));
    word.unwrap_or_else(|| panic!("a boot token: {script}")).to_owned()
}

#[test]
fn s_03_a_token_used_twice_halts_that_boot_and_the_next_one_goes_on() {
    GROUP.check(|ground| {
        let address = ground.mac();
        let mac = address.to_string();
        assert!(ground.bed().farrier(&["node", "add", &mac]).status.success());
        let machine = ground.machine(address);
        let boot = || {
            machine.boot_udhcpc();
            let url = format!("http://{SERVER}/{}", namespace::ipxe_script_name(address));
            boot_token_of(&machine.run("curl", &["-sS", &url]))
        };
        let call = |name: &str, credential: &str, body: &Value| {
            let path = format!("/agent/v1/{name}");
            let answer = machine
                .inside(|| request(&mut connect((SERVER, 80)), "POST", &path, credential, &body.to_string()));
            let said: Value = serde_json::from_slice(&answer.body).expect("JSON");
            (answer.status, said)
        };
        let hello = |token: &str, nonce: &str| {
            call("hello", "", &json!({ "token": token, "nonce": nonce, "mac": mac, "uptime_secs": 1.5 }))
        };
        let heartbeat = |session: &Value| {
            let session = bearer(session.as_str().expect("a session"));
            call("heartbeat", &session, &json!({ "mac": mac }))
        };
        let node = || ground.bed().farrier_json(&["node", "show", &mac])["node"].clone();
        let (own, thief) = ("000102030405060708090a0b0c0d0e0f", "ffffffffffffffffffffffffffffffff");

        let token = boot();
        let (status, welcome) = hello(&token, own);
        assert_eq!((status, heartbeat(&welcome["session"]).0), (200, 200), "{welcome}");
        let (status, refused) = hello(&token, thief);
        assert_eq!((status, &refused["code"]), (401, &"token-spent".into()), "{refused}");
        let halted = node();
        assert_eq!(halted["state"], "inspect-failed", "{halted:#}");
        assert!(halted["failure"].as_str().expect("a reason").contains("used twice"), "{halted:#}");
        let events = ground.bed().farrier_json(&["event", "list", &mac]).to_string();
        assert!(events.contains("token-spent"), "it is recorded: {events}");
        assert!(ground.bed().log().contains("a boot token was used twice"));
        // Neither of the two gets any further, for one of them is not the machine.
        let (status, ended) = heartbeat(&welcome["session"]);
        assert_eq!((status, &ended["code"]), (401, &"session-replaced".into()), "{ended}");
        for nonce in [own, thief] {
            assert_eq!(hello(&token, nonce).0, 401);
        }

        let next = boot();
        assert_ne!(next, token);
        assert_eq!(hello(&token, thief).0, 401);
        let (status, welcome) = hello(&next, own);
        assert_eq!((status, heartbeat(&welcome["session"]).0), (200, 200), "{welcome}");
        assert_eq!(node()["state"], "inspecting");
    });
}

#[test]
fn s_05_a_stranger_is_enrolled_by_nobody_and_floods_stay_within_their_share() {
    alone(
        "[dhcp]\nunknown = \"approve\"\npool = \"192.168.77.100-192.168.77.199\"\n",
        with_files,
        |ground| {
            let station = ground.station();
            let mut client = Client::new(&station, ground.mac());
            let discover = ipxe(client.message(DISCOVER), 0);
            let offer = client.ask(&discover);
            let request_it = ipxe(client.selecting(offer.yiaddr), 0);
            assert_eq!(client.ask(&request_it).kind, ACK);
            let machine = ground.machine(client.mac);
            machine.run("ip", &["addr", "add", &format!("{}/16", offer.yiaddr), "dev", "eth0"]);
            machine.run("curl", &["-sS", "-o", "script", &offer.boot_file().expect("a script")]);
            let script = String::from_utf8_lossy(&machine.read("script")).into_owned();
            assert!(script.contains("waits for approval") && !script.contains("farrier.token"), "{script}");
            let nodes = ground.bed().farrier_json(&["node", "list"]);
            assert_eq!(nodes[0]["approved"], false, "{nodes:#}");
            // Two hundred made-up MACs: a quarter of the pool, and a registered machine is served.
            let mut offered = 0;
            for _ in 0..200 {
                let mut stranger = Client::new(&station, ground.mac());
                let discover = stranger.message(DISCOVER);
                stranger.send(&discover);
                offered += usize::from(stranger.reply_within(std::time::Duration::from_millis(10)).is_some());
            }
            let status = ground.bed().farrier_json(&["status"]);
            assert!(status["pool"]["offered"].as_u64() <= Some(26), "{offered}: {status:#}");
            let mac = ground.mac();
            assert!(ground.bed().farrier(&["node", "add", &mac.to_string()]).status.success());
            assert_eq!(Client::new(&station, mac).offer().kind, OFFER);
            assert_eq!(ground.bed().farrier_json(&["node", "list"]).as_array().expect("a list").len(), 2);
        },
    );
}

#[test]
fn s_07_who_has_nothing_installed_is_told_nothing_at_either_address() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        // Where a machine without a router finds it.
        machine.run("ip", &["route", "add", "169.254.169.254", "dev", "eth0"]);
        let link_local = Ipv4Addr::new(169, 254, 169, 254);
        machine.inside(|| {
            for (method, address, path, status) in [
                ("GET", SERVER, "/metadata/v1/nocloud/user-data", 404),
                ("GET", SERVER, "/metadata/v1/node.json", 404),
                ("GET", SERVER, "/latest/meta-data/", 404),
                ("POST", SERVER, "/metadata/v1/phone-home", 404),
                ("PUT", link_local, "/latest/api/token", 404),
                ("GET", link_local, "/latest/meta-data/instance-id", 404),
                // Nothing of the rest is at that address.
                ("GET", link_local, "/boot.ipxe", 404),
                ("POST", link_local, "/agent/v1/hello", 405),
            ] {
                let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
                let answer = request(&mut connect((address, 80)), method, path, ttl, "{}");
                assert_eq!(answer.status, status, "{method} {address}{path}: {}", answer.text());
            }
            let forwarded = "X-Forwarded-For: 10.0.0.1\r\n";
            let answer = request(&mut connect((link_local, 80)), "GET", "/latest/", forwarded, "");
            assert_eq!(answer.status, 403, "{}", answer.text());
        });
        assert!(ground.counted("metadata", "not-granted") >= 6);
    });
}

#[test]
fn s_08_secrets_are_nowhere_but_with_whom_they_belong() {
    GROUP.check(|ground| {
        let admin = token(ground, "s08-canary", "admin", &[]);
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        assert!(ground.bed().farrier(&["node", "add", &client.mac.to_string()]).status.success());
        let discover = ipxe(client.message(DISCOVER), 0);
        let offer = client.ask(&discover);
        let request_it = ipxe(client.selecting(offer.yiaddr), 0);
        client.ask(&request_it);
        let machine = ground.machine(client.mac);
        machine.run("ip", &["addr", "add", &format!("{}/16", offer.yiaddr), "dev", "eth0"]);
        machine.run("curl", &["-sS", "-o", "script", &offer.boot_file().expect("a script")]);
        let script = String::from_utf8_lossy(&machine.read("script")).into_owned();
        let boot_token = boot_token_of(&script);
        let hello =
            json!({ "token": boot_token, "mac": client.mac.to_string(), "uptime_secs": 1.5 }).to_string();
        let welcome =
            machine.inside(|| request(&mut connect((SERVER, 80)), "POST", "/agent/v1/hello", "", &hello));
        assert_eq!(welcome.status, 200, "{}", welcome.text());
        let welcome: Value = serde_json::from_slice(&welcome.body).expect("JSON");
        let session = welcome["session"].as_str().expect("a session").to_owned();
        // Some failures, which tend to be told with everything at hand.
        machine.inside(|| {
            let again = request(&mut connect((SERVER, 80)), "POST", "/agent/v1/hello", "", &hello);
            assert_eq!(again.status, 401);
            request(&mut connect((SERVER, 80)), "POST", "/agent/v1/heartbeat", &bearer(&session), "{]");
        });
        let secrets = [admin.as_str(), boot_token.as_str(), session.as_str()];
        // The parts that are secret: a token begins with a name that is not.
        let secrets: Vec<&str> = secrets.iter().map(|secret| &secret[secret.len() - 24..]).collect();
        let mut places = vec![("the log".to_owned(), ground.bed().log())];
        let mac = client.mac.to_string();
        for path in [
            "/",
            "/nodes",
            "/leases",
            "/events",
            "/status",
            "/images",
            "/metrics",
            "/api/v1/nodes",
            "/api/v1/status",
            "/api/v1/leases",
            "/api/v1/tokens",
            "/api/v1/audit",
        ]
        .into_iter()
        .map(str::to_owned)
        .chain([
            format!("/nodes/{mac}"),
            format!("/api/v1/nodes/{mac}"),
            format!("/api/v1/nodes/{mac}/boots"),
        ]) {
            let answer = ask("GET", &path, &bearer(&admin), "");
            assert_eq!(answer.status, 200, "{path}");
            places.push((path, answer.head.clone() + &answer.text()));
        }
        for arguments in [
            &["node", "show", &mac][..],
            &["event", "list", &mac],
            &["why", &mac],
            &["audit"],
            &["token", "list"],
        ] {
            let output = ground.bed().farrier(arguments);
            places.push((format!("{arguments:?}"), String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        let pid = ground.bed().server_pid();
        for file in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).expect("the appliance runs");
            places.push((file.to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
        }
        for (place, text) in places {
            for secret in &secrets {
                assert!(!text.contains(secret), "a secret is in {place}: {text}");
            }
        }
        // On disk only what cannot be turned back; and nobody else may read even that.
        use std::os::unix::fs::PermissionsExt;
        let state = ground.bed().state();
        for name in ["farrier.db", "farrier.db-wal"] {
            let Ok(bytes) = std::fs::read(state.join(name)) else { continue };
            let secret = admin.as_bytes();
            assert!(!bytes.windows(24).any(|part| part == &secret[secret.len() - 24..]), "{name}");
            let mode = std::fs::metadata(state.join(name)).expect("a file").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
        }
    });
}

#[test]
fn s_09_what_machines_say_of_themselves_is_inert_on_the_terminal_and_in_the_log() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let nasty: &[u8] = b"<b>x</b>\x1b[31mred\x1b]0;t\x07\r\nINJECTED: 1 \xe2\x80\xaegnp";
        let dress = |message: crate::dhcp::Message| {
            rom(message, 0).with(12, nasty).with(60, nasty).with(77, nasty).with(61, nasty)
        };
        let discover = dress(client.message(DISCOVER));
        let offer = client.ask(&discover);
        let request_it = dress(client.selecting(offer.yiaddr));
        assert_eq!(client.ask(&request_it).kind, ACK);
        let machine = ground.machine(client.mac);
        machine.run("ip", &["addr", "add", &format!("{}/16", offer.yiaddr), "dev", "eth0"]);
        machine.output("curl", &["-sSg", "-o", "got", &format!("tftp://{SERVER}/%1b[31mred%0d%0aINJECTED")]);
        machine.run("curl", &["-sSg", "-o", "got", &format!("http://{SERVER}/%1b[31mred%0d%0aINJECTED")]);
        let mac = client.mac.to_string();
        let mut texts = vec![ground.bed().log()];
        for arguments in [
            &["lease", "list"][..],
            &["node", "show", &mac],
            &["event", "list", &mac],
            &["why", &mac],
            &["node", "list"],
        ] {
            texts.push(String::from_utf8_lossy(&ground.bed().farrier(arguments).stdout).into_owned());
        }
        for text in texts {
            let steers = |letter: char| {
                letter.is_control() && letter != '\n' && letter != '\t' || letter == '\u{202e}'
            };
            let found = text.lines().find(|line| line.starts_with("INJECTED") || line.chars().any(steers));
            assert_eq!(found, None);
        }
    });
}

#[test]
fn s_11_a_bit_that_flipped_on_disk_is_found_and_not_served() {
    alone("", with_files, |ground| {
        use std::os::unix::fs::PermissionsExt;
        let state = ground.bed().state();
        let manifest: Value =
            serde_json::from_slice(&std::fs::read(state.join("images/metal.json")).expect("a manifest"))
                .expect("JSON");
        let blob = state.join("images/blobs").join(manifest["kernel"]["digest"].as_str().expect("a digest"));
        let mut bed = ground.bed();
        bed.signal(nix::sys::signal::Signal::SIGTERM);
        bed.wait_server();
        let mut bytes = std::fs::read(&blob).expect("a blob");
        bytes[1234] ^= 1;
        std::fs::set_permissions(&blob, std::fs::Permissions::from_mode(0o644)).expect("writable");
        std::fs::write(&blob, &bytes).expect("flipped");
        bed.start_server();
        assert!(bed.log().contains("image not served") && bed.log().contains("hash to"), "{}", bed.log());
        let status = bed.farrier_json(&["status"]);
        assert_eq!(status["image"]["present"], false, "{status:#}");
        drop(bed);
        let machine = ground.booted();
        let url = format!("http://{SERVER}/image/metal/vmlinuz");
        assert_eq!(machine.run("curl", &["-sS", "-o", "got", "-w", "%{http_code}", &url]), "404");
        bytes[1234] ^= 1;
        std::fs::write(&blob, &bytes).expect("mended");
        ground.bed().signal(nix::sys::signal::Signal::SIGHUP);
        eventually("served again", || {
            (machine.run("curl", &["-sS", "-o", "got", "-w", "%{http_code}", &url]) == "200").then_some(())
        });
    });
}

#[test]
fn s_12_deep_large_and_many_keyed_documents_are_refused_and_cost_no_memory() {
    GROUP.check(|ground| {
        let admin = bearer(&token(ground, "s12-admin", "admin", &[]));
        let resident = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", ground.bed().server_pid())).expect("it runs");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("kB")
        };
        let before = resident();
        let deep = "[".repeat(100_000);
        let keys: String = (0..1_000_000).map(|number| format!("\"k{number}\":0,")).collect();
        let many = format!("{{{keys}\"z\":0}}");
        for body in [deep.as_str(), many.as_str(), "{\"name\":", "\u{0}", "[]", "null"] {
            let answer = ask("POST", "/api/v1/nodes", &format!("{admin}Content-Type: application/json\r\n"), body);
            assert!((400..500).contains(&answer.status), "{}: {}", &body[..body.len().min(20)], answer.status);
        }
        use std::io::Write;
        for path in ["/api/v1/nodes", "/api/v1/nodes/import"] {
            let mut stream = connect(PAGE);
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{admin}Content-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).expect("sent");
            // It is told so early; what is sent against that is not kept.
            for _ in 0..64 {
                if stream.write_all(&[b' '; 65536]).is_err() {
                    break;
                }
            }
            let answer = crate::browse::answer(&mut stream, "POST");
            assert!((400..500).contains(&answer.status), "{path}: {}", answer.status);
        }
        assert!(resident() < before + 65_536, "{before} kB, then {} kB", resident());
    });
}

#[test]
fn s_13_other_sites_other_hosts_and_frames_are_kept_out() {
    GROUP.check(|ground| {
        let admin = bearer(&token(ground, "s13-admin", "admin", &[]));
        let page = ask("GET", "/login", "Accept: text/html\r\n", "");
        let head = page.head.to_ascii_lowercase();
        let policy =
            head.lines().find(|line| line.starts_with("content-security-policy: ")).expect("a policy");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src"), "{policy}");
        assert!(!policy.contains("unsafe-inline") && !policy.contains("unsafe-eval"), "{policy}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        for origin in
            ["Origin: http://evil.example\r\n", "Origin: null\r\n", "Sec-Fetch-Site: cross-site\r\n"]
        {
            let body = "{\"ports\":[{\"mac\":\"52:54:00:dd:00:01\"}]}";
            let json = "Content-Type: application/json\r\n";
            assert_eq!(
                ask("POST", "/api/v1/nodes", &format!("{admin}{json}{origin}"), body).status,
                403,
                "{origin}"
            );
        }
        for host in ["rebound.example.org", "192.168.77.2", "evil:8067", ""] {
            use std::io::Write;
            let mut stream = connect(PAGE);
            let text =
                format!("GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{admin}\r\n");
            stream.write_all(text.as_bytes()).expect("sent");
            assert_eq!(crate::browse::answer(&mut stream, "GET").status, 403, "{host:?}");
        }
        // A session of a browser changes nothing without the secret in its page.
        let secret = admin.trim().rsplit(' ').next().expect("a token").to_owned();
        let login = ask(
            "POST",
            "/login",
            "Content-Type: application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin\r\n",
            &format!("token={secret}"),
        );
        let lower = login.head.to_ascii_lowercase();
        assert_eq!(login.status, 303, "{}", login.head);
        assert!(lower.contains("httponly") && lower.contains("samesite=strict"), "{lower}");
        let line = login.head.lines().find(|line| line.to_ascii_lowercase().starts_with("set-cookie: "));
        let cookie = line.and_then(|line| line[12..].split(';').next()).expect("a cookie");
        let headers = format!("Cookie: {cookie}\r\nContent-Type: application/json\r\n");
        let answer = ask("POST", "/api/v1/nodes", &headers, "{\"ports\":[{\"mac\":\"52:54:00:dd:00:02\"}]}");
        assert_eq!(answer.status, 403, "{}", answer.text());
    });
}

#[test]
fn replies_dissect_without_a_mark() {
    GROUP.dissect();
}
