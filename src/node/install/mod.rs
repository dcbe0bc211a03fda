//! Installing: what an operator wants done to a node's disks, carried out exactly once.
//!
//! - [`intent`]: one wish, its phases, and the table of what moves it; pure, and checked exhaustively
//! - [`task`]: the wish as the agent is told it, and what the agent tells back
//! - [`event`]: what the timeline tells of it
//! - [`first_boot`]: what the operator gave for the installed system
//! - [`disk_rule`]: which of a machine's disks is meant

pub mod disk_rule;
pub mod event;
pub mod first_boot;
pub mod intent;
pub mod task;
