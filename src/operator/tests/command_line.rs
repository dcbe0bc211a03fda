//! Lists of nodes and edits, from the command line to the store and back.

use super::*;

async fn farrier(rig: &Rig, words: &[&str]) -> crate::cli::Finished {
    let socket = rig.socket().display().to_string();
    let words: Vec<std::ffi::OsString> =
        ["farrier", "--socket", &socket].iter().chain(words).map(Into::into).collect();
    tokio::task::spawn_blocking(move || crate::cli::run(words)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_planned_imported_and_written_back() {
    let rig = Rig::start();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let hosts = file(
        "dnsmasq.conf",
        "dhcp-host=52:54:00:00:00:01,192.168.2.20,anvil\ndhcp-host=52:54:00:00:00:02,Hammer\n",
    );
    let planned = farrier(&rig, &["node", "import", &hosts, "--dry-run"]).await;
    assert_eq!(planned.code, 0, "{}", planned.stderr);
    for said in
        ["register", "anvil", "Hammer is called hammer here", "2 would be registered", "nothing was changed"]
    {
        assert!(planned.stdout.contains(said), "{said} in\n{}", planned.stdout);
    }
    assert_eq!(farrier(&rig, &["node", "show", "anvil"]).await.code, 3);
    let done = farrier(&rig, &["import", &hosts]).await;
    assert!(done.stdout.contains("2 registered, 0 updated"), "{}{}", done.stdout, done.stderr);

    // One bad line: by itself, against the subnet, against what is known. Each is named, and nothing is taken.
    for (name, text, says, code) in [
        ("a.csv", "mac,name\n52:54:00:00:00:07,ok\n52:54:00:00:00,x\n", "a.csv: line 3: `52:54:00:00:00`", 2),
        (
            "b.csv",
            "mac,ip\n52:54:00:00:00:07,192.168.2.30\n52:54:00:00:00:08,10.0.0.1\n",
            "b.csv: line 3: 10.0.0.1 lies outside",
            2,
        ),
        (
            "c.csv",
            "mac,name\n52:54:00:00:00:07,ok\n52:54:00:00:00:08,anvil\n",
            "c.csv: line 3: the name anvil belongs",
            4,
        ),
    ] {
        let refused = farrier(&rig, &["node", "import", &file(name, text)]).await;
        assert_eq!(refused.code, code, "{}", refused.stderr);
        assert!(refused.stderr.contains(says), "{says} in {}", refused.stderr);
        assert_eq!(farrier(&rig, &["node", "show", "52:54:00:00:00:07"]).await.code, 3, "{name}");
    }
    let written = farrier(&rig, &["node", "export", "--format", "dhcpd"]).await;
    assert!(written.stdout.contains("fixed-address 192.168.2.20;"), "{}", written.stdout);
    let again = file("dhcpd.conf", &written.stdout);
    let again = farrier(&rig, &["import", &again]).await;
    assert!(
        again.stdout.contains("0 registered, 0 updated, 2 unchanged"),
        "{}{}",
        again.stdout,
        again.stderr
    );
    let audit = farrier(&rig, &["audit"]).await;
    assert_eq!(audit.stdout.matches("node.import").count(), 1, "{}", audit.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_reservations_are_edited() {
    let rig = Rig::start();
    farrier(&rig, &["node", "add", "52:54:00:00:00:01", "--name", "anvil"]).await;
    assert_eq!(farrier(&rig, &["node", "edit", "anvil"]).await.code, 2, "nothing to change");
    let renamed = farrier(&rig, &["node", "edit", "anvil", "--name", "hammer"]).await;
    assert_eq!((renamed.code, renamed.stdout.as_str()), (0, "hammer changed\n"), "{}", renamed.stderr);
    let kept = farrier(&rig, &["lease", "reserve", "192.168.2.30", "52:54:00:00:00:01"]).await;
    assert_eq!(kept.code, 0, "{}", kept.stderr);
    let listed = farrier(&rig, &["lease", "reservations"]).await;
    assert!(listed.stdout.contains("192.168.2.30  52:54:00:00:00:01  hammer"), "{}", listed.stdout);
    assert_eq!(farrier(&rig, &["lease", "free", "192.168.2.30"]).await.code, 0);
    assert!(farrier(&rig, &["lease", "reservations"]).await.stdout.contains("no reservations"));
    assert!(farrier(&rig, &["lease", "pool"]).await.stdout.contains("free"));
    let events = farrier(&rig, &["event", "list", "hammer"]).await;
    assert_eq!(events.code, 0, "{}", events.stderr);
    assert_eq!(farrier(&rig, &["event", "list", "nobody"]).await.code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_set_listed_and_carried_by_lists() {
    let rig = Rig::start();
    rig.register("anvil").await;
    let labelled = farrier(&rig, &["node", "label", "anvil", "rack=r1", "owner=ada"]).await;
    assert_eq!(labelled.stdout, "anvil is labelled owner=ada rack=r1\n", "{}", labelled.stderr);
    let labelled = farrier(&rig, &["node", "label", "anvil", "owner-", "rack=r2"]).await;
    assert_eq!(labelled.stdout, "anvil is labelled rack=r2\n", "{}", labelled.stderr);
    for (words, told) in
        [(["rack"], "key=value is wanted"), (["a b-"], "no key of a label"), (["a=b c"], "no value")]
    {
        let refused = farrier(&rig, &[&["node", "label", "anvil"], &words[..]].concat()).await;
        assert!(refused.code == 2 && refused.stderr.contains(told), "{}", refused.stderr);
    }
    assert!(farrier(&rig, &["node", "list", "--label", "rack=r2"]).await.stdout.contains("anvil"));
    assert!(!farrier(&rig, &["node", "list", "--label", "rack=r1"]).await.stdout.contains("anvil"));
    assert!(farrier(&rig, &["node", "show", "anvil"]).await.stdout.contains("rack=r2"));
    let events = farrier(&rig, &["event", "list", "anvil"]).await.stdout;
    assert!(events.contains("label owner taken away; labelled rack=r2"), "{events}");

    let folder = tempfile::tempdir().unwrap();
    for format in ["csv", "json"] {
        let written = farrier(&rig, &["node", "export", "--format", format]).await.stdout;
        assert!(written.contains("rack"), "{written}");
        let path = folder.path().join(format);
        std::fs::write(&path, written.replace("r2", "r3")).unwrap();
        let imported = farrier(&rig, &["node", "import", &path.display().to_string()]).await;
        assert!(imported.stdout.contains("1 updated"), "{format}: {}{}", imported.stdout, imported.stderr);
        assert!(farrier(&rig, &["node", "show", "anvil"]).await.stdout.contains("rack=r3"), "{format}");
        let again = farrier(&rig, &["node", "import", &path.display().to_string()]).await;
        assert!(again.stdout.contains("1 unchanged"), "{format}: {}", again.stdout);
        farrier(&rig, &["node", "label", "anvil", "rack=r2"]).await;
    }
    let new = folder.path().join("new.csv");
    std::fs::write(&new, "mac,name,labels\n52:54:00:00:00:07,bellows,rack=r7 owner=\n").unwrap();
    let imported = farrier(&rig, &["node", "import", &new.display().to_string()]).await;
    assert!(imported.stdout.contains("1 registered"), "{}{}", imported.stdout, imported.stderr);
    assert!(farrier(&rig, &["node", "show", "bellows"]).await.stdout.contains("owner= rack=r7"));
    std::fs::write(&new, "mac,labels\n52:54:00:00:00:07,rack\n").unwrap();
    let refused = farrier(&rig, &["node", "import", &new.display().to_string()]).await;
    assert!(refused.stderr.contains("new.csv: line 2: `rack` is no label"), "{}", refused.stderr);
}
