//! The components of this process, each of which can be stopped and started while the others go on.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use skiff_cluster::{control::ComponentSwitch, node_config::Component};
use tokio::task::JoinHandle;

/// Starts a component; it runs until what this returns is dropped.
type Start = Box<dyn Fn() -> BoxFuture<'static, ()> + Send>;

struct Part {
    start: Start,
    running: Option<JoinHandle<()>>,
}

/// All components of this process. Cloning is cheap.
#[derive(Clone, Default)]
pub(crate) struct Components(Arc<Mutex<BTreeMap<Component, Part>>>);

impl Components {
    /// Adds a component, and starts it unless it is left out here.
    pub(crate) fn add(
        &self,
        component: Component,
        run: bool,
        start: impl Fn() -> BoxFuture<'static, ()> + Send + 'static,
    ) {
        let running = run.then(|| tokio::spawn(start()));
        self.0.lock().insert(component, Part { start: Box::new(start), running });
    }

    pub(crate) fn is_running(&self, component: Component) -> bool {
        let parts = self.0.lock();
        parts.get(&component).and_then(|p| p.running.as_ref()).is_some_and(|task| !task.is_finished())
    }

    /// Ends all of them.
    pub(crate) fn stop_all(&self) {
        for part in self.0.lock().values_mut() {
            if let Some(task) = part.running.take() {
                task.abort();
            }
        }
    }
}

impl ComponentSwitch for Components {
    fn list(&self) -> Vec<(Component, bool)> {
        let names: Vec<Component> = self.0.lock().keys().copied().collect();
        names.into_iter().map(|name| (name, self.is_running(name))).collect()
    }

    fn set(&self, component: Component, run: bool) -> Result<(), String> {
        let mut parts = self.0.lock();
        let Some(part) = parts.get_mut(&component) else {
            return Err(match component {
                Component::Dns => {
                    "the cluster's DNS runs in pods: kubectl -n kube-system scale deployment coredns --replicas=0"
                        .into()
                }
                _ => format!("there is no {} on this node", component.name()),
            });
        };
        let runs = part.running.as_ref().is_some_and(|task| !task.is_finished());
        match (run, runs) {
            (true, false) => {
                tracing::info!(component = component.name(), "starting");
                part.running = Some(tokio::spawn((part.start)()));
            }
            (false, true) => {
                tracing::info!(component = component.name(), "stopping");
                if let Some(task) = part.running.take() {
                    task.abort();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn components_stop_and_start() {
        let components = Components::default();
        let begun = Arc::new(tokio::sync::Semaphore::new(0));
        let counter = begun.clone();
        components.add(Component::Scheduler, false, move || {
            counter.add_permits(1);
            std::future::pending().boxed()
        });
        assert!(!components.is_running(Component::Scheduler));
        components.set(Component::Scheduler, true).unwrap();
        components.set(Component::Scheduler, true).unwrap();
        assert_eq!(begun.available_permits(), 1);
        assert_eq!(components.list(), [(Component::Scheduler, true)]);
        components.set(Component::Scheduler, false).unwrap();
        assert!(!components.is_running(Component::Scheduler));
        assert!(components.set(Component::Kubelet, true).is_err());
    }
}
