//! What a Job says of failed pods and of enough success.

use k8s_openapi::api::{
    batch::v1::{Job, PodFailurePolicyRule},
    core::v1::{ContainerStatus, Pod},
};
use kube::ResourceExt as _;

use super::indexes::{self, Indexes};

/// What a failed pod means for its Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It counts against the limit.
    Count,
    /// As if it had never been.
    Ignore,
    /// Its index has failed.
    FailIndex,
    /// The whole Job has, for this reason.
    FailJob(String),
}

/// What the pod failure policy says of a pod that has failed.
pub(super) fn verdict(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref());
    for (i, rule) in policy.iter().flat_map(|p| &p.rules).enumerate() {
        if let Some(why) = matching(rule, pod) {
            return match rule.action.as_str() {
                "FailJob" => Verdict::FailJob(format!("{why} matching FailJob rule at index {i}")),
                "FailIndex" => Verdict::FailIndex,
                "Ignore" => Verdict::Ignore,
                _ => Verdict::Count,
            };
        }
    }
    Verdict::Count
}

fn matching(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(wanted) = &rule.on_exit_codes {
        let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let code = |c: &ContainerStatus| c.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
        for container in containers.filter(|c| wanted.container_name.as_ref().is_none_or(|n| *n == c.name)) {
            let Some(code) = code(container).filter(|c| *c != 0) else { continue };
            if wanted.values.contains(&code) == (wanted.operator == "In") {
                return Some(format!("Container {} for pod {name} failed with exit code {code}", container.name));
            }
        }
    }
    for wanted in rule.on_pod_conditions.iter().flatten() {
        let value = wanted.status.as_deref().unwrap_or("True");
        if status.conditions.iter().flatten().any(|c| c.type_ == wanted.type_ && c.status == value) {
            return Some(format!("Pod {name} has condition {}", wanted.type_));
        }
    }
    None
}

/// The message of the success policy's first rule that these completed indexes fulfil.
pub(super) fn success(job: &Job, completed: &Indexes) -> Option<String> {
    let spec = job.spec.as_ref()?;
    let completions = spec.completions.unwrap_or(0);
    let fulfilled = spec.success_policy.as_ref()?.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_ref().map(|text| indexes::parse(text, completions));
        let there = wanted.as_ref().map_or(completed.len(), |w| w.intersection(completed).count());
        match rule.succeeded_count {
            Some(count) => there >= usize::try_from(count).unwrap_or(0),
            None => wanted.is_some_and(|w| there == w.len()),
        }
    })?;
    Some(format!("Matched rules at index {fulfilled}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(fields: Value) -> Job {
        let mut spec = json!({"completions": 5, "template": {"spec": {"containers": []}}});
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap()
    }

    fn failed(code: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d"}, "status": {"phase": "Failed",
            "conditions": [{"type": "DisruptionTarget", "status": if code == 0 { "True" } else { "False" }}],
            "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code}}}]}}))
        .unwrap()
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let job = job(json!({"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1]}}]}}));
        assert_eq!(verdict(&job, &failed(0)), Verdict::Ignore);
        assert_eq!(verdict(&job, &failed(1)), Verdict::Count);
        assert_eq!(verdict(&job, &failed(2)), Verdict::FailIndex);
        assert_eq!(
            verdict(&job, &failed(42)),
            Verdict::FailJob(
                "Container main for pod d/p failed with exit code 42 matching FailJob rule at index 1".into()
            )
        );
    }

    #[test]
    fn enough_success() {
        let rules = |rules: Value| job(json!({"successPolicy": {"rules": rules}}));
        let done = Indexes::from([0, 2, 3]);
        assert!(success(&rules(json!([{"succeededIndexes": "0,2"}])), &done).is_some());
        assert!(success(&rules(json!([{"succeededIndexes": "0-2"}])), &done).is_none());
        assert!(success(&rules(json!([{"succeededIndexes": "0-2", "succeededCount": 2}])), &done).is_some());
        assert_eq!(
            success(&rules(json!([{"succeededCount": 4}, {"succeededCount": 3}])), &done).as_deref(),
            Some("Matched rules at index 1")
        );
        assert!(success(&job(json!({})), &done).is_none());
    }
}
