use std::path::Path;

use super::*;
use crate::boot::client::Firmware;
use crate::boot::quirks::Quirks;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

struct Known(Option<KnownNode>);

impl Directory for Known {
    fn standing(&self, _mac: MacAddr, _now: Timestamp) -> Standing {
        self.0.clone().map_or(Standing::Stranger, Standing::Known)
    }

    fn reserved_for(&self, _address: Ipv4Addr) -> Option<MacAddr> {
        None
    }
}

fn told(machine: &str, known: Option<KnownNode>, extra: &str) -> Dialogue {
    let text = format!(
        "[network]\nbridge = \"br0\"\naddress = \"192.168.2.2/24\"\n[store]\npath = \"/var/lib/farrier\"\n{extra}"
    );
    let config = Config::parse(&text, Path::new("farrier.toml")).unwrap();
    let table = config.loader_table().unwrap();
    let knowledge = Knowledge {
        config: &config,
        loaders: Arc::new(table),
        leases: Vec::new(),
        directory: &Known(known),
        name: None,
        image: Some(DeployImage { arguments: Vec::new(), kernel_bytes: 14, ramdisk_bytes: 80 }),
        now: Timestamp::from_millis(1_795_000_000_000),
    };
    explain(MAC, machine.parse().unwrap(), false, &knowledge)
}

fn node(approved: bool, next_boot: NextBoot, fruitless_loaders: u32) -> Option<KnownNode> {
    let id = crate::node::NodeId(uuid::Uuid::nil());
    let quirks = Quirks::default();
    Some(KnownNode { id, approved, proven: approved, next_boot, reserved: None, fruitless_loaders, quirks })
}

#[test]
fn every_kind_of_machine_is_taken_for_what_it_is_and_enrolls() {
    let words: Vec<String> = Firmware::ALL.iter().map(ToString::to_string).collect();
    for word in
        words.iter().map(String::as_str).chain(["uefi", "uefi-http", "uefi-secure", "ipxe", "ipxe-uefi"])
    {
        let dialogue = told(word, None, "");
        assert_eq!(dialogue.ends, "it enrolls", "{word}: {:#?}", dialogue.steps);
        let machine: Machine = word.parse().unwrap();
        assert_eq!(machine.to_string().parse::<Machine>().unwrap(), machine);
    }
}

#[test]
fn what_ends_a_dialogue_is_said() {
    let looping = told("bios", node(true, NextBoot::Ramdisk, 3), "");
    assert!(looping.ends.contains("boot-loop"), "{}", looping.ends);
    assert!(looping.decisions.iter().any(|decision| decision.setting == "boot loop"));
    assert!(told("bios", node(true, NextBoot::LocalDisk, 0), "").ends.contains("its own disk"));
    assert!(told("uefi", node(false, NextBoot::Ramdisk, 0), "").ends.contains("farrier node approve"));
    let refused = told("uefi-secure", None, "[boot.loaders]\nuefi-x64 = \"ipxe.efi\"\n");
    assert!(refused.ends.contains("Secure Boot refuses ipxe.efi"), "{}", refused.ends);
    let ignored = told("bios", None, "[dhcp]\nunknown = \"ignore\"\n");
    assert_eq!(ignored.ends, "the appliance stays silent: unknown-mac");
}

#[test]
fn no_message_is_shown_bytewise_unless_asked_for() {
    let dialogue = told("uefi", None, "");
    assert!(dialogue.steps.iter().all(|step| step.bytes.is_none()));
    assert!(dialogue.steps.iter().any(|step| step.options.iter().any(|option| option.code == 93)));
}
