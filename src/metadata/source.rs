//! Where the boot plane gets a node's document and says what became of it: the registry, behind a trait.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::metadata::document::Document;
use crate::metadata::gate::{Answered, Grant, PhoneCall, PhoneRefusal, ReadRefusal, Reader, Secret};
use crate::net::MacAddr;

/// Implemented by the registry. Calls may come from any thread; those that say so wait for the disk.
pub trait MetadataSource: Send + Sync {
    /// The node that has this MAC, if it was given an install that is to be told of. `Phase::None` and `None` are answered
    /// alike.
    fn grant(&self, mac: MacAddr, now: Timestamp) -> Option<(Arc<Document>, Grant)>;

    /// Notes that this reader is given a secret, as [`Grant::read`] decides under the registry's lock. On disk before it
    /// returns.
    fn secret_read(
        &self,
        mac: MacAddr,
        secret: Secret,
        reader: Reader,
        now: Timestamp,
    ) -> Result<(), ReadRefusal>;

    /// As [`gate::phone_home`](crate::metadata::gate::phone_home) decides under the registry's lock; makes the node active.
    /// On disk before it returns.
    fn phone_home(&self, mac: MacAddr, call: &PhoneCall, now: Timestamp) -> Result<Answered, PhoneRefusal>;

    /// As [`gate::installer_done`](crate::metadata::gate::installer_done) decides under the registry's lock: the disk is
    /// written, and the installed system's first boot is awaited. On disk before it returns.
    fn installer_done(
        &self,
        mac: MacAddr,
        call: &PhoneCall,
        now: Timestamp,
    ) -> Result<Answered, PhoneRefusal>;

    /// Somebody at this node's address was refused, in one word: for its timeline. At most a few a minute.
    fn refused(&self, mac: MacAddr, reason: &'static str, now: Timestamp);
}
