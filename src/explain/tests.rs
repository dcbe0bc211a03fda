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
    told_with(machine, known, extra, ProfileKnowledge::default())
}

fn told_with(machine: &str, known: Option<KnownNode>, extra: &str, profiles: ProfileKnowledge) -> Dialogue {
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
        profiles,
        image: Some(DeployImage { arguments: Vec::new(), kernel_bytes: 14, ramdisk_bytes: 80 }),
        now: Timestamp::from_millis(1_795_000_000_000),
    };
    explain(MAC, machine.parse().unwrap(), false, &knowledge)
}

fn node(approved: bool, next_boot: NextBoot, fruitless_loaders: u32) -> Option<KnownNode> {
    let id = crate::node::NodeId(uuid::Uuid::nil());
    let quirks = Quirks::default();
    Some(KnownNode {
        id,
        approved,
        proven: approved,
        next_boot,
        task_open: false,
        installer: None,
        profile: None,
        reserved: None,
        fruitless_loaders,
        quirks,
    })
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

#[test]
fn a_boot_profile_is_explained_rule_by_rule() {
    use crate::boot::profile::rules::{RuleList, Selector};
    use crate::boot::profile::runs::Fence;
    use crate::boot::profile::testing::{efi, iso, kernel};
    let prefix = |text: &str| Selector::MacPrefix(text.parse().unwrap());
    let list = [
        ("memtest", prefix("52:54")),
        ("disc", prefix("52:54")),
        ("live", prefix("52:54")),
        ("live", prefix("aa")),
    ];
    let list = list.into_iter().fold(RuleList::default(), |list, (profile, who)| {
        list.assigned(profile.parse().unwrap(), who, None, Timestamp::from_millis(1)).unwrap().0
    });
    let rules = list.rules().iter().map(|rule| (rule.clone(), Fence::Armed)).collect();
    let profiles =
        vec![efi("memtest"), iso("disc"), kernel("live", 1, &["h={node.name}", "ip={node.address}"])];
    let knowledge = ProfileKnowledge { rules, profiles, ..ProfileKnowledge::default() };
    let ask = |machine: &str, name: Option<&str>| {
        let name = name.map(|name| name.parse().unwrap());
        told_with(
            machine,
            node(true, NextBoot::Ramdisk, 0),
            "",
            ProfileKnowledge { name, ..knowledge.clone() },
        )
    };
    let effects = |dialogue: &Dialogue| -> Vec<String> {
        let rules = dialogue.decisions.iter().filter(|decision| decision.setting.starts_with("profile rule"));
        rules.map(|decision| decision.effect.clone()).collect()
    };
    // UEFI: the first rule. BIOS: no EFI program, so the image. Secure Boot: neither, so the kernel.
    let uefi = ask("uefi", None);
    assert_eq!(uefi.ends, "it boots profile memtest");
    assert_eq!(effects(&uefi)[1], "not asked: an earlier one matches");
    let bios = ask("bios", None);
    assert_eq!(bios.ends, "it boots profile disc");
    assert!(effects(&bios)[0].contains("passed over: it is an EFI program"));
    assert!(bios.steps.iter().any(|step| step.text.contains("profile/disc/image.iso")));
    let secure = ask("uefi-secure", None);
    assert!(secure.ends.contains("profile live is refused to it"), "{}", secure.ends);
    let secure = ask("uefi-secure", Some("anvil"));
    assert_eq!(secure.ends, "it boots profile live");
    let effects = effects(&secure);
    assert!(effects[0].contains("not signed") && effects[1].contains("no signed loader"), "{effects:?}");
    assert_eq!(effects.len(), 4);
    let script = secure.steps.iter().find_map(|step| step.script.clone()).unwrap();
    assert!(script.contains("linux /profile/live/kernel h=anvil ip=192.168."), "{script}");
    // Nothing of it where no rule is.
    assert!(
        told("uefi", node(true, NextBoot::Ramdisk, 0), "")
            .decisions
            .iter()
            .all(|it| !it.setting.contains("profile"))
    );
}
