//! advertise
