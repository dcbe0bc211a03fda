//! Operator plane
