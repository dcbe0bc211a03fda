//! Boot loaders: which one a firmware gets, under which name it is served, and where the distribution keeps it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name a loader is served under, e.g. `undionly.kpxe` or `uefi-x64/shimx64.efi`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoaderName(pub String);

impl fmt::Display for LoaderName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
