//! What each kind is beside its fields: its strategy, found through one table; and the engine that serves all.

pub mod engine;
mod meta;
pub mod strategy;
pub mod table;

mod admissionregistration;
mod apiextensions;
pub(crate) mod apiregistration;
mod apps;
mod autoscaling;
mod batch;
mod certificates;
mod coordination;
mod core;
mod discovery;
mod networking;
mod policy;
mod rbac;
mod scheduling;
mod storage;

use std::{collections::HashMap, sync::Arc};

use skiff_api::{
    Status,
    kinds::{KINDS, Kind, Storage, by_resource},
};
use skiff_store::Store;

pub(crate) use self::core::{
    default_field,
    service::{init_families, needs_health_check},
};
pub(crate) use self::networking::{ingress::CLASS_ANNOTATION, ingressclass::is_default as is_default_ingress_class};
pub(crate) use self::storage::storageclass::is_default as is_default_storage_class;
pub use self::strategy::Strategy;
use crate::{
    cache::Cache,
    custom::{self, Custom, Definitions, Version},
    object::{Indexing, kind_prefix},
};

/// The strategy of a stored kind.
pub fn strategy(kind: &Kind) -> &'static Strategy {
    match (kind.group, kind.kind) {
        ("", "ConfigMap") => &core::configmap::STRATEGY,
        ("", "Endpoints") => &core::endpoints::STRATEGY,
        ("", "Event") => &core::event::STRATEGY,
        ("", "LimitRange") => &core::limitrange::STRATEGY,
        ("", "Namespace") => &core::namespace::STRATEGY,
        ("", "Node") => &core::node::STRATEGY,
        ("", "PersistentVolume") => &core::persistentvolume::STRATEGY,
        ("", "PersistentVolumeClaim") => &core::persistentvolumeclaim::STRATEGY,
        ("", "Pod") => &core::pod::STRATEGY,
        ("", "ReplicationController") => &core::replicationcontroller::STRATEGY,
        ("", "ResourceQuota") => &core::resourcequota::STRATEGY,
        ("", "Secret") => &core::secret::STRATEGY,
        ("", "Service") => &core::service::STRATEGY,
        ("", "ServiceAccount") => &core::serviceaccount::STRATEGY,
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicy") => {
            &admissionregistration::mutatingadmissionpolicy::STRATEGY
        }
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding") => {
            &admissionregistration::mutatingadmissionpolicybinding::STRATEGY
        }
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => {
            &admissionregistration::webhookconfiguration::MUTATING
        }
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => {
            &admissionregistration::webhookconfiguration::VALIDATING
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => {
            &admissionregistration::validatingadmissionpolicy::STRATEGY
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => {
            &admissionregistration::validatingadmissionpolicybinding::STRATEGY
        }
        ("apiextensions.k8s.io", _) => &apiextensions::customresourcedefinition::STRATEGY,
        ("apiregistration.k8s.io", _) => &apiregistration::apiservice::STRATEGY,
        ("apps", "DaemonSet") => &apps::daemonset::STRATEGY,
        ("apps", "Deployment") => &apps::deployment::STRATEGY,
        ("apps", "ReplicaSet") => &apps::replicaset::STRATEGY,
        ("apps", "StatefulSet") => &apps::statefulset::STRATEGY,
        ("autoscaling", _) => &autoscaling::horizontalpodautoscaler::STRATEGY,
        ("batch", "Job") => &batch::job::STRATEGY,
        ("batch", "CronJob") => &batch::cronjob::STRATEGY,
        ("certificates.k8s.io", _) => &certificates::certificatesigningrequest::STRATEGY,
        ("coordination.k8s.io", _) => &coordination::lease::STRATEGY,
        ("discovery.k8s.io", _) => &discovery::endpointslice::STRATEGY,
        ("networking.k8s.io", "Ingress") => &networking::ingress::STRATEGY,
        ("networking.k8s.io", "IngressClass") => &networking::ingressclass::STRATEGY,
        ("networking.k8s.io", "NetworkPolicy") => &networking::networkpolicy::STRATEGY,
        ("policy", "PodDisruptionBudget") => &policy::poddisruptionbudget::STRATEGY,
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => &rbac::role::STRATEGY,
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => &rbac::rolebinding::STRATEGY,
        ("scheduling.k8s.io", _) => &scheduling::priorityclass::STRATEGY,
        ("storage.k8s.io", "CSIDriver") => &storage::csidriver::STRATEGY,
        ("storage.k8s.io", "CSINode") => &storage::csinode::STRATEGY,
        ("storage.k8s.io", "StorageClass") => &storage::storageclass::STRATEGY,
        ("storage.k8s.io", "VolumeAttachment") => &storage::volumeattachment::STRATEGY,
        ("storage.k8s.io", "VolumeAttributesClass") => &storage::volumeattributesclass::STRATEGY,
        _ => &strategy::DEFAULT,
    }
}

/// A stored kind as it is served: its facts, its rules and its objects.
pub struct Resource {
    pub kind: &'static Kind,
    pub strategy: &'static Strategy,
    pub cache: Arc<Cache>,
    pub type_name: String,
    /// For a custom kind: its versions and their schemas.
    pub custom: Option<Arc<Custom>>,
}

impl Resource {
    /// The version of a custom kind that this value is in; nothing for built-in kinds.
    pub fn version_of(&self, value: &serde_json::Value) -> Option<Arc<Version>> {
        let version = value["apiVersion"].as_str().unwrap_or_default();
        self.version(version.rsplit('/').next().unwrap_or_default())
    }

    /// A version of a custom kind by name.
    pub fn version(&self, name: &str) -> Option<Arc<Version>> {
        self.custom.as_ref()?.version(name).cloned()
    }

    /// Key of an object in the store.
    pub fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        crate::object::object_key(self.cache.prefix(), self.kind.namespaced, namespace, name)
    }
}

/// All stored kinds.
pub struct Registry {
    /// By plural; the few groups that share one are told apart in the list.
    by_plural: HashMap<&'static str, Vec<Arc<Resource>>>,
    pub definitions: Definitions,
}

impl Registry {
    /// A registry on a store. The caches are filled once [`start`](Registry::start) is called.
    pub fn new(store: &Arc<dyn Store>) -> Registry {
        let mut by_plural: HashMap<_, Vec<_>> = HashMap::new();
        for kind in KINDS.iter().filter(|k| matches!(k.storage, Storage::Stored(_))) {
            let strategy = strategy(kind);
            let indexing = Indexing { selectable: strategy.selectable, field: strategy.field };
            let cache = Cache::new(kind_prefix(kind), indexing, store.clone());
            let resource = Resource { kind, strategy, cache, type_name: kind.type_name(), custom: None };
            by_plural.entry(kind.plural).or_default().push(Arc::new(resource));
        }
        Registry { by_plural, definitions: Definitions::new(store.clone()) }
    }

    /// Fills all caches and keeps them up to date.
    pub fn start(&self) {
        for resource in self.all() {
            tokio::spawn(resource.cache.clone().run());
        }
    }

    /// The stored kind of a group and plural.
    pub fn get(&self, group: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_plural.get(plural)?.iter().find(|r| r.kind.group == group)
    }

    /// The stored kind behind a kind of the table.
    pub fn stored(&self, kind: &Kind) -> Option<Arc<Resource>> {
        if kind.is_custom() {
            return self.definitions.resource(kind.group, kind.plural);
        }
        match kind.storage {
            Storage::Stored(_) => self.get(kind.group, kind.plural).cloned(),
            Storage::Version { group, .. } => self.get(group, kind.plural).cloned(),
            Storage::Virtual => None,
        }
    }

    /// The kind of a resource, built in or custom.
    pub async fn kind(&self, group: &str, version: &str, plural: &str) -> Result<&'static Kind, Status> {
        if let Some(kind) = by_resource(group, version, plural) {
            return Ok(kind);
        }
        self.settle().await?;
        self.definitions.kind(group, version, plural).ok_or_else(Status::no_such_resource)
    }

    /// All kinds that are served: the built-in ones, then the custom ones.
    pub async fn kinds(&self) -> Result<Vec<&'static Kind>, Status> {
        self.settle().await?;
        Ok(KINDS.iter().chain(self.definitions.kinds()).collect())
    }

    /// All versions in which a resource is served: that of this kind and its equivalents.
    pub fn versions(&self, kind: &Kind) -> Vec<&'static Kind> {
        if kind.is_custom() {
            let mut kinds = self.definitions.kinds();
            kinds.retain(|k| k.group == kind.group && k.plural == kind.plural);
            return kinds;
        }
        let stored_in = |k: &Kind| match k.storage {
            Storage::Version { group, .. } => group,
            _ => k.group,
        };
        KINDS.iter().filter(|k| k.plural == kind.plural && stored_in(k) == stored_in(kind)).collect()
    }

    async fn settle(&self) -> Result<(), Status> {
        self.definitions.settle(&self.builtin(custom::GROUP, custom::PLURAL).cache).await
    }

    /// A stored kind that is known to be in the table.
    pub fn builtin(&self, group: &'static str, plural: &'static str) -> &Arc<Resource> {
        self.get(group, plural).expect("a kind of the table")
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_plural.values().flatten()
    }
}
