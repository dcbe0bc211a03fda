//! Every cause a verdict can name, injected from outside: the real appliance on a real bridge, and machines that send
//! what firmware sends, as far as the fault lets them. The verdict is asked for as operators do: `farrier why`.
//!
//! What is late is late by the firmware's own deadlines; `--at` asks how a boot will be judged if nothing more comes.

mod dhcp;
mod explain;
mod files;
mod machine;
mod premises;
mod ramdisk;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "shared with the other black-box tests, which use more of it")]
mod support;
