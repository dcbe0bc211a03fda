//! Building from a kernel package laid out in a temporary directory, without apt.

use super::*;
use crate::agent::drivers::ModuleIndex;
use crate::image::cpio::{self, Kind};
use crate::image::recipe::WantedModule;

/// A kernel package as dpkg-deb leaves it, with two modules, one of them compressed.
fn kernel_tree(root: &Path) -> Kernel {
    let package = Package {
        name: "linux-image-6.1.0-1-test".to_owned(),
        version: "6.1".to_owned(),
        architecture: "amd64".to_owned(),
        size: 0,
        sha256: String::new(),
        depends: Vec::new(),
    };
    let modules = root.join("lib/modules/6.1.0-1-test");
    for (path, bytes) in [
        ("boot/vmlinuz-6.1.0-1-test", b"kernel".to_vec()),
        ("lib/modules/6.1.0-1-test/kernel/virtio.ko", b"virtio".to_vec()),
        (
            "lib/modules/6.1.0-1-test/kernel/virtio_net.ko.zst",
            zstd::encode_all(b"net".as_slice(), 3).unwrap(),
        ),
        ("lib/modules/6.1.0-1-test/modules.builtin", Vec::new()),
    ] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), bytes).unwrap();
    }
    let kernel = Kernel::find(root, &package).unwrap();
    assert_eq!((kernel.release.as_str(), &kernel.modules), ("6.1.0-1-test", &modules));
    kernel
}

fn resolved() -> Resolved {
    let texts = ModuleTexts {
        dependencies: "kernel/virtio_net.ko.zst: kernel/virtio.ko\nkernel/virtio.ko:\n",
        aliases: "alias virtio:d00000001v* virtio_net\n",
        ..ModuleTexts::default()
    };
    let wanted =
        WantedModule { name: "virtio_net".to_owned(), role: crate::agent::drivers::Role::Network, line: 1 };
    ModuleTree::parse(texts).resolve(&[wanted]).unwrap()
}

#[test]
fn the_ramdisk_holds_what_the_agent_looks_for() {
    let root = tempfile::tempdir().unwrap();
    let kernel = kernel_tree(root.path());
    let archive = ramdisk(&kernel, &resolved(), b"agent".to_vec(), b"busybox".to_vec()).unwrap();
    let packed = compress(&archive.emit().unwrap(), Compression::Zstd(19)).unwrap();
    let unpacked = cpio::parse(&zstd::decode_all(packed.as_slice()).unwrap()).unwrap();
    let file = |path: &str| match &unpacked.members()[path].kind {
        Kind::File(bytes) => bytes.clone(),
        other => panic!("{path} is {other:?}"),
    };
    assert_eq!(file("init"), b"agent");
    assert_eq!(file("bin/busybox"), b"busybox");
    assert_eq!(file("lib/farrier/lease.sh"), LEASE_SCRIPT_TEXT);
    assert_eq!(file("lib/modules/virtio_net.ko"), b"net", "modules are stored uncompressed");
    let index: ModuleIndex = serde_json::from_slice(&file("lib/modules/index.json")).unwrap();
    assert_eq!(index, resolved().index);
    assert!(unpacked.members().contains_key("dev/console"));
}

#[test]
fn building_twice_gives_the_same_bytes() {
    let built: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let root = tempfile::tempdir().unwrap();
            let kernel = kernel_tree(root.path());
            let archive = ramdisk(&kernel, &resolved(), b"agent".to_vec(), b"busybox".to_vec()).unwrap();
            compress(&archive.emit().unwrap(), Compression::Zstd(19)).unwrap()
        })
        .collect();
    assert_eq!(Digest::of(&built[0]), Digest::of(&built[1]));
}

#[test]
fn an_agent_that_is_missing_or_dynamic_is_refused_before_anything_is_fetched() {
    let state = tempfile::tempdir().unwrap();
    let mut builder = Builder {
        state: state.path().to_owned(),
        agent: state.path().join("farrier-agent"),
        busybox: PathBuf::from("/bin/busybox"),
    };
    let error = build(&Recipe::built_in(), "vm", &builder, &ProgressBar::hidden()).unwrap_err();
    assert!(matches!(error, BuildError::Agent { .. }), "{error}");
    builder.agent = state.path().join("script");
    fs::write(&builder.agent, "#!/bin/sh\n").unwrap();
    let error = build(&Recipe::built_in(), "vm", &builder, &ProgressBar::hidden()).unwrap_err();
    assert!(error.to_string().contains("not a 64-bit"), "{error}");
    assert_eq!(fs::read_dir(state.path().join("cache/packages")).unwrap().count(), 0);
}
