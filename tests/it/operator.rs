//! The command line against a running appliance: output, exit codes, `--json`.

use crate::support::{TestBed, in_namespace};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_node_is_added_shown_approved_and_removed() {
    in_namespace("operator::a_node_is_added_shown_approved_and_removed", || {
        let bed = TestBed::start("");
        let added = bed.farrier(&["node", "add", "02:00:00:00:00:01", "--name", "web1"]);
        assert_eq!(added.status.code(), Some(0), "{}", text(&added.stderr));
        // By name, MAC and id it is the same node.
        let by_name = bed.farrier_json(&["node", "show", "web1"]);
        let by_mac = bed.farrier_json(&["node", "show", "02:00:00:00:00:01"]);
        assert_eq!(by_name["node"]["id"], by_mac["node"]["id"]);
        let listed = text(&bed.farrier(&["node", "list"]).stdout);
        assert!(listed.contains("web1") && listed.contains("02:00:00:00:00:01"), "{listed}");

        let twice = bed.farrier(&["node", "add", "02:00:00:00:00:01", "--name", "web2"]);
        assert_eq!(twice.status.code(), Some(4), "{}", text(&twice.stderr));
        assert!(text(&twice.stderr).contains("web1"), "names the owner: {}", text(&twice.stderr));
        let missing = bed.farrier(&["node", "show", "nobody"]);
        assert_eq!(missing.status.code(), Some(3));
        let nonsense = bed.farrier(&["node", "add", "02:00:00"]);
        assert_eq!(nonsense.status.code(), Some(2));

        assert_eq!(bed.farrier(&["node", "remove", "web1"]).status.code(), Some(0));
        assert_eq!(bed.farrier(&["node", "show", "web1"]).status.code(), Some(3));
    });
}

#[test]
fn status_says_what_is_served() {
    in_namespace("operator::status_says_what_is_served", || {
        let bed = TestBed::start("");
        let status = text(&bed.farrier(&["status"]).stdout);
        for word in ["br0", "192.168.77.2", "pool"] {
            assert!(status.to_lowercase().contains(word), "{word} in\n{status}");
        }
        assert!(!status.contains('\u{1b}'), "no colours into a pipe");
        assert_eq!(bed.farrier_json(&["status"])["bridge"]["name"], "br0");
    });
}

#[test]
fn an_appliance_that_is_not_there_is_exit_code_5() {
    in_namespace("operator::an_appliance_that_is_not_there_is_exit_code_5", || {
        let bed = TestBed::new("");
        let status = bed.farrier(&["status"]);
        assert_eq!(status.status.code(), Some(5));
        let said = text(&status.stderr);
        assert!(said.contains("farrier serve") && said.contains("operator.sock"), "{said}");
    });
}
