//! What ends a boot once the ramdisk is handed out, and the end it should have.

use serde_json::json;

use crate::machine::{LATER, Machine, RAMDISK, bed, expect, token_of};
use crate::support::in_namespace;

#[test]
fn the_agent_is_silent() {
    in_namespace("ramdisk::the_agent_is_silent", || {
        let mut bed = bed("");
        bed.start_server();
        let mut deaf = Machine::plug(&mut bed, 1);
        deaf.load_ramdisk();
        expect(&bed, &deaf.mac, 0, "under-way", Some("agent"), "initrd.img");
        expect(&bed, &deaf.mac, LATER, "agent-no-driver", Some("agent"), "initrd.img by HTTP");

        let mut without_address = Machine::plug(&mut bed, 2);
        without_address.load_ramdisk();
        without_address.offered(RAMDISK);
        expect(
            &bed,
            &without_address.mac,
            LATER,
            "agent-no-address",
            Some("agent"),
            "DISCOVER of the ramdisk",
        );

        let mut without_route = Machine::plug(&mut bed, 3);
        without_route.load_ramdisk();
        without_route.lease(RAMDISK);
        expect(&bed, &without_route.mac, LATER, "agent-no-route", Some("agent"), "REQUEST of the ramdisk");
    });
}

#[test]
fn a_token_is_used_twice() {
    in_namespace("ramdisk::a_token_is_used_twice", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        let token = machine.load_ramdisk();
        machine.lease(RAMDISK);
        assert_eq!(machine.hello(&token).0, 200);
        expect(&bed, &machine.mac, LATER, "inventory-missing", Some("enrolled"), "agent called");
        assert_eq!(machine.hello(&token).0, 401);
        let verdict =
            expect(&bed, &machine.mac, 0, "token-replayed", Some("agent"), "agent refused: token-spent");
        let script = verdict["evidence"].to_string();
        assert!(script.contains("script.ipxe handed out"), "the script the token came from: {verdict:#}");
        assert_eq!(machine.hello("rubbish").0, 401);
        expect(&bed, &machine.mac, 0, "agent-refused", Some("agent"), "agent refused: token-malformed");
    });
}

#[test]
fn the_agent_fails_or_enrolls() {
    in_namespace("ramdisk::the_agent_fails_or_enrolls", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        let token = machine.load_ramdisk();
        machine.lease(RAMDISK);
        let failure = json!({ "mac": machine.mac, "step": "inventory", "message": "no\u{1b} disks" });
        assert_eq!(machine.post("/agent/v1/failure", Some(&token), &failure).0, 200);
        let verdict = expect(&bed, &machine.mac, 0, "agent-failed", Some("agent"), "step inventory");
        assert!(!verdict.to_string().contains("\\u001b"), "inert: {verdict}");
        let (status, session) = machine.hello(&token);
        assert_eq!(status, 200);
        let inventory =
            json!({ "mac": machine.mac, "inventory": farrier::node::inventory::Inventory::default() });
        let session = session["session"].as_str().unwrap().to_owned();
        assert_eq!(machine.post("/agent/v1/inventory", Some(&session), &inventory).0, 200);
        let verdict = expect(&bed, &machine.mac, LATER, "enrolled", Some("enrolled"), "inventory stored");
        assert_eq!(verdict["outcome"], "succeeded");
        let states: Vec<&str> = verdict["stages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mark| mark["state"].as_str().unwrap())
            .collect();
        assert_eq!(states, ["passed", "skipped", "passed", "passed", "passed", "passed", "passed"]);
    });
}

#[test]
fn a_machine_waits_for_approval() {
    in_namespace("ramdisk::a_machine_waits_for_approval", || {
        let mut bed = bed("[dhcp]\nunknown = \"approve\"");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        assert!(!machine.script().contains("farrier.token="));
        let verdict =
            expect(&bed, &machine.mac, LATER, "awaits-approval", Some("script"), "it waits for approval");
        assert_eq!(verdict["outcome"], "waiting");
        assert!(verdict["remedy"][0].as_str().unwrap().contains("farrier node approve"), "{verdict:#}");
    });
}

#[test]
fn the_appliance_restarts_in_the_middle() {
    in_namespace("ramdisk::the_appliance_restarts_in_the_middle", || {
        let mut bed = bed("");
        bed.start_server();
        let mut machine = Machine::plug(&mut bed, 1);
        let token = token_of(&machine.script());
        // Only what is on disk counts; the answer to a second machine's request is behind it there.
        Machine::plug(&mut bed, 2).lease(RAMDISK);
        bed.kill_server();
        bed.start_server();
        expect(&bed, &machine.mac, 0, "under-way", Some("kernel"), "started again");
        expect(
            &bed,
            &machine.mac,
            LATER,
            "appliance-restarted",
            Some("kernel"),
            "the appliance was started again",
        );
        // It goes on all the same, and the restart is forgotten.
        for file in ["vmlinuz", "initrd.img"] {
            assert_eq!(machine.get(&format!("/image/metal/{file}"), usize::MAX).0, 200);
        }
        assert_eq!(machine.hello(&token).0, 200);
        expect(&bed, &machine.mac, LATER, "inventory-missing", Some("enrolled"), "agent called");
    });
}
