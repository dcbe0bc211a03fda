//! Deploy images and the blobs they are made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;

/// One row of `GET /api/v1/images`: a deploy profile, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageEntry {
    pub profile: String,
    /// It is `boot.profile`: what machines get now.
    pub in_use: bool,
    /// Whole on disk; one that is damaged is not served.
    pub served: bool,
    /// Why it is not served.
    pub damage: Option<String>,
    /// Absent if the manifest cannot be read.
    pub kernel: Option<BlobEntry>,
    pub ramdisk: Option<BlobEntry>,
    /// Words it adds to the kernel's command line.
    pub arguments: Vec<String>,
    /// Package or file it was made from, with version or digest.
    pub built_from: BTreeMap<String, String>,
}

/// One row of `GET /api/v1/disk-images`: what installs write, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskImageEntry {
    pub name: String,
    pub description: String,
    /// File, URL or recipe it came from.
    pub source: String,
    pub imported_at: Timestamp,
    /// Size of the disk it makes.
    pub bytes: u64,
    /// Bytes of it that are not just zero, in whole chunks; and what they are kept in.
    pub filled_bytes: u64,
    pub stored_bytes: u64,
    /// SHA-256 of the raw disk.
    pub sha256: String,
    /// SHA-256 of its manifest, which installs go by.
    pub manifest: String,
}

/// One row of `GET /api/v1/blobs`: immutable bytes, by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlobEntry {
    /// SHA-256, in 64 lower-case hexadecimal digits.
    pub digest: String,
    pub bytes: u64,
    pub modified_at: Timestamp,
    /// Profiles that name it, each as `profile/kernel` or `profile/ramdisk`.
    pub used_by: Vec<String>,
}
