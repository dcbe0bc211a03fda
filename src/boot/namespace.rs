//! The virtual namespace.
