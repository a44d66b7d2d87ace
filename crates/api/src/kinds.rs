//! The table of kinds. Routes, discovery, OpenAPI, garbage collection and namespace deletion derive from it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, OnceLock},
};

/// How a kind is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// Objects under `/registry/<prefix>/`.
    Stored(&'static str),
    /// Another version of a stored kind: the objects are those of the kind with this group and version.
    Version { group: &'static str, version: &'static str },
    /// Nothing is kept: a request and its answer, such as a SubjectAccessReview.
    Virtual,
}

/// One kind of one version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// The resource: plural, lower case.
    pub plural: &'static str,
    pub namespaced: bool,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub subresources: &'static [&'static str],
    pub storage: Storage,
    /// The names that a custom kind has chosen; nothing for built-in kinds.
    pub custom: Option<CustomNames>,
}

/// What is derived from the kind's name, unless its definition says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CustomNames {
    pub singular: &'static str,
    pub list_kind: &'static str,
}

impl Kind {
    const fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        namespaced: bool,
    ) -> Self {
        Kind {
            group,
            version,
            kind,
            plural,
            namespaced,
            short_names: &[],
            categories: &[],
            subresources: &[],
            storage: Storage::Stored(plural),
            custom: None,
        }
    }
    const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }
    /// In `kubectl get all`.
    const fn all(mut self) -> Self {
        self.categories = &["all"];
        self
    }
    const fn in_categories(mut self, categories: &'static [&'static str]) -> Self {
        self.categories = categories;
        self
    }
    const fn sub(mut self, subresources: &'static [&'static str]) -> Self {
        self.subresources = subresources;
        self
    }
    const fn prefix(mut self, prefix: &'static str) -> Self {
        self.storage = Storage::Stored(prefix);
        self
    }
    const fn version_of(mut self, group: &'static str, version: &'static str) -> Self {
        self.storage = Storage::Version { group, version };
        self
    }
    const fn virt(mut self) -> Self {
        self.storage = Storage::Virtual;
        self
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The name that kubectl accepts for one object: the kind in lower case.
    pub fn singular(&self) -> String {
        self.custom.map_or_else(|| self.kind.to_ascii_lowercase(), |c| c.singular.to_owned())
    }

    /// The kind of a list of such objects.
    pub fn list_kind(&self) -> String {
        self.custom.map_or_else(|| format!("{}List", self.kind), |c| c.list_kind.to_owned())
    }

    /// Whether a CustomResourceDefinition made this kind.
    pub fn is_custom(&self) -> bool {
        self.custom.is_some()
    }

    /// A kind that lives as long as the program. The same kind made again is the first one: definitions come and go,
    /// but the distinct ones are few.
    pub fn interned(self) -> &'static Kind {
        static MADE: Mutex<BTreeMap<String, &'static Kind>> = Mutex::new(BTreeMap::new());
        let key = format!("{self:?}");
        MADE.lock().unwrap_or_else(|e| e.into_inner()).entry(key).or_insert_with(|| Box::leak(Box::new(self)))
    }

    /// Name in the table of fields, such as `api.apps.v1.Deployment`.
    pub fn type_name(&self) -> String {
        match self.group {
            "apiextensions.k8s.io" => {
                format!("apiextensions-apiserver.pkg.apis.apiextensions.{}.{}", self.version, self.kind)
            }
            "apiregistration.k8s.io" => {
                format!("kube-aggregator.pkg.apis.apiregistration.{}.{}", self.version, self.kind)
            }
            METRICS => format!("metrics.pkg.apis.metrics.{}.{}", self.version, self.kind),
            group => {
                // rbac.authorization.k8s.io is published as `rbac`, flowcontrol.apiserver.k8s.io as `flowcontrol`.
                let package = match group.split('.').next() {
                    Some("") | None => "core",
                    Some(first) => first,
                };
                format!("api.{package}.{}.{}", self.version, self.kind)
            }
        }
    }

    /// Whether objects of this kind are kept (in this version or another).
    pub fn is_stored(&self) -> bool {
        self.storage != Storage::Virtual
    }

    pub fn has_subresource(&self, name: &str) -> bool {
        self.subresources.contains(&name)
    }

    /// The verbs of discovery, in its order.
    pub fn verbs(&self) -> &'static [&'static str] {
        match (self.kind, self.storage) {
            ("ComponentStatus" | "NodeMetrics" | "PodMetrics", _) => &["get", "list"],
            // Namespaces are emptied one at a time.
            ("Namespace", _) => &["create", "delete", "get", "list", "patch", "update", "watch"],
            (_, Storage::Virtual) => &["create"],
            _ => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }
    }

    /// `deployments.apps`, `pods`: how messages name the resource.
    pub fn resource_name(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

const NS: bool = true;
const CLUSTER: bool = false;

const ADMISSION: &str = "admissionregistration.k8s.io";
const AUTHN: &str = "authentication.k8s.io";
const AUTHZ: &str = "authorization.k8s.io";
const FLOW: &str = "flowcontrol.apiserver.k8s.io";
/// What nodes and pods use: elsewhere an add-on's group, here built in.
pub const METRICS: &str = "metrics.k8s.io";
const NET: &str = "networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// All built-in kinds, grouped as discovery lists them.
pub static KINDS: &[Kind] = &[
    Kind::new("", "v1", "Binding", "bindings", NS).virt(),
    Kind::new("", "v1", "ComponentStatus", "componentstatuses", CLUSTER).short(&["cs"]).virt(),
    Kind::new("", "v1", "ConfigMap", "configmaps", NS).short(&["cm"]),
    Kind::new("", "v1", "Endpoints", "endpoints", NS).short(&["ep"]).prefix("services/endpoints"),
    Kind::new("", "v1", "Event", "events", NS).short(&["ev"]),
    Kind::new("", "v1", "LimitRange", "limitranges", NS).short(&["limits"]),
    Kind::new("", "v1", "Namespace", "namespaces", CLUSTER).short(&["ns"]).sub(&["finalize", "status"]),
    Kind::new("", "v1", "Node", "nodes", CLUSTER).short(&["no"]).sub(&["proxy", "status"]).prefix("minions"),
    Kind::new("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", NS).short(&["pvc"]).sub(&["status"]),
    Kind::new("", "v1", "PersistentVolume", "persistentvolumes", CLUSTER).short(&["pv"]).sub(&["status"]),
    Kind::new("", "v1", "Pod", "pods", NS).short(&["po"]).all().sub(&[
        "attach",
        "binding",
        "ephemeralcontainers",
        "eviction",
        "exec",
        "log",
        "portforward",
        "proxy",
        "resize",
        "status",
    ]),
    Kind::new("", "v1", "PodTemplate", "podtemplates", NS),
    Kind::new("", "v1", "ReplicationController", "replicationcontrollers", NS)
        .short(&["rc"])
        .all()
        .sub(&["scale", "status"])
        .prefix("controllers"),
    Kind::new("", "v1", "ResourceQuota", "resourcequotas", NS).short(&["quota"]).sub(&["status"]),
    Kind::new("", "v1", "Secret", "secrets", NS),
    Kind::new("", "v1", "ServiceAccount", "serviceaccounts", NS).short(&["sa"]).sub(&["token"]),
    Kind::new("", "v1", "Service", "services", NS)
        .short(&["svc"])
        .all()
        .sub(&["proxy", "status"])
        .prefix("services/specs"),
    Kind::new("apiregistration.k8s.io", "v1", "APIService", "apiservices", CLUSTER)
        .in_categories(&["api-extensions"])
        .sub(&["status"])
        .prefix("apiregistration.k8s.io/apiservices"),
    Kind::new("apps", "v1", "ControllerRevision", "controllerrevisions", NS),
    Kind::new("apps", "v1", "DaemonSet", "daemonsets", NS).short(&["ds"]).all().sub(&["status"]),
    Kind::new("apps", "v1", "Deployment", "deployments", NS).short(&["deploy"]).all().sub(&["scale", "status"]),
    Kind::new("apps", "v1", "ReplicaSet", "replicasets", NS).short(&["rs"]).all().sub(&["scale", "status"]),
    Kind::new("apps", "v1", "StatefulSet", "statefulsets", NS).short(&["sts"]).all().sub(&["scale", "status"]),
    Kind::new("events.k8s.io", "v1", "Event", "events", NS).short(&["ev"]).version_of("", "v1"),
    Kind::new(AUTHN, "v1", "SelfSubjectReview", "selfsubjectreviews", CLUSTER).virt(),
    Kind::new(AUTHN, "v1", "TokenReview", "tokenreviews", CLUSTER).virt(),
    Kind::new(AUTHZ, "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews", NS).virt(),
    Kind::new(AUTHZ, "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", CLUSTER).virt(),
    Kind::new(AUTHZ, "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", CLUSTER).virt(),
    Kind::new(AUTHZ, "v1", "SubjectAccessReview", "subjectaccessreviews", CLUSTER).virt(),
    Kind::new("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", NS)
        .short(&["hpa"])
        .all()
        .sub(&["status"]),
    Kind::new("autoscaling", "v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers", NS)
        .short(&["hpa"])
        .all()
        .sub(&["status"])
        .version_of("autoscaling", "v2"),
    Kind::new("batch", "v1", "CronJob", "cronjobs", NS).short(&["cj"]).all().sub(&["status"]),
    Kind::new("batch", "v1", "Job", "jobs", NS).all().sub(&["status"]),
    Kind::new("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", CLUSTER)
        .short(&["csr"])
        .sub(&["approval", "status"]),
    Kind::new(NET, "v1", "IngressClass", "ingressclasses", CLUSTER),
    Kind::new(NET, "v1", "Ingress", "ingresses", NS).short(&["ing"]).sub(&["status"]).prefix("ingress"),
    Kind::new(NET, "v1", "IPAddress", "ipaddresses", CLUSTER).short(&["ip"]),
    Kind::new(NET, "v1", "NetworkPolicy", "networkpolicies", NS).short(&["netpol"]),
    Kind::new(NET, "v1", "ServiceCIDR", "servicecidrs", CLUSTER).sub(&["status"]),
    Kind::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", NS).short(&["pdb"]).sub(&["status"]),
    Kind::new(RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings", CLUSTER),
    Kind::new(RBAC, "v1", "ClusterRole", "clusterroles", CLUSTER),
    Kind::new(RBAC, "v1", "RoleBinding", "rolebindings", NS),
    Kind::new(RBAC, "v1", "Role", "roles", NS),
    Kind::new(STORAGE, "v1", "CSIDriver", "csidrivers", CLUSTER),
    Kind::new(STORAGE, "v1", "CSINode", "csinodes", CLUSTER),
    Kind::new(STORAGE, "v1", "CSIStorageCapacity", "csistoragecapacities", NS),
    Kind::new(STORAGE, "v1", "StorageClass", "storageclasses", CLUSTER).short(&["sc"]),
    Kind::new(STORAGE, "v1", "VolumeAttachment", "volumeattachments", CLUSTER).sub(&["status"]),
    Kind::new(STORAGE, "v1", "VolumeAttributesClass", "volumeattributesclasses", CLUSTER).short(&["vac"]),
    Kind::new(ADMISSION, "v1", "MutatingAdmissionPolicy", "mutatingadmissionpolicies", CLUSTER)
        .in_categories(&["api-extensions"]),
    Kind::new(ADMISSION, "v1", "MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", CLUSTER)
        .in_categories(&["api-extensions"]),
    Kind::new(ADMISSION, "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", CLUSTER)
        .in_categories(&["api-extensions"]),
    Kind::new(ADMISSION, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", CLUSTER)
        .in_categories(&["api-extensions"])
        .sub(&["status"]),
    Kind::new(ADMISSION, "v1", "ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", CLUSTER)
        .in_categories(&["api-extensions"]),
    Kind::new(ADMISSION, "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", CLUSTER)
        .in_categories(&["api-extensions"]),
    Kind::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", CLUSTER)
        .short(&["crd", "crds"])
        .in_categories(&["api-extensions"])
        .sub(&["status"])
        .prefix("apiextensions.k8s.io/customresourcedefinitions"),
    Kind::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", CLUSTER).short(&["pc"]),
    Kind::new("coordination.k8s.io", "v1", "Lease", "leases", NS),
    Kind::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", CLUSTER),
    Kind::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", NS),
    Kind::new(FLOW, "v1", "FlowSchema", "flowschemas", CLUSTER).sub(&["status"]),
    Kind::new(FLOW, "v1", "PriorityLevelConfiguration", "prioritylevelconfigurations", CLUSTER).sub(&["status"]),
    Kind::new(RESOURCE, "v1", "DeviceClass", "deviceclasses", CLUSTER),
    Kind::new(RESOURCE, "v1", "ResourceClaim", "resourceclaims", NS).sub(&["status"]),
    Kind::new(RESOURCE, "v1", "ResourceClaimTemplate", "resourceclaimtemplates", NS),
    Kind::new(RESOURCE, "v1", "ResourceSlice", "resourceslices", CLUSTER),
    Kind::new(METRICS, "v1beta1", "NodeMetrics", "nodes", CLUSTER).virt(),
    Kind::new(METRICS, "v1beta1", "PodMetrics", "pods", NS).virt(),
];

/// A text that lives as long as the program, as the names of kinds do. The same text is kept once.
pub fn interned(text: &str) -> &'static str {
    static KEPT: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut kept = KEPT.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(found) = kept.get(text) {
        return found;
    }
    let text: &'static str = Box::leak(text.into());
    kept.insert(text);
    text
}

/// A list of texts that lives as long as the program.
pub fn interned_list(list: &[&str]) -> &'static [&'static str] {
    static KEPT: Mutex<BTreeSet<&'static [&'static str]>> = Mutex::new(BTreeSet::new());
    let list: Vec<&'static str> = list.iter().map(|t| interned(t)).collect();
    let mut kept = KEPT.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(found) = kept.get(list.as_slice()) {
        return found;
    }
    let list: &'static [&'static str] = Box::leak(list.into());
    kept.insert(list);
    list
}

/// The kind of a resource, by group, version and plural.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    type Index = HashMap<(&'static str, &'static str, &'static str), &'static Kind>;
    static INDEX: OnceLock<Index> = OnceLock::new();
    let index = INDEX.get_or_init(|| KINDS.iter().map(|k| ((k.group, k.version, k.plural), k)).collect());
    index.get(&(group, version, plural)).copied()
}

/// The kind by group, version and kind.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.group == group && k.version == version && k.kind == kind)
}

/// The kind by `apiVersion` and `kind`, as objects and owner references name it.
pub fn by_api_version(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    by_kind(group, version, kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields;

    #[test]
    fn every_kind_has_its_type() {
        for k in KINDS {
            assert!(fields::lookup(&k.type_name()).is_some(), "{}", k.type_name());
        }
    }

    #[test]
    fn resources_are_unique() {
        let all: BTreeSet<_> = KINDS.iter().map(|k| (k.group, k.version, k.plural)).collect();
        assert_eq!(all.len(), KINDS.len());
    }

    #[test]
    fn versions_lead_to_stored_kinds() {
        for k in KINDS {
            if let Storage::Version { group, version } = k.storage {
                let stored = by_resource(group, version, k.plural).unwrap();
                assert!(matches!(stored.storage, Storage::Stored(_)), "{}", k.kind);
            }
        }
    }
}
