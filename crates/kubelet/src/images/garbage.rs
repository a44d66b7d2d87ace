//! Image garbage collection: when the disk fills up, images that no container uses are removed, those first that have
//! been unused for longest.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use skiff_client::EventType;
use skiff_cri::v1;

use crate::{cri::RuntimeError, eviction::node_reference, kubelet::Kubelet};

/// How often the disk is looked at, and how long an image is kept at least: upstream's.
const PERIOD: Duration = Duration::from_secs(300);
const MINIMUM_AGE: Duration = Duration::from_secs(120);

/// Since when images have been unused, as far as this kubelet has seen.
#[derive(Default)]
pub(crate) struct Unused(Mutex<HashMap<String, Instant>>);

/// Collects garbage for ever.
pub(crate) async fn run(kubelet: Arc<Kubelet>) {
    let (high, low) = (u64::from(kubelet.config.image_gc_high), u64::from(kubelet.config.image_gc_low));
    // As upstream: 100 switches it off.
    if high >= 100 {
        return;
    }
    let Ok(Some(dir)) = kubelet.runtime.image_filesystem().await else { return };
    let dir = PathBuf::from(dir);
    loop {
        tokio::time::sleep(PERIOD).await;
        let Ok(fs) = nix::sys::statvfs::statvfs(&dir) else { continue };
        let capacity = fs.blocks() * fs.fragment_size();
        let Some(wanted) = to_free(capacity, fs.blocks_available() * fs.fragment_size(), high, low) else {
            // Keeps the times.
            if let Err(error) = unused(&kubelet).await {
                tracing::debug!(%error, "cannot list images");
            }
            continue;
        };
        let freed = remove_unused(&kubelet, Some(wanted)).await;
        if freed < wanted {
            kubelet.recorder.event(
                node_reference(&kubelet),
                EventType::Warning,
                "FreeDiskSpaceFailed",
                format!(
                    "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only \
                     found {freed} bytes eligible to free."
                ),
            );
        }
    }
}

/// How many bytes have to go, if the disk is fuller than `high` percent.
fn to_free(capacity: u64, available: u64, high: u64, low: u64) -> Option<u64> {
    if capacity == 0 || 100 - (available.min(capacity) * 100 / capacity) < high {
        return None;
    }
    Some((capacity * (100 - low) / 100).saturating_sub(available))
}

/// Images that no container uses, those first that are unused for longest.
async fn unused(kubelet: &Kubelet) -> Result<Vec<(v1::Image, Duration)>, RuntimeError> {
    let images = kubelet.runtime.images().await?;
    let mut used = BTreeSet::new();
    for container in kubelet.runtime.all_containers().await? {
        used.extend([container.image_ref, container.image_id, container.image.unwrap_or_default().image]);
    }
    let mut since = kubelet.images.unused.0.lock();
    since.retain(|id, _| images.iter().any(|i| i.id == *id));
    let mut found = Vec::new();
    for image in images {
        let names = std::iter::once(&image.id).chain(&image.repo_tags).chain(&image.repo_digests);
        if image.pinned || names.into_iter().any(|n| used.contains(n)) {
            since.remove(&image.id);
            continue;
        }
        let age = since.entry(image.id.clone()).or_insert_with(Instant::now).elapsed();
        found.push((image, age));
    }
    found.sort_by_key(|(_, age)| std::cmp::Reverse(*age));
    Ok(found)
}

/// Removes unused images until `wanted` bytes are freed, or all of them, whatever their age. How many bytes that freed.
pub(crate) async fn remove_unused(kubelet: &Kubelet, wanted: Option<u64>) -> u64 {
    let unused = match unused(kubelet).await {
        Ok(unused) => unused,
        Err(error) => {
            tracing::warn!(%error, "cannot look for unused images");
            return 0;
        }
    };
    let mut freed = 0;
    for (image, age) in unused {
        if wanted.is_some_and(|wanted| freed >= wanted || age < MINIMUM_AGE) {
            continue;
        }
        match kubelet.runtime.remove_image(&image.id).await {
            Ok(()) => {
                tracing::info!(image = image.id, names = ?image.repo_tags, "removed an unused image");
                freed += image.size;
            }
            Err(error) => tracing::warn!(image = image.id, %error, "cannot remove an unused image"),
        }
    }
    if freed > 0 {
        kubelet.images_changed();
    }
    freed
}

#[cfg(test)]
mod tests {
    use super::to_free;

    #[test]
    fn between_high_and_low() {
        assert_eq!(to_free(1000, 200, 85, 80), None);
        assert_eq!(to_free(1000, 100, 85, 80), Some(100));
        assert_eq!(to_free(0, 0, 85, 80), None);
    }
}
