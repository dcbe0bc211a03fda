//! Images
