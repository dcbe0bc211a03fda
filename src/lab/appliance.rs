//! The appliance in the lab: its configuration, its command line, and the wait until it is ready.

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use toml::{Table, Value};

use crate::lab::config::LabConfig;
use crate::lab::launch::last_lines;
use crate::lab::plan::ProgramPlan;
use crate::lab::prepare::PROFILE;
use crate::lab::process::look_again;
use crate::lab::state::{SOCKET_PATH_MAX, StateDir, connect};

/// Name of the appliance among the lab's programs.
pub const NAME: &str = "appliance";

/// Hands standard input on as descriptor 3, as systemd hands over sockets; `exec` keeps the process id, which is
/// what LISTEN_PID has to say.
const HAND_OVER: &str = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";

/// Writes the appliance's configuration and tells how it is run.
pub fn program(
    farrier: &Path,
    config: &LabConfig,
    state: &StateDir,
    operator: Option<SocketAddr>,
) -> anyhow::Result<ProgramPlan> {
    let path = state.appliance_config();
    let text = format!(
        "# Written by the lab at every start; change `[appliance]` in lab.toml instead.\n{}",
        toml::to_string(&configuration(config, state, operator)?)?
    );
    fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    fs::create_dir_all(state.appliance_state())?;
    let farrier = farrier.to_str().context("the path of `farrier` is not UTF-8")?;
    let command = ["sh", "-c", HAND_OVER, "sh", farrier, "serve", "--config", "farrier.toml"];
    Ok(ProgramPlan {
        name: NAME.to_owned(),
        arguments: command.map(str::to_owned).to_vec(),
        directory: state.root().to_owned(),
        log: state.appliance_log(),
        takes_listener: operator.is_some(),
        restarts: true,
    })
}

/// `[appliance]` of `lab.toml`, and over it what the lab itself decides.
fn configuration(
    config: &LabConfig,
    state: &StateDir,
    operator: Option<SocketAddr>,
) -> anyhow::Result<Table> {
    let text = |value: &dyn ToString| Value::String(value.to_string());
    let mut table = config.appliance.clone();
    let network = [
        ("bridge", text(&config.bridge)),
        ("address", text(&config.address)),
        ("gateway", text(&config.host)),
    ];
    // The configuration wants absolute paths, a Unix socket short ones: the working directory's is both.
    let mut socket = state.operator_socket();
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        socket = Path::new("/proc/self/cwd").join(socket.file_name().unwrap_or_default());
    }
    let listen = operator.map_or_else(|| Value::String("off".to_owned()), |address| text(&address));
    lay_over(&mut table, "network", network)?;
    let consoles = utf8(&state.consoles())?;
    lay_over(
        &mut table,
        "operator",
        [("socket", utf8(&socket)?), ("listen", listen), ("consoles", consoles)],
    )?;
    lay_over(&mut table, "store", [("path", utf8(&state.appliance_state())?)])?;
    // Root of the lab's namespace is whoever started it, and the state directory is theirs.
    lay_over(&mut table, "process", [("user", Value::String("0".to_owned()))])?;
    if let Some(boot) = table.entry("boot").or_insert_with(|| Value::Table(Table::new())).as_table_mut() {
        boot.entry("profile").or_insert_with(|| Value::String(PROFILE.to_owned()));
    }
    Ok(table)
}

fn utf8(path: &Path) -> anyhow::Result<Value> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(Value::String(text.to_owned()))
}

fn lay_over(
    table: &mut Table,
    section: &str,
    keys: impl IntoIterator<Item = (&'static str, Value)>,
) -> anyhow::Result<()> {
    let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    let Some(entry) = entry.as_table_mut() else { bail!("`appliance.{section}` is not a table") };
    for (key, value) in keys {
        entry.insert(key.to_owned(), value);
    }
    Ok(())
}

/// What a fresh start forgets: nodes, leases and timelines, but no image.
pub fn database_files(state: &StateDir) -> Vec<PathBuf> {
    ["farrier.db", "farrier.db-wal", "farrier.db-shm"].map(|name| state.appliance_state().join(name)).to_vec()
}

/// Waits until the appliance answers, which is the last thing it starts. Its readiness is another matter: a lab may
/// lack an image, to see what comes of that.
pub fn await_serving(state: &StateDir, within: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    loop {
        if is_serving(state).unwrap_or(false) {
            return Ok(());
        }
        let record = state.read_run_record()?.context("the lab has ended")?;
        let appliance = record.programs.iter().find(|program| program.name == NAME);
        if let Some(ended) = appliance.and_then(|program| program.ended.as_ref()) {
            bail!("the appliance does not start ({ended}); {}", last_lines(&state.appliance_log()));
        }
        if Instant::now() >= deadline {
            bail!(
                "the appliance does not answer within {} s; {}",
                within.as_secs(),
                last_lines(&state.appliance_log())
            );
        }
        look_again();
    }
}

fn is_serving(state: &StateDir) -> io::Result<bool> {
    let mut stream = connect(&state.operator_socket())?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: farrier\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_decides_network_and_paths_and_the_file_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let mut config = LabConfig::built_in().unwrap();
        config.appliance = toml::from_str(
            "[dhcp]\nunknown = 'approve'\n[network]\nbridge = 'eth0'\ndns = ['192.168.2.1']\n",
        )
        .unwrap();
        let table = configuration(&config, &state, None).unwrap();
        assert_eq!(table["network"]["bridge"].as_str(), Some("ooodemo"));
        assert_eq!(table["network"]["dns"][0].as_str(), Some("192.168.2.1"));
        assert_eq!(table["dhcp"]["unknown"].as_str(), Some("approve"));
        assert_eq!(table["boot"]["profile"].as_str(), Some("vm"));
        assert_eq!(table["operator"]["listen"].as_str(), Some("off"));
        config.appliance = toml::from_str("network = 1").unwrap();
        assert!(configuration(&config, &state, None).is_err());
    }
}
