//! What operators do with the page: log in, register, approve, give orders, remove, watch; and what viewers may not.

use std::time::Duration;

use farrier::node::registry::NodeRef;
use farrier::node::timeline::Stage;
use farrier::operator::access::Role;
use serde_json::json;

use crate::browser::{Browser, Width};
use crate::play::{self, Machine, Until};
use crate::rig::Rig;

#[tokio::test(flavor = "multi_thread")]
async fn a_mac_is_registered_with_help_and_without_losing_what_was_typed() {
    let rig = Rig::start().await;
    let browser = rig.browser(Width::Narrow, Role::Operator).await;
    browser.goto("/nodes").await;
    browser.click("a[href='/nodes/register']").await;
    browser.fill("#mac", "52:54:zz").await;
    browser
        .until(
            "the field says what is wrong",
            "return document.querySelector('#mac-wrong').textContent.startsWith('This is no MAC')",
        )
        .await;
    browser.fill("#mac", "52:54:00:aa:00:01").await;
    browser.until("and that it is right now", "return document.querySelector('#mac-wrong').textContent === '' && document.querySelector('#mac').hasAttribute('data-fine')").await;
    browser.fill("#name", "rack9-node1").await;
    // Only the appliance knows its subnet.
    browser.fill("#address", "10.99.0.1").await;
    browser.click("form.form button[type=submit]").await;
    browser.find(".note[role=alert]").await;
    assert!(browser.text("#address-wrong").await.contains("outside the bridge's subnet 10.20.0.0/22"));
    assert_eq!(
        browser.script("return document.querySelector('#mac').value").await,
        json!("52:54:00:aa:00:01")
    );
    browser.screenshot("register-refused").await;
    browser.fill("#address", "10.20.0.77").await;
    browser.click("form.form button[type=submit]").await;
    browser.find(".note[role=status]").await;
    assert_eq!(browser.text("h1").await, "rack9-node1");
    let node = rig.registry.find(&"rack9-node1".parse().expect("a name")).expect("it is registered");
    assert_eq!(node.ports[0].reserved.map(|address| address.to_string()).as_deref(), Some("10.20.0.77"));

    // The same MAC once more: who has it is said.
    browser.goto("/nodes/register?mac=52:54:00:aa:00:01&name=other").await;
    browser.click("form.form button[type=submit]").await;
    browser
        .until(
            "the owner is named",
            "return document.querySelector('#mac-wrong').textContent.includes('rack9-node1')",
        )
        .await;

    browser.goto("/nodes/rack9-node1").await;
    browser.click("a.danger-text").await;
    browser.click("button.danger").await;
    browser.until("the list is shown again", "return location.pathname === '/nodes'").await;
    assert!(rig.registry.find(&"rack9-node1".parse::<NodeRef>().expect("a name")).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_approved_together_and_every_page_follows() {
    let rig = Rig::start().await;
    for number in 1..=3 {
        Machine::new(&rig, number).on(Duration::from_secs(20)).boot(Until::Script);
    }
    let overview = rig.browser(Width::Wide, Role::Viewer).await;
    overview.until("three wait", "return document.querySelectorAll('.tile.is-waiting').length === 3").await;
    overview.script("window.stayed = true").await;

    let browser = rig.browser(Width::Wide, Role::Operator).await;
    browser.goto("/nodes").await;
    browser.click("#pick-all").await;
    browser.click("#list button[type=submit]").await;
    browser.find(".note[role=status]").await;
    assert!(browser.text(".note").await.contains("Approved 3 nodes"));
    overview.until("none waits, without a reload", "return window.stayed && document.querySelectorAll('.tile.is-waiting').length === 0 && document.querySelectorAll('.tile').length === 3").await;

    // One of them goes on; its page follows, stage by stage.
    browser.goto("/nodes/52:54:00:12:00:01").await;
    browser.find("#connection.is-live").await;
    browser.script("window.stayed = true").await;
    let mut machine = Machine::new(&rig, 1);
    machine.file(
        1,
        Stage::Kernel,
        "metal/vmlinuz",
        9_216_544,
        160,
        farrier::node::timeline::FileOutcome::Complete,
    );
    browser
        .until(
            "the kernel's bar",
            "return window.stayed && document.querySelectorAll('.lane-kernel rect').length === 1",
        )
        .await;
    assert_eq!(
        browser.script("return document.querySelectorAll('.lane-ramdisk rect').length").await,
        json!(0)
    );
    machine.file(
        1,
        Stage::Ramdisk,
        "metal/initrd.img",
        38_411_264,
        590,
        farrier::node::timeline::FileOutcome::Complete,
    );
    browser
        .until(
            "the ramdisk's bar",
            "return window.stayed && document.querySelectorAll('.lane-ramdisk rect').length === 1",
        )
        .await;
    browser.click("form.order button").await;
    browser
        .until("the order waits", "return document.querySelector('#verdict').textContent.includes('reboot')")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_look_and_change_nothing() {
    let rig = Rig::start().await;
    play::rack(&rig);
    let browser = Browser::open(&rig.base, Width::Narrow).await;
    browser.goto("/nodes").await;
    assert!(browser.script("return location.pathname").await == json!("/login"), "a stranger logs in first");
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.screenshot("login").await;
    browser.log_in(&rig.token("looker", Role::Viewer)).await;
    for path in ["/", "/nodes", "/nodes/rack1-node01"] {
        browser.goto(path).await;
        browser.find("main").await;
        let forms = browser
            .script("return document.querySelectorAll('main form[method=post] button[type=submit]').length")
            .await;
        assert_eq!(forms, json!(0), "{path}");
    }
    browser.goto("/nodes/register").await;
    assert_eq!(browser.text(".problem-code").await, "403");
    browser.screenshot("forbidden").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_and_are_filtered_and_the_keyboard_is_enough() {
    let rig = Rig::start().await;
    let browser = rig.browser(Width::Wide, Role::Operator).await;
    browser.goto("/events").await;
    browser.find("#connection.is-live").await;
    let mut machine = Machine::new(&rig, 7);
    machine.boot(Until::Loader);
    browser
        .until(
            "the loader is told",
            "return document.querySelector('#feed').textContent.includes('grubx64.efi')",
        )
        .await;
    browser.click("#trouble").await;
    browser.until("only what went wrong", "const rows = [...document.querySelectorAll('#feed tbody tr')]; return rows.length > 0 && rows.every((row) => row.className !== 'tone-plain')").await;
    browser.click("#pause").await;
    assert_eq!(
        browser.script("return document.querySelector('#pause').getAttribute('aria-pressed')").await,
        json!("true")
    );

    browser.goto("/nodes").await;
    let tab = "\u{e004}";
    browser.client.active_element().await.expect("an element").send_keys(tab).await.expect("a key");
    assert_eq!(browser.script("return document.activeElement.className").await, json!("skip"));
    browser.client.active_element().await.expect("an element").send_keys("\u{e007}").await.expect("a key");
    assert_eq!(browser.script("return document.activeElement.id").await, json!("main"));
    // The theme is remembered on this machine; the browser writes it down behind the page's back, and the next page may be
    // there first.
    browser.theme("dark").await;
    let mut remembered = json!(null);
    for _ in 0..10 {
        browser.goto("/status").await;
        remembered = browser.script("return document.documentElement.dataset.theme").await;
        if remembered == json!("dark") {
            break;
        }
    }
    assert_eq!(remembered, json!("dark"));
}
