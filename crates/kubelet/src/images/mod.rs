//! Having a container's image: pull policy, pulls with back-off, credentials, events' and messages' wording.

mod credentials;
pub(crate) mod garbage;
mod reference;

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use skiff_cri::v1;
use tokio::{sync::watch, time::Instant};

use crate::{
    backoff::Backoffs,
    kubelet::Kubelet,
    pod::{PodExt, PodUid},
    status::Waiting,
    time::go_duration,
};

/// How long a container shows `ErrImagePull` before it shows that it waits.
const SHOW_ERROR: Duration = Duration::from_secs(1);

/// Pulls that run and those that failed.
#[derive(Default)]
pub(crate) struct Images {
    backoffs: Mutex<Backoffs<(PodUid, String)>>,
    /// By pod and image: the outcome of a pull that was begun.
    pulls: Mutex<HashMap<(PodUid, String), watch::Receiver<Option<Result<(), String>>>>>,
    /// What the last pull failed with, which the back-off shows.
    errors: Mutex<HashMap<(PodUid, String), (Instant, String)>>,
    unused: garbage::Unused,
}

/// Whether a container can be created.
pub(crate) enum Presence {
    Present(v1::Image),
    /// Being pulled: the pod is woken when that is over.
    Pulling,
    /// Not to be had now; when to look again.
    Missing(Waiting, Option<Duration>),
}

fn missing(reason: &str, message: String, retry: Option<Duration>) -> Presence {
    Presence::Missing(Waiting { reason: reason.to_owned(), message }, retry)
}

/// The pull policy, by default from the tag.
fn policy(container: &Container, image: &str) -> String {
    container
        .image_pull_policy
        .clone()
        .unwrap_or_else(|| if image.ends_with(":latest") { "Always".to_owned() } else { "IfNotPresent".to_owned() })
}

impl Images {
    /// The container's image, or why there is none. Never waits for a pull.
    pub(crate) async fn ensure(&self, kubelet: &std::sync::Arc<Kubelet>, pod: &Pod, container: &Container) -> Presence {
        let named = container.image.as_deref().unwrap_or_default();
        let image = match reference::with_default_tag(named) {
            Ok(image) => image,
            Err(error) => {
                let message = format!("Failed to apply default image tag {named:?}: {error}");
                kubelet.container_warning(pod, &container.name, "InspectFailed", &message);
                return missing("InvalidImageName", message, None);
            }
        };
        let key = (pod.uid(), image.clone());
        let pulled = match self.take_pull(&key) {
            Some(None) => return Presence::Pulling,
            Some(Some(Err(message))) => return self.failed(&key, message),
            Some(Some(Ok(()))) => true,
            None => false,
        };
        let present = match kubelet.runtime.image_status(&image).await {
            Ok(present) => present,
            Err(error) => {
                let message = format!("Failed to inspect image {named:?}: {error}");
                kubelet.container_warning(pod, &container.name, "InspectFailed", &message);
                return missing("ImageInspectError", message, Some(Duration::from_secs(5)));
            }
        };
        if pulled && let Some(image) = present {
            return Presence::Present(image);
        }
        match (policy(container, &image).as_str(), present) {
            ("IfNotPresent" | "Never", Some(present)) => {
                let message =
                    format!("Container image {named:?} already present on machine and can be accessed by the pod");
                kubelet.container_event(pod, &container.name, "Pulled", &message);
                return Presence::Present(present);
            }
            ("Never", None) => {
                let message = format!("Container image {named:?} is not present with pull policy of Never");
                kubelet.container_warning(pod, &container.name, "ErrImageNeverPull", &message);
                return missing("ErrImageNeverPull", message, Some(Duration::from_secs(10)));
            }
            _ => {}
        }
        if let Some((left, _)) = self.backoffs.lock().remaining_since_failure(&key, Timestamp::now()) {
            let error = self.last_error(&key);
            if let Some((message, shown)) = error.clone().filter(|(_, shown)| !shown.is_zero()) {
                return missing("ErrImagePull", message, Some(shown));
            }
            let message = format!("Back-off pulling image {named:?}");
            kubelet.container_event(pod, &container.name, "BackOff", &message);
            kubelet.container_warning(pod, &container.name, "Failed", "Error: ImagePullBackOff");
            let message = match error {
                Some((error, _)) => format!("{message}: ErrImagePull: {error}"),
                None => message,
            };
            return missing("ImagePullBackOff", message, Some(left));
        }
        self.begin(kubelet, pod, container, key);
        Presence::Pulling
    }

    /// The outcome of a pull, once; `Some(None)` while it runs.
    fn take_pull(&self, key: &(PodUid, String)) -> Option<Option<Result<(), String>>> {
        let mut pulls = self.pulls.lock();
        let outcome = pulls.get(key)?.borrow().clone();
        if outcome.is_some() {
            pulls.remove(key);
        }
        Some(outcome)
    }

    fn failed(&self, key: &(PodUid, String), message: String) -> Presence {
        self.errors.lock().insert(key.clone(), (Instant::now(), message.clone()));
        missing("ErrImagePull", message, Some(SHOW_ERROR))
    }

    /// What the last pull failed with, and how long that is to be shown still before the back-off is.
    fn last_error(&self, key: &(PodUid, String)) -> Option<(String, Duration)> {
        let errors = self.errors.lock();
        let (at, message) = errors.get(key)?;
        Some((message.clone(), SHOW_ERROR.saturating_sub(at.elapsed())))
    }

    fn begin(&self, kubelet: &std::sync::Arc<Kubelet>, pod: &Pod, container: &Container, key: (PodUid, String)) {
        let (done, outcome) = watch::channel(None);
        self.pulls.lock().insert(key.clone(), outcome);
        let (kubelet, pod, container) = (kubelet.clone(), pod.clone(), container.clone());
        tokio::spawn(async move {
            let named = container.image.as_deref().unwrap_or_default();
            let name = &container.name;
            kubelet.container_event(&pod, name, "Pulling", &format!("Pulling image {named:?}"));
            let started = Instant::now();
            let result = pull(&kubelet, &pod, &key.1).await;
            let outcome = match result {
                Ok((size, waited)) => {
                    let whole = started.elapsed();
                    let message = format!(
                        "Successfully pulled image {named:?} in {} ({} including waiting). Image size: {size} bytes.",
                        go_duration(whole.saturating_sub(waited)),
                        go_duration(whole)
                    );
                    kubelet.container_event(&pod, name, "Pulled", &message);
                    Ok(())
                }
                Err(error) => {
                    kubelet.container_warning(
                        &pod,
                        name,
                        "Failed",
                        &format!("Failed to pull image {named:?}: {error}"),
                    );
                    kubelet.container_warning(&pod, name, "Failed", "Error: ErrImagePull");
                    let now = Timestamp::now();
                    kubelet.images.backoffs.lock().next(&key, now, now);
                    Err(error)
                }
            };
            done.send_replace(Some(outcome));
            kubelet.wake(&pod.uid());
        });
    }

    /// The pod is gone.
    pub(crate) fn forget(&self, uid: &PodUid) {
        self.pulls.lock().retain(|(of, _), _| of != uid);
        self.backoffs.lock().retain(|(of, _)| of != uid);
        self.errors.lock().retain(|(of, _), _| of != uid);
    }
}

/// Pulls with each of the pod's credentials until one is taken. The size of the image and how long it waited.
async fn pull(kubelet: &Kubelet, pod: &Pod, image: &str) -> Result<(u64, Duration), String> {
    let begun = Instant::now();
    let secrets = credentials::of_pod(kubelet, pod).await;
    let candidates = credentials::matching(&secrets, image);
    let waited = begun.elapsed();
    let mut errors = Vec::new();
    let attempts: Vec<Option<v1::AuthConfig>> =
        if candidates.is_empty() { vec![None] } else { candidates.into_iter().map(Some).collect() };
    for auth in attempts {
        match kubelet.runtime.pull_image(image, auth).await {
            Ok(_) => {
                let size = kubelet.runtime.image_status(image).await.ok().flatten().map_or(0, |i| i.size);
                kubelet.images_changed();
                return Ok((size, waited));
            }
            Err(error) => errors.push(error.to_string()),
        }
    }
    match errors.len() {
        1 => Err(errors.remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}
