//! What an operator gave for the system that is installed: kept beside the node, and no longer than it is needed.

use serde::{Deserialize, Serialize};

use crate::metadata::document::{SSH_KEYS_MAX, UserData, UserDataError};
use crate::metadata::gate::Reads;
use crate::metadata::ssh_key::{ParseSshKeyError, SshKey};
use crate::node::NodeId;
use crate::node::install::intent::IntentId;

/// Keyed by node; a new intent replaces it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstBoot {
    pub node: NodeId,
    pub intent: IntentId,
    pub ssh_keys: Vec<SshKey>,
    /// Gone once the installed system has called.
    pub user_data: Option<UserData>,
    /// Which secrets were handed out over the network.
    #[serde(default)]
    pub reads: Reads,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FirstBootError {
    #[error("{count} SSH keys are too many: at most {SSH_KEYS_MAX}")]
    TooManyKeys { count: usize },
    #[error(transparent)]
    Key(#[from] ParseSshKeyError),
    #[error(transparent)]
    UserData(#[from] UserDataError),
}

/// The operator's wishes, checked.
pub fn check(
    ssh_keys: &[String],
    user_data: Option<String>,
) -> Result<(Vec<SshKey>, Option<UserData>), FirstBootError> {
    if ssh_keys.len() > SSH_KEYS_MAX {
        return Err(FirstBootError::TooManyKeys { count: ssh_keys.len() });
    }
    let keys = ssh_keys.iter().map(|key| key.parse()).collect::<Result<_, ParseSshKeyError>>()?;
    Ok((keys, user_data.map(UserData::try_from).transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_bounded_and_checked_before_anything_is_recorded() {
        let (keys, user_data) = check(&[], Some("#!/bin/sh\necho hello\n".to_owned())).unwrap();
        assert!(keys.is_empty() && user_data.is_some());
        assert!(matches!(check(&["nonsense".to_owned()], None), Err(FirstBootError::Key(_))));
        assert!(matches!(check(&[], Some("a\0b".to_owned())), Err(FirstBootError::UserData(_))));
        let many = vec![String::new(); SSH_KEYS_MAX + 1];
        assert!(matches!(check(&many, None), Err(FirstBootError::TooManyKeys { .. })));
    }
}
