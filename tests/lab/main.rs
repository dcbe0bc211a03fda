//! Real firmware in QEMU boots from the real appliance, in a network namespace of its own.
//!
//! Cases run one after the other: two cores cannot run two labs. What a failed case leaves in `tests/output/lab` is
//! told on its end: serial logs, a capture, the appliance's log and the machines' timelines.

mod beside;
mod claimed;
mod console;
mod crashes;
#[path = "../it/dissect.rs"]
#[expect(dead_code, reason = "shared with tests that capture by themselves")]
mod dissect;
mod enrolls;
mod grub;
mod installer;
mod installs;
mod profiles;
mod secure_boot;
mod stops;
mod support;
mod system_image;
mod u_boot;
