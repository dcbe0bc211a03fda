//! The HTTP boot plane: what nodes fetch and whom the agent calls. Bound to the bridge, never to anything else.
//!
//! A request passes these, from the wire inwards:
//! - [`network`]: the listener, its limits, and the end of it all
//! - [`workers`]: the threads that serve connections
//! - [`connection`]: one connection; bytes pass through it to hyper and back
//! - [`head`]: request heads checked more strictly than hyper does; pure
//! - [`pulse`]: the timers of a connection; pure
//! - [`service`]: one request, one answer
//! - [`downloads`]: who may fetch a large file when all want to
//! - [`files`]: RFC 9110 conditions and ranges; pure
//! - [`content`]: what a node may fetch; TFTP asks it too
//! - [`paces`]: how fast each machine is sent files that cannot take them fast
//! - [`profiles`]: which boot profile each node has
//! - [`per_minute`]: how often misses, refusals and fetches are noted before they are only counted; pure
//! - [`agent_calls`]: the agent's JSON calls
//! - [`metadata`]: what installed systems read of themselves, and their call home
//! - [`allowance`]: how much a peer may ask at once and in the long run; pure
//! - [`body`]: what of an answer the kernel has not taken yet; its end is always told
//! - [`line`]: what the parts of one connection share
//! - [`limits`]: every bound, with what happens at it

pub mod agent_calls;
pub mod allowance;
pub mod body;
pub mod connection;
pub mod content;
pub mod downloads;
pub mod files;
pub mod head;
pub mod limits;
pub mod line;
pub mod metadata;
pub mod network;
pub mod paces;
pub mod per_minute;
pub mod profiles;
pub mod pulse;
pub mod service;
pub mod workers;
