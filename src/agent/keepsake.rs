//! What outlives the agent's process, but not the boot: a file in `/run`, which is memory.
//!
//! A boot token is good for one agent. The nonce says that an agent that calls again, because its first call got no
//! answer or because it died in between, is still that one; so it is kept before the first call is made.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::agent::calls::Welcome;
use crate::node::token::AgentNonce;

/// Nobody but the agent runs in the ramdisk.
pub const FILE: &str = "/run/farrier-session.json";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Keepsake {
    /// Absent only where the kernel makes no UUIDs: then the first answer must not get lost.
    pub nonce: Option<AgentNonce>,
    /// Present once the appliance has answered.
    pub welcome: Option<Welcome>,
}

impl Keepsake {
    /// What an earlier agent of this boot left; else a new one, kept before it is used.
    pub fn of_this_boot(file: &Path) -> Keepsake {
        let kept = std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        kept.unwrap_or_else(|| {
            let new = Keepsake { nonce: nonce(), welcome: None };
            new.keep(file);
            new
        })
    }

    pub fn keep(&self, file: &Path) {
        // Renamed into place, so that no reader finds half of it. Should any of it fail, this agent goes on all the
        // same; one that takes its place would be refused, and would say so.
        if let Ok(text) = serde_json::to_vec(self) {
            let fresh = file.with_extension("new");
            let _ = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, file));
        }
    }
}

/// Sixteen bytes nobody else has: a UUID made by the kernel.
///
/// Not from getrandom(2): it waits until the kernel has collected entropy, and a machine that only waits collects
/// none. A virtual machine without a hardware generator stood still for minutes there. What the kernel has this
/// early does here; the secret proper is the token, which the appliance made.
fn nonce() -> Option<AgentNonce> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").ok()?;
    uuid.trim().replace('-', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_starts_again_goes_on_with_the_same_nonce_and_session() {
        let run = tempfile::tempdir().unwrap();
        let file = run.path().join("farrier-session.json");
        let first = Keepsake::of_this_boot(&file);
        assert!(first.nonce.is_some() && first.welcome.is_none());
        let again = Keepsake::of_this_boot(&file);
        assert_eq!(again.nonce, first.nonce, "its call went out, and it died before the answer");
        let welcome = Welcome { session: "s".to_owned(), node: "node1".to_owned(), heartbeat_secs: 5 };
        Keepsake { welcome: Some(welcome), ..again }.keep(&file);
        let third = Keepsake::of_this_boot(&file);
        assert_eq!((third.nonce, third.welcome.unwrap().session.as_str()), (first.nonce, "s"));
        std::fs::remove_file(&file).unwrap();
        assert_ne!(Keepsake::of_this_boot(&file).nonce, first.nonce, "another boot, another nonce");
    }

    #[test]
    fn a_damaged_file_or_none_to_be_written_stops_nobody() {
        let run = tempfile::tempdir().unwrap();
        let file = run.path().join("farrier-session.json");
        std::fs::write(&file, b"{\"nonce\":\"00").unwrap();
        assert!(Keepsake::of_this_boot(&file).nonce.is_some());
        assert!(Keepsake::of_this_boot(&run.path().join("missing/file")).nonce.is_some());
    }
}
