//! HTTP boot plane
