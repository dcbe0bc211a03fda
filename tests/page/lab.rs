//! The whole of it: the appliance in its namespace, a real machine in QEMU, and an operator with a browser.

use farrier::cli::client::Client;
use farrier::lab::config::LabFirmware;
use serde_json::{Value, json};

use crate::browser::{Browser, Width};

#[path = "../lab/support.rs"]
#[allow(dead_code, reason = "the lab's own tests use the rest")]
mod support;

use support::{Case, config};

#[test]
fn a_stranger_boots_is_approved_and_enrolls_before_ones_eyes() {
    let mut config = config(&[LabFirmware::Bios], "[dhcp]\nunknown = \"approve\"\n");
    config.machines.truncate(1);
    let case = Case::new("page", config).start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(watch(&case));
}

async fn watch(case: &Case) {
    let machine = case.machines()[0].clone();
    let address = case.lab().operator().expect("the page's address");
    let socket = case.state.short_operator_socket().expect("a socket");
    let client = Client::new(socket.path());
    let link: Value =
        client.post("/api/v1/login-links", &json!({ "role": "operator" })).await.expect("a login link");
    let url = link["url"].as_str().expect("a URL");
    let browser = Browser::open(&format!("http://{address}"), Width::Wide).await;
    let path = url.split_once("/login").expect("the login page").1;
    browser.goto(&format!("/login{path}")).await;
    browser.find("#connection.is-live").await;

    // Another machine is registered by hand.
    browser.goto("/nodes/register").await;
    browser.fill("#mac", "52:54:00:0a:0b:0c").await;
    browser.fill("#name", "by-hand").await;
    browser.click("form.form button[type=submit]").await;
    browser
        .until("its page is shown", "return document.querySelector('h1')?.textContent === 'by-hand'")
        .await;

    // This one nobody registered.
    browser.goto("/").await;
    browser.find("#connection.is-live").await;
    browser.script("window.stayed = true").await;
    case.lab().power_on(machine.name.as_str()).expect("it is switched on");
    browser
        .until(
            "a stranger waits",
            "return window.stayed && document.querySelectorAll('.tile.is-waiting').length === 1",
        )
        .await;
    browser.screenshot("lab-stranger").await;
    browser.click(".need input[type=checkbox]").await;
    browser.click(".needs button[type=submit]").await;
    browser.find("#connection.is-live").await;

    browser.goto(&format!("/nodes/{}", machine.mac)).await;
    browser.find("#connection.is-live").await;
    browser.script("window.stayed = true").await;
    for stage in ["kernel", "ramdisk"] {
        let bars =
            format!("return window.stayed && document.querySelectorAll('.lane-{stage} rect').length > 0");
        browser.until(&format!("the bar of the {stage}"), &bars).await;
        browser.screenshot(&format!("lab-{stage}")).await;
    }
    browser
        .until(
            "the agent calls",
            "return window.stayed && document.querySelectorAll('.lane-agent path').length > 0",
        )
        .await;
    browser.until("it is enrolled", "return window.stayed && document.querySelector('#node-head .badge').textContent === 'enrolled' && document.querySelector('#inventory dl') !== null").await;
    assert!(browser.text("#script").await.contains("#!ipxe"));
    browser
        .until(
            "its console's end is the agent's",
            "return document.querySelector('#console pre')?.textContent.includes('farrier: ') ?? false",
        )
        .await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.screenshot("lab-enrolled").await;
}
