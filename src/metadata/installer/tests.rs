//! The three formats taken apart again, and what hostile values become in them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::metadata::document::{HostName, PhoneHome, UserData};
use crate::metadata::ssh_key::SshKey;
use crate::metadata::testing::{MAC, document};

fn autoinstall(document: &Document) -> Value {
    let text = document.answers(Kind::Autoinstall).unwrap();
    let json: Value = serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap();
    // cloud-init reads it as YAML.
    assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), json);
    json["autoinstall"].clone()
}

/// Preseed: owner, question, type, value; a backslash at the end joins lines.
fn preseed(document: &Document) -> Vec<[String; 4]> {
    let text = document.answers(Kind::Preseed).unwrap().replace("\\\n", "");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.splitn(4, ' ').map(str::to_owned);
            std::array::from_fn(|_| words.next().unwrap_or_default())
        })
        .collect()
}

fn answer(answers: &[[String; 4]], question: &str) -> String {
    let mut found = answers.iter().filter(|[_, asked, _, _]| asked == question);
    let [_, _, _, value] = found.next().unwrap_or_else(|| panic!("{question} is answered"));
    assert!(found.next().is_none(), "{question} is answered once");
    value.clone()
}

/// Whether a shell finds its syntax whole, without running it.
fn is_shell(script: &str) -> bool {
    Command::new("sh").args(["-n", "-c", script]).output().expect("sh").status.success()
}

fn kickstart_script(text: &str) -> String {
    let (_, behind) = text.split_once("%post --erroronfail --interpreter=/bin/sh\n").unwrap();
    behind.split_once("%end").unwrap().0.to_owned()
}

#[test]
fn debian_gets_a_preseed_that_phones_home_in_the_end() {
    let mut document = document();
    let answers = preseed(&document);
    assert_eq!(answer(&answers, "netcfg/get_hostname"), "node07.example.org");
    assert_eq!(answer(&answers, "netcfg/choose_interface"), MAC.to_string());
    assert_eq!(answer(&answers, "mirror/http/hostname"), "deb.debian.org");
    assert!(answers.iter().all(|[_, question, _, _]| question != "partman-auto/disk"));
    let last = answer(&answers, "preseed/late_command");
    assert!(is_shell(&last), "{last}");
    assert!(last.contains("sh /tmp/last-step 'http://192.168.2.2/metadata/v1' "));
    assert!(last.contains(document.phone_home.token.as_str()) && last.ends_with(" /target"));
    document.installer.disk = Some("/dev/vda".parse().unwrap());
    assert_eq!(answer(&preseed(&document), "partman-auto/disk"), "/dev/vda");
}

#[test]
fn rhel_gets_a_kickstart() {
    let mut document = document();
    document.installer.disk = Some("/dev/vda".parse().unwrap());
    let text = document.answers(Kind::Kickstart).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let network = format!("network --bootproto=dhcp --device={MAC} --hostname=node07.example.org --activate");
    let key = format!("sshkey --username=root \"{}\"", document.ssh_keys[0].bare());
    for wanted in ["ignoredisk --only-use=vda", network.as_str(), key.as_str(), "timezone Etc/UTC --utc"] {
        assert!(lines.contains(&wanted), "{wanted}: {text}");
    }
    let sections = lines.iter().filter(|line| line.starts_with('%'));
    let wanted = ["%packages", "%end", "%post --erroronfail --interpreter=/bin/sh", "%end"];
    assert_eq!(sections.copied().collect::<Vec<_>>(), wanted);
    assert!(is_shell(&kickstart_script(&text)));
}

#[test]
fn ubuntu_gets_an_autoinstall() {
    let mut document = document();
    let told = autoinstall(&document);
    assert_eq!(told["version"], 1);
    assert_eq!(told["user-data"]["hostname"], "node07.example.org");
    let keys = &told["user-data"]["users"][0]["ssh_authorized_keys"];
    assert_eq!(*keys, json!([document.ssh_keys[0].to_string()]));
    assert_eq!(told["storage"]["layout"]["match"], json!({}));
    for command in told["late-commands"].as_array().unwrap() {
        assert!(is_shell(command.as_str().unwrap()), "{command}");
    }
    document.installer.disk = Some("/dev/vda".parse().unwrap());
    assert_eq!(autoinstall(&document)["storage"]["layout"]["match"], json!({ "path": "/dev/vda" }));
}

/// The last step, done by each of the three: in a directory instead of the new system, with programs that note how they
/// were called and, where they are to bring a file, bring one.
#[test]
fn the_last_step_does_what_it_says() {
    let document = document();
    let late = autoinstall(&document)["late-commands"][0].as_str().unwrap().to_owned();
    for (program, script, cloud_init) in [
        ("wget", answer(&preseed(&document), "preseed/late_command"), false),
        ("wget", answer(&preseed(&document), "preseed/late_command"), true),
        ("curl", late, true),
    ] {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name).display().to_string();
        fs::create_dir_all(at("bin")).unwrap();
        fs::create_dir_all(at("target/usr/bin")).unwrap();
        fs::write(at("given"), left_behind("last-step").unwrap().replace("sleep 5", "sleep 0")).unwrap();
        if cloud_init {
            program_at(&at("target/usr/bin/cloud-init"), "");
        }
        // Fails the first time, whatever is asked of it.
        let body = format!(
            "for word; do printf '[%s]' \"$word\"; done >>'{calls}'; echo >>'{calls}'\n\
             [ -e '{once}' ] || {{ : >'{once}'; exit 4; }}\n\
             while [ $# -gt 0 ]; do case $1 in -O | -o) out=$2; shift ;; esac; url=$1; shift; done\n\
             case $url in */last-step) cat '{last}' ;; *) echo \"$url\" ;; esac >\"$out\"\n",
            calls = at("calls"),
            once = at("once"),
            last = at("given"),
        );
        program_at(&at(&format!("bin/{program}")), &body);
        for tool in ["sh", "cat", "mkdir", "chmod", "ln", "sleep", "sync", "rm"] {
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
                .map(|folder| folder.join(tool))
                .find(|path| path.exists())
                .unwrap();
            std::os::unix::fs::symlink(found, at(&format!("bin/{tool}"))).unwrap();
        }
        let script = script
            .replace("/tmp/", &at(""))
            .replace(" /target", &format!(" {}", at("target")))
            .replace("sleep 5", "sleep 0");
        // curl retries by itself.
        if program == "curl" {
            fs::write(at("once"), "").unwrap();
        }
        let output = Command::new("sh").args(["-c", &script]).env("PATH", at("bin")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seed = if cloud_init { "var/lib/cloud/seed/nocloud" } else { "var/lib/farrier/seed" };
        for file in ["meta-data", "user-data", "vendor-data", "network-config"] {
            let left = fs::read_to_string(at(&format!("target/{seed}/{file}"))).unwrap();
            assert_eq!(left, format!("http://192.168.2.2/metadata/v1/nocloud/{file}\n"));
        }
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&format!("target/{seed}")), 0o700);
        assert_eq!(mode("target/root/.ssh/authorized_keys"), 0o600);
        for (wants, unit) in [("sysinit", "farrier-first-boot"), ("multi-user", "farrier-first-boot-finish")]
        {
            let link =
                fs::read_link(at(&format!("target/etc/systemd/system/{wants}.target.wants/{unit}.service")));
            assert_eq!(link.is_ok(), !cloud_init);
            if let Ok(link) = link {
                let left = fs::read_to_string(at(&format!("target{}", link.display()))).unwrap();
                assert_eq!(left, format!("http://192.168.2.2/metadata/v1/first-boot/{unit}.service\n"));
            }
        }
        let calls = fs::read_to_string(at("calls")).unwrap();
        let last = calls.lines().last().unwrap();
        let body = last.split(['[', ']']).find(|word| word.starts_with('{')).unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["instance_id"], document.instance.to_string());
        assert_eq!(body["token"], document.phone_home.token.as_str());
        assert!(last.ends_with("[http://192.168.2.2/metadata/v1/installed]"), "{last}");
    }
}

fn program_at(path: &str, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_is_left_behind_is_there_by_every_name_that_the_last_step_asks_for() {
    for name in ["last-step", "first-boot/first-boot"] {
        let text = left_behind(name).unwrap();
        assert!(text.starts_with("#!/bin/sh\n") && is_shell(text), "{name}");
        assert!(!text.contains("{{"), "{name} has no place for anything");
    }
    for unit in ["farrier-first-boot", "farrier-first-boot-finish"] {
        assert!(
            left_behind(&format!("first-boot/{unit}.service"))
                .unwrap()
                .contains("ExecStart=/usr/lib/farrier/first-boot")
        );
        assert!(LAST_STEP.contains(&format!(":{unit}")));
    }
    assert_eq!(left_behind("first-boot/../etc/passwd"), None);
}

#[test]
fn cloud_init_is_installed_where_only_it_understands_the_user_data() {
    let mut document = document();
    for (user_data, packages) in [
        (None, "openssh-server curl"),
        (Some("#!/bin/sh\n"), "openssh-server curl"),
        (Some("#cloud-config\n{}\n"), "openssh-server curl cloud-init"),
    ] {
        document.user_data = user_data.map(|text| UserData::try_from(text.to_owned()).unwrap());
        assert_eq!(answer(&preseed(&document), "pkgsel/include"), packages);
    }
}

#[test]
fn what_people_write_freely_is_in_no_answer_file() {
    let mut document = document();
    let hostile = "'; reboot; '\n%end\nd-i x/y string z\n$(id) `id` {{token}} \"}]}";
    document.user_data = Some(UserData::try_from(hostile.to_owned()).unwrap());
    document.vendor_data = document.user_data.clone();
    let comment = "$(reboot) '\"`; %end {{token}} #";
    document.ssh_keys = vec![format!("{} {comment}", document.ssh_keys[0].bare()).parse().unwrap()];
    let plain = super::super::testing::document();
    assert_eq!(document.answers(Kind::Preseed), plain.answers(Kind::Preseed));
    assert_eq!(document.answers(Kind::Kickstart), plain.answers(Kind::Kickstart));
    // There it is a string like any other.
    let told = autoinstall(&document);
    let key = told["user-data"]["users"][0]["ssh_authorized_keys"][0].as_str().unwrap();
    assert_eq!(key, document.ssh_keys[0].to_string());
    assert_eq!(told["late-commands"], autoinstall(&plain)["late-commands"]);
}

#[test]
fn a_place_without_a_value_or_a_value_that_is_not_inert_gives_no_file() {
    let values = Values(vec![("a", "{{b}}".to_owned())]);
    assert_eq!(values.fill("x {{a}} y").unwrap(), "x {{b}} y", "what was put is not looked at again");
    for (template, place) in
        [("{{b}}", "b"), ("{{a", "a"), ("{{}}", ""), ("{{ a }}", " a "), ("{{a}}{{c}}", "c")]
    {
        assert_eq!(values.fill(template), Err(RenderError::NoSuchPlace { place: place.to_owned() }));
    }
    for text in ["", "-x", "a b", "a'b", "a\nb", "$a", "a;b", "ä"] {
        assert_eq!(inert("a", text.to_owned()), Err(RenderError::NotInert { place: "a" }), "{text:?}");
    }
}

#[test]
fn nothing_secret_is_on_a_kernels_command_line() {
    let document = document();
    for word in Kind::ALL.into_iter().flat_map(Kind::boot_arguments) {
        assert!(!word.contains(document.phone_home.token.as_str()));
    }
}

proptest! {
    /// Whatever is accepted as a value comes back as it was, and changes nothing else.
    #[test]
    fn values_come_back_from_every_format(
        name in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\\.[a-z0-9]{1,8}){0,2}",
        disk in "[!-~]{1,20}",
        zone in "[!-~]{1,20}",
        comment in "[ -~]{0,40}",
    ) {
        let mut document = document();
        let (Ok(disk), Ok(zone)) = (disk.parse::<Word>(), zone.parse::<Word>()) else { return Ok(()) };
        document.host_name = name.parse::<HostName>().unwrap();
        document.installer.disk = Some(disk.clone());
        document.installer.time_zone = zone.clone();
        if let Ok(key) = format!("{} {comment}", document.ssh_keys[0].bare()).parse::<SshKey>() {
            document.ssh_keys.push(key);
        }
        document.phone_home = PhoneHome { server: [10, 0, 0, 1].into(), ..document.phone_home };
        let answers = preseed(&document);
        prop_assert_eq!(answers.len(), preseed(&super::super::testing::document()).len() + 1);
        prop_assert_eq!(answer(&answers, "netcfg/get_hostname"), name.clone());
        prop_assert_eq!(answer(&answers, "partman-auto/disk"), disk.as_str());
        prop_assert_eq!(answer(&answers, "time/zone"), zone.as_str());
        let told = autoinstall(&document);
        prop_assert_eq!(told["user-data"]["hostname"].as_str(), Some(name.as_str()));
        prop_assert_eq!(told["timezone"].as_str(), Some(zone.as_str()));
        let keys = told["user-data"]["users"][0]["ssh_authorized_keys"].as_array().unwrap().clone();
        prop_assert_eq!(keys.len(), document.ssh_keys.len());
        let text = document.answers(Kind::Kickstart).unwrap();
        let zone_line = format!("timezone {} --utc", zone.as_str());
        prop_assert_eq!(text.lines().filter(|line| *line == zone_line).count(), 1);
        prop_assert_eq!(text.lines().filter(|line| line.starts_with("sshkey ")).count(), document.ssh_keys.len());
        prop_assert_eq!(text.lines().filter(|line| line.starts_with('%')).count(), 4);
    }
}
