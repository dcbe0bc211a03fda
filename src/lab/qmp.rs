//! QMP, as much of it as a power switch needs: JSON lines over the machine's Unix socket.
//!
//! QEMU lives as long as the lab. A machine is off when its CPU is stopped at the reset vector, and on otherwise;
//! a guest that powers itself off stops there too (`-action shutdown=pause`).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::state::connect;

/// QEMU answers from its main loop; a busy TCG guest delays that by milliseconds.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Longest line taken; replies to our commands are below 300 bytes.
const LINE_MAX: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("the machine's QMP socket does not answer")]
    Io(#[from] io::Error),
    #[error("QEMU's answer is not QMP")]
    NotQmp(#[source] serde_json::Error),
    #[error("QEMU closed the QMP socket")]
    Closed,
    #[error("QEMU refused `{command}`: {said}")]
    Refused { command: &'static str, said: String },
}

/// A machine's power, as QEMU sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    On,
    Off,
    /// The virtual CPU cannot go on (KVM's "internal error").
    Broken,
}

impl Power {
    pub fn as_str(self) -> &'static str {
        match self {
            Power::On => "on",
            Power::Off => "off",
            Power::Broken => "broken",
        }
    }
}

pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    pub fn connect(socket: &Path) -> Result<Qmp, QmpError> {
        let stream = connect(socket)?;
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        stream.set_write_timeout(Some(ANSWERS_WITHIN))?;
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        qmp.read_line()?;
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    pub fn power(&mut self) -> Result<Power, QmpError> {
        let status = self.execute("query-status")?;
        Ok(match status["status"].as_str() {
            Some("running") => Power::On,
            Some("internal-error") => Power::Broken,
            _ => Power::Off,
        })
    }

    /// Switches on, from reset. A machine that is on stays as it is.
    pub fn power_on(&mut self) -> Result<(), QmpError> {
        if self.power()? == Power::On {
            return Ok(());
        }
        // After the guest's own power-off QEMU wants a reset before it goes on.
        self.execute("system_reset")?;
        self.execute("cont")?;
        Ok(())
    }

    /// Pulls the plug.
    pub fn power_off(&mut self) -> Result<(), QmpError> {
        self.execute("stop")?;
        self.execute("system_reset")?;
        Ok(())
    }

    /// Off and on again.
    pub fn reset(&mut self) -> Result<(), QmpError> {
        self.power_off()?;
        self.power_on()
    }

    fn execute(&mut self, command: &'static str) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": command }).to_string();
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut reply = self.read_line()?;
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = reply.get("error") {
                let said = error["desc"].as_str().unwrap_or("no reason given").to_owned();
                return Err(QmpError::Refused { command, said });
            }
            // Anything else is an event; none of them matters here.
        }
    }

    fn read_line(&mut self) -> Result<Value, QmpError> {
        let mut line = String::new();
        if self.stream.by_ref().take(LINE_MAX).read_line(&mut line)? == 0 {
            return Err(QmpError::Closed);
        }
        serde_json::from_str(&line).map_err(QmpError::NotQmp)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Answers like QEMU: a greeting, then one reply per command, with an event before each.
    fn fake(socket: &Path, replies: Vec<&'static str>) -> thread::JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(socket).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            writeln!(writer, r#"{{"QMP": {{}}}}"#).unwrap();
            let mut seen = Vec::new();
            for reply in replies {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                seen.push(serde_json::from_str::<Value>(&line).unwrap()["execute"].as_str().unwrap().into());
                writeln!(writer, r#"{{"event": "RESUME"}}"#).unwrap();
                writeln!(writer, "{reply}").unwrap();
            }
            seen
        })
    }

    #[test]
    fn a_stopped_machine_is_reset_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp.sock");
        let done = r#"{"return": {}}"#;
        let qemu = fake(&socket, vec![done, r#"{"return": {"status": "shutdown"}}"#, done, done]);
        Qmp::connect(&socket).unwrap().power_on().unwrap();
        assert_eq!(qemu.join().unwrap(), ["qmp_capabilities", "query-status", "system_reset", "cont"]);
    }

    #[test]
    fn a_refusal_says_what_qemu_said() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp.sock");
        let qemu = fake(&socket, vec![r#"{"return": {}}"#, r#"{"error": {"desc": "no way"}}"#]);
        let error = Qmp::connect(&socket).unwrap().power_off().unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused `stop`: no way");
        qemu.join().unwrap();
        assert!(matches!(Qmp::connect(&directory.path().join("none")), Err(QmpError::Io(_))));
    }
}
