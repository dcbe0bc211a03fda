//! `INDEX.md` says where each acceptance check is: all of them are there, each test it names exists, and each test that
//! carries a number is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Checks by chapter: DHCP, PXE, TFTP, HTTP, security, reliability.
const CHAPTERS: [(char, u32); 6] = [('D', 40), ('P', 23), ('T', 20), ('H', 15), ('S', 20), ('R', 18)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn all_ids() -> BTreeSet<String> {
    CHAPTERS
        .iter()
        .flat_map(|(chapter, count)| (1..=*count).map(move |number| format!("{chapter}-{number:02}")))
        .collect()
}

/// The ids a test's name begins with: `p_01_p_02_every_firmware_boots` carries two.
fn ids_of(name: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut rest = name;
    while let Some((chapter, behind)) = rest.split_once('_')
        && let Some((number, behind)) = behind.split_once('_')
        && matches!(chapter, "d" | "p" | "t" | "h" | "s" | "r")
        && number.len() == 2
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        ids.push(format!("{}-{number}", chapter.to_ascii_uppercase()));
        rest = behind;
    }
    ids
}

/// Functions with ids in their names, below `tests/` and `src/`: (file, name).
fn numbered_tests() -> BTreeSet<(String, String)> {
    let mut folders = vec![root().join("tests"), root().join("src")];
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.extend(functions(&path).into_iter().filter(|(_, name)| !ids_of(name).is_empty()));
            }
        }
    }
    found
}

fn functions(path: &PathBuf) -> Vec<(String, String)> {
    let file = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    let text = fs::read_to_string(path).unwrap();
    let names = text.lines().filter_map(|line| {
        let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("async ");
        line.strip_prefix("fn ")?.split(['(', '<']).next()
    });
    names.map(|name| (file.clone(), name.to_owned())).collect()
}

struct Row {
    /// The tests, and words.
    told: String,
    /// In what they fall short of the check.
    weaker: String,
}

/// The table, by id.
fn index() -> BTreeMap<String, Row> {
    let text = fs::read_to_string(root().join("tests/conformance/INDEX.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| id"));
    let mut index = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row[1..row.len() - 1].split('|').map(str::trim).collect();
        let [id, told, weaker] = cells[..] else { panic!("three columns: {row}") };
        let row = Row { told: told.to_owned(), weaker: weaker.to_owned() };
        assert!(index.insert(id.to_owned(), row).is_none(), "{id} is there twice");
    }
    index
}

/// The tests that a row names, as (file, name).
fn named_in(told: &str) -> Vec<(String, String)> {
    let names = told.split('`').filter(|word| word.contains(".rs::"));
    names
        .filter_map(|word| word.split_once("::"))
        .map(|(file, name)| (file.to_owned(), name.to_owned()))
        .collect()
}

#[test]
fn every_check_has_its_place_in_the_index() {
    let index = index();
    let listed: BTreeSet<String> = index.keys().cloned().collect();
    assert_eq!(listed, all_ids());
    for (id, Row { told, .. }) in &index {
        let waits = told.starts_with("waits: ") && told.len() > "waits: ".len();
        assert!(waits || !named_in(told).is_empty(), "{id} has neither a test nor a reason: {told:?}");
    }
}

#[test]
fn every_test_in_the_index_exists() {
    for (id, row) in index() {
        for (file, name) in named_in(&row.told) {
            let path = root().join(&file);
            assert!(path.is_file(), "{id}: {file} is gone");
            assert!(functions(&path).iter().any(|(_, other)| *other == name), "{id}: no `{name}` in {file}");
        }
    }
}

#[test]
fn every_numbered_test_is_in_the_index() {
    let index = index();
    for (file, name) in numbered_tests() {
        for id in ids_of(&name) {
            let row = index.get(&id).unwrap_or_else(|| panic!("{file}::{name}: there is no {id}"));
            assert!(
                named_in(&row.told).contains(&(file.clone(), name.clone())),
                "{id} does not name {file}::{name}"
            );
        }
    }
}

#[test]
fn every_test_in_the_index_begins_with_its_number() {
    for (id, Row { told, weaker }) in index() {
        // What is there before its time, or tests only the code, may be called what it is.
        if told.contains("later") || weaker.contains("unit test") {
            continue;
        }
        for (file, name) in named_in(&told) {
            assert!(ids_of(&name).contains(&id), "{id}: {file}::{name} does not begin with it");
        }
    }
}

/// Where only the servers run, in the process of the test and by its settings, the program itself is not what is tested.
#[test]
fn a_check_without_the_program_is_said_to_be_one() {
    const IN_PROCESS: [&str; 3] = ["tests/net/", "tests/tftp/", "tests/http/"];
    for (id, Row { told, weaker }) in index() {
        let named = named_in(&told);
        let is_in_process = |(file, _): &(String, String)| IN_PROCESS.iter().any(|it| file.starts_with(it));
        if !named.is_empty() && named.iter().all(is_in_process) {
            assert!(weaker.contains("in the test's process"), "{id} is not tested against the program");
        }
    }
}
