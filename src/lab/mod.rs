//! Lab
