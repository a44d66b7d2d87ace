//! Work on a volume that a pod's worker does not wait for, since it may take minutes.

use std::{future::Future, sync::Arc};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::{kubelet::Kubelet, pod::PodUid};

/// Something that is being done for a pod. It is given up when this is dropped.
pub(crate) struct Operation<T> {
    outcome: Arc<Mutex<Option<T>>>,
    task: JoinHandle<()>,
}

/// How far it is.
pub(crate) enum Outcome<T> {
    Running,
    Done(T),
    /// It ended without a result: it panicked.
    Lost,
}

impl<T: Send + 'static> Operation<T> {
    /// Starts it; the pod is woken when it is over.
    pub(crate) fn start(kubelet: Arc<Kubelet>, pod: PodUid, work: impl Future<Output = T> + Send + 'static) -> Self {
        let outcome = Arc::new(Mutex::new(None));
        let slot = outcome.clone();
        let task = tokio::spawn(async move {
            /// Also if the work panics.
            struct Wake(Arc<Kubelet>, PodUid);
            impl Drop for Wake {
                fn drop(&mut self) {
                    self.0.wake(&self.1);
                }
            }
            let _wake = Wake(kubelet, pod);
            let result = work.await;
            *slot.lock() = Some(result);
        });
        Operation { outcome, task }
    }

    /// Takes the result, once.
    pub(crate) fn poll(&self) -> Outcome<T> {
        let over = self.task.is_finished();
        match self.outcome.lock().take() {
            Some(result) => Outcome::Done(result),
            None if over => Outcome::Lost,
            None => Outcome::Running,
        }
    }

    /// Waits for its end.
    pub(crate) async fn finish(mut self) {
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "work on a volume ended");
        }
    }
}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
