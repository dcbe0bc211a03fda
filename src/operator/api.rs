//! The operator API's documents: one struct each, written by the server and read by the CLI.
//!
//! Names are stable: fields are added, not renamed. Times are RFC 3339, durations carry their unit. `docs/openapi.json`
//! is generated from these types.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod events;
mod images;
mod leases;
mod nodes;
mod problem;
mod profiles;
mod roster;
mod schema;
mod status;
mod tasks;

pub use events::*;
pub use images::*;
pub use leases::*;
pub use nodes::*;
pub use problem::*;
pub use profiles::*;
pub use roster::*;
pub use status::*;
pub use tasks::*;

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// `cursor` of the next page; absent on the last one. The `Link` header has its whole address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Page<T> {
    pub fn map<U>(self, shown: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(shown).collect(), next: self.next }
    }
}
