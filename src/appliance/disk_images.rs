//! Looking after the disk images of a running appliance: new ones are noticed, bits that flipped are found, and images
//! that no task needs any more are let go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Timestamp};
use crate::image::digest::Digest;
use crate::image::disk::scrub::Scrubber;
use crate::image::disk::shelf::DiskShelf;
use crate::image::library::Library;
use crate::node::registry::Registry;

/// An image is pinned before the task that needs it is on disk; it is let go when no task needed it this long.
const UNPIN_AFTER: Duration = Duration::from_secs(60);

/// Runs on a thread of its own until the appliance ends.
pub(super) struct DiskImages {
    shelf: Arc<DiskShelf>,
    /// Scrubbed as well.
    library: Arc<Library>,
    scrubber: Scrubber,
    scrub_at: Timestamp,
    /// Pins that no task needed when they were last looked at.
    idle: BTreeSet<Digest>,
    idle_since: Timestamp,
}

impl DiskImages {
    pub(super) fn new(shelf: Arc<DiskShelf>, library: Arc<Library>, now: Timestamp) -> DiskImages {
        DiskImages {
            shelf,
            library,
            scrubber: Scrubber::new(now),
            scrub_at: now,
            idle: BTreeSet::new(),
            idle_since: now,
        }
    }

    /// A second's work; reads 8 MiB at most. Blocks.
    pub(super) fn look(&mut self, registry: &Registry, now: Timestamp) {
        match self.shelf.refresh_if_changed() {
            Ok(true) => tracing::info!(images = self.shelf.list().len(), "disk images were read again"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "disk images not read again");
            }
        }
        if now >= self.scrub_at {
            let step = self.scrubber.step(&[&*self.shelf, &*self.library], now);
            self.scrub_at = step.next;
            if let Some(damage) = step.found {
                tracing::error!(path = %damage.path.display(), reason = damage.reason, "a blob is not what it was: what needs it is not served");
            }
        }
        self.keep_what_is_needed(registry, now);
    }

    /// What open tasks need is kept, and nothing else.
    fn keep_what_is_needed(&mut self, registry: &Registry, now: Timestamp) {
        let needed = registry.pinned_images();
        // One that was let go in the moment it was wanted again, or whose mark did not outlive a restored backup.
        for manifest in needed.difference(&self.shelf.pins()) {
            if let Err(error) = self.shelf.pin(*manifest) {
                tracing::error!(%manifest, %error, "an image that a task needs is not kept from removal");
            }
        }
        let idle: BTreeSet<Digest> = self.shelf.pins().difference(&needed).copied().collect();
        if idle != self.idle {
            (self.idle, self.idle_since) = (idle, now);
        } else if !idle.is_empty() && now.since(self.idle_since) >= UNPIN_AFTER {
            for manifest in &self.idle {
                if let Err(error) = self.shelf.unpin(*manifest) {
                    tracing::warn!(%manifest, %error, "an image that no task needs stays kept from removal");
                }
            }
            self.idle_since = now;
        }
    }
}

/// Looks once a second, on threads that may wait for a disk.
pub(super) async fn look_after(
    shelf: Arc<DiskShelf>,
    library: Arc<Library>,
    registry: Arc<Registry>,
    clock: Clock,
) {
    let mut images = DiskImages::new(shelf, library, clock.now());
    let mut interval = tokio::time::interval(super::TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let registry = Arc::clone(&registry);
        let looked = tokio::task::spawn_blocking(move || {
            images.look(&registry, clock.now());
            images
        });
        match looked.await {
            Ok(back) => images = back,
            Err(error) => {
                tracing::error!(%error, "disk images are looked after no more");
                return;
            }
        }
    }
}
