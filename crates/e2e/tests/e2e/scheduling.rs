//! Where pods go, and who goes first.

use skiff_e2e::{Kubectl, eventually, wait::check};

use crate::{
    shared, tests,
    workloads::{PATIENCE, ready},
};

tests![
    pods_keep_apart,
    pods_are_spread,
    the_more_important_pod_runs,
    gates_hold_a_pod,
    priority_classes_keep_their_value,
];

/// A pod that asks for this much of the resource and sleeps.
fn sleeper(name: &str, labels: &str, spec: &str, requests: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{{labels}}}}}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}]
  {spec}
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, '1000']
    resources: {{requests: {{{requests}}}, limits: {{{requests}}}}}
---
"
    )
}

fn node_of(kubectl: &Kubectl, pod: &str) -> String {
    kubectl.path(&["pod", pod], "{.spec.nodeName}").unwrap()
}

#[track_caller]
fn refused(kubectl: &Kubectl, pod: &str, words: &[&str]) {
    eventually(PATIENCE, || {
        let path = r#"{.status.conditions[?(@.type=="PodScheduled")].message}"#;
        let message = kubectl.path(&["pod", pod], path)?;
        check(words.iter().all(|w| message.contains(w)), || message)
    });
    kubectl.run(&["describe", "pod", pod]).prints(&["FailedScheduling"]);
}

fn pods_keep_apart() {
    let kubectl = shared::cluster().in_new("apart");
    let spec = "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [
    {labelSelector: {matchLabels: {app: apart}}, topologyKey: kubernetes.io/hostname}]}}";
    for name in ["one", "two"] {
        kubectl.apply(&sleeper(name, "app: apart", spec, ""));
        ready(&kubectl, name);
    }
    assert_ne!(node_of(&kubectl, "one"), node_of(&kubectl, "two"));
    kubectl.apply(&sleeper("three", "app: apart", spec, ""));
    refused(
        &kubectl,
        "three",
        &[
            "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules",
            "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.",
        ],
    );
    // Where one was there is room again.
    let freed = node_of(&kubectl, "one");
    kubectl.run(&["delete", "pod", "one"]).ok();
    ready(&kubectl, "three");
    assert_eq!(node_of(&kubectl, "three"), freed);
    // And one that wants to be near is.
    let near = "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [
    {labelSelector: {matchExpressions: [{key: who, operator: In, values: [two]}]}, topologyKey: kubernetes.io/hostname}]}}";
    kubectl.run(&["label", "pod", "two", "who=two"]).ok();
    kubectl.apply(&sleeper("near", "app: near", near, ""));
    ready(&kubectl, "near");
    assert_eq!(node_of(&kubectl, "near"), node_of(&kubectl, "two"));
}

fn pods_are_spread() {
    let kubectl = shared::cluster().in_new("spread");
    let spec = "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname,
    whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: spread}}}]";
    let names = ["a", "b", "c", "d"];
    kubectl.apply(&names.map(|name| sleeper(name, "app: spread", spec, "")).concat());
    names.iter().for_each(|name| ready(&kubectl, name));
    let on = |node: &str| names.iter().filter(|name| node_of(&kubectl, name) == node).count();
    assert_eq!((on(shared::CONTROL_PLANE), on(shared::WORKER)), (2, 2));
}

fn the_more_important_pod_runs() {
    let kubectl = shared::cluster().in_new("preemption");
    kubectl.run(&["create", "priorityclass", "urgent", "--value=1000"]).ok();
    let path = "/status/capacity/example.com~1seat";
    let seats = format!(r#"[{{"op":"add","path":"{path}","value":"2"}}]"#);
    let patch = ["patch", "node", shared::WORKER, "--subresource=status", "--type=json", "-p", seats.as_str()];
    kubectl.run(&patch).ok();
    kubectl.run(&[&patch[..6], &[seats.replace("capacity", "allocatable").as_str()]].concat()).ok();
    let seat = |name: &str, spec: &str, n: u32| sleeper(name, "app: seat", spec, &format!("example.com/seat: {n}"));
    kubectl.apply(&(seat("first", "", 1) + &seat("second", "", 1)));
    ready(&kubectl, "first");
    ready(&kubectl, "second");
    kubectl.apply(&seat("third", "", 1));
    refused(&kubectl, "third", &["Insufficient example.com/seat", "No preemption victims found for incoming pod"]);
    kubectl.run(&["delete", "pod", "third"]).ok();
    let hold = |finalizers: &str| {
        let patch = format!(r#"{{"metadata":{{"finalizers":{finalizers}}}}}"#);
        for pod in ["first", "second"] {
            kubectl.run(&["patch", "pod", pod, "--type=merge", "-p", &patch]);
        }
    };
    hold(r#"["example.com/hold"]"#);
    kubectl.apply(&seat("patient", "priorityClassName: urgent\n  preemptionPolicy: PreemptLowerPriority", 1));
    eventually(PATIENCE, || {
        let path = r#"{.items[*].status.conditions[?(@.type=="DisruptionTarget")].reason}"#;
        let reason = kubectl.path(&["pods"], path)?;
        check(reason == "PreemptionByScheduler", || reason)
    });
    hold("null");
    ready(&kubectl, "patient");
    let left = kubectl.run(&["get", "pods", "-o", "name"]).ok();
    assert_eq!(left.lines().count(), 2, "{left}");
    eventually(PATIENCE, || {
        let events = kubectl.run(&["get", "events", "--field-selector=reason=Preempted"]).result()?;
        check(events.contains("Preempted by pod"), || events)
    });
    kubectl.run(&["delete", "priorityclass", "urgent"]).ok();
}

fn gates_hold_a_pod() {
    let kubectl = shared::cluster().in_new("gates");
    kubectl.apply(&sleeper("gated", "app: gated", "schedulingGates: [{name: example.com/hold}]", ""));
    kubectl.run(&["get", "pods"]).prints(&["gated", "SchedulingGated"]);
    let add = r#"[{"op":"add","path":"/spec/schedulingGates/-","value":{"name":"example.com/more"}}]"#;
    let refused = kubectl.run(&["patch", "pod", "gated", "--type=json", "-p", add]);
    assert!(refused.stderr.contains("only deletion is allowed"), "{refused:?}");
    let open = r#"[{"op":"remove","path":"/spec/schedulingGates"}]"#;
    kubectl.run(&["patch", "pod", "gated", "--type=json", "-p", open]).ok();
    ready(&kubectl, "gated");
}

fn priority_classes_keep_their_value() {
    let kubectl = shared::server("priorities");
    kubectl.run(&["create", "priorityclass", "steady", "--value=7", "--description=first"]).ok();
    kubectl.run(&["get", "priorityclasses"]).prints(&["steady", "system-node-critical", "system-cluster-critical"]);
    kubectl.run(&["patch", "priorityclass", "steady", "-p", r#"{"description":"second"}"#]).ok();
    let mut class = kubectl.json(&["priorityclass", "steady"]);
    assert_eq!(class["description"], "second");
    class["description"] = "third".into();
    kubectl.feed(&["replace", "-f", "-"], &class.to_string()).ok();
    assert_eq!(kubectl.json(&["priorityclass", "steady"])["description"], "third");
    let refused = kubectl.run(&["patch", "priorityclass", "steady", "-p", r#"{"value":8}"#]);
    assert!(refused.stderr.contains("value: "), "{refused:?}");
    assert_eq!(kubectl.json(&["priorityclass", "steady"])["value"], 7);
}
