//! The operators' page in a real browser: Debian's chromium, driven through its own driver.
//!
//! Most of it runs against an operator plane in this process, whose machines are played: they may be many, and as
//! nasty as one likes. One case has the whole appliance in the lab, and a real machine in QEMU.
//!
//! Screenshots are kept in `target/page-screenshots/`, of every page, narrow and wide, dark and light.

mod accessible;
mod browser;
#[path = "../it/dissect.rs"]
#[expect(dead_code, reason = "shared with tests that capture by themselves")]
mod dissect;
mod inert;
mod lab;
mod many;
mod operate;
mod play;
mod rig;
