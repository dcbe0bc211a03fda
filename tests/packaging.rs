//! `make install`, `make uninstall` and `make deb`, into roots of their own: what is put in place, runs, and goes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Directory of the binaries under test: the release ones if named, else those built beside this test.
fn built() -> PathBuf {
    match std::env::var_os("FARRIER_BINARIES") {
        Some(directory) => directory.into(),
        None => Path::new(env!("CARGO_BIN_EXE_farrier")).parent().expect("a directory").to_owned(),
    }
}

fn run(command: &mut Command) -> String {
    let output: Output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {told}");
    told
}

fn package_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

fn install(action: &str, root: &Path) -> String {
    run(Command::new(package_file("install"))
        .args([action.as_ref(), built().as_os_str()])
        .env("DESTDIR", root))
}

/// Every file below, as paths from there.
fn files(root: &Path) -> Vec<String> {
    let mut folders = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).expect("below").display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn install_puts_everything_in_place_and_uninstall_takes_it_away() {
    let root = tempfile::tempdir().expect("a directory");
    install("put", root.path());
    let there = files(root.path());
    for wanted in [
        "etc/farrier/farrier.toml",
        "usr/local/bin/farrier",
        "usr/local/bin/farrier-agent",
        "usr/local/lib/systemd/system/farrier.service",
        "usr/local/share/bash-completion/completions/farrier",
        "usr/local/share/fish/vendor_completions.d/farrier.fish",
        "usr/local/share/man/man1/farrier-node-add.1.gz",
        "usr/local/share/man/man1/farrier.1.gz",
        "usr/local/share/zsh/site-functions/_farrier",
    ] {
        assert!(there.iter().any(|file| file == wanted), "{wanted} is not among {there:#?}");
    }
    let unit = fs::read_to_string(root.path().join("usr/local/lib/systemd/system/farrier.service"))
        .expect("the unit");
    assert!(unit.contains("ExecStart=/usr/local/bin/farrier serve"), "{unit}");
    run(Command::new(root.path().join("usr/local/bin/farrier")).arg("--version"));
    let config = root.path().join("etc/farrier/farrier.toml");
    fs::write(&config, "# mine\n").expect("a changed configuration");
    assert!(install("put", root.path()).contains("kept"), "a second install keeps the configuration");
    assert!(install("remove", root.path()).contains("it was changed"));
    assert_eq!(files(root.path()), ["etc/farrier/farrier.toml"]);
    fs::remove_file(&config).expect("removed");
    install("put", root.path());
    install("remove", root.path());
    assert!(files(root.path()).is_empty(), "{:?}", files(root.path()));
}

#[test]
fn bash_completes_commands_and_nodes_verbs() {
    let root = tempfile::tempdir().expect("a directory");
    install("put", root.path());
    let script = root.path().join("usr/local/share/bash-completion/completions/farrier");
    for (words, wanted) in [("farrier no", "node"), ("farrier node ap", "approve")] {
        let program = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _farrier farrier \
             \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let told = run(Command::new("bash").args(["--norc", "-c", &program]));
        assert_eq!(told.trim(), wanted, "{words}");
    }
}

#[test]
fn the_debian_package_installs_and_runs() {
    let work = tempfile::tempdir().expect("a directory");
    let package = run(Command::new(package_file("deb/build")).arg(built()).arg(work.path()));
    let package = package.lines().last().expect("the package's name").to_owned();
    let root = work.path().join("root");
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        fs::create_dir_all(root.join(folder)).expect("a root for dpkg");
    }
    // What the package depends on, as far as this root is concerned; the programs are the machine's.
    let depended = "Package: passwd\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\
         Maintainer: nobody <nobody@localhost>\nDescription: useradd\n";
    fs::write(root.join("var/lib/dpkg/status"), depended).expect("a database");
    let dpkg = |arguments: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display()));
        command.args(["--force-script-chrootless", "--force-not-root", "--log=/dev/null"]).args(arguments);
        run(&mut command)
    };
    let told = dpkg(&["--install", &package]);
    assert!(told.contains("set network.bridge"), "{told}");
    let users = fs::read_to_string(root.join("etc/passwd")).expect("users");
    assert!(users.lines().any(|line| line.starts_with("farrier:")), "{users}");
    // A bridge of its own in a namespace of its own; the appliance from the package, with the package's configuration.
    let (state, socket) = (work.path().join("state"), work.path().join("operator.sock"));
    fs::create_dir(&state).expect("a state directory");
    let config = root.join("etc/farrier/farrier.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    let text = text
        .replace("#bridge = \"br-deploy\"", "bridge = \"br-deploy\"")
        .replace("#address = \"192.168.2.2/24\"", "address = \"192.168.2.2/24\"")
        .replace("#path = \"/var/lib/farrier\"", &format!("path = \"{}\"", state.display()))
        .replace("#socket = \"/run/farrier/operator.sock\"", &format!("socket = \"{}\"", socket.display()));
    fs::write(&config, text).expect("a configuration");
    let script = format!(
        "set -e; ip link set lo up; ip link add br-deploy type bridge; ip address add 192.168.2.2/24 dev br-deploy\n\
         ip link set br-deploy up; {farrier} serve --config {config} & appliance=$!\n\
         for attempt in $(seq 300); do {farrier} --socket {socket} status 2>&1 && break; kill -0 $appliance; sleep 0.1; done\n\
         kill $appliance; wait $appliance",
        farrier = root.join("usr/bin/farrier").display(),
        config = config.display(),
        socket = socket.display(),
    );
    let told = run(Command::new("unshare").args(["-rn", "bash", "-c", &script]));
    assert!(told.contains("192.168.2.2/24"), "{told}");
    dpkg(&["--purge", "farrier"]);
    assert!(!root.join("usr/bin/farrier").exists());
}
