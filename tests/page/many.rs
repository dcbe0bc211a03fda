//! Many machines: the list pages, sorts and filters on the server, and the picture groups.

use std::time::Duration;

use farrier::net::MacAddr;
use farrier::node::registry::NewNode;
use farrier::operator::access::Role;
use serde_json::json;

use crate::browser::Width;
use crate::play::{Machine, Until};
use crate::rig::Rig;

const NODES: u32 = 10_000;
/// 200 rows; all ten thousand would be fifty times as long.
const DOCUMENT_MAX: u64 = 512 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_nodes_are_a_page_at_a_time() {
    let rig = Rig::start().await;
    let at = rig.now().minus(Duration::from_secs(86_400));
    for number in 0..NODES {
        let [_, _, high, low] = number.to_be_bytes();
        let mac = MacAddr([0x52, 0x54, 0, 0x44, high, low]);
        let new = NewNode {
            name: format!("row{}-node{number}", number / 100).parse().ok(),
            macs: vec![(mac, None)],
            quirks: None,
        };
        rig.registry.register(new, at).expect("it is registered");
    }
    for number in 1..=3 {
        Machine::new(&rig, number).on(Duration::from_secs(2)).boot(Until::Script);
    }
    let browser = rig.browser(Width::Wide, Role::Operator).await;
    browser.goto("/nodes?sort=name").await;
    browser.find("#list tbody tr").await;
    let length = browser.script("return document.documentElement.outerHTML.length").await;
    assert!(length.as_u64().is_some_and(|length| length <= DOCUMENT_MAX), "{length} characters");
    assert_eq!(browser.script("return document.querySelectorAll('#list tbody tr').length").await, json!(200));
    let first = "return document.querySelector('#list tbody th').textContent";
    assert_eq!(browser.script(first).await, json!("row0-node0"));
    browser.click(".pager a[rel=next]").await;
    browser.until("the second page", &format!("{first} === 'row2-node200'")).await;
    browser.screenshot("many-nodes").await;

    // The filter is applied while one types, without a reload.
    browser.script("window.stayed = true").await;
    browser.fill("#q", "node9999").await;
    browser.until("one row is left", "return document.querySelectorAll('#list tbody tr').length === 1").await;
    assert_eq!(browser.script(first).await, json!("row99-node9999"));
    assert_eq!(browser.script("return window.stayed").await, json!(true));

    browser.goto("/").await;
    browser.find(".machines .crowd").await;
    let drawn = browser.script("return document.querySelectorAll('.machines .tile').length").await;
    assert!(drawn.as_u64().is_some_and(|drawn| (100..=400).contains(&drawn)), "{drawn}");
    assert_eq!(browser.script("return document.querySelectorAll('.tile.is-waiting').length").await, json!(3));
    browser.screenshot("many-overview").await;
}
