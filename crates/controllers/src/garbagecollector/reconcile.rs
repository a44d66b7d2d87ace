//! What becomes of an object, from what became of its owners.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;

/// Finalizer of an owner that waits for its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents are to be let go.
pub(super) const ORPHAN: &str = "orphan";

/// What became of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    There,
    /// It is being deleted in the foreground and waits for those that it owns.
    WaitsForDependents,
    Gone,
}

/// What to do with the object.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Keep,
    /// Take away the references to these owners, which are gone or going.
    Drop(Vec<String>),
    Delete(PropagationPolicy),
}

/// Decides. `has_dependents`: whether the object owns something itself.
pub(super) fn judge(owners: &[(OwnerReference, OwnerState)], has_dependents: bool) -> Verdict {
    if owners.is_empty() {
        return Verdict::Keep;
    }
    let with = |state: OwnerState| owners.iter().filter(move |(_, s)| *s == state);
    let lost =
        || with(OwnerState::Gone).chain(with(OwnerState::WaitsForDependents)).map(|(o, _)| o.uid.clone()).collect();
    if with(OwnerState::There).next().is_some() {
        let lost: Vec<String> = lost();
        return if lost.is_empty() { Verdict::Keep } else { Verdict::Drop(lost) };
    }
    // The owner that waits wants to be the last: what has dependents itself goes in the foreground as well.
    if with(OwnerState::WaitsForDependents).next().is_some() && has_dependents {
        return Verdict::Delete(PropagationPolicy::Foreground);
    }
    Verdict::Delete(PropagationPolicy::Background)
}

/// The references without those to these UIDs.
pub(super) fn without(references: &[OwnerReference], uids: &[String]) -> Vec<OwnerReference> {
    references.iter().filter(|o| !uids.contains(&o.uid)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference { uid: uid.into(), ..OwnerReference::default() }
    }

    #[test]
    fn objects_go_with_their_last_owner() {
        use OwnerState::{Gone, There, WaitsForDependents};
        assert_eq!(judge(&[], false), Verdict::Keep);
        assert_eq!(judge(&[(owner("a"), There)], false), Verdict::Keep);
        assert_eq!(judge(&[(owner("a"), Gone)], false), Verdict::Delete(PropagationPolicy::Background));
        assert_eq!(judge(&[(owner("a"), Gone), (owner("b"), There)], false), Verdict::Drop(vec!["a".into()]));
        assert_eq!(judge(&[(owner("a"), WaitsForDependents)], true), Verdict::Delete(PropagationPolicy::Foreground));
        assert_eq!(judge(&[(owner("a"), WaitsForDependents)], false), Verdict::Delete(PropagationPolicy::Background));
    }
}
