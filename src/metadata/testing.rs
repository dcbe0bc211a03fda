//! One node's document and grant, for the unit tests of this folder.

use uuid::Uuid;

use crate::metadata::document::{Document, PhoneHome, PhoneHomeToken};
use crate::metadata::gate::{Grant, Phase, Reads};
use crate::metadata::ssh_key::tests::ED25519;
use crate::net::MacAddr;
use crate::node::install::intent::{IntentId, IntentNonce};

pub(crate) const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
pub(crate) const OTHER_MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const INTENT: IntentId = IntentId(Uuid::from_u128(0x1234_5678_9abc));

pub(crate) fn document() -> Document {
    let token = PhoneHomeToken::of(&IntentNonce::from_bytes([5; 32]), INTENT);
    let phone_home = PhoneHome { server: [192, 168, 2, 2].into(), token };
    let name = "node07.example.org".parse().expect("a host name");
    let mut document = Document::new(INTENT, name, MAC, phone_home);
    document.ssh_keys.push(ED25519.parse().expect("a key"));
    document
}

pub(crate) fn grant() -> Grant {
    Grant { intent: INTENT, ports: vec![MAC], phase: Phase::AwaitingFirstBoot, reads: Reads::default() }
}
