//! What a namespace that is being deleted says of what is still in it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::NamespaceCondition,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::core::ApiResource;

/// What is left of a kind after its objects were deleted.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Left {
    pub(super) resource: ApiResource,
    pub(super) count: usize,
    /// How many objects wait for each finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
    /// Pods may take as long as their grace period says; of others, and of those that took longer, this is a fault
    /// unless finalizers explain it.
    pub(super) may_take_time: bool,
}

impl Left {
    /// Counts the objects that are there at `now` of a namespace whose deletion began at `since`.
    pub(super) fn of(resource: ApiResource, objects: &[&ObjectMeta], since: Timestamp, now: Timestamp) -> Self {
        let mut finalizers = BTreeMap::new();
        for finalizer in objects.iter().filter_map(|o| o.finalizers.as_ref()).flatten() {
            *finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        let grace = objects.iter().filter_map(|o| o.deletion_grace_period_seconds).max().unwrap_or(0);
        let may_take_time = now.duration_since(since) < SignedDuration::from_secs(grace);
        Self { resource, count: objects.len(), finalizers, may_take_time }
    }

    /// Why it should not be there any more.
    pub(super) fn fault(&self, namespace: &str) -> Option<String> {
        let ApiResource { group, version, plural, .. } = &self.resource;
        let unexpected = self.count > 0 && self.finalizers.is_empty() && !self.may_take_time;
        let of = format!("namespace: {namespace} for gvr: {group}/{version}, Resource={plural}");
        unexpected.then(|| format!("unexpected items still remain in {of}"))
    }
}

/// The conditions that tell `left` and `faults`; none if `old` tells the same. Each keeps the time since when it is as it
/// is.
///
/// `left` is empty while pods are left: as upstream, which deletes nothing else before they are gone, and tells of them
/// only when something went wrong.
pub(super) fn conditions(
    old: &[NamespaceCondition],
    left: &[Left],
    faults: &[String],
    now: Timestamp,
) -> Option<Vec<NamespaceCondition>> {
    let left: Vec<_> = left.iter().filter(|left| left.count > 0).collect();
    let content = (!faults.is_empty()).then(|| {
        let text = format!("Failed to delete all resource types, {} remaining: {}", faults.len(), sorted(faults));
        ("ContentDeletionFailed", text)
    });
    let remaining = (!left.is_empty()).then(|| {
        let tell = |left: &&Left| {
            let ApiResource { plural, group, .. } = &left.resource;
            format!("{plural}.{group} has {} resource instances", left.count)
        };
        let all: Vec<_> = left.iter().map(tell).collect();
        ("SomeResourcesRemain", format!("Some resources are remaining: {}", sorted(&all)))
    });
    let mut finalizers = BTreeMap::<&str, usize>::new();
    for (finalizer, count) in left.iter().flat_map(|left| &left.finalizers) {
        *finalizers.entry(finalizer).or_default() += count;
    }
    let finalizers = (!finalizers.is_empty()).then(|| {
        let all: Vec<_> =
            finalizers.iter().map(|(finalizer, count)| format!("{finalizer} in {count} resource instances")).collect();
        ("SomeFinalizerRemain", format!("Some finalizers are remaining: {}", sorted(&all)))
    });
    // What is there is known here, and needs neither discovery nor the parsing of what that says.
    let told = [
        ("NamespaceDeletionDiscoveryFailure", None, "ResourcesDiscovered", "All resources successfully discovered"),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            content,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        ("NamespaceContentRemaining", remaining, "ContentRemoved", "All content successfully removed"),
        ("NamespaceFinalizersRemaining", finalizers, "ContentRemoved", "All content successfully removed"),
    ];
    let mut conditions = old.to_vec();
    for (type_, bad, good_reason, good_message) in told {
        let status = if bad.is_some() { "True" } else { "False" };
        let (reason, message) = bad.unwrap_or((good_reason, good_message.to_owned()));
        let before = conditions.iter().find(|c| c.type_ == type_);
        let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        let condition = NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(since.unwrap_or(Time(now))),
        };
        match conditions.iter_mut().find(|c| c.type_ == type_) {
            Some(before) => *before = condition,
            None => conditions.push(condition),
        }
    }
    (conditions != old).then_some(conditions)
}

fn sorted(texts: &[String]) -> String {
    let mut texts = texts.to_vec();
    texts.sort();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// Of a name as `pods.` or `deployments.apps`.
    fn kind(name: &str) -> ApiResource {
        let (plural, group) = name.split_once('.').unwrap();
        let text = str::to_owned;
        ApiResource {
            group: text(group),
            version: text("v1"),
            api_version: text("v1"),
            kind: text("K"),
            plural: text(plural),
        }
    }

    fn text(conditions: &[NamespaceCondition]) -> Vec<String> {
        let text = |c: &NamespaceCondition| {
            let (reason, message) = (c.reason.clone().unwrap_or_default(), c.message.clone().unwrap_or_default());
            let since = c.last_transition_time.as_ref().map_or(0, |t| t.0.as_second());
            format!("{}={} {since} {reason}: {message}", c.type_, c.status)
        };
        conditions.iter().map(text).collect()
    }

    const GOOD: [&str; 5] = [
        "NamespaceDeletionDiscoveryFailure=False 1 ResourcesDiscovered: All resources successfully discovered",
        "NamespaceDeletionGroupVersionParsingFailure=False 1 ParsedGroupVersions: All legacy kube types successfully parsed",
        "NamespaceDeletionContentFailure=False 1 ContentDeleted: All content successfully deleted, may be waiting on finalization",
        "NamespaceContentRemaining=False 1 ContentRemoved: All content successfully removed",
        "NamespaceFinalizersRemaining=False 1 ContentRemoved: All content successfully removed",
    ];

    #[test]
    fn what_is_left_is_told_once() {
        let nothing = conditions(&[], &[], &[], at(1)).unwrap();
        assert_eq!(text(&nothing), GOOD);
        assert_eq!(conditions(&nothing, &[], &[], at(2)), None);

        let finalizers = |all: &[(&str, usize)]| all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        let left = |resource: &str, count, all: &[(&str, usize)]| Left {
            resource: kind(resource),
            count,
            finalizers: finalizers(all),
            may_take_time: false,
        };
        let all = [
            left("configmaps.", 2, &[("example.com/b", 1), ("example.com/a", 2)]),
            left("applications.argoproj.io", 1, &[("example.com/a", 1)]),
            left("secrets.", 0, &[]),
        ];
        let some = conditions(&nothing, &all, &["b".to_owned(), "a".to_owned()], at(3)).unwrap();
        assert_eq!(text(&some)[..2], GOOD[..2]);
        assert_eq!(
            text(&some)[2..],
            [
                "NamespaceDeletionContentFailure=True 3 ContentDeletionFailed: Failed to delete all resource types, 2 remaining: a, b",
                "NamespaceContentRemaining=True 3 SomeResourcesRemain: Some resources are remaining: applications.argoproj.io has 1 resource instances, configmaps. has 2 resource instances",
                "NamespaceFinalizersRemaining=True 3 SomeFinalizerRemain: Some finalizers are remaining: example.com/a in 3 resource instances, example.com/b in 1 resource instances",
            ]
        );
        // Fewer than before, but still some: since the same time.
        let fewer = conditions(&some, &all[..1], &[], at(4)).unwrap();
        assert!(text(&fewer)[3].starts_with("NamespaceContentRemaining=True 3 SomeResourcesRemain"), "{fewer:?}");
        assert!(text(&fewer)[2].starts_with("NamespaceDeletionContentFailure=False 4 "), "{fewer:?}");
    }

    #[test]
    fn conditions_of_others_stay() {
        let other = NamespaceCondition { type_: "Other".to_owned(), status: "True".to_owned(), ..Default::default() };
        assert_eq!(conditions(std::slice::from_ref(&other), &[], &[], at(1)).unwrap()[0], other);
    }

    #[test]
    fn what_is_left_too_long_is_a_fault() {
        let object = |grace: i64, finalizers: &[&str]| ObjectMeta {
            deletion_grace_period_seconds: Some(grace),
            finalizers: Some(finalizers.iter().map(|f| (*f).to_owned()).collect()),
            ..Default::default()
        };
        let left = |resource: &str, objects: &[&ObjectMeta], now| {
            Left::of(kind(resource), objects, at(0), at(now)).fault("doomed")
        };
        let (slow, held) = (object(30, &[]), object(0, &["example.com/a"]));
        assert_eq!(left("pods.", &[&slow, &object(0, &[])], 29), None);
        let fault = "unexpected items still remain in namespace: doomed for gvr: /v1, Resource=pods";
        assert_eq!(left("pods.", &[&slow], 30).as_deref(), Some(fault));
        assert_eq!(left("configmaps.", &[&held], 60), None);
        assert_eq!(left("configmaps.", &[], 60), None);
    }
}
