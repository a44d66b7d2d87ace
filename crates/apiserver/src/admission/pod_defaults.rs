//! What pods get from the cluster: a priority (Priority) and patience with nodes that fail
//! (DefaultTolerationSeconds).

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::Status;

use super::{Admission, Attributes};
use crate::registry::Resource;

/// How long a pod stays bound to a node that is not ready or not reachable.
const TOLERATION_S: i64 = 300;

/// The class of pods that name none, found anew when a class changed.
#[derive(Default)]
pub struct DefaultClass(Mutex<((u64, usize), Option<Arc<Value>>)>);

impl DefaultClass {
    fn get(&self, classes: &Resource) -> Option<Arc<Value>> {
        let version = classes.cache.version();
        let mut known = self.0.lock();
        if known.0 != version {
            let mut all = classes.cache.peek_all().into_iter().map(|o| o.value());
            *known = (version, all.find(|c| c["globalDefault"] == true).map(Arc::new));
        }
        known.1.clone()
    }
}

/// Resolves `priorityClassName`; without one the global default applies, else 0.
pub(super) async fn priority(admission: &Admission, a: &Attributes<'_>, pod: &mut Value) -> Result<(), Status> {
    let classes = admission.registry.builtin("scheduling.k8s.io", "priorityclasses");
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
    let class = if name.is_empty() {
        admission.default_class.get(classes)
    } else {
        let found = classes.cache.get(&classes.key("", &name)).await.map_err(Status::internal)?;
        let found = found.ok_or_else(|| a.refuse(format!("no PriorityClass with name {name} was found")))?;
        Some(Arc::new(found.value()))
    };
    let (value, policy) = match &class {
        Some(class) => {
            pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
            let policy = class["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
            (class["value"].as_i64().unwrap_or(0), policy.to_owned())
        }
        None => (0, "PreemptLowerPriority".to_owned()),
    };
    let given = pod["spec"]["priority"].as_i64();
    if given.is_some_and(|given| given != value) {
        return Err(a.refuse(format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            given.unwrap_or_default()
        )));
    }
    pod["spec"]["priority"] = value.into();
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] = policy.into();
    }
    Ok(())
}

/// Adds the tolerations that every pod has unless it says otherwise.
pub(super) fn tolerations(pod: &mut Value) {
    let list = &mut pod["spec"]["tolerations"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|t| {
            let about = t["key"].as_str().unwrap_or_default();
            let effect = t["effect"].as_str().unwrap_or_default();
            (about == key || (about.is_empty() && t["operator"] == "Exists"))
                && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            list.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_S}),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_own_tolerations_win() {
        let mut pod = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        tolerations(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 1);
        let mut pod = json!({"spec": {}});
        tolerations(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 2);
    }
}
