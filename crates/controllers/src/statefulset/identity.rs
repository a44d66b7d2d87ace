//! What makes a pod of a StatefulSet the one that it is: name, host name, labels and claims.

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
};
use kube::ResourceExt as _;

use crate::{history::HASH, pods};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The first ordinal.
pub(super) fn start(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0)
}

/// The ordinal in a pod's name, if that is a name of this set's pods.
pub(super) fn ordinal_of(set: &StatefulSet, pod: &str) -> Option<i32> {
    let (parent, ordinal) = pod.rsplit_once('-')?;
    if parent != set.name_any() || !ordinal.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    ordinal.parse().ok()
}

fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name_any())
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|s| s.volume_claim_templates.as_deref()).unwrap_or_default()
}

/// The claims of a pod. Their owners are set by the retention policy.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selector = set.spec.as_ref().and_then(|s| s.selector.match_labels.clone()).unwrap_or_default();
    let of_template = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(format!("{}-{}", template.name_any(), pod_name(set, ordinal)));
        claim.metadata.namespace = set.namespace();
        let mut labels = claim.metadata.labels.take().unwrap_or_default();
        labels.extend(selector.clone());
        claim.metadata.labels = Some(labels);
        claim.status = None;
        claim
    };
    templates(set).iter().map(of_template).collect()
}

/// The pod of an ordinal, of the template of a revision.
pub(super) fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pods::from_template(template, set);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(pod_name(set, ordinal));
    pod.metadata.labels.get_or_insert_default().insert(HASH.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name(set, ordinal));
    spec.subdomain = set.spec.as_ref().and_then(|s| s.service_name.clone());
    correct(set, &mut pod, ordinal);
    pod
}

/// Gives a pod the labels and claims that it has to have.
fn correct(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), pod_name(set, ordinal));
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    if templates(set).is_empty() {
        return;
    }
    let spec = pod.spec.get_or_insert_default();
    let mut volumes: Vec<Volume> = templates(set)
        .iter()
        .map(|template| Volume {
            name: template.name_any(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: format!("{}-{}", template.name_any(), pod_name(set, ordinal)),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    let others = spec.volumes.take().unwrap_or_default();
    volumes.extend(others.into_iter().filter(|v| templates(set).iter().all(|t| t.name_any() != v.name)));
    spec.volumes = Some(volumes);
}

/// Whether a pod has the labels that name it.
pub(super) fn matches(set: &StatefulSet, pod: &Pod) -> bool {
    let Some(ordinal) = ordinal_of(set, &pod.name_any()) else { return true };
    let labels = pod.labels();
    labels.get(POD_NAME) == Some(&pod.name_any()) && labels.get(POD_INDEX) == Some(&ordinal.to_string())
}

/// The labels that a pod has to have.
pub(super) fn labels(set: &StatefulSet, pod: &Pod) -> serde_json::Value {
    let ordinal = ordinal_of(set, &pod.name_any()).unwrap_or(0);
    serde_json::json!({POD_NAME: pod.name_any(), POD_INDEX: ordinal.to_string()})
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A set `web` with further fields of its spec.
    pub(crate) fn set(fields: Value) -> StatefulSet {
        let mut spec = json!({"serviceName": "db", "selector": {"matchLabels": {"a": "b"}}, "template":
            {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "data", "emptyDir": {}}, {"name": "other", "emptyDir": {}}]}}});
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "d", "uid": "u", "generation": 1}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn a_pod_is_named_and_has_its_claims() {
        let set = set(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}));
        let pod = pod(&set, &set.spec.as_ref().unwrap().template, "h", 3);
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(
            (pod.name_any().as_str(), spec.hostname.as_deref(), spec.subdomain.as_deref()),
            ("web-3", Some("web-3"), Some("db"))
        );
        assert_eq!(
            (pod.labels()[POD_NAME].as_str(), pod.labels()[POD_INDEX].as_str(), pod.labels()[HASH].as_str()),
            ("web-3", "3", "h")
        );
        let volumes = spec.volumes.as_ref().unwrap();
        assert_eq!(volumes.len(), 2);
        assert_eq!(volumes[0].persistent_volume_claim.as_ref().unwrap().claim_name, "data-web-3");
        let claims = claims(&set, 3);
        assert_eq!((claims[0].name_any().as_str(), claims[0].labels()["a"].as_str()), ("data-web-3", "b"));
        assert!(matches(&set, &pod));
    }

    #[test]
    fn ordinals_are_read_from_names() {
        let set = set(json!({}));
        assert_eq!(ordinal_of(&set, "web-12"), Some(12));
        for other in ["web", "web-x", "webs-1", "a-web-1", "web-"] {
            assert_eq!(ordinal_of(&set, other), None, "{other}");
        }
    }
}
