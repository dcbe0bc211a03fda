//! `farrier explain` says beforehand what the wire says afterwards, and changes nothing.

use serde_json::Value;

use crate::machine::{BIOS, Machine, bed};
use crate::support::in_namespace;

fn texts(dialogue: &Value) -> Vec<String> {
    let steps = dialogue["steps"].as_array().expect("steps");
    steps.iter().map(|step| step["text"].as_str().expect("a text").to_owned()).collect()
}

#[test]
fn the_dialogue_is_the_one_that_happens_and_nothing_is_taken() {
    in_namespace("explain::the_dialogue_is_the_one_that_happens_and_nothing_is_taken", || {
        let mut bed = bed("[boot]\nkernel_arguments = [\"quiet\"]");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        let mac = machine.mac.clone();
        let ask = ["explain", "--mac", &mac, "--firmware", "bios", "--bytes"];
        let told = bed.farrier_json(&ask);
        assert_eq!(told, bed.farrier_json(&ask), "asking twice is asking once");
        assert_eq!(bed.farrier_json(&["lease", "list"]), serde_json::json!([]), "no lease is taken");
        assert_eq!(bed.farrier_json(&["node", "list"]), serde_json::json!([]), "nobody is registered");
        let steps = texts(&told);
        let ack = machine.lease(BIOS);
        let expected = format!("ACK {}, boot file {}", ack.address, ack.boot_file.expect("a loader"));
        assert!(steps.contains(&expected), "{expected}: {steps:#?}");
        assert_eq!(told["ends"], "it enrolls", "{told:#}");
        let script =
            told["steps"].as_array().unwrap().iter().find_map(|step| step["script"].as_str()).unwrap();
        let real = machine.script();
        let without_token = |text: &str| -> Vec<String> {
            let words = text.split_ascii_whitespace().filter(|word| !word.starts_with("farrier.token="));
            words.map(str::to_owned).collect()
        };
        assert_eq!(without_token(script), without_token(&real));
        let token = crate::machine::token_of(script);
        machine.load_ramdisk();
        assert_eq!(machine.hello(&token).0, 401, "no token that is good");
        assert!(told["steps"][0]["bytes"].as_str().unwrap().starts_with("010106"), "a request's first bytes");
        assert!(told["decisions"].to_string().contains("quiet"));
        let text = String::from_utf8(bed.farrier(&ask).stdout).unwrap();
        assert!(text.contains("53 message type") && text.contains("0000  01 01 06"), "{text}");
    });
}

#[test]
fn what_an_operator_decided_is_named() {
    in_namespace("explain::what_an_operator_decided_is_named", || {
        let mut bed = bed("[dhcp]\nunknown = \"ignore\"\n[boot.loaders]\nuefi-x64 = \"ipxe.efi\"");
        bed.start_server();
        let stranger = bed.farrier_json(&["explain", "--mac", "52:54:00:00:07:01", "--firmware", "uefi"]);
        assert!(texts(&stranger).contains(&"no answer: unknown-mac".to_owned()), "{stranger:#}");
        assert!(stranger["decisions"].to_string().contains("dhcp.unknown"), "{stranger:#}");
        let add = bed.farrier(&["node", "add", "52:54:00:00:07:01=192.168.77.33", "--name", "fixed"]);
        assert!(add.status.success());
        let node = bed.farrier_json(&["explain", "--mac", "52:54:00:00:07:01", "--firmware", "uefi-secure"]);
        assert!(texts(&node).contains(&"ACK 192.168.77.33, boot file ipxe.efi".to_owned()), "{node:#}");
        let decisions = node["decisions"].to_string();
        assert!(
            decisions.contains("reservation") && decisions.contains("boot.loaders.uefi-x64"),
            "{decisions}"
        );
        assert!(node["ends"].as_str().unwrap().contains("Secure Boot refuses ipxe.efi"), "{node:#}");
        for firmware in ["uefi-http", "ipxe", "bios"] {
            let other = bed.farrier_json(&["explain", "--mac", "52:54:00:00:07:01", "--firmware", firmware]);
            assert_eq!(other["ends"], "it enrolls", "{firmware}: {other:#}");
        }
        let wrong = bed.farrier(&["explain", "--mac", "52:54:00:00:07:01", "--firmware", "toaster"]);
        assert_eq!(wrong.status.code(), Some(2));
        // Without an appliance, a configuration file can be asked.
        bed.kill_server();
        let file = bed.path("farrier.toml");
        let ask = ["explain", "--mac", "52:54:00:00:07:01", "--firmware", "bios"];
        assert_eq!(bed.farrier(&ask).status.code(), Some(5));
        let offline = bed.farrier_json(&[&ask[..], &["--config", file.to_str().unwrap()]].concat());
        assert_eq!(
            (&offline["live"], &offline["ends"]),
            (&false.into(), &"the appliance stays silent: unknown-mac".into())
        );
    });
}
