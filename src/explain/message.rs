//! A DHCP message for reading: options by name, values in words, bytes in hexadecimal.

use std::net::Ipv4Addr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where options begin: fixed part and magic cookie (RFC 2131 §2).
const OPTIONS: usize = 240;

/// One option of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OptionLine {
    pub code: u8,
    pub name: String,
    pub value: String,
}

/// The options of a message, in wire order.
pub(super) fn options(message: &[u8]) -> Vec<OptionLine> {
    let mut lines = Vec::new();
    let mut rest = message.get(OPTIONS..).unwrap_or_default();
    while let Some((&code, tail)) = rest.split_first() {
        match code {
            0 => rest = tail,
            255 => break,
            code => {
                let Some((&length, tail)) = tail.split_first() else { break };
                let Some((data, next)) = tail.split_at_checked(usize::from(length)) else { break };
                lines.push(OptionLine { code, name: name(code).to_owned(), value: value(code, data) });
                rest = next;
            }
        }
    }
    lines
}

/// RFC 2132 and its followers, in a few words each.
fn name(code: u8) -> &'static str {
    match code {
        1 => "subnet mask",
        3 => "router",
        6 => "name servers",
        12 => "host name",
        15 => "domain",
        43 => "vendor options",
        50 => "requested address",
        51 => "lease time",
        53 => "message type",
        54 => "server",
        55 => "parameters wanted",
        56 => "message",
        57 => "largest message",
        58 => "renew after",
        59 => "rebind after",
        60 => "vendor class",
        61 => "client identifier",
        66 => "boot server",
        67 => "boot file",
        77 => "user class",
        82 => "relay agent",
        93 => "architecture",
        94 => "network interface",
        97 => "machine identifier",
        175 => "iPXE options",
        _ => "option",
    }
}

fn value(code: u8, data: &[u8]) -> String {
    let addresses = || -> Vec<String> {
        data.chunks_exact(4)
            .map(|quad| Ipv4Addr::new(quad[0], quad[1], quad[2], quad[3]).to_string())
            .collect()
    };
    match (code, data) {
        (1 | 3 | 6 | 50 | 54, _) if !data.is_empty() && data.len().is_multiple_of(4) => {
            addresses().join(", ")
        }
        (51 | 58 | 59, &[a, b, c, d]) => format!("{} s", u32::from_be_bytes([a, b, c, d])),
        (57 | 93, &[high, low]) => u16::from_be_bytes([high, low]).to_string(),
        (53, &[kind]) => message_type(kind).to_owned(),
        (55, _) => data.iter().map(u8::to_string).collect::<Vec<_>>().join(" "),
        (12 | 15 | 56 | 60 | 66 | 67 | 77, _) => data.escape_ascii().to_string(),
        _ => HEXLOWER.encode(data),
    }
}

fn message_type(kind: u8) -> &'static str {
    match kind {
        1 => "DISCOVER",
        2 => "OFFER",
        3 => "REQUEST",
        4 => "DECLINE",
        5 => "ACK",
        6 => "NAK",
        7 => "RELEASE",
        8 => "INFORM",
        _ => "another",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_named_and_a_cut_one_ends_the_list() {
        let mut message = vec![0; OPTIONS];
        message.extend_from_slice(&[53, 1, 2, 0, 54, 4, 192, 0, 2, 1, 67, 3, b'a', 0x1b, 0, 3, 9, 1]);
        let lines = options(&message);
        let told: Vec<String> =
            lines.iter().map(|line| format!("{} {}: {}", line.code, line.name, line.value)).collect();
        assert_eq!(told, ["53 message type: OFFER", "54 server: 192.0.2.1", r"67 boot file: a\x1b\x00"]);
        assert_eq!(options(&[]), []);
    }
}
