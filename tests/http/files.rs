//! Loaders, kernels and ramdisks: headers, ranges, names.

use farrier::image::digest::Digest;

use crate::support::{Plane, shim};

#[tokio::test]
async fn h_01_an_answer_is_exactly_these_bytes() {
    let plane = Plane::start().await;
    let answer = plane.get("/image/vm/vmlinuz").await;
    let digest = Digest::of(&plane.kernel);
    let (date, modified) = (answer.header("Date").unwrap(), answer.header("Last-Modified").unwrap());
    let expected = format!(
        "HTTP/1.1 200 OK\r\nAccept-Ranges: bytes\r\nEtag: \"{digest}\"\r\nCache-Control: no-cache\r\n\
         Last-Modified: {modified}\r\nContent-Type: application/octet-stream\r\nContent-Length: 3000001\r\n\
         Date: {date}\r\n\r\n"
    );
    assert_eq!(answer.head, expected);
    assert!(answer.body == plane.kernel);
}

#[tokio::test]
async fn h_02_head_tells_what_get_sends_and_the_connection_stays() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    for path in
        ["/uefi-x64/shimx64.efi", "/image/vm/initrd.img", "/nothing", "/boot/52-54-00-00-00-01/script.ipxe"]
    {
        let head = client.request("HEAD", path, "").await;
        let get = client.request("GET", path, "").await;
        let without_date = |head: &str| -> Vec<String> {
            head.lines().filter(|line| !line.starts_with("Date:")).map(str::to_owned).collect()
        };
        assert_eq!(without_date(&head.head), without_date(&get.head), "{path}");
        assert_eq!(get.header("Content-Length").unwrap().parse::<usize>().unwrap(), get.body.len());
    }
}

#[tokio::test]
async fn h_02_a_thousand_requests_share_one_connection() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    for number in 0..500 {
        assert_eq!(client.request("HEAD", "/uefi-x64/shimx64.efi", "").await.status, 200);
        let part = client
            .request("GET", "/uefi-x64/shimx64.efi", &format!("Range: bytes={number}-{number}\r\n"))
            .await;
        assert_eq!((part.status, part.body.len()), (206, 1));
    }
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_order() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    let request =
        |range: &str| format!("GET /image/vm/vmlinuz HTTP/1.1\r\nHost: a\r\nRange: bytes={range}\r\n\r\n");
    client.send([request("0-9"), request("10-1000009"), request("5-5")].concat()).await;
    for range in [0..10, 10..1_000_010, 5..6] {
        assert!(client.answer().await.body == plane.kernel[range]);
    }
}

#[tokio::test]
async fn answers_from_files_from_memory_and_without_a_body_keep_in_step() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    let script = "/boot/52-54-00-00-00-01/script.ipxe";
    let asked = [
        ("HEAD", "/image/vm/initrd.img", ""),
        ("GET", "/image/vm/vmlinuz", ""),
        ("GET", script, ""),
        ("GET", "/image/vm/initrd.img", "Range: bytes=7-1999999\r\n"),
        ("HEAD", "/nothing", ""),
        ("GET", "/uefi-x64/shimx64.efi", "Range: bytes=-5\r\n"),
        ("GET", "/nothing", ""),
        ("GET", "/image/vm/vmlinuz", "Range: bytes=-1\r\n"),
    ];
    let requests =
        asked.map(|(method, path, headers)| format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n"));
    client.send(requests.concat()).await;
    let mut answers = Vec::new();
    for (method, _, _) in asked {
        answers.push(client.answer_to(method).await);
    }
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 206, 404, 206, 404, 206]);
    assert!(answers[0].body.is_empty());
    assert!(answers[1].body == plane.kernel);
    assert!(answers[2].text().starts_with("#!ipxe"));
    assert!(answers[3].body == plane.ramdisk[7..2_000_000]);
    assert_eq!(answers[5].header("Content-Range").map(|range| range.starts_with("bytes ")), Some(true));
    assert_eq!(answers[5].body.len(), 5);
    assert!(answers[7].body == plane.kernel[plane.kernel.len() - 1..]);
}

#[tokio::test]
async fn h_03_curl_reads_ranges() {
    let plane = Plane::start().await;
    let kernel = &plane.kernel;
    let size = kernel.len();
    for (range, expected) in [
        ("0-0", &kernel[..1]),
        ("100-65636", &kernel[100..65637]),
        ("2999990-", &kernel[2_999_990..]),
        ("-17", &kernel[size - 17..]),
        ("0-99999999", &kernel[..]),
    ] {
        let url = format!("http://{}/image/vm/vmlinuz", plane.address);
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "-r", range, &url]);
        let output = tokio::task::spawn_blocking(move || curl.output()).await.unwrap().unwrap();
        assert!(output.stdout == expected, "{range}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn h_04_a_download_resumes_by_tag() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    let tag = format!("\"{}\"", Digest::of(&plane.kernel));
    let resumed = client
        .request("GET", "/image/vm/vmlinuz", &format!("Range: bytes=2000000-3000000\r\nIf-Match: {tag}\r\n"))
        .await;
    assert_eq!(resumed.header("Content-Range"), Some("bytes 2000000-3000000/3000001"));
    assert!(resumed.body == plane.kernel[2_000_000..]);
    let replaced =
        client.request("GET", "/image/vm/vmlinuz", "Range: bytes=5-\r\nIf-Match: \"other\"\r\n").await;
    assert_eq!((replaced.status, replaced.header("Content-Length")), (412, Some("0")));
    let cached = client.request("GET", "/image/vm/vmlinuz", &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((cached.status, cached.body.len()), (304, 0));
    let beyond = client.request("GET", "/image/vm/vmlinuz", "Range: bytes=3000001-\r\n").await;
    assert_eq!((beyond.status, beyond.header("Content-Range")), (416, Some("bytes */3000001")));
    assert_eq!(client.request("GET", "/nothing", "").await.status, 404, "the connection is still in step");
}

#[tokio::test]
async fn h_07_nothing_is_compressed_or_chunked_or_redirected_whatever_a_client_accepts() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    let wishes = "Accept-Encoding: gzip, br, zstd\r\nTE: chunked\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n";
    for path in ["/image/vm/vmlinuz", "/boot/52-54-00-00-00-01/script.ipxe", "/image/vm", "/image", "/"] {
        let answer = client.request("GET", path, wishes).await;
        assert!([200, 404].contains(&answer.status), "{path}: {}", answer.status);
        assert!(!answer.head.contains("Encoding"), "{}", answer.head);
        assert!(answer.header("Content-Length").is_some());
    }
}

#[tokio::test]
async fn h_06_media_types_are_what_firmware_goes_by() {
    let plane = Plane::start().await;
    for (path, expected) in [
        ("/uefi-x64/shimx64.efi", "application/efi"),
        ("/undionly.kpxe", "application/octet-stream"),
        ("/image/vm/initrd.img", "application/octet-stream"),
        ("/boot/52-54-00-00-00-01/script.ipxe", "text/plain"),
    ] {
        assert_eq!(plane.get(path).await.header("Content-Type"), Some(expected), "{path}");
    }
}

#[tokio::test]
async fn h_09_names_are_read_as_firmware_spells_them_and_never_lead_outside() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    for path in [
        "/uefi-x64/shimx64.efi",
        "//uefi-x64//shimx64.efi",
        "/uefi-x64\\shimx64.efi",
        "/UEFI-X64/SHIMX64.EFI",
        "/%75efi-x64/shimx64.efi",
        "/uefi-x64/shimx64.efi?token=1",
        "http://farrier/uefi-x64/shimx64.efi",
        "/uefi-x64/shimx64.efi%ff",
    ] {
        let answer = client.request("GET", path, "").await;
        assert_eq!((answer.status, answer.header("Content-Type")), (200, Some("application/efi")), "{path}");
    }
    for path in [
        "/../../etc/passwd",
        "/image/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/%2e%2e%2fetc%2fpasswd",
        "/..\\..\\etc\\passwd",
        "/%00",
        "/uefi-x64/shimx64.efi%00.txt",
        "/uefi-x64%2fshimx64.efi",
        "/%",
        "/%zz",
        "/%252e%252e/etc/passwd",
        "/etc/passwd",
        "/image/vm/vmlinuz/",
        "/image/vm.json",
        "/image/nothing/vmlinuz",
        "/images/blobs",
        "/",
        "*",
    ] {
        let answer = client.request("GET", path, "").await;
        // A trailing slash is one of the spellings that firmware produces.
        let expected: &[u16] = if path.ends_with("vmlinuz/") { &[200] } else { &[400, 404] };
        assert!(expected.contains(&answer.status), "{path}: {}", answer.status);
    }
    let long = client.request("GET", &format!("/{}", "a".repeat(4000)), "").await;
    assert_eq!((long.status, long.header("Connection")), (414, Some("close")));
}

#[tokio::test]
async fn loaders_are_served_bit_by_bit() {
    let plane = Plane::start().await;
    let answer = plane.get(&format!("/{}", shim())).await;
    let tag = format!("\"{}\"", Digest::of(&answer.body));
    assert_eq!(answer.header("Etag"), Some(tag.as_str()), "the tag is the hash of what was sent");
}
