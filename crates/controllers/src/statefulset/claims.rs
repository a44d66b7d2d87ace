//! Who owns the claims of a StatefulSet's pods, by the retention policy.
//!
//! A claim whose owner goes is collected: so `Delete` is an owner reference to the set or, for a pod that is being
//! scaled away, to the pod.

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::ResourceExt as _;

use crate::pods;

/// The owner references that a claim should have beside `present` ones of others. `pod` is given if it is there;
/// `condemned` says that it is being scaled away.
pub(super) fn owners(
    set: &StatefulSet,
    pod: Option<&Pod>,
    condemned: bool,
    present: &[OwnerReference],
) -> Vec<OwnerReference> {
    let policy = set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |when: Option<&str>| when == Some("Delete");
    let when_deleted = deletes(policy.and_then(|p| p.when_deleted.as_deref()));
    let when_scaled = deletes(policy.and_then(|p| p.when_scaled.as_deref()));
    let pod_name = pod.map(|p| p.name_any());
    let ours = |o: &OwnerReference| {
        Some(&o.uid) == set.metadata.uid.as_ref() || (o.kind == "Pod" && Some(&o.name) == pod_name.as_ref())
    };
    let mut owners: Vec<OwnerReference> = present.iter().filter(|o| !ours(o)).cloned().collect();
    match pod {
        Some(pod) if when_scaled && condemned => owners.push(pods::owner_reference(pod)),
        _ if when_deleted => owners.push(pods::owner_reference(set)),
        _ => {}
    }
    owners
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::identity, *};

    #[test]
    fn owners_follow_the_policy() {
        let kinds = |deleted: &str, scaled: &str, condemned: bool| {
            let set = identity::tests::set(
                json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}}),
            );
            let pod = identity::pod(&set, &set.spec.as_ref().unwrap().template, "h", 0);
            // Whatever was there before of ours goes.
            let before = [pods::owner_reference(&set), pods::owner_reference(&pod)];
            owners(&set, Some(&pod), condemned, &before).iter().map(|o| o.kind.clone()).collect::<Vec<_>>().join("")
        };
        assert_eq!(kinds("Retain", "Retain", true), "");
        assert_eq!(kinds("Delete", "Retain", true), "StatefulSet");
        assert_eq!(kinds("Retain", "Delete", false), "");
        assert_eq!(kinds("Retain", "Delete", true), "Pod");
        assert_eq!(kinds("Delete", "Delete", false), "StatefulSet");
        assert_eq!(kinds("Delete", "Delete", true), "Pod");
    }
}
