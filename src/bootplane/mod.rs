//! The HTTP boot plane: what nodes fetch and whom the agent calls. Bound to the bridge, never to anything else.
pub mod body;
pub mod files;
pub mod head;
pub mod limits;
pub mod pulse;
