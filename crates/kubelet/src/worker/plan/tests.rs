use serde_json::{Value, json};
use skiff_cri::v1::{self, ContainerState, PodSandboxState};

use super::*;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
}

fn sandbox(attempt: u32, state: PodSandboxState) -> v1::PodSandboxStatus {
    v1::PodSandboxStatus {
        id: format!("s{attempt}"),
        metadata: Some(v1::PodSandboxMetadata { attempt, ..Default::default() }),
        state: state as i32,
        network: Some(v1::PodSandboxNetworkStatus { ip: "10.0.0.2".into(), ..Default::default() }),
        ..Default::default()
    }
}

/// `name` or `name:exit code`, in the newest sandbox.
fn seen(containers: &[&str]) -> Observed {
    let containers = containers.iter().map(|text| {
        let (name, code) = text.split_once(':').map_or((*text, None), |(n, c)| (n, Some(c.parse().unwrap())));
        let state = if code.is_some() { ContainerState::Exited } else { ContainerState::Running };
        ObservedContainer {
            sandbox_id: "s0".into(),
            name: name.into(),
            restart_count: 0,
            hash: String::new(),
            status: v1::ContainerStatus {
                id: format!("c-{name}"),
                state: state as i32,
                exit_code: code.unwrap_or(0),
                ..Default::default()
            },
            last_words: String::new(),
        }
    });
    Observed { sandboxes: vec![sandbox(0, PodSandboxState::Ready)], containers: containers.collect() }
}

fn starts(plan: &Plan) -> Vec<&str> {
    plan.start.iter().map(|s| s.container.name.as_str()).collect()
}

fn fine(_: &ObservedContainer) -> Verdict {
    Verdict::FINE
}

#[test]
fn a_new_pod_gets_a_sandbox_and_its_first_containers() {
    let plain = plan(&pod(json!({"containers": [{"name": "a"}, {"name": "b"}]})), &Observed::default(), fine);
    assert_eq!((plain.create_sandbox, starts(&plain)), (Some(0), vec!["a", "b"]));
    assert!(!plain.kill_pod);
    let init = plan(
        &pod(json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]})),
        &Observed::default(),
        fine,
    );
    assert_eq!(starts(&init), ["i"]);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let pod = pod(json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]}));
    assert!(starts(&plan(&pod, &seen(&["i"]), fine)).is_empty());
    assert_eq!(starts(&plan(&pod, &seen(&["i:0"]), fine)), ["j"]);
    assert_eq!(starts(&plan(&pod, &seen(&["i:1"]), fine)), ["i"]);
    assert_eq!(starts(&plan(&pod, &seen(&["i:0", "j:0"]), fine)), ["a"]);
    assert_eq!(plan(&pod, &seen(&["i:0", "j:0", "a"]), fine), Plan::default());
    assert_eq!(plan(&pod, &seen(&["a"]), fine), Plan::default(), "forgotten init containers are not run again");
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let pod = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    let plan = plan(&pod, &seen(&["i:1"]), fine);
    assert!(plan.kill_pod && plan.finished && plan.start.is_empty());
}

#[test]
fn sidecars_are_waited_for_and_kept() {
    let pod = pod(json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}], "containers": [{"name": "a"}],
    }));
    let starting = |_: &ObservedContainer| Verdict { started: false, ..Verdict::FINE };
    assert!(starts(&plan(&pod, &seen(&["s"]), starting)).is_empty());
    assert_eq!(starts(&plan(&pod, &seen(&["s"]), fine)), ["i"]);
    assert_eq!(starts(&plan(&pod, &seen(&["s", "i:0"]), fine)), ["a"]);
    assert_eq!(starts(&plan(&pod, &seen(&["s:1", "i:0", "a"]), fine)), ["s"]);
}

#[test]
fn restart_policies() {
    let with = |policy: &str| pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(starts(&plan(&with("Always"), &seen(&["a:0", "b"]), fine)), ["a"]);
    assert_eq!(starts(&plan(&with("OnFailure"), &seen(&["a:0", "b:3"]), fine)), ["b"]);
    let done = plan(&with("OnFailure"), &seen(&["a:0", "b:0"]), fine);
    assert!(done.finished && done.kill_pod);
    let never = plan(&with("Never"), &seen(&["a:1", "b"]), fine);
    assert_eq!(never, Plan::default());
    let rules = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}));
    assert_eq!(starts(&plan(&rules, &seen(&["a:42"]), fine)), ["a"]);
    assert!(plan(&rules, &seen(&["a:1"]), fine).finished);
}

#[test]
fn probes_and_changed_images_restart_containers() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "x"}]}));
    let dead = |_: &ObservedContainer| Verdict { liveness_failed: true, ..Verdict::FINE };
    let made = plan(&pod, &seen(&["a"]), dead);
    assert_eq!(made.kill[0].message, "Container a failed liveness probe, will be restarted");
    assert_eq!(starts(&made), ["a"]);
    let mut other = seen(&["a"]);
    other.containers[0].hash = "other".into();
    assert_eq!(plan(&pod, &other, fine).kill[0].message, "Container a definition changed, will be restarted");
    other.containers[0].hash = container_hash(&PodExt::spec(&pod).containers[0]);
    assert_eq!(plan(&pod, &other, fine), Plan::default());
}

#[test]
fn a_dead_sandbox_is_replaced_if_something_is_still_to_run() {
    let mut gone = seen(&["a:0", "b:137"]);
    gone.sandboxes[0] = sandbox(0, PodSandboxState::NotReady);
    let with = |policy: &str| pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
    let again = plan(&with("OnFailure"), &gone, fine);
    assert_eq!((again.create_sandbox, again.kill_pod, starts(&again)), (Some(1), true, vec!["b"]));
    assert!(plan(&with("Never"), &gone, fine).finished);
    gone.sandboxes.insert(0, sandbox(1, PodSandboxState::Ready));
    assert_eq!(starts(&plan(&with("OnFailure"), &gone, fine)), ["b"], "what had succeeded is not run in the new one");
}
