//! Profiles for tests.

use super::*;
use crate::image::digest::Digest;

pub(crate) fn blob(text: &str) -> BlobRef {
    let (digest, bytes) = Digest::of_stream(&mut text.as_bytes(), |_| Ok(())).expect("bytes in memory");
    BlobRef { digest, bytes }
}

pub(crate) fn kernel(name: &str, initrds: usize, arguments: &[&str]) -> BootProfile {
    let what = What::Kernel {
        kernel: blob("kernel"),
        initrds: (0..initrds).map(|number| blob(&format!("initrd {number}"))).collect(),
        arguments: arguments.iter().map(|word| word.parse().expect("an argument")).collect(),
    };
    let program = Program { signature: Signature::Whole, platform: Some(Firmware::UefiX64), bios: true };
    profile(name, what, program)
}

pub(crate) fn efi(name: &str) -> BootProfile {
    let program = Program { platform: Some(Firmware::UefiX64), ..Program::default() };
    profile(name, What::EfiProgram { program: blob("program") }, program)
}

pub(crate) fn iso(name: &str) -> BootProfile {
    profile(name, What::Iso { image: blob("image") }, Program::default())
}

fn profile(name: &str, what: What, program: Program) -> BootProfile {
    BootProfile { name: name.parse().expect("a name"), what, one_shot: false, description: None, program }
}
