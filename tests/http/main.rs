//! The HTTP boot plane on real loopback sockets, as boot ROMs, agents and attackers would use it.
//!
//! Requests are written byte by byte and answers read as bytes: what counts is what is on the wire. Three addresses
//! of the loopback network play the parts: one of a registered node, one of another node, one of nobody we know.

mod agent;
mod connections;
mod content;
mod files;
mod heads;
mod metadata;
mod support;
