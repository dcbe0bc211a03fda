//! The HTTP boot plane: what nodes fetch and whom the agent calls. Bound to the bridge, never to anything else.
//!
//! - [`files`]: RFC 9110 conditions and ranges; pure
pub mod files;
