//! Files of awkward sizes, bit for bit, by every client people use.

use std::fs;

use crate::support::{ClientMachine, TestBed, in_namespace, pattern};

/// Around block and window edges; the last needs the TFTP block number to wrap at 512 bytes a block.
const SIZES: [usize; 6] = [0, 1, 511, 512, 513, 65_536 * 512 + 1];
const SERVER: &str = "192.168.77.2";

/// A kernel of each size, as profile `size-<n>`, and a machine with an address to fetch them.
fn bed_with_files() -> (TestBed, ClientMachine) {
    let mut bed = TestBed::new("");
    for size in SIZES {
        bed.publish(&format!("size-{size}"), &pattern(size), b"ramdisk");
    }
    bed.start_server();
    let machine = bed.plug("02:00:00:00:00:01");
    machine.boot_udhcpc();
    (bed, machine)
}

fn assert_exact(machine: &ClientMachine, size: usize, what: &str) {
    let got = machine.read("got");
    assert_eq!(got.len(), size, "{what}: length");
    assert!(got == pattern(size), "{what}: content differs");
    fs::remove_file(machine.path("got")).unwrap();
}

#[test]
fn t_01_atftp_fetches_every_size_with_every_option() {
    in_namespace("files::t_01_atftp_fetches_every_size_with_every_option", || {
        let (_bed, machine) = bed_with_files();
        for size in SIZES {
            for options in
                [&[][..], &["blksize 1428"], &["blksize 512", "windowsize 16"], &["tsize 0", "timeout 2"]]
            {
                let mut arguments: Vec<&str> = Vec::new();
                for option in options {
                    arguments.extend(["--option", option]);
                }
                let name = format!("image/size-{size}/vmlinuz");
                arguments.extend(["-g", "-l", "got", "-r", &name, SERVER]);
                machine.run("atftp", &arguments);
                assert_exact(&machine, size, &format!("atftp {options:?} {size}"));
            }
        }
    });
}

#[test]
fn t_01_tftp_hpa_fetches_every_size() {
    in_namespace("files::t_01_tftp_hpa_fetches_every_size", || {
        let (_bed, machine) = bed_with_files();
        for size in SIZES {
            let name = format!("image/size-{size}/vmlinuz");
            machine.run("tftp", &["-m", "binary", SERVER, "-c", "get", &name, "got"]);
            assert_exact(&machine, size, &format!("tftp-hpa {size}"));
        }
    });
}

#[test]
fn t_01_busybox_fetches_every_size() {
    in_namespace("files::t_01_busybox_fetches_every_size", || {
        let (_bed, machine) = bed_with_files();
        for size in SIZES {
            let name = format!("image/size-{size}/vmlinuz");
            machine.run("busybox", &["tftp", "-g", "-b", "1432", "-l", "got", "-r", &name, SERVER]);
            assert_exact(&machine, size, &format!("busybox tftp {size}"));
        }
    });
}

#[test]
fn t_01_curl_fetches_every_size_by_tftp_and_http() {
    in_namespace("files::t_01_curl_fetches_every_size_by_tftp_and_http", || {
        let (_bed, machine) = bed_with_files();
        for size in SIZES {
            for scheme in ["tftp", "http"] {
                // curl itself fails on an empty file by TFTP (it asks for the peer of a transfer already over).
                if (scheme, size) == ("tftp", 0) {
                    continue;
                }
                let url = format!("{scheme}://{SERVER}/image/size-{size}/vmlinuz");
                machine.run("curl", &["-sS", "--fail", "-o", "got", &url]);
                assert_exact(&machine, size, &format!("curl {scheme} {size}"));
            }
        }
    });
}

#[test]
fn curl_ranges_are_cut_as_asked() {
    in_namespace("files::curl_ranges_are_cut_as_asked", || {
        let (_bed, machine) = bed_with_files();
        let size = SIZES[5];
        let whole = pattern(size);
        let url = format!("http://{SERVER}/image/size-{size}/vmlinuz");
        let cases: [(&str, &[u8]); 5] = [
            ("0-0", &whole[..1]),
            ("0-511", &whole[..512]),
            ("1000-", &whole[1000..]),
            ("-7", &whole[size - 7..]),
            ("33554430-99999999", &whole[33_554_430..]),
        ];
        for (range, expected) in cases {
            let status = machine.run("curl", &["-sS", "-o", "got", "-w", "%{http_code}", "-r", range, &url]);
            assert_eq!(status, "206", "{range}");
            assert!(machine.read("got") == expected, "{range}");
        }
        let status =
            machine.run("curl", &["-sS", "-o", "got", "-w", "%{http_code}", "-r", "99999999-", &url]);
        assert_eq!(status, "416");
    });
}

#[test]
fn h_01_h_02_header_names_are_in_title_case_and_head_keeps_the_connection() {
    in_namespace("files::h_01_h_02_header_names_are_in_title_case_and_head_keeps_the_connection", || {
        let (_bed, machine) = bed_with_files();
        let url = format!("http://{SERVER}/image/size-513/vmlinuz");
        let head = machine.run("curl", &["-sS", "--fail", "-I", &url]);
        for header in ["Content-Length: 513\r\n", "Etag: \"", "Accept-Ranges: bytes\r\n", "Content-Type: "] {
            assert!(head.contains(header), "{header:?} in {head}");
        }
        let verbose =
            machine.run("curl", &["-sSv", "-o", "got", "-I", &url, "--next", "-sS", "-o", "got", &url]);
        assert!(verbose.to_lowercase().contains("re-using existing connection"), "{verbose}");
    });
}

#[test]
fn writing_is_refused_and_foreign_names_do_not_exist() {
    in_namespace("files::writing_is_refused_and_foreign_names_do_not_exist", || {
        let (bed, machine) = bed_with_files();
        fs::write(machine.path("upload"), b"mine").unwrap();
        let put = machine.output("atftp", &["-p", "-l", "upload", "-r", "upload", SERVER]);
        let said =
            format!("{}{}", String::from_utf8_lossy(&put.stdout), String::from_utf8_lossy(&put.stderr));
        assert!(said.contains("read-only"), "{said}");
        for name in [
            "../../etc/passwd",
            "/etc/passwd",
            "farrier.db",
            "image/size-1/../../farrier.db",
            "..\\farrier.db",
        ] {
            let get = machine.output("atftp", &["-g", "-l", "got", "-r", name, SERVER]);
            let said =
                format!("{}{}", String::from_utf8_lossy(&get.stdout), String::from_utf8_lossy(&get.stderr));
            assert!(said.contains("not found"), "{name}: {said}");
            let url = format!("http://{SERVER}/{name}");
            let code =
                machine.run("curl", &["-sS", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", &url]);
            assert!(code == "404" || code == "400", "{name}: {code}");
        }
        assert!(!bed.log().contains("panicked"));
    });
}
