//! CLI

pub mod image;
