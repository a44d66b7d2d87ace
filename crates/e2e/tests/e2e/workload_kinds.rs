//! The kinds of workloads beside Deployments: what their controllers promise, seen with kubectl.

use std::time::Duration;

use skiff_e2e::{Cluster, Kubectl, eventually, wait::check};

use crate::{
    shared::{self, CONTROL_PLANE, WORKER},
    tests,
    workloads::PATIENCE,
};

tests![
    a_stateful_set_in_order,
    a_stateful_set_rolls_and_is_undone,
    a_daemon_set_on_every_node,
    jobs_end_well_or_not,
    an_indexed_job,
    a_cron_job,
    a_replication_controller,
    draining_keeps_a_budget,
];

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

/// A Job of one busybox container that runs a script.
fn job(name: &str, fields: &str, script: &str) -> String {
    format!(
        "apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  {fields}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      containers:
      - {{name: main, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, '{script}']}}
"
    )
}

fn jobs_end_well_or_not() {
    let kubectl = namespace("jobs");
    let ends = |name: &str, condition: &str, reason: &str| {
        let waited =
            kubectl.run(&["wait", &format!("--for=condition={condition}"), &format!("job/{name}"), "--timeout=60s"]);
        assert!(waited.code == Some(0), "{waited:?}\n{}", kubectl.run(&["get", "job,pod", "-o", "yaml"]).stdout);
        let path = format!("{{.status.conditions[?(@.type=='{condition}')].reason}}");
        assert_eq!(kubectl.path(&["job", name], &path).unwrap(), reason);
    };
    kubectl.apply(&job("pi", "completions: 3\n  parallelism: 2", "echo 3.14"));
    ends("pi", "Complete", "CompletionsReached");
    kubectl.run(&["get", "job", "pi"]).prints(&["COMPLETIONS", "Complete", "3/3"]);
    kubectl.run(&["logs", "job/pi"]).prints(&["3.14"]);
    kubectl.run(&["describe", "job", "pi"]).prints(&["3 Succeeded", "Job completed"]);
    let counted = kubectl.path(&["job", "pi"], "{.status.succeeded} {.status.ready} {.status.terminating}").unwrap();
    assert_eq!(counted, "3 0 0");
    kubectl.apply(&job("bad", "backoffLimit: 1", "exit 1"));
    ends("bad", "Failed", "BackoffLimitExceeded");
    assert_eq!(kubectl.path(&["job", "bad"], "{.status.failed}").unwrap(), "2");
    kubectl.run(&["describe", "job", "bad"]).prints(&["Job has reached the specified backoff limit"]);
    let rules = "podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]}";
    kubectl.apply(&job("policy", rules, "exit 42"));
    ends("policy", "Failed", "PodFailurePolicy");
    kubectl.apply(&job("late", "activeDeadlineSeconds: 1", "sleep 100"));
    ends("late", "Failed", "DeadlineExceeded");
    // Suspended, nothing runs; resumed, it does.
    kubectl.apply(&job("later", "suspend: true", "true"));
    kubectl.run(&["wait", "--for=condition=Suspended", "job/later", "--timeout=30s"]).ok();
    assert_eq!(names(&kubectl, "job-name=later").unwrap(), "");
    kubectl.run(&["patch", "job", "later", "-p", r#"{"spec":{"suspend":false}}"#]).ok();
    ends("later", "Complete", "CompletionsReached");
    // Its pods go with it, and so does one that asks for it by itself.
    kubectl.run(&["delete", "job", "pi"]).ok();
    are(&kubectl, "job-name=pi", "");
    kubectl.apply(&job("short", "ttlSecondsAfterFinished: 0", "true"));
    eventually(PATIENCE, || {
        let jobs = kubectl.path(&["jobs"], "{.items[*].metadata.name}")?;
        check(!jobs.contains("short"), || jobs)
    });
    kubectl
        .run(&["patch", "job", "later", "-p", r#"{"spec":{"completions":3}}"#])
        .fails_with("spec.completions: Invalid value: 3: field is immutable");
}

fn an_indexed_job() {
    let kubectl = namespace("indexed");
    let fields = "completionMode: Indexed\n  completions: 3\n  parallelism: 3";
    kubectl.apply(&job("each", fields, "echo $JOB_COMPLETION_INDEX on $(hostname)"));
    kubectl.run(&["wait", "--for=condition=Complete", "job/each", "--timeout=60s"]).ok();
    assert_eq!(kubectl.path(&["job", "each"], "{.status.completedIndexes}").unwrap(), "0-2");
    for index in 0..3 {
        let selector = format!("batch.kubernetes.io/job-completion-index={index}");
        let annotation = r"{.items[*].metadata.annotations.batch\.kubernetes\.io/job-completion-index}";
        assert_eq!(kubectl.path(&["pods", "-l", &selector], annotation).unwrap(), index.to_string());
        kubectl.run(&["logs", "-l", &selector]).prints(&[&format!("{index} on each-{index}")]);
    }
    // Odd indexes fail, each twice.
    let fields = "completionMode: Indexed\n  completions: 4\n  parallelism: 4\n  backoffLimitPerIndex: 1";
    kubectl.apply(&job("odd", fields, "exit $((JOB_COMPLETION_INDEX % 2))"));
    kubectl.run(&["wait", "--for=condition=Failed", "job/odd", "--timeout=60s"]).ok();
    let status = kubectl.json(&["job", "odd"])["status"].clone();
    assert_eq!((&status["completedIndexes"], &status["failedIndexes"]), (&"0,2".into(), &"1,3".into()), "{status}");
    assert_eq!((&status["succeeded"], &status["failed"]), (&2.into(), &4.into()), "{status}");
}

fn a_cron_job() {
    let kubectl = namespace("cron");
    let create = ["create", "cronjob", "tick", "--image=busybox", "--schedule=*/5 * * * *", "--", "echo", "tock"];
    kubectl.run(&create).ok();
    kubectl.run(&["get", "cronjob", "tick"]).prints(&["*/5 * * * *", "<none>", "False"]);
    kubectl.run(&["create", "job", "now", "--from=cronjob/tick"]).ok();
    kubectl.run(&["wait", "--for=condition=Complete", "job/now", "--timeout=60s"]).ok();
    kubectl.run(&["logs", "job/now"]).prints(&["tock"]);
    let bad = |patch: &str, what: &str| kubectl.run(&["patch", "cronjob", "tick", "-p", patch]).fails_with(what);
    bad(r#"{"spec":{"schedule":"* * * *"}}"#, "expected exactly 5 fields, found 4: [* * * *]");
    bad(r#"{"spec":{"timeZone":"No/Where"}}"#, "unknown time zone No/Where");
    // One that does not make the test wait for a minute.
    kubectl.run(&["patch", "cronjob", "tick", "-p", r#"{"spec":{"schedule":"@every 1s"}}"#]).ok();
    eventually(PATIENCE, || {
        let times = kubectl.path(&["cronjob", "tick"], "{.status.lastScheduleTime} {.status.lastSuccessfulTime}")?;
        check(times.split_whitespace().count() == 2, || {
            format!("{times}\n{}", kubectl.run(&["get", "jobs,events"]).stdout)
        })
    });
    let jobs = kubectl.path(&["jobs"], "{.items[*].metadata.name}").unwrap();
    let scheduled = jobs.split(' ').find(|name| name.starts_with("tick-")).unwrap_or_else(|| panic!("{jobs}"));
    assert!(scheduled["tick-".len()..].parse::<u64>().is_ok(), "{jobs}");
    kubectl.run(&["patch", "cronjob", "tick", "-p", r#"{"spec":{"suspend":true}}"#]).ok();
    kubectl.run(&["describe", "cronjob", "tick"]).prints(&["Created job tick-"]);
    kubectl.run(&["delete", "cronjob", "tick"]).ok();
    eventually(PATIENCE, || {
        let left = kubectl.path(&["jobs,pods"], "{.items[*].metadata.name}")?;
        check(left.is_empty(), || left)
    });
}

fn a_replication_controller() {
    let kubectl = namespace("rc");
    kubectl.apply(&format!(
        "apiVersion: v1
kind: ReplicationController
metadata: {{name: old}}
spec:
  replicas: 2
  template:
    metadata: {{labels: {{app: old}}}}
    spec:
{SLEEPER}"
    ));
    let ready = |wanted: &str| {
        eventually(PATIENCE, || {
            let ready = kubectl.path(&["rc", "old"], "{.status.readyReplicas}")?;
            check(ready == wanted, || format!("{ready} ready"))
        });
    };
    ready("2");
    kubectl.run(&["scale", "rc", "old", "--replicas=1"]).ok();
    ready("1");
    kubectl.run(&["get", "rc", "old"]).prints(&["DESIRED", "1 "]);
    // A pod whose labels change is released and replaced.
    let pod = eventually(PATIENCE, || {
        let names = names(&kubectl, "app=old")?;
        check(!names.contains(' '), || names.clone()).map(|()| names)
    });
    kubectl.run(&["label", "pod", &pod, "app=other", "--overwrite"]).ok();
    eventually(PATIENCE, || {
        let owners = kubectl.path(&["pod", &pod], "{.metadata.ownerReferences}")?;
        let others = names(&kubectl, "app=old")?;
        check(owners.is_empty() && !others.is_empty(), || format!("{owners} {others}"))
    });
}

fn draining_keeps_a_budget() {
    let cluster = Cluster::create("drain", &["--nodes", "2"]);
    cluster.load(&["busybox"]);
    let kubectl = cluster.kubectl().in_new("budget");
    kubectl.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      nodeSelector: {{kubernetes.io/hostname: drain-worker}}
{SLEEPER}"
    ));
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    kubectl.run(&["create", "poddisruptionbudget", "web", "--selector=app=web", "--min-available=1"]).ok();
    eventually(PATIENCE, || {
        let allowed = kubectl.path(&["pdb", "web"], "{.status.disruptionsAllowed}")?;
        check(allowed == "1", || allowed)
    });
    kubectl.run(&["get", "pdb", "web"]).prints(&["MIN AVAILABLE", "ALLOWED DISRUPTIONS", "N/A"]);
    // One of the two may go; its successor finds no node, so that the other one has to stay.
    let drain = ["drain", "drain-worker", "--ignore-daemonsets", "--delete-emptydir-data"];
    let refused = kubectl.run(&[&drain[..], &["--timeout=12s"]].concat());
    assert!(
        refused.stderr.contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{refused:?}"
    );
    assert!(refused.code != Some(0), "{refused:?}");
    let running =
        kubectl.path(&["pods", "--field-selector=status.phase=Running"], "{.items[*].metadata.name}").unwrap();
    assert_eq!(running.split(' ').count(), 1, "{running}");
    kubectl.run(&["delete", "pdb", "web"]).ok();
    kubectl.run(&[&drain[..], &["--timeout=60s"]].concat()).prints(&["drained"]);
    kubectl.run(&["uncordon", "drain-worker"]).ok();
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}
