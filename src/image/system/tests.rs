use super::*;

#[test]
fn a_file_system_has_room_for_its_tree_and_what_is_to_be_free() {
    let mut tree = Tree::default();
    tree.file("large", 0o644, vec![1; 10 << 20]).unwrap();
    assert!(root_bytes(&tree, 5 << 20) > (10 + 5 + 16) << 20);
}

#[test]
fn the_menu_names_kernel_ramdisk_and_root() {
    let recipe = SystemRecipe::built_in("small").unwrap();
    let menu = grub_menu(&recipe, "6.1.0-1-cloud-amd64", Uuid::from_u128(7));
    let linux = "linux /boot/vmlinuz-6.1.0-1-cloud-amd64 root=UUID=00000000-0000-0000-0000-000000000007 ro console=tty0";
    assert!(menu.contains(linux), "{menu}");
    assert!(menu.contains("initrd /boot/initrd.img-6.1.0-1-cloud-amd64\n"), "{menu}");
}

#[test]
fn holes_stay_holes() {
    let mut bytes = vec![0_u8; 300_000];
    bytes[200_000] = 7;
    let mut disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    copy_filled(&mut bytes.as_slice(), &mut disk, 4096).unwrap();
    let mut read = Vec::new();
    disk.seek(SeekFrom::Start(4096)).unwrap();
    disk.read_to_end(&mut read).unwrap();
    assert_eq!(read[..300_000], bytes);
    assert!(read[300_000..].iter().all(|byte| *byte == 0));
}
