//! Image archives that `skiff image load` sends.

use std::{io, pin::Pin, sync::Arc};

use skiff_cluster::control::ImageLoader;
use skiff_runtime::Runtime;
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

/// Imports into the runtime's image store.
pub(super) struct Loader(pub(super) Arc<Runtime>);

impl ImageLoader for Loader {
    fn load<'a>(
        &'a self,
        archive: Pin<Box<dyn AsyncRead + Send + 'a>>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + Send + 'a>> {
        Box::pin(async move {
            // Unpacking is blocking work on a stream that is not ours to move to another thread; a pipe joins the two.
            let (mut near, far) = tokio::io::duplex(1 << 20);
            let runtime = self.0.clone();
            let import = tokio::task::spawn_blocking(move || runtime.images().import(SyncIoBridge::new(far)));
            let mut archive = archive;
            let copied = tokio::io::copy(&mut archive, &mut near).await;
            drop(near);
            let imported = import.await.map_err(|e| e.to_string())?;
            // What the import says of a broken archive tells more than that nobody read it to its end.
            let images = imported.map_err(|e| format!("{:#}", anyhow::Error::from(e)))?;
            match copied {
                // It had all images before the archive's padding ended.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                    tokio::io::copy(&mut archive, &mut tokio::io::sink()).await.map_err(|e| e.to_string())?;
                }
                other => drop(other.map_err(|e| e.to_string())?),
            }
            Ok(images.iter().flat_map(|i| i.repo_tags.iter().map(ToString::to_string)).collect())
        })
    }
}
