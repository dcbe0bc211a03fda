use proptest::prelude::*;

use super::*;

const SIZE: u64 = 1000;

fn file() -> FileFacts {
    FileFacts {
        size: SIZE,
        digest: Some(Digest::of(b"content")),
        modified: Some(Timestamp::from_millis(1_700_000_000_500)),
        media_type: "application/octet-stream",
    }
}

fn tag() -> String {
    format!("\"{}\"", Digest::of(b"content"))
}

fn get(request: &[(&'static str, &str)]) -> FileAnswer {
    ask(&Method::GET, request, &file())
}

fn ask(method: &Method, request: &[(&'static str, &str)], file: &FileFacts) -> FileAnswer {
    let mut headers = HeaderMap::new();
    for (name, value) in request {
        headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    answer(method, &headers, file)
}

fn text(answer: &FileAnswer, name: HeaderName) -> Option<&str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn a_plain_get_carries_every_header_a_boot_client_reads() {
    let whole = get(&[]);
    assert_eq!((whole.status, whole.part.clone()), (StatusCode::OK, Some(0..SIZE)));
    assert_eq!(text(&whole, header::CONTENT_LENGTH), Some("1000"));
    assert_eq!(text(&whole, header::ACCEPT_RANGES), Some("bytes"));
    assert_eq!(text(&whole, header::ETAG), Some(tag().as_str()));
    assert_eq!(text(&whole, header::LAST_MODIFIED), Some("Tue, 14 Nov 2023 22:13:20 GMT"));
    assert_eq!(text(&whole, header::CACHE_CONTROL), Some("no-cache"));
    assert_eq!(text(&whole, header::TRANSFER_ENCODING), None);
    assert_eq!(text(&whole, header::CONTENT_ENCODING), None);
}

#[test]
fn head_has_the_headers_of_get_and_ignores_range() {
    let (head, get) = (ask(&Method::HEAD, &[("range", "bytes=0-9")], &file()), get(&[]));
    assert_eq!((head.status, head.headers), (get.status, get.headers));
}

#[test]
fn ranges_follow_the_table() {
    let part = RangeAsked::Part;
    let table = [
        ("bytes=0-0", part(0..1)),
        ("bytes=0-499", part(0..500)),
        ("bytes=500-", part(500..1000)),
        ("bytes=0-", part(0..1000)),
        ("bytes=999-", part(999..1000)),
        ("bytes=-1", part(999..1000)),
        ("bytes=-1000", part(0..1000)),
        ("bytes=-5000", part(0..1000)),
        ("bytes=900-5000", part(900..1000)),
        ("BYTES=1-2", part(1..3)),
        ("bytes=1-18446744073709551615", part(1..1000)),
        ("bytes=1000-", RangeAsked::Unsatisfiable),
        ("bytes=1000-1001", RangeAsked::Unsatisfiable),
        ("bytes=-0", RangeAsked::Unsatisfiable),
        ("bytes=9223372036854775808-", RangeAsked::Unsatisfiable),
        ("bytes=18446744073709551615-", RangeAsked::Unsatisfiable),
        // Beyond 64 bits, negative (32-bit iPXE past 2 GiB), reversed, several, nonsense: the whole file.
        ("bytes=18446744073709551616-", RangeAsked::Whole),
        ("bytes=0-99999999999999999999", RangeAsked::Whole),
        ("bytes=-2147483648--2147483137", RangeAsked::Whole),
        ("bytes=5-4", RangeAsked::Whole),
        ("bytes=0-1,5-6", RangeAsked::Whole),
        ("bytes=-", RangeAsked::Whole),
        ("bytes=", RangeAsked::Whole),
        ("bytes", RangeAsked::Whole),
        ("bytes=+1-2", RangeAsked::Whole),
        ("bytes=1 -2", RangeAsked::Whole),
        ("bytes=a-b", RangeAsked::Whole),
        ("lines=1-2", RangeAsked::Whole),
        ("", RangeAsked::Whole),
    ];
    for (value, expected) in table {
        let request = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_str(value).unwrap())]);
        assert_eq!(requested_range(&request, SIZE), expected, "{value}");
    }
}

#[test]
fn a_part_and_a_range_beyond_the_end_say_how_large_the_file_is() {
    let part = get(&[("range", "bytes=100-199")]);
    assert_eq!((part.status, part.part.clone()), (StatusCode::PARTIAL_CONTENT, Some(100..200)));
    assert_eq!(text(&part, header::CONTENT_RANGE), Some("bytes 100-199/1000"));
    assert_eq!(text(&part, header::CONTENT_LENGTH), Some("100"));
    let beyond = get(&[("range", "bytes=1000-")]);
    assert_eq!((beyond.status, beyond.part.clone()), (StatusCode::RANGE_NOT_SATISFIABLE, None));
    assert_eq!(text(&beyond, header::CONTENT_RANGE), Some("bytes */1000"));
    assert_eq!(text(&beyond, header::CONTENT_LENGTH), Some("0"));
    assert_eq!(get(&[("range", "bytes=0-1"), ("range", "bytes=2-3")]).status, StatusCode::OK);
}

#[test]
fn an_empty_file_has_no_parts() {
    let empty = FileFacts { size: 0, ..file() };
    for (range, status) in [("bytes=0-", StatusCode::RANGE_NOT_SATISFIABLE), ("bytes=-5", StatusCode::OK)] {
        assert_eq!(ask(&Method::GET, &[("range", range)], &empty).status, status, "{range}");
    }
}

#[test]
fn conditions_follow_the_table() {
    let own = tag();
    let weak = format!("W/{own}");
    let among = format!("\"other\", {own}");
    let (same, before, after) =
        ("Tue, 14 Nov 2023 22:13:20 GMT", "Tue, 14 Nov 2023 22:13:19 GMT", "Wed, 15 Nov 2023 00:00:00 GMT");
    let table: [(&[(&'static str, &str)], u16); 21] = [
        (&[("if-match", &own)], 200),
        (&[("if-match", "*")], 200),
        (&[("if-match", &among)], 200),
        (&[("if-match", &weak)], 412),
        (&[("if-match", "\"other\"")], 412),
        (&[("if-unmodified-since", same)], 200),
        (&[("if-unmodified-since", after)], 200),
        (&[("if-unmodified-since", before)], 412),
        (&[("if-unmodified-since", "yesterday")], 200),
        // If-Match makes If-Unmodified-Since irrelevant, If-None-Match likewise If-Modified-Since.
        (&[("if-match", &own), ("if-unmodified-since", before)], 200),
        (&[("if-none-match", &own)], 304),
        (&[("if-none-match", &weak)], 304),
        (&[("if-none-match", "*")], 304),
        (&[("if-none-match", "\"other\"")], 200),
        (&[("if-none-match", "\"other\""), ("if-modified-since", same)], 200),
        (&[("if-modified-since", same)], 304),
        (&[("if-modified-since", before)], 200),
        (&[("if-match", &own), ("range", "bytes=0-9")], 206),
        (&[("if-match", "\"other\""), ("range", "bytes=0-9")], 412),
        (&[("if-none-match", &own), ("range", "bytes=0-9")], 304),
        (&[("if-unmodified-since", same), ("range", "bytes=2000-")], 416),
    ];
    for (request, status) in table {
        assert_eq!(get(request).status.as_u16(), status, "{request:?}");
    }
}

#[test]
fn if_range_decides_between_a_part_and_the_whole() {
    let own = tag();
    let weak = format!("W/{own}");
    for (validator, status) in [
        (own.as_str(), 206),
        (weak.as_str(), 200),
        ("\"other\"", 200),
        ("Tue, 14 Nov 2023 22:13:20 GMT", 206),
        ("Tue, 14 Nov 2023 22:13:21 GMT", 200),
        ("nonsense", 200),
    ] {
        let answer = get(&[("range", "bytes=0-9"), ("if-range", validator)]);
        assert_eq!(answer.status.as_u16(), status, "{validator}");
    }
}

#[test]
fn text_for_one_node_is_never_stored_and_has_no_validator() {
    let facts = FileFacts { digest: None, modified: None, ..file() };
    let script = ask(&Method::GET, &[("if-none-match", "\"x\"")], &facts);
    assert_eq!(script.status, StatusCode::OK);
    assert_eq!(text(&script, header::CACHE_CONTROL), Some("no-store"));
    assert_eq!(text(&script, header::ETAG), None);
    assert_eq!(text(&script, header::LAST_MODIFIED), None);
    assert_eq!(ask(&Method::GET, &[("if-match", "\"x\"")], &facts).status.as_u16(), 412);
}

#[test]
fn times_no_calendar_has_are_clamped() {
    for millis in [0, 1 << 50, u64::MAX] {
        let modified = Some(Timestamp::from_millis(millis));
        ask(&Method::GET, &[], &FileFacts { modified, ..file() });
    }
}

#[test]
fn media_types_are_the_ones_uefi_knows() {
    for (name, expected) in [
        ("uefi-x64/shimx64.efi", "application/efi"),
        ("a.iso", "application/vnd.efi-iso"),
        ("a.img", "application/vnd.efi-img"),
        ("boot/52-54-00-00-00-01/script.ipxe", "text/plain"),
        ("undionly.kpxe", "application/octet-stream"),
        ("image/vm/vmlinuz", "application/octet-stream"),
    ] {
        assert_eq!(media_type(name), expected, "{name}");
    }
}

#[test]
fn escapes_are_undone_once_and_never_make_a_separator() {
    assert_eq!(decode_path("/image/vm/vmlinuz"), Ok(b"image/vm/vmlinuz".to_vec()));
    assert_eq!(decode_path("/%69mage"), Ok(b"image".to_vec()));
    assert_eq!(decode_path("/%252e%252e"), Ok(b"%2e%2e".to_vec()));
    assert_eq!(decode_path("/%2e%2E/x"), Ok(b"../x".to_vec()), "the namespace refuses what this is");
    for path in ["/%00", "/a%2fb", "/a%5Cb", "/%0d%0a", "/%7f"] {
        assert_eq!(decode_path(path), Err(PathRefusal::ForbiddenEscape), "{path}");
    }
    for path in ["/%", "/%4", "/%zz", "/%+1"] {
        assert_eq!(decode_path(path), Err(PathRefusal::BadEscape), "{path}");
    }
}

proptest! {
    #[test]
    fn a_part_always_lies_inside_the_file(range in "\\PC{0,40}|bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0u64..5000) {
        let Ok(value) = HeaderValue::from_str(&range) else { return Ok(()) };
        let request = HeaderMap::from_iter([(header::RANGE, value)]);
        let answer = answer(&Method::GET, &request, &FileFacts { size, ..file() });
        if let Some(part) = answer.part {
            prop_assert!(part.start <= part.end && part.end <= size);
            prop_assert!(answer.status == StatusCode::OK || part.start < part.end);
        }
    }
}
