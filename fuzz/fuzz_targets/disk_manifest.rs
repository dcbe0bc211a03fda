#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| farrier_fuzz::run("disk_manifest", data));
