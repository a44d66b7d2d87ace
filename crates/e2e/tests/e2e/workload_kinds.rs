//! The kinds of workloads beside Deployments: what their controllers promise, seen with kubectl.

use std::time::Duration;

use skiff_e2e::{Kubectl, eventually, wait::check};

use crate::{
    shared::{self, CONTROL_PLANE, WORKER},
    tests,
    workloads::PATIENCE,
};

tests![a_stateful_set_in_order, a_stateful_set_rolls_and_is_undone, a_daemon_set_on_every_node,];

fn namespace(name: &str) -> Kubectl {
    shared::cluster().in_new(name)
}

/// A container that sleeps and ends at once when it is told to; it is ready once `/tmp/ready` may be read.
const SLEEPER: &str = "      terminationGracePeriodSeconds: 5
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'trap exit TERM; touch /tmp/ready; while :; do sleep 0.1; done']
        readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1}
";

fn stateful_set(fields: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: db}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 80}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  {fields}
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
{SLEEPER}"
    )
}

/// The names of the pods with a label, in order of their names.
fn names(kubectl: &Kubectl, label: &str) -> Result<String, String> {
    kubectl.path(&["pods", "-l", label, "--sort-by=.metadata.name"], "{.items[*].metadata.name}")
}

#[track_caller]
fn are(kubectl: &Kubectl, label: &str, wanted: &str) {
    eventually(PATIENCE, || {
        let names = names(kubectl, label)?;
        check(names == wanted, || format!("{names}, not {wanted}\n{}", kubectl.run(&["get", "all,events"]).stdout))
    });
}

fn a_stateful_set_in_order() {
    let kubectl = namespace("sts-order");
    kubectl.apply(&stateful_set("replicas: 3"));
    kubectl.run(&["rollout", "status", "statefulset/db", "--timeout=90s"]).ok();
    are(&kubectl, "app=db", "db-0 db-1 db-2");
    kubectl.run(&["get", "statefulset", "db"]).prints(&["READY", "3/3"]);
    // Times of this form are in order as texts.
    let time = |pod: &str, path: &str| kubectl.path(&["pod", pod], path).unwrap();
    for (before, after) in [("db-0", "db-1"), ("db-1", "db-2")] {
        let ready = time(before, "{.status.conditions[?(@.type=='Ready')].lastTransitionTime}");
        let created = time(after, "{.metadata.creationTimestamp}");
        assert!(ready <= created, "{after} was created at {created}, before {before} was ready at {ready}");
    }
    let pod = kubectl.json(&["pod", "db-1"]);
    assert_eq!(pod["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"], "db-1");
    assert_eq!(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&"db-1".into(), &"db".into()));
    kubectl.run(&["exec", "db-2", "--", "hostname"]).prints(&["db-2"]);
    kubectl.run(&["describe", "statefulset", "db"]).prints(&["create Pod db-0 in StatefulSet db successful"]);
    // A pod that is deleted comes again with its name.
    let uid = kubectl.path(&["pod", "db-1"], "{.metadata.uid}").unwrap();
    kubectl.run(&["delete", "pod", "db-1"]).ok();
    eventually(PATIENCE, || {
        let again = kubectl.path(&["pod", "db-1"], "{.metadata.uid}")?;
        check(again != uid, || "still the old one".into())
    });
    kubectl.run(&["rollout", "status", "statefulset/db", "--timeout=60s"]).ok();
    // The highest goes first.
    kubectl.run(&["scale", "statefulset", "db", "--replicas=1"]).ok();
    are(&kubectl, "app=db", "db-0");
    let deleted = |pod: &str| {
        let message = format!("delete Pod {pod} in StatefulSet db successful");
        let all = kubectl.json(&["events", "--field-selector=reason=SuccessfulDelete"]);
        let items = all["items"].as_array().unwrap().clone();
        let event = items.iter().find(|e| e["message"] == message.as_str()).unwrap_or_else(|| panic!("{all}")).clone();
        event["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
    };
    assert!(deleted("db-2") < deleted("db-1"));
    // All at once.
    kubectl.run(&["delete", "statefulset", "db"]).ok();
    are(&kubectl, "app=db", "");
    kubectl.apply(&stateful_set("replicas: 2\n  podManagementPolicy: Parallel\n  ordinals: {start: 5}"));
    are(&kubectl, "app=db", "db-5 db-6");
}

fn a_stateful_set_rolls_and_is_undone() {
    let kubectl = namespace("sts-roll");
    kubectl.apply(&stateful_set("replicas: 2"));
    kubectl.run(&["rollout", "status", "statefulset/db", "--timeout=90s"]).ok();
    let value = |pod: &str| kubectl.path(&["pod", pod], "{.spec.containers[0].env[0].value}");
    // Only from the partition on.
    let partition = |n: u8| {
        let patch = format!(r#"{{"spec":{{"updateStrategy":{{"rollingUpdate":{{"partition":{n}}}}}}}}}"#);
        kubectl.run(&["patch", "statefulset", "db", "-p", &patch]).ok();
    };
    partition(1);
    kubectl.run(&["set", "env", "statefulset/db", "VERSION=2"]).ok();
    eventually(PATIENCE, || check(value("db-1")? == "2", || "not yet".into()));
    kubectl.run(&["rollout", "status", "statefulset/db", "--timeout=60s"]).prints(&["1 new pods have been updated"]);
    assert_eq!(value("db-0").unwrap(), "");
    partition(0);
    kubectl.run(&["rollout", "status", "statefulset/db", "--timeout=60s"]).ok();
    assert_eq!(value("db-0").unwrap(), "2");
    kubectl.run(&["rollout", "history", "statefulset/db"]).prints(&["REVISION", "1 ", "2 "]);
    kubectl.run(&["rollout", "undo", "statefulset/db"]).prints(&["rolled back"]);
    eventually(PATIENCE, || {
        let values = format!("{}{}", value("db-0")?, value("db-1")?);
        check(values.is_empty(), || format!("{values}\n{}", kubectl.run(&["get", "all,controllerrevisions"]).stdout))
    });
    kubectl.run(&["rollout", "history", "statefulset/db"]).prints(&["2 ", "3 "]);
    let same = |text: &str| text.split_once(' ').is_some_and(|(a, b)| a == b);
    eventually(PATIENCE, || {
        let revisions = kubectl.path(&["statefulset", "db"], "{.status.currentRevision} {.status.updateRevision}")?;
        check(same(&revisions), || revisions)
    });
    // What cannot change is refused in upstream's words.
    kubectl
        .run(&["patch", "statefulset", "db", "-p", r#"{"spec":{"serviceName":"other"}}"#])
        .fails_with("updates to statefulset spec for fields other than 'replicas'");
}

fn a_daemon_set_on_every_node() {
    let kubectl = namespace("daemons");
    let set = |fields: &str| {
        format!(
            "apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: agent}}
spec:
  selector: {{matchLabels: {{app: agent}}}}
  template:
    metadata: {{labels: {{app: agent}}}}
    spec:
{fields}{SLEEPER}"
        )
    };
    let nodes = || {
        let nodes = kubectl.path(&["pods", "-l", "app=agent"], "{.items[*].spec.nodeName}")?;
        let mut nodes: Vec<_> = nodes.split(' ').filter(|n| !n.is_empty()).map(str::to_owned).collect();
        nodes.sort();
        Ok::<_, String>(nodes)
    };
    let everywhere = "      tolerations: [{operator: Exists}]\n";
    kubectl.apply(&set(everywhere));
    kubectl.run(&["rollout", "status", "daemonset/agent", "--timeout=60s"]).ok();
    assert_eq!(nodes().unwrap(), [CONTROL_PLANE, WORKER]);
    kubectl.run(&["get", "daemonset", "agent"]).prints(&["DESIRED", "NODE SELECTOR"]);
    // One that is deleted comes again.
    let pod = names(&kubectl, "app=agent").unwrap().split(' ').next().unwrap().to_owned();
    kubectl.run(&["delete", "pod", &pod]).ok();
    kubectl.run(&["rollout", "status", "daemonset/agent", "--timeout=60s"]).ok();
    assert_eq!(nodes().unwrap(), [CONTROL_PLANE, WORKER]);
    // A new template on every node, and back.
    kubectl.run(&["set", "env", "daemonset/agent", "VERSION=2"]).ok();
    kubectl.run(&["rollout", "status", "daemonset/agent", "--timeout=60s"]).ok();
    let values = || kubectl.path(&["pods", "-l", "app=agent"], "{.items[*].spec.containers[0].env[0].value}");
    eventually(PATIENCE, || check(values()? == "2 2", || "not all yet".into()));
    kubectl.run(&["rollout", "history", "daemonset/agent"]).prints(&["1 ", "2 "]);
    kubectl.run(&["rollout", "undo", "daemonset/agent"]).prints(&["rolled back"]);
    eventually(PATIENCE, || check(values()?.trim().is_empty(), || "not all yet".into()));
    // By labels of nodes.
    let selector = format!("      nodeSelector: {{daemons: here}}\n{everywhere}");
    kubectl.apply(&set(&selector));
    eventually(PATIENCE, || check(nodes()?.is_empty(), || "still there".into()));
    kubectl.run(&["label", "node", WORKER, "daemons=here"]).ok();
    eventually(PATIENCE, || {
        let nodes = nodes()?;
        check(nodes == [WORKER], || format!("{nodes:?}"))
    });
    kubectl.run(&["label", "node", WORKER, "daemons-"]).ok();
    eventually(Duration::from_secs(30), || check(nodes()?.is_empty(), || "still there".into()));
}
