//! Rules of ARCHITECTURE.md that a reader of the source can check, checked.

use std::fs;
use std::path::{Path, PathBuf};

/// Files that must know no socket, file, clock or runtime (invariant 1).
const PURE: [&str; 37] = [
    "src/boot/client.rs",
    "src/boot/decision.rs",
    "src/boot/loader.rs",
    "src/boot/namespace.rs",
    "src/boot/quirks.rs",
    "src/boot/profile",
    "src/boot/script",
    "src/bootplane/files.rs",
    "src/bridge_log/event.rs",
    "src/bridge_log/outages.rs",
    "src/dhcp/lease",
    "src/dhcp/reply",
    "src/dhcp/request",
    "src/dhcp/server",
    "src/dhcp/wire",
    "src/doctor/firewall",
    "src/doctor/judge",
    "src/explain",
    "src/guard/rivals.rs",
    "src/guard/sighting.rs",
    "src/metadata",
    "src/net/pace.rs",
    "src/agent/install/signatures.rs",
    "src/node/install/disk_rule",
    "src/node/inventory.rs",
    "src/node/state.rs",
    "src/node/timeline.rs",
    "src/node/transition",
    "src/node/verdict",
    "src/storm/firmware.rs",
    "src/storm/http.rs",
    "src/storm/machine",
    "src/storm/message.rs",
    "src/storm/random.rs",
    "src/storm/script.rs",
    "src/storm/tftp.rs",
    "src/tftp/transfer",
];
const IMPURE_WORDS: [&str; 9] = [
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "tokio::",
    "std::fs",
    "Instant::now",
    "SystemTime",
    "rusqlite",
    "getrandom",
];
/// The one file with `unsafe` (invariant 11).
const UNSAFE_FILE: &str = "src/net/sys.rs";
/// A file tells one story; past this it tells two.
const FILE_LINES_MAX: usize = 600;

/// Every Rust file of the product, as (path from the package root, text without its test module).
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    let texts: Vec<(PathBuf, String)> =
        files.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("UTF-8"))).collect();
    let for_tests: Vec<PathBuf> = texts.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    texts
        .into_iter()
        .filter(|(path, _)| !for_tests.iter().any(|module| path.starts_with(module)))
        .map(|(path, text)| {
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
            (name, product)
        })
        .collect()
}

/// Files and folders of the modules a file declares for tests only.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") | None => path.parent().expect("a file has a folder").to_owned(),
        Some(_) => path.with_extension(""),
    };
    let mut lines = text.lines();
    let mut modules = Vec::new();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]"
            && let Some(declared) = lines.next()
            && let Some(name) = declared.trim_start_matches("pub ").strip_prefix("mod ")
            && let Some(name) = name.strip_suffix(';')
        {
            modules.push(folder.join(format!("{name}.rs")));
            modules.push(folder.join(name));
        }
    }
    modules
}

/// Lines of code: what is behind `//` does not count.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
}

fn offences(wrong: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in sources() {
        for (number, line) in code_lines(&text) {
            if wrong(&name, line) {
                found.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    found
}

#[test]
fn pure_cores_name_no_socket_file_clock_or_runtime() {
    let found = offences(|name, line| {
        PURE.iter().any(|pure| name.starts_with(pure)) && IMPURE_WORDS.iter().any(|word| line.contains(word))
    });
    assert!(found.is_empty(), "invariant 1:\n{}", found.join("\n"));
}

#[test]
fn the_pure_list_names_files_that_exist() {
    let sources = sources();
    for pure in PURE {
        assert!(sources.iter().any(|(name, _)| name.starts_with(pure)), "{pure} is gone: mend the list");
    }
}

#[test]
fn wildcard_addresses_are_bound_in_one_place() {
    let found = offences(|name, line| {
        (line.contains("UNSPECIFIED") || line.contains("0.0.0.0:"))
            && line.contains("bind")
            && name != "src/net/bridge.rs"
    });
    assert!(found.is_empty(), "invariant 4:\n{}", found.join("\n"));
}

#[test]
fn the_product_does_not_know_the_lab() {
    let found = offences(|name, line| {
        !["src/lab/", "src/storm/", "src/doctor", "src/cli/", "src/lib.rs"]
            .iter()
            .any(|place| name.starts_with(place))
            && ["crate::lab", "farrier::lab", "crate::storm", "crate::doctor"]
                .iter()
                .any(|outside| line.contains(outside))
    });
    assert!(found.is_empty(), "invariant 10:\n{}", found.join("\n"));
}

#[test]
fn unsafe_is_forbidden_to_all_but_one_file() {
    let read = |name: &str| {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("a file of the product")
    };
    let mut found = Vec::new();
    for (name, exception) in [("src/lib.rs", "pub mod net;"), ("src/net/mod.rs", "pub mod sys;")] {
        let text = read(name);
        let lines: Vec<&str> = text.lines().collect();
        let is_module =
            |line: &str| line.ends_with(';') && (line.starts_with("pub mod ") || line.starts_with("mod "));
        for pair in lines.windows(2).filter(|pair| is_module(pair[1]) && pair[1] != exception) {
            if pair[0] != "#[forbid(unsafe_code)]" {
                found.push(format!("{name}: {}", pair[1]));
            }
        }
        assert!(lines.contains(&exception), "{name}");
    }
    let mut roots = vec!["src/main.rs".to_owned()];
    roots.extend(sources().into_iter().map(|(name, _)| name).filter(|name| name.starts_with("src/bin/")));
    assert!(roots.len() > 1, "{roots:?}");
    found.extend(
        roots.into_iter().filter(|name| !read(name).lines().any(|line| line == "#![forbid(unsafe_code)]")),
    );
    assert!(found.is_empty(), "invariant 11: these may say `allow`:\n{}", found.join("\n"));
}

#[test]
fn unsafe_is_one_file_and_each_use_says_why() {
    let found = offences(|name, line| name != UNSAFE_FILE && line.contains("unsafe "));
    assert!(found.is_empty(), "invariant 11:\n{}", found.join("\n"));
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(UNSAFE_FILE)).expect("the file");
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if code.contains("unsafe {") || code.contains("unsafe impl") {
            let above = &lines[index.saturating_sub(6)..index];
            assert!(
                above.iter().any(|line| line.contains("SAFETY")),
                "{UNSAFE_FILE}:{} has no SAFETY note",
                index + 1
            );
        }
    }
}

#[test]
fn files_fit_in_the_head_and_open_with_their_story() {
    let mut found = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            found.push(format!("{name}: {lines} lines, {FILE_LINES_MAX} at most"));
        }
        if !text.starts_with("//!") {
            found.push(format!("{name}: does not open with a `//!` story"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn nothing_is_left_open() {
    let found =
        offences(|_, line| ["todo!(", "unimplemented!(", "dbg!("].iter().any(|word| line.contains(word)));
    assert!(found.is_empty(), "{}", found.join("\n"));
}
