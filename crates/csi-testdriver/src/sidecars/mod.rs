//! What a driver's sidecars do: they read the API and call the driver's controller service. Here they look at
//! everything a few times a second, which is enough for tests.

mod attacher;
mod provisioner;
mod resizer;
mod snapshotter;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff_csi::{Channel, ControllerClient};

const PERIOD: Duration = Duration::from_millis(300);

/// What every sidecar has.
struct Sidecar {
    driver: String,
    client: Client,
    controller: ControllerClient<Channel>,
}

/// Works until it is dropped.
pub(crate) async fn run(driver: String, socket: PathBuf) {
    let sidecar = loop {
        match connect() {
            Ok(client) => {
                let controller = ControllerClient::new(skiff_csi::connect(&socket));
                break Sidecar { driver, client, controller };
            }
            Err(error) => tracing::warn!("no API server: {error:#}"),
        }
        tokio::time::sleep(PERIOD).await;
    };
    loop {
        tell("provisioner", Box::pin(provisioner::look(&sidecar)).await);
        tell("attacher", Box::pin(attacher::look(&sidecar)).await);
        tell("resizer", Box::pin(resizer::look(&sidecar)).await);
        tell("snapshotter", Box::pin(snapshotter::look(&sidecar)).await);
        tokio::time::sleep(PERIOD).await;
    }
}

fn tell(who: &str, looked: anyhow::Result<()>) {
    if let Err(error) = looked {
        tracing::warn!("{who}: {error:#}");
    }
}

fn connect() -> anyhow::Result<Client> {
    Ok(skiff_client::https(&skiff_client::Config::in_cluster()?.with_user_agent("csi-testdriver"))?)
}

impl Sidecar {
    async fn all<K>(&self) -> anyhow::Result<Vec<K>>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let listed = api.list(&ListParams::default()).await;
        Ok(listed.with_context(|| format!("list of {}", K::plural(&())))?.items)
    }
}

/// Writes fields of an object that must not have changed.
async fn patch<K>(api: &Api<K>, object: &K, status: bool, mut fields: Value) -> anyhow::Result<K>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    fields["metadata"]["resourceVersion"] = json!(object.resource_version());
    let (name, parameters) = (object.name_any(), PatchParams::default());
    let patch = Patch::Merge(&fields);
    let patched = match status {
        true => api.patch_status(&name, &parameters, &patch).await,
        false => api.patch(&name, &parameters, &patch).await,
    };
    patched.with_context(|| format!("writing {name}"))
}

/// The finalizers with one more or one less; `None` if it is so already.
fn finalizers<K: Resource>(object: &K, name: &str, wanted: bool) -> Option<Vec<String>> {
    let has = object.finalizers().iter().any(|f| f == name);
    if has == wanted {
        return None;
    }
    let mut list: Vec<String> = object.finalizers().iter().filter(|f| *f != name).cloned().collect();
    if wanted {
        list.push(name.to_owned());
    }
    Some(list)
}
