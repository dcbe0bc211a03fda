use proptest::prelude::*;

use super::*;

fn rrq(parts: &[&[u8]]) -> Vec<u8> {
    let mut datagram = vec![0, 1];
    for part in parts {
        datagram.extend_from_slice(part);
        datagram.push(0);
    }
    datagram
}

fn options(parts: &[&[u8]]) -> RequestedOptions {
    let mut all: Vec<&[u8]> = vec![b"f", b"octet"];
    all.extend_from_slice(parts);
    parse_request(&rrq(&all)).unwrap().options
}

#[test]
fn a_plain_request_is_read() {
    let datagram = rrq(&[b"undionly.kpxe", b"OcTeT"]);
    let expected = Request {
        operation: Operation::Read,
        name: b"undionly.kpxe",
        mode: Mode::Octet,
        options: RequestedOptions::default(),
    };
    assert_eq!(parse_request(&datagram), Ok(expected));
}

#[test]
fn write_requests_and_other_modes_are_told_apart() {
    let mut write = rrq(&[b"f", b"netascii"]);
    write[1] = 2;
    let request = parse_request(&write).unwrap();
    assert_eq!((request.operation, request.mode), (Operation::Write, Mode::Netascii));
    assert_eq!(parse_request(&rrq(&[b"f", b"mail"])).unwrap().mode, Mode::Mail);
    assert_eq!(parse_request(&rrq(&[b"f", b"image"])), Err(RequestError::UnknownMode));
}

#[test]
fn what_ovmf_asks_is_read() {
    let asked = options(&[b"tsize", b"0", b"blksize", b"1468", b"windowsize", b"4"]);
    let expected = RequestedOptions { blksize: Some(1468), tsize: true, timeout: None, windowsize: Some(4) };
    assert_eq!(asked, expected);
}

#[test]
fn values_out_of_range_are_clamped_or_ignored() {
    let cases: &[(&[u8], &[u8], RequestedOptions)] = &[
        (b"blksize", b"7", RequestedOptions::default()),
        (b"blksize", b"8", RequestedOptions { blksize: Some(8), ..Default::default() }),
        (b"BLKSIZE", b"65464", RequestedOptions { blksize: Some(65464), ..Default::default() }),
        (b"blksize", b"65465", RequestedOptions { blksize: Some(65464), ..Default::default() }),
        (
            b"blksize",
            b"99999999999999999999999",
            RequestedOptions { blksize: Some(65464), ..Default::default() },
        ),
        (b"blksize", b"-512", RequestedOptions::default()),
        (b"blksize", b"512x", RequestedOptions::default()),
        (b"blksize", b"", RequestedOptions::default()),
        (b"timeout", b"0", RequestedOptions::default()),
        (b"Timeout", b"1", RequestedOptions { timeout: TimeoutSecs::parse(b"1", 1), ..Default::default() }),
        (
            b"timeout",
            b"255",
            RequestedOptions { timeout: TimeoutSecs::parse(b"255", 255), ..Default::default() },
        ),
        (b"timeout", b"256", RequestedOptions::default()),
        (b"windowsize", b"0", RequestedOptions::default()),
        (b"windowsize", b"65535", RequestedOptions { windowsize: Some(65535), ..Default::default() }),
        (b"windowsize", b"65536", RequestedOptions { windowsize: Some(65535), ..Default::default() }),
        (b"tsize", b"0", RequestedOptions { tsize: true, ..Default::default() }),
        (b"tsize", b"no", RequestedOptions::default()),
        (b"multicast", b"", RequestedOptions::default()),
    ];
    for (name, value, expected) in cases {
        assert_eq!(options(&[name, value]), *expected, "{}={}", name.escape_ascii(), value.escape_ascii());
    }
}

#[test]
fn the_first_usable_value_of_an_option_counts() {
    assert_eq!(options(&[b"blksize", b"x", b"blksize", b"1024", b"blksize", b"512"]).blksize, Some(1024));
}

#[test]
fn an_option_without_value_is_left_out() {
    assert_eq!(
        options(&[b"tsize", b"0", b"blksize"]),
        RequestedOptions { tsize: true, ..Default::default() }
    );
}

#[test]
fn a_missing_last_nul_does_no_harm() {
    let mut datagram = rrq(&[b"f", b"octet", b"blksize", b"1024"]);
    datagram.pop();
    assert_eq!(parse_request(&datagram).unwrap().options.blksize, Some(1024));
    assert_eq!(parse_request(b"\0\x01f\0octet").unwrap().mode, Mode::Octet);
    assert_eq!(parse_request(b"\0\x01f\0octet\0\xff\xff").unwrap().options, RequestedOptions::default());
}

#[test]
fn requests_we_cannot_read_say_why() {
    let long_name = rrq(&[&[b'a'; 256], b"octet"]);
    let huge_name = rrq(&[&[b'a'; 10_000], b"octet"]);
    let long_options = rrq(&[b"f", b"octet", b"x", &[b'1'; 600]]);
    let cases: &[(&[u8], RequestError)] = &[
        (b"", RequestError::NotARequest),
        (b"\0", RequestError::NotARequest),
        (b"\0\x03\0\x01data", RequestError::NotARequest),
        (b"\0\x05\0\x05no\0", RequestError::NotARequest),
        (b"\x01\0f\0octet\0", RequestError::NotARequest),
        (b"\0\x01", RequestError::Malformed),
        (b"\0\x01name", RequestError::Malformed),
        (b"\0\x01name\0", RequestError::Malformed),
        (b"\0\x01\0octet\0", RequestError::Malformed),
        (&long_name, RequestError::NameTooLong),
        (&huge_name, RequestError::NameTooLong),
        (&huge_name[..600], RequestError::NameTooLong),
        (&long_options, RequestError::TooLong),
    ];
    for (datagram, error) in cases {
        assert_eq!(parse_request(datagram), Err(*error), "{}", datagram.escape_ascii());
    }
}

#[test]
fn acks_and_errors_are_read_and_nothing_else() {
    assert_eq!(parse_datagram(b"\0\x04\xff\xff"), Some(Datagram::Ack(65535)));
    assert_eq!(parse_datagram(b"\0\x04\0\x01padding"), Some(Datagram::Ack(1)));
    let error = Datagram::Error { code: 8, message: b"User aborted the transfer" };
    assert_eq!(parse_datagram(b"\0\x05\0\x08User aborted the transfer\0"), Some(error));
    assert_eq!(parse_datagram(b"\0\x05\0\0"), Some(Datagram::Error { code: 0, message: b"" }));
    for other in [
        b"".as_slice(),
        b"\0\x04\0",
        b"\0\x05\0",
        b"\0\x03\0\x01x",
        b"\0\x06",
        b"\0\x01f\0octet\0",
        b"\0\x07\0\0",
    ] {
        assert_eq!(parse_datagram(other), None, "{}", other.escape_ascii());
    }
}

#[test]
fn an_oack_holds_what_was_granted() {
    assert!(GrantedOptions::default().is_empty());
    let granted = GrantedOptions {
        blksize: Some(1468),
        tsize: Some(5_000_000_000),
        timeout: Some(3.into()),
        windowsize: Some(16),
    };
    assert_eq!(
        emit_oack(&granted).escape_ascii().to_string(),
        r"\x00\x06blksize\x001468\x00tsize\x005000000000\x00timeout\x003\x00windowsize\x0016\x00"
    );
    assert_eq!(emit_oack(&GrantedOptions { tsize: Some(0), ..Default::default() }), b"\0\x06tsize\x000\0");
}

#[test]
fn block_numbers_roll_over_to_zero() {
    assert_eq!(data_header(1), [0, 3, 0, 1]);
    assert_eq!(data_header(65_535), [0, 3, 0xff, 0xff]);
    assert_eq!(data_header(65_536), [0, 3, 0, 0]);
    assert_eq!(data_header(131_073), [0, 3, 0, 1]);
}

#[test]
fn an_error_text_is_cut_not_grown() {
    assert_eq!(emit_error(ErrorCode::FileNotFound, "file not found"), b"\0\x05\0\x01file not found\0");
    assert_eq!(emit_error(ErrorCode::Undefined, &"x".repeat(500)).len(), 5 + ERROR_MESSAGE_LEN_MAX);
}

proptest! {
    #[test]
    fn no_datagram_makes_the_parsers_panic(datagram in prop::collection::vec(any::<u8>(), 0..1200)) {
        let _ = parse_request(&datagram);
        let _ = parse_datagram(&datagram);
    }

    #[test]
    fn no_request_makes_the_parser_panic(
        opcode in 1..=2_u8,
        strings in prop::collection::vec("(octet|mail|blksize|tsize|timeout|windowsize|[0-9]{0,22}|.{0,40})", 0..14),
        terminated: bool,
    ) {
        let mut datagram = vec![0, opcode];
        datagram.extend_from_slice(strings.join("\0").as_bytes());
        if terminated {
            datagram.push(0);
        }
        if let Ok(request) = parse_request(&datagram) {
            prop_assert!(!request.name.is_empty() && request.name.len() <= NAME_LEN_MAX);
            prop_assert!(request.options.blksize.is_none_or(|blksize| (8..=65464).contains(&blksize)));
            prop_assert!(request.options.windowsize != Some(0) && request.options.timeout != Some(0.into()));
        }
    }
}

#[test]
fn a_timeout_is_echoed_as_it_was_written() {
    let request = |value: &str| format!("\0\x01f\0octet\0timeout\0{value}\0").into_bytes();
    for value in ["7", "07", "007", "255"] {
        let request = request(value);
        let timeout = parse_request(&request).unwrap().options.timeout;
        assert_eq!(u64::from(timeout.unwrap().seconds), parse_number(value.as_bytes()).unwrap());
        let oack = emit_oack(&GrantedOptions { timeout, ..GrantedOptions::default() });
        assert_eq!(oack, format!("\0\x06timeout\0{value}\0").into_bytes());
    }
    assert_eq!(parse_request(&request("0007")).unwrap().options.timeout, None);
}
