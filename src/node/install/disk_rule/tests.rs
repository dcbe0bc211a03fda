//! Rules as operators write them, and machines they are applied to.

use proptest::prelude::*;

use super::choice::{Reason, begun_with};
use super::*;

const GB: u64 = 1_000_000_000;

fn rule(text: &str) -> DiskRule {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn disk(name: &str, gigabytes: u64) -> DiskFacts {
    DiskFacts {
        name: name.to_owned(),
        bytes: gigabytes * GB,
        serial: Some(format!("S-{name}")),
        path: Some(format!("pci-0000:00:04.0-{name}")),
        ..DiskFacts::default()
    }
}

fn write(needed: u64) -> Purpose {
    Purpose::Write { needed, wipe: false }
}

fn names(rule_text: &str, disks: &[DiskFacts], purpose: Purpose) -> Result<Vec<String>, NoDisk> {
    let chosen = rule(rule_text).choose(disks, purpose)?;
    Ok(chosen.into_iter().map(|index| disks[index].name.clone()).collect())
}

#[test]
fn a_rule_has_one_canonical_text() {
    for (written, canonical) in [
        ("smallest", "smallest"),
        (" largest ", "largest"),
        ("first,rotational=no", "rotational=no,first"),
        ("size<=2T, size>=100G,smallest", "size>=100G,size<=2T"),
        ("name=/dev/vda", "name=vda"),
        ("path=/dev/disk/by-path/pci-0000:00:04.0", "path=pci-0000:00:04.0"),
        ("model=Dell Ent NVMe*", "model=Dell Ent NVMe*"),
        ("size>=1000000000", "size>=1G"),
        ("size>=1GiB", "size>=1Gi"),
        ("size>=64gb", "size>=64G"),
        ("size>=1025", "size>=1025"),
        ("size>=0", "size>=0"),
        ("all,removable=no", "removable=no,all"),
    ] {
        let parsed = rule(written);
        assert_eq!(parsed.to_string(), canonical, "{written}");
        let json = serde_json::to_string(&parsed).unwrap();
        assert_eq!(serde_json::from_str::<DiskRule>(&json).unwrap(), parsed);
        assert_eq!(rule(canonical), parsed);
    }
    assert_eq!(DiskRule::default(), rule("smallest"));
}

#[test]
fn each_mistake_is_told() {
    for (written, wanted) in [
        ("", "empty part"),
        ("smallest,", "empty part"),
        ("biggest", "`biggest` is neither"),
        ("colour=red", "`colour=red` is neither"),
        ("size=5G", "`size=5G` is neither"),
        ("size>=5X", "a size such as 100G"),
        ("size>=99999999999T", "a size such as 100G"),
        ("rotational=maybe", "`yes` or `no`"),
        ("serial=", "a value without control characters"),
        ("model=a\u{1b}b", "a value without control characters"),
        ("name=a,name=b", "`name` is said twice"),
        ("smallest,largest", "two preferences"),
        ("size>=2T,size<=1T", "asks for more than"),
    ] {
        let error = written.parse::<DiskRule>().unwrap_err().to_string();
        assert!(error.contains(wanted), "{written}: {error}");
    }
    assert!("x".repeat(2000).parse::<DiskRule>().unwrap_err().to_string().len() < 700);
}

#[test]
fn preferences_and_conditions() {
    let mut disks = vec![disk("vdb", 500), disk("vda", 100), disk("vdc", 100), disk("vdd", 2000)];
    disks[3].rotational = true;
    disks[0].model = Some("Samsung SSD 980 PRO".to_owned());
    for (text, needed, wanted) in [
        ("smallest", 0, "vda"),
        ("smallest", 101 * GB, "vdb"),
        ("largest", 0, "vdd"),
        ("largest,rotational=no", 0, "vdb"),
        ("first", 0, "vda"),
        ("name=vdc", 0, "vdc"),
        ("name=vd*,size>=200G", 0, "vdb"),
        ("serial=S-vdd", 0, "vdd"),
        ("path=*-vdc", 0, "vdc"),
        ("model=Samsung*PRO", 0, "vdb"),
        ("model=*SSD*", 0, "vdb"),
        ("size>=101G,size<=1T", 0, "vdb"),
    ] {
        assert_eq!(names(text, &disks, write(needed)).unwrap(), [wanted], "{text} of {needed}");
    }
    assert!(names("model=Samsung*EVO", &disks, write(0)).is_err());
}

#[test]
fn every_disk_is_listed_with_its_reason() {
    let mut disks = vec![disk("sda", 8), disk("sdb", 100), disk("sdc", 100), disk("sr", 100)];
    disks[1].removable = true;
    disks[2].carries = vec![Signature::Gpt, Signature::Lvm];
    disks[3].read_only = true;
    let refused = names("smallest", &disks, write(10 * GB)).unwrap_err();
    let reasons: Vec<_> = refused.disks.iter().map(|(_, _, reason)| reason.clone()).collect();
    assert_eq!(
        reasons,
        [
            Reason::TooSmall { by: 2 * GB },
            Reason::Removable,
            Reason::CarriesData { what: vec![Signature::Gpt, Signature::Lvm] },
            Reason::ReadOnly,
        ]
    );
    let text = refused.to_string();
    assert!(text.contains("sda (8.0 GB) is too small by 2.0 GB"), "{text}");
    assert!(text.contains("a GPT partition table, an LVM physical volume"), "{text}");
    let wiped = Purpose::Write { needed: 10 * GB, wipe: true };
    assert_eq!(names("smallest", &disks, wiped).unwrap(), ["sdc"]);
    disks[2].in_use = Some("mounted at /mnt".to_owned());
    assert!(names("smallest", &disks, wiped).unwrap_err().to_string().contains("in use: mounted at /mnt"));
    assert_eq!(names("name=sdb", &disks, wiped).unwrap(), ["sdb"], "asked for by name");
    assert!(names("smallest", &[], wiped).unwrap_err().to_string().contains("the machine has none"));
}

#[test]
fn what_is_on_a_disk_does_not_make_another_one_meant() {
    let mut disks = vec![disk("sda", 100), disk("sdb", 4000)];
    disks[0].carries = vec![Signature::Gpt];
    let refused = names("smallest", &disks, write(GB)).unwrap_err();
    assert_eq!(refused.disks[1].2, Reason::NotPreferred { preferred: "sda".to_owned() });
}

#[test]
fn one_serial_number_on_two_disks_is_refused() {
    let mut disks = vec![disk("sda", 100), disk("sdb", 100)];
    disks[1].serial = disks[0].serial.clone();
    let refused = names("serial=S-sda", &disks, write(GB)).unwrap_err();
    assert_eq!(refused.disks[0].2, Reason::Ambiguous { with: vec!["sdb".to_owned()] });
    assert_eq!(names("serial=S-sda,path=*sdb", &disks, write(GB)).unwrap(), ["sdb"]);
}

#[test]
fn all_is_for_cleaning() {
    let mut disks = vec![disk("sda", 100), disk("sdb", 100), disk("usb", 8)];
    disks[2].removable = true;
    disks[0].carries = vec![Signature::Ext];
    assert_eq!(names("all", &disks, Purpose::Clean).unwrap(), ["sda", "sdb"]);
    assert!(names("all", &disks, Purpose::Write { needed: 1, wipe: true }).is_err());
    disks[1].in_use = Some("swap".to_owned());
    assert!(names("all", &disks, Purpose::Clean).is_err(), "all or none");
}

#[test]
fn a_task_goes_on_with_the_disk_it_began_with_under_another_name() {
    let mut disks = vec![disk("sda", 100), disk("sdb", 100)];
    let begun = [disks[1].target()];
    disks[1].name = "nvme9".to_owned();
    disks[1].carries = vec![Signature::Gpt];
    assert_eq!(begun_with(&begun, &disks).unwrap(), [1]);
    disks.pop();
    let gone = begun_with(&begun, &disks).unwrap_err();
    assert_eq!(gone.disks[0].2, Reason::NotBegunOn);
    assert!(gone.to_string().contains("serial number S-sdb"), "{gone}");
    let mut twins = vec![disk("sda", 100), disk("sdb", 100)];
    twins[0].serial = twins[1].serial.clone();
    assert_eq!(begun_with(&begun, &twins).unwrap(), [1], "by path");
    twins[0].path = twins[1].path.clone();
    assert!(begun_with(&begun, &twins).is_err());
}

proptest! {
    #[test]
    fn any_text_is_refused_or_has_a_canonical_form(text in "[a-z=><,*0-9GTKi ]{0,40}|\\PC{0,60}") {
        if let Ok(parsed) = text.parse::<DiskRule>() {
            let canonical = parsed.to_string();
            prop_assert_eq!(&rule(&canonical), &parsed);
            prop_assert_eq!(rule(&canonical).to_string(), canonical);
        }
    }
}
