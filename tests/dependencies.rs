//! What the dependencies may be, as `deny.toml` has it: their licences, where they come from, and which are not wanted.
//! `make deny` has `cargo deny` judge the same file, and ask for advisories and yanked versions besides, where that
//! program is installed and its database can be fetched; this needs neither, and so is part of every test run.

use std::process::Command;

use serde_json::Value;

/// Everything that is built for this machine or its tests, as Cargo resolves it.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .output()
        .expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages").clone();
    assert!(packages.len() > 100, "{} packages", packages.len());
    packages
}

/// `deny.toml`'s table of this name.
fn rules(table: &str) -> toml::Table {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml");
    let rules: toml::Table = std::fs::read_to_string(path).expect("deny.toml").parse().expect("it is TOML");
    rules[table].as_table().expect("a table").clone()
}

fn name(package: &Value) -> String {
    format!("{} {}", package["name"].as_str().unwrap_or("?"), package["version"].as_str().unwrap_or("?"))
}

/// Of those that are not in this repository.
fn assert_none(what: &str, wrong: impl Fn(&Value) -> bool) {
    let found: Vec<String> = packages()
        .iter()
        .filter(|package| !package["source"].is_null() && wrong(package))
        .map(name)
        .collect();
    assert!(found.is_empty(), "{what}: {found:?}");
}

/// Whether an expression of a `license` field can be satisfied with these.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    // `MIT/Apache-2.0` is how crates said `OR` once.
    let Ok(expression) = spdx::Expression::parse_mode(expression, spdx::ParseMode::LAX) else { return false };
    expression.evaluate(|requirement| {
        // An exception only adds to what a licence permits.
        requirement.license.id().is_some_and(|id| allowed.iter().any(|name| name == id.name))
    })
}

#[test]
fn licences_are_those_that_may_ship_in_ramdisks() {
    let allowed: Vec<String> = rules("licenses")["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|name| Some(name.as_str()?.to_owned()))
        .collect();
    assert!(is_allowed("MIT OR GPL-3.0-only", &allowed) && is_allowed("MIT/Apache-2.0", &allowed));
    assert!(!is_allowed("GPL-3.0-only", &allowed) && !is_allowed("MIT AND LGPL-2.1-only", &allowed));
    assert_none("licence not in deny.toml", |package| {
        !package["license"].as_str().is_some_and(|expression| is_allowed(expression, &allowed))
    });
}

#[test]
fn unwanted_crates_are_not_there() {
    let rules = rules("bans");
    let unwanted: Vec<&str> =
        rules["deny"].as_array().expect("a list").iter().filter_map(|rule| rule["crate"].as_str()).collect();
    assert!(unwanted.len() >= 3, "{unwanted:?}");
    assert_none("banned in deny.toml", |package| {
        package["name"].as_str().is_some_and(|name| unwanted.contains(&name))
    });
}

#[test]
fn all_come_from_the_registry_in_versions_that_are_said() {
    assert_eq!(rules("sources")["unknown-registry"].as_str(), Some("deny"));
    assert_none("from elsewhere", |package| {
        package["source"].as_str() != Some("registry+https://github.com/rust-lang/crates.io-index")
    });
    let ours = packages().into_iter().find(|package| package["name"] == "farrier").expect("this one");
    let any: Vec<&Value> = ours["dependencies"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|dependency| dependency["req"] == "*")
        .collect();
    assert!(any.is_empty(), "any version will do: {any:?}");
}
