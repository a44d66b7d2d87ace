//! Which addresses the node's rules send new connections to, for who ends a pod.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use skiff_client::ObjectKey;
use tokio::sync::Notify;

/// The ready endpoints that the rules of this node know. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Members {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    of_service: HashMap<ObjectKey, Vec<IpAddr>>,
    /// How often an address is in `of_service`.
    times: HashMap<IpAddr, usize>,
}

impl Members {
    /// What the rules of a Service now know; no slices if it is gone.
    pub(crate) fn set(&self, service: &ObjectKey, slices: &[Arc<EndpointSlice>]) {
        let ready: Vec<IpAddr> = slices.iter().flat_map(|slice| ready(slice)).collect();
        let mut state = self.inner.state.lock();
        for address in &ready {
            *state.times.entry(*address).or_default() += 1;
        }
        let before = match ready.is_empty() {
            true => state.of_service.remove(service),
            false => state.of_service.insert(service.clone(), ready),
        };
        for address in before.into_iter().flatten() {
            if let Some(times) = state.times.get_mut(&address) {
                *times -= 1;
                if *times == 0 {
                    state.times.remove(&address);
                }
            }
        }
        drop(state);
        self.inner.changed.notify_waiters();
    }

    /// Waits until the rules take an address for no Service's ready endpoint.
    pub async fn left(&self, address: IpAddr) {
        loop {
            let changed = self.inner.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if !self.inner.state.lock().times.contains_key(&address) {
                return;
            }
            changed.await;
        }
    }
}

fn ready(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> {
    let ready = slice.endpoints.iter().flatten().filter(|endpoint| {
        // Absent means yes.
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    ready.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    fn slice(ready: bool) -> Vec<Arc<EndpointSlice>> {
        let slice = json!({
            "metadata": { "name": "web-1" }, "addressType": "IPv4", "ports": [],
            "endpoints": [{ "addresses": ["10.244.0.1"], "conditions": { "ready": ready } }],
        });
        vec![Arc::new(serde_json::from_value(slice).unwrap())]
    }

    #[tokio::test]
    async fn an_address_has_left_when_no_service_has_it() {
        let (members, address) = (Members::default(), IpAddr::from([10, 244, 0, 1]));
        let (web, api) = (ObjectKey::new("default", "web"), ObjectKey::new("default", "api"));
        members.left(address).now_or_never().expect("nobody has it");
        members.set(&web, &slice(true));
        members.set(&web, &slice(true));
        members.set(&api, &slice(true));
        let waiting = tokio::spawn({
            let members = members.clone();
            async move { members.left(address).await }
        });
        members.set(&web, &slice(false));
        assert!(members.left(address).now_or_never().is_none(), "the other Service still has it");
        members.set(&api, &[]);
        waiting.await.unwrap();
        assert_eq!(members.inner.state.lock().of_service.len(), 0);
    }
}
