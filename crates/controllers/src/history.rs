//! ControllerRevisions: the templates that a StatefulSet or a DaemonSet had, for rolls and for undoing them.
//!
//! A revision's data is a strategic merge patch of the owner that sets its template, as upstream's and as
//! `kubectl rollout undo` applies it.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use skiff_client::Informer;

use crate::{Result, While as _, is_conflict, is_not_found, podcontrol::is_terminating, pods};

/// Label of a pod: which revision it is of. A StatefulSet's pods have the revision's name, a DaemonSet's its hash.
pub(crate) const HASH: &str = "controller-revision-hash";
/// Label of a StatefulSet's revision: its hash. That of a DaemonSet's is [`HASH`].
pub(crate) const REVISION_HASH: &str = "controller.kubernetes.io/hash";
/// Names of revisions are cut to this length before the hash.
const MAX_PREFIX: usize = 223;

/// What is to be done with the history of an owner.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// The newest revision is of the template.
    Current(Arc<ControllerRevision>),
    /// An older one is of the template and becomes the newest.
    Renumber { revision: Arc<ControllerRevision>, number: i64 },
    /// None is of the template.
    Create(Box<ControllerRevision>),
}

/// The patch that stands for a template.
pub(crate) fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template in a revision.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0["spec"]["template"].clone();
    template.as_object_mut()?.shift_remove("$patch");
    serde_json::from_value(template).ok()
}

fn is_of(revision: &ControllerRevision, data: &Value) -> bool {
    revision.data.as_ref().is_some_and(|d| d.0 == *data)
}

/// Which revision is the one of `template`. `revisions` need not be sorted.
pub(crate) fn plan<K: Resource<DynamicType = ()>>(
    owner: &K,
    template: &PodTemplateSpec,
    revisions: &[Arc<ControllerRevision>],
    label: &str,
    collisions: i32,
) -> Step {
    let data = data_of(template);
    let newest = revisions.iter().map(|r| r.revision).max().unwrap_or(0);
    let matching = revisions.iter().filter(|r| is_of(r, &data)).max_by_key(|r| (r.revision, r.name_any()));
    match matching {
        Some(revision) if revision.revision == newest => Step::Current(revision.clone()),
        Some(revision) => Step::Renumber { revision: revision.clone(), number: newest + 1 },
        None => Step::Create(Box::new(new_revision(owner, template, data, newest + 1, label, collisions))),
    }
}

fn new_revision<K: Resource<DynamicType = ()>>(
    owner: &K,
    template: &PodTemplateSpec,
    data: Value,
    number: i64,
    label: &str,
    collisions: i32,
) -> ControllerRevision {
    let hash = pods::hash(&data, (collisions > 0).then_some(collisions));
    let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(label.into(), hash.clone());
    let prefix: String = owner.name_any().chars().take(MAX_PREFIX).collect();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: owner.namespace(),
            labels: Some(labels),
            annotations: Some(owner.annotations().clone()).filter(|a: &BTreeMap<_, _>| !a.is_empty()),
            owner_references: Some(vec![pods::owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// Old revisions beyond the limit, oldest first. `live` says whether a revision is in use.
pub(crate) fn surplus(
    revisions: &[Arc<ControllerRevision>],
    live: impl Fn(&ControllerRevision) -> bool,
    limit: i32,
) -> Vec<Arc<ControllerRevision>> {
    let mut old: Vec<_> = revisions.iter().filter(|r| !live(r)).cloned().collect();
    old.sort_by_key(|r| (r.revision, r.name_any()));
    let keep = usize::try_from(limit).unwrap_or(0);
    old.truncate(old.len().saturating_sub(keep));
    old
}

/// The hash of a DaemonSet's revision, which its pods have as a label.
pub(crate) fn hash_of(revision: &ControllerRevision) -> String {
    revision.labels().get(HASH).cloned().unwrap_or_default()
}

/// What came of making a template's revision.
pub(crate) enum Made {
    /// This is the revision.
    Revision(Arc<ControllerRevision>),
    /// Its name is taken by another template's: the owner has to count a collision and try again.
    Collision,
    /// The owner or its namespace is going.
    Never,
}

/// Reads and writes the revisions of one controller's owners.
pub(crate) struct History {
    pub(crate) client: kube::Client,
    pub(crate) revisions: Informer<ControllerRevision>,
    /// The label of a revision that has its hash.
    pub(crate) label: &'static str,
}

impl History {
    fn api(&self, namespace: &str) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The owner's revisions; nobody's that its selector selects are adopted.
    pub(crate) async fn of<K>(
        &self,
        owner: &K,
        selector: &skiff_api::selector::LabelSelector,
    ) -> Result<Vec<Arc<ControllerRevision>>>
    where
        K: Resource<DynamicType = ()>,
    {
        let namespace = owner.namespace().unwrap_or_default();
        let mut owned = self.revisions.by_owner(owner.meta().uid.as_deref().unwrap_or_default());
        owned.sort_by_key(|r| (r.revision, r.name_any()));
        if owner.meta().deletion_timestamp.is_some() {
            return Ok(owned);
        }
        for revision in self.revisions.list_namespace(&namespace) {
            let orphan = pods::controller_of(&*revision).is_none() && revision.metadata.deletion_timestamp.is_none();
            if orphan && pods::selects(selector, &*revision) {
                let patch =
                    json!({"metadata": {"uid": revision.uid(), "ownerReferences": [pods::owner_reference(owner)]}});
                let api = self.api(&namespace);
                match api.patch(&revision.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await {
                    Err(e) if is_not_found(&e) || is_conflict(&e) => {}
                    patched => owned.push(Arc::new(patched.during("adopting a revision")?)),
                }
            }
        }
        Ok(owned)
    }

    /// Makes the template's revision exist and be the newest.
    pub(crate) async fn make<K>(
        &self,
        owner: &K,
        template: &PodTemplateSpec,
        revisions: &[Arc<ControllerRevision>],
        collisions: i32,
    ) -> Result<Made>
    where
        K: Resource<DynamicType = ()>,
    {
        let api = self.api(&owner.namespace().unwrap_or_default());
        match plan(owner, template, revisions, self.label, collisions) {
            Step::Current(revision) => Ok(Made::Revision(revision)),
            Step::Renumber { revision, number } => {
                let patch = json!({"revision": number});
                let patched = api.patch(&revision.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
                Ok(Made::Revision(Arc::new(patched.during("renumbering a revision")?)))
            }
            Step::Create(revision) => match api.create(&PostParams::default(), &revision).await {
                Ok(created) => Ok(Made::Revision(Arc::new(created))),
                Err(e) if is_terminating(&e) => Ok(Made::Never),
                Err(e) if is_conflict(&e) => {
                    let there = api.get_opt(&revision.name_any()).await.during("looking at a revision of this name")?;
                    let uid = owner.meta().uid.as_deref();
                    match there {
                        Some(there)
                            if revision.data.as_ref().is_some_and(|d| is_of(&there, &d.0))
                                && pods::controller_of(&there).map(|o| o.uid.as_str()) == uid =>
                        {
                            Ok(Made::Revision(Arc::new(there)))
                        }
                        _ => Ok(Made::Collision),
                    }
                }
                Err(error) => Err(error).during("creating a revision"),
            },
        }
    }

    /// Deletes revisions that are no longer needed.
    pub(crate) async fn delete(&self, surplus: &[Arc<ControllerRevision>]) -> Result<()> {
        for revision in surplus {
            let api = self.api(&revision.namespace().unwrap_or_default());
            match api.delete(&revision.name_any(), &DeleteParams::default()).await {
                Err(e) if is_not_found(&e) => {}
                deleted => {
                    deleted.during("deleting an old revision")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::StatefulSet;

    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}))
        .unwrap()
    }

    fn owner() -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "d", "uid": "1"}})).unwrap()
    }

    fn revision(image: &str, number: i64) -> Arc<ControllerRevision> {
        Arc::new(new_revision(&owner(), &template(image), data_of(&template(image)), number, HASH, 0))
    }

    #[test]
    fn a_template_has_one_revision_and_an_undo_renumbers_it() {
        let Step::Create(first) = plan(&owner(), &template("1"), &[], HASH, 0) else { panic!() };
        assert_eq!((first.revision, first.labels()["a"].as_str()), (1, "b"));
        assert_eq!(first.name_any(), format!("web-{}", hash_of(&first)));
        assert_eq!(template_of(&first), Some(template("1")));
        let all = [revision("1", 1), revision("2", 2)];
        assert_eq!(plan(&owner(), &template("2"), &all, HASH, 0), Step::Current(all[1].clone()));
        assert_eq!(
            plan(&owner(), &template("1"), &all, HASH, 0),
            Step::Renumber { revision: all[0].clone(), number: 3 }
        );
        let Step::Create(third) = plan(&owner(), &template("3"), &all, HASH, 0) else { panic!() };
        assert_eq!(third.revision, 3);
        let Step::Create(other) = plan(&owner(), &template("3"), &all, HASH, 1) else { panic!() };
        assert_ne!(other.name_any(), third.name_any(), "a collision changes the name");
    }

    #[test]
    fn the_oldest_unused_revisions_go() {
        let all = [revision("3", 3), revision("1", 1), revision("2", 2), revision("4", 4)];
        let go = surplus(&all, |r| r.revision == 1 || r.revision == 4, 1);
        assert_eq!(go.iter().map(|r| r.revision).collect::<Vec<_>>(), [2]);
    }
}
