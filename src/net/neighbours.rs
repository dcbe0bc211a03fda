//! The host's table of neighbours, which every machine on the bridge has an entry in while it talks to us.
//!
//! When the table is full the kernel sends nothing to further addresses, and their machines wait for files in vain.

use std::path::Path;

/// Entries the kernel keeps at most; beyond it, it refuses. One table for all interfaces and network namespaces.
const LIMIT: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";

/// The table's limit, if it is smaller than the pool. Unreadable (as in a network namespace) means no complaint.
pub fn limit_below(pool_size: u32) -> Option<u32> {
    limit().filter(|limit| *limit < pool_size)
}

/// The table's limit, where it can be read.
pub fn limit() -> Option<u32> {
    limit_in(Path::new(LIMIT))
}

fn limit_in(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Says so in the log, with the command that mends it.
pub fn warn_if_below(pool_size: u32) {
    if let Some(limit) = limit_below(pool_size) {
        let wanted = wanted(pool_size);
        tracing::warn!(
            limit,
            pool_size,
            "the kernel's neighbour table is smaller than dhcp.pool, machines beyond it get no files: `sysctl -w net.ipv4.neigh.default.gc_thresh3={wanted}`"
        );
    }
}

/// Twice the pool: other interfaces share the table, and stale entries linger.
pub fn wanted(pool_size: u32) -> u32 {
    pool_size.saturating_mul(2).checked_next_power_of_two().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_and_judged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gc_thresh3");
        assert_eq!(limit_in(&path), None, "not there");
        std::fs::write(&path, "1024\n").unwrap();
        assert_eq!(limit_in(&path), Some(1024));
        std::fs::write(&path, "many\n").unwrap();
        assert_eq!(limit_in(&path), None);
        assert_eq!(limit_below(0), None, "nothing is smaller than no pool");
        assert_eq!(wanted(10_000), 32_768);
    }
}
