//! What is made of configuration objects once, when they change, and not again for each request.

use std::sync::Arc;

use arc_swap::ArcSwap;
use skiff_api::Status;

use crate::{cache::Cache, object::Object, registry::engine::cache_status};

/// What was made of the objects of a cache: each is read once, when it changes.
pub(crate) struct Compiled<T>(ArcSwap<Made<T>>);

struct Made<T> {
    of: Option<(u64, usize)>,
    /// By revision, in the order of names.
    all: Arc<Vec<(u64, Arc<T>)>>,
}

impl<T> Default for Compiled<T> {
    fn default() -> Self {
        Compiled(ArcSwap::from_pointee(Made { of: None, all: Arc::default() }))
    }
}

impl<T> Compiled<T> {
    /// What there is now, including every change that was acknowledged before this call.
    pub(crate) async fn of(
        &self,
        cache: &Cache,
        read: impl Fn(&Object) -> Option<T>,
    ) -> Result<Arc<Vec<(u64, Arc<T>)>>, Status> {
        cache.fresh().await.map_err(|e| cache_status(&e))?;
        let version = cache.version();
        let before = self.0.load();
        if before.of == Some(version) {
            return Ok(before.all.clone());
        }
        let known = |object: &Object| before.all.iter().find(|(r, _)| *r == object.revision.0).map(|(_, t)| t.clone());
        let all = cache.peek_all();
        let read = |o: &Arc<Object>| Some((o.revision.0, known(o).or_else(|| read(o).map(Arc::new))?));
        let all: Arc<Vec<_>> = Arc::new(all.iter().filter_map(read).collect());
        // Two that come here at once make the same; a change meanwhile has another version.
        self.0.store(Arc::new(Made { of: Some(version), all: all.clone() }));
        Ok(all)
    }
}
