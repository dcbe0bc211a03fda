//! Whatever a machine says of itself is text: no markup, no steering, no line that runs backwards.

use std::net::Ipv4Addr;
use std::time::Duration;

use farrier::dhcp::lease::LeaseState;
use farrier::net::MacAddr;
use farrier::node::timeline::{FileOutcome, Happening, Stage};
use farrier::operator::access::Role;
use serde_json::json;

use crate::browser::Width;
use crate::play::{Machine, Until};
use crate::rig::Rig;

const NASTY: [&str; 6] = [
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned=1'>",
    "\"><svg onload=window.pwned=1><a href=javascript:window.pwned=1>",
    "\u{1b}[31mred\u{1b}]0;title\u{7}\r\nX-Header: 1",
    "\u{202e}gnp.exe\u{2066}\u{200f}",
    "]]>--><!--{{7*7}}${7*7}`id`",
    "&lt;b&gt;&amp;amp;",
];

/// What is in the page that should not be: elements nobody made, script that ran, characters that steer.
const FOUND: &str = r"
    const found = [];
    if (window.pwned) found.push('script ran');
    for (const element of document.querySelectorAll('img, iframe, object, script:not([src]), [onload], [onerror], [style]'))
      if (!element.closest('head')) found.push(element.outerHTML.slice(0, 200));
    for (const link of document.querySelectorAll('a[href]'))
      if (!['http:', 'https:'].includes(link.protocol ?? 'http:') && !link.href.baseVal) found.push(link.outerHTML.slice(0, 200));
    const steers = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/;
    const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
    for (let node = walker.currentNode; node; node = walker.nextNode()) {
      if (node.nodeType === 3 && steers.test(node.data)) found.push('text: ' + JSON.stringify(node.data.slice(0, 200)));
      for (const attribute of node.attributes ?? [])
        if (steers.test(attribute.value)) found.push(attribute.name + ': ' + JSON.stringify(attribute.value.slice(0, 200)));
    }
    return found;";

#[tokio::test(flavor = "multi_thread")]
async fn s_09_what_comes_from_the_wire_is_text() {
    let rig = Rig::start().await;
    let long = "A".repeat(4096);
    for (number, text) in (1..).zip(NASTY.into_iter().chain([long.as_str()])) {
        let mut machine = Machine::new(&rig, number).on(Duration::from_secs(30));
        machine.boot(Until::Script);
        machine.file(1, Stage::Loader, text, 10, 1, FileOutcome::Aborted(text.to_owned()));
        machine.file(1, Stage::Kernel, text, 10, 1, FileOutcome::NotFound);
        machine.tell(1, Happening::AgentRefused { reason: text.to_owned(), token_issued_at: None });
        let mac = MacAddr([2, 0, 0, 0, 9, number as u8]);
        rig.lease(Ipv4Addr::new(10, 20, 1, 100 + number as u8), mac, LeaseState::Bound, Some(text));
    }
    rig.told.lock().unwrap().store_error = Some(NASTY.concat());
    let browser = rig.browser(Width::Narrow, Role::Admin).await;
    let pages = [
        "/",
        "/nodes",
        "/leases",
        "/events",
        "/status",
        "/images",
        "/nodes/register?mac=%3Cscript%3Ewindow.pwned%3D1%3C/script%3E%22%3E&name=%E2%80%AEx&address=%1b[31m",
    ];
    let nodes: Vec<String> = (1..=7).map(|number| format!("/nodes/52:54:00:12:00:{number:02x}")).collect();
    for path in pages.into_iter().map(str::to_owned).chain(nodes) {
        browser.goto(&path).await;
        browser.find("h1").await;
        assert_eq!(browser.script(FOUND).await, json!([]), "{path}");
        let wide = browser.script("return document.documentElement.scrollWidth - innerWidth").await;
        assert_eq!(wide, json!(0), "{path} is wider than its window");
    }
    // It is shown, and reads back as it was sent.
    browser.goto("/leases").await;
    let shown = browser.script("return document.querySelector('#leases').textContent").await;
    let shown = shown.as_str().unwrap_or_default();
    for text in [NASTY[0], NASTY[1], NASTY[4], NASTY[5]] {
        assert!(shown.contains(text), "{text}");
    }
    assert!(shown.contains("\\u{202e}gnp.exe") && shown.contains("\\u{1b}[31mred"), "{shown}");
}
