//! ServiceAccounts and the root certificate: every namespace has the account `default` and the ConfigMap
//! `kube-root-ca.crt`.
//!
//! Watches Namespaces, ServiceAccounts and ConfigMaps of that name; writes both objects.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use skiff_client::{Action, Change, Controller, Informer, Informers, ObjectKey, Selector};

use crate::{Result, While as _, is_conflict, is_not_found};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

struct Accounts {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    root_cas: Informer<ConfigMap>,
    client: kube::Client,
    authority_pem: String,
}

pub(crate) async fn run(informers: Informers, authority_pem: String) {
    let this = Arc::new(Accounts {
        namespaces: informers.informer(),
        accounts: informers.selected(Selector::fields(format!("metadata.name={ACCOUNT}"))),
        root_cas: informers.selected(Selector::fields(format!("metadata.name={ROOT_CA}"))),
        client: informers.client().clone(),
        authority_pem,
    });
    fn namespace_of<K: kube::Resource>(change: &Change<K>) -> Option<ObjectKey> {
        change.object().meta().namespace.as_deref().map(|ns| ObjectKey::new("", ns))
    }
    let (namespaces, accounts, root_cas) = (this.namespaces.clone(), this.accounts.clone(), this.root_cas.clone());
    Controller::new("serviceaccount")
        .watch(&namespaces, skiff_client::self_mapper)
        .watch(&accounts, namespace_of)
        .watch(&root_cas, namespace_of)
        .run(move |key| {
            let this = this.clone();
            async move { this.reconcile(&key.name).await }
        })
        .await;
}

impl Accounts {
    async fn reconcile(&self, namespace: &str) -> Result<Action> {
        match self.namespaces.get("", namespace) {
            Some(ns) if ns.metadata.deletion_timestamp.is_none() => {}
            _ => return Ok(Action::Done),
        }
        if self.accounts.get(namespace, ACCOUNT).is_none() {
            let account: ServiceAccount = ServiceAccount {
                metadata: kube::api::ObjectMeta { name: Some(ACCOUNT.into()), ..Default::default() },
                ..Default::default()
            };
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
            create(&api, &account).await?;
        }
        let wanted = [("ca.crt".to_owned(), self.authority_pem.clone())].into();
        match self.root_cas.get(namespace, ROOT_CA) {
            Some(map) if map.data.as_ref() == Some(&wanted) => {}
            Some(map) => {
                let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
                let patch = json!({"metadata": {"uid": map.uid()}, "data": wanted});
                match api.patch(ROOT_CA, &PatchParams::default(), &Patch::Merge(&patch)).await {
                    Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                    patched => {
                        patched.during("publishing the root certificate")?;
                    }
                }
            }
            None => {
                let map = ConfigMap {
                    metadata: kube::api::ObjectMeta {
                        name: Some(ROOT_CA.into()),
                        annotations: Some(
                            [(
                                "kubernetes.io/description".to_owned(),
                                "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.".to_owned(),
                            )]
                            .into(),
                        ),
                        ..Default::default()
                    },
                    data: Some(wanted),
                    ..Default::default()
                };
                create(&Api::namespaced(self.client.clone(), namespace), &map).await?;
            }
        }
        Ok(Action::Done)
    }
}

/// Creates an object; one that is there, or a namespace that is going, is no error.
async fn create<K>(api: &Api<K>, object: &K) -> Result<()>
where
    K: kube::Resource + serde::Serialize + serde::de::DeserializeOwned + Clone + std::fmt::Debug,
{
    match api.create(&PostParams::default(), object).await {
        Err(e) if is_conflict(&e) || is_not_found(&e) => Ok(()),
        Err(kube::Error::Api(status)) if status.message.contains("being terminated") => Ok(()),
        created => created.during("creating what every namespace has").map(|_| ()),
    }
}
