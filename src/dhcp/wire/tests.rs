use proptest::prelude::*;

use super::*;
use crate::dhcp::testing::{ClientMessage, mac, options_of};

fn header<'a>(file: &'a [u8], chaddr: &'a [u8]) -> ReplyHeader<'a> {
    ReplyHeader {
        htype: 1,
        xid: 0x0102_0304,
        flags: BROADCAST_FLAG,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::new(192, 168, 2, 50),
        giaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::new(192, 168, 2, 2),
        chaddr,
        file,
    }
}

#[test]
fn what_is_emitted_is_parsed_back() {
    let options = [(OptionCode::MessageType, &[2][..]), (OptionCode::ServerIdentifier, &[192, 168, 2, 2])];
    let bytes = emit(&header(b"undionly.kpxe", &[1, 2, 3, 4, 5, 6]), options.into_iter());
    let message = Message::parse(&bytes).unwrap();
    assert!(message.is_reply() && message.broadcast());
    assert_eq!(message.xid(), 0x0102_0304);
    assert_eq!(message.message_type(), Some(MessageType::Offer));
    assert_eq!(message.yiaddr(), Ipv4Addr::new(192, 168, 2, 50));
    assert_eq!(message.siaddr(), Ipv4Addr::new(192, 168, 2, 2));
    assert_eq!(message.chaddr(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(message.file(), b"undionly.kpxe");
    assert_eq!(message.options().address(OptionCode::ServerIdentifier), Some(message.siaddr()));
}

#[test]
fn short_replies_are_padded_behind_end_to_300_bytes() {
    let bytes = emit(&header(b"", &[0; 6]), [(OptionCode::MessageType, &[6][..])].into_iter());
    assert_eq!(bytes.len(), REPLY_LEN_MIN);
    assert_eq!(options_of(&bytes), [(53, vec![6])]);
}

#[test]
fn a_file_name_always_ends_in_nul() {
    let bytes = emit(&header(&[b'x'; 200], &[0; 6]), std::iter::empty());
    assert_eq!(bytes[FILE + FILE_LEN_MAX], 0);
    assert_eq!(Message::parse(&bytes).unwrap().file().len(), FILE_LEN_MAX);
}

#[test]
fn an_option_in_pieces_is_joined_wherever_they_stand() {
    let message = ClientMessage::discover(mac(1))
        .option(60, b"PXE")
        .option(60, b"Cl")
        .option(12, b"name")
        .option(60, b"ient");
    let bytes = message.bytes();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.options().bytes(OptionCode::ClassIdentifier), Some(&b"PXEClient"[..]));
    assert_eq!(message.options().bytes(OptionCode::Hostname), Some(&b"name"[..]));
}

#[test]
fn overloaded_fields_are_read_after_the_options_file_first() {
    let mut message = ClientMessage::discover(mac(1)).option(52, &[3]).option(60, b"a");
    message.bytes_fixed[FILE..FILE + 4].copy_from_slice(&[60, 1, b'b', 255]);
    message.bytes_fixed[SNAME..SNAME + 4].copy_from_slice(&[60, 1, b'c', 255]);
    let bytes = message.bytes();
    let parsed = Message::parse(&bytes).unwrap();
    assert_eq!(parsed.options().bytes(OptionCode::ClassIdentifier), Some(&b"abc"[..]));
}

#[test]
fn a_name_that_is_no_text_hides_nothing_behind_it() {
    let bytes =
        ClientMessage::discover(mac(1)).option(12, &[0xff, 0xfe]).option(50, &[192, 168, 2, 9]).bytes();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(
        message.options().address(OptionCode::RequestedIpAddress),
        Some(Ipv4Addr::new(192, 168, 2, 9))
    );
}

#[test]
fn fixed_size_options_use_their_first_bytes() {
    let bytes = ClientMessage::discover(mac(1)).option(50, &[192, 168]).option(57, &[5, 0xc0, 9]).bytes();
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.options().address(OptionCode::RequestedIpAddress), None, "too short is absent");
    assert_eq!(message.options().number(OptionCode::MaxMessageSize), Some(1472));
}

#[test]
fn malformed_fixed_parts_are_named() {
    let good = ClientMessage::discover(mac(1)).bytes();
    let patched = |offset: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[offset] = value;
        Message::parse(&bytes).err()
    };
    assert_eq!(Message::parse(&good[..239]).err(), Some(ParseError::Truncated));
    assert_eq!(Message::parse(&[]).err(), Some(ParseError::Truncated));
    assert_eq!(patched(0, 3), Some(ParseError::BadOperation(3)));
    assert_eq!(patched(2, 17), Some(ParseError::BadHardwareLength(17)));
    assert_eq!(patched(2, 255), Some(ParseError::BadHardwareLength(255)));
    assert_eq!(patched(236, 0), Some(ParseError::NoCookie));
    assert_eq!(patched(2, 16), None);
}

#[test]
fn sub_options_are_found_or_absent_but_never_cut() {
    assert_eq!(sub_option(&[0, 6, 1, 8, 71, 4, 0, 1, 0, 2, 255], 71), Some(&[0, 1, 0, 2][..]));
    for field in [&[][..], &[71], &[71, 4, 0], &[255, 71, 1, 1], &[0, 0]] {
        assert_eq!(sub_option(field, 71), None, "{field:?}");
    }
}

fn touch_everything(bytes: &[u8]) {
    if let Ok(message) = Message::parse(bytes) {
        let _ = (message.chaddr(), message.file(), message.message_type(), message.giaddr(), message.flags());
        for code in WANTED {
            let _ = (message.options().bytes(code), message.options().number(code));
            let _ = message.options().bytes(code).and_then(|field| sub_option(field, 71));
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        touch_everything(&bytes);
    }

    #[test]
    fn arbitrary_options_never_panic(options in proptest::collection::vec(any::<u8>(), 0..400), overload in 0u8..5) {
        let mut bytes = ClientMessage::discover(mac(1)).option(52, &[overload]).bytes();
        bytes.pop();
        bytes.extend_from_slice(&options);
        touch_everything(&bytes);
    }
}
