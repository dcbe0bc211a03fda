//! Every page at both widths, in both themes: axe-core has nothing serious to say, nothing scrolls sideways, and each
//! is kept as a picture.

use farrier::operator::access::Role;

use crate::browser::Width;
use crate::play;
use crate::rig::Rig;

/// Name of the picture, and the page.
const PAGES: [(&str, &str); 13] = [
    ("overview", "/"),
    ("nodes", "/nodes"),
    ("node", "/nodes/rack1-node01"),
    ("node-second-boot", "/nodes/rack1-node01?boot=1"),
    ("node-cut", "/nodes/rack1-node20"),
    ("node-stranger", "/nodes/52:54:00:12:00:18"),
    ("node-never-seen", "/nodes/rack1-node22"),
    ("register", "/nodes/register?mac=52:54:00&name=Web1"),
    ("remove", "/nodes/rack1-node22/remove"),
    ("images", "/images"),
    ("leases", "/leases"),
    ("events", "/events"),
    ("status", "/status"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_for_everybody() {
    let rig = Rig::start().await;
    play::rack(&rig);
    let mut complaints = Vec::new();
    for width in Width::BOTH {
        let browser = rig.browser(width, Role::Operator).await;
        for theme in ["light", "dark"] {
            browser.theme(theme).await;
            for (name, path) in PAGES.into_iter().chain([("not-found", "/nodes/nobody")]) {
                browser.goto(path).await;
                browser.find("h1").await;
                let found = browser.complaints().await;
                complaints.extend(
                    found.into_iter().map(|complaint| format!("{path} {width:?} {theme}: {complaint}")),
                );
                browser.screenshot(&format!("{name}-{theme}")).await;
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
}
