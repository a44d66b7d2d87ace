//! What pods and nodes use, autoscaling by it, and what a namespace may take.

use std::time::{Duration, Instant};

use skiff_e2e::{Kubectl, Version, eventually, wait::check};

use crate::{shared, tests, workloads::PATIENCE};

tests![
    what_nodes_and_pods_use,
    an_autoscaler_follows_a_load,
    autoscaling_with_both_kubectls,
    quotas_refuse_and_are_released,
    quotas_count_objects,
    quotas_and_limit_ranges_are_objects_like_others,
    a_quota_stops_a_controller,
    limit_ranges_complete_and_refuse,
];

fn namespace(name: &str) -> Kubectl {
    shared::cluster().in_new(name)
}

/// A Deployment whose containers ask for a tenth of a processor and run a script.
fn deployment(name: &str, replicas: u32, script: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, '{script}']
        resources: {{requests: {{cpu: 100m, memory: 16Mi}}}}
"
    )
}

/// Busy until a file is there.
const BUSY: &str = "while [ ! -e /tmp/stop ]; do :; done; sleep 100000";
/// Idle until a file is there, then busy.
const WAITING: &str = "while [ ! -e /tmp/go ]; do sleep 0.2; done; while :; do :; done";
const IDLE: &str = "sleep 100000";

fn what_nodes_and_pods_use() {
    let kubectl = namespace("top");
    kubectl.apply(&deployment("busy", 1, BUSY));
    kubectl.apply(&deployment("idle", 1, IDLE));
    kubectl.run(&["rollout", "status", "deployment/busy", "--timeout=60s"]).ok();
    kubectl.run(&["rollout", "status", "deployment/idle", "--timeout=60s"]).ok();
    for version in Version::ALL {
        let kubectl = kubectl.version(version);
        kubectl.run(&["top", "nodes"]).prints(&["CPU(cores)", shared::CONTROL_PLANE, shared::WORKER, "Mi", "%"]);
        // The first second of a container tells nothing yet.
        let pods = eventually(PATIENCE, || {
            let pods = kubectl.run(&["top", "pods", "--sort-by=cpu", "--no-headers"]).result()?;
            let complete = pods.contains("busy-") && pods.contains("idle-");
            check(complete, || pods.clone()).map(|()| pods)
        });
        assert!(pods.find("busy-") < pods.find("idle-"), "{pods}");
        let busy: u64 = pods.split_whitespace().nth(1).and_then(|m| m.trim_end_matches('m').parse().ok()).unwrap();
        assert!(busy > 5, "{pods}");
        kubectl.run(&["top", "pods", "-l", "app=idle", "--containers"]).prints(&["POD", "idle-", "main"]);
        let all = kubectl.run(&["top", "pods", "-A"]);
        all.prints(&["NAMESPACE", "kube-system", "coredns-", "top"]);
    }
    kubectl.run(&["top", "pod", "nobody"]).fails_with("podmetrics.metrics.k8s.io \"top/nobody\" not found");
    kubectl.run(&["get", "nodes.metrics.k8s.io"]).prints(&["CPU", "MEMORY", "WINDOW"]);
    kubectl.run(&["api-resources", "--api-group=metrics.k8s.io"]).prints(&["NodeMetrics", "PodMetrics"]);
    kubectl.run(&["explain", "podmetrics.containers"]).prints(&["usage"]);
    // Who may see the pods of a namespace may see what they use.
    kubectl.run(&["create", "rolebinding", "viewer", "--clusterrole=view", "--user=jane"]).ok();
    kubectl.run(&["top", "pods", "--as=jane"]).prints(&["busy-"]);
    kubectl
        .run(&["top", "nodes", "--as=jane"])
        .fails_with("cannot list resource \"nodes\" in API group \"metrics.k8s.io\"");
    // The kubelet's own pages, as Prometheus reads them.
    let page = |page: &str| kubectl.run(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/{page}", shared::WORKER)]);
    page("metrics/resource").prints(&["container_cpu_usage_seconds_total{", "node_memory_working_set_bytes"]);
    page("metrics/cadvisor").prints(&["container_memory_working_set_bytes{", "machine_cpu_cores"]);
    page("metrics").prints(&["kubelet_running_pods"]);
    page("stats/summary").prints(&["\"usageCoreNanoSeconds\""]);
}

fn an_autoscaler_follows_a_load() {
    let kubectl = namespace("hpa");
    kubectl.apply(&deployment("load", 1, WAITING));
    kubectl.run(&["rollout", "status", "deployment/load", "--timeout=60s"]).ok();
    kubectl.apply(
        "apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: load}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: load}
  minReplicas: 1
  maxReplicas: 3
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
  metrics:
  - type: Resource
    resource: {name: cpu, target: {type: Utilization, averageUtilization: 10}}
",
    );
    let replicas = |wanted: &str| {
        eventually(Duration::from_secs(90), || {
            let seen = kubectl.path(&["deployment", "load"], "{.spec.replicas}")?;
            check(seen == wanted, || format!("{seen}\n{}", kubectl.run(&["describe", "hpa", "load"]).stdout))
        });
    };
    eventually(PATIENCE, || {
        let metrics =
            kubectl.path(&["hpa", "load"], "{.status.currentMetrics[*].resource.current.averageUtilization}")?;
        check(!metrics.is_empty(), || kubectl.run(&["describe", "hpa", "load"]).stdout)
    });
    assert_eq!(kubectl.path(&["deployment", "load"], "{.spec.replicas}").unwrap(), "1");
    let started = Instant::now();
    kubectl.run(&["exec", "deployment/load", "--", "touch", "/tmp/go"]).ok();
    replicas("3");
    println!("the autoscaler answered the load after {:.1} s", started.elapsed().as_secs_f64());
    eventually(PATIENCE, || {
        let shown = kubectl.run(&["get", "hpa", "load"]).result()?;
        check(shown.contains("Deployment/load") && shown.contains("%/10%") && shown.contains("cpu: "), || shown.clone())
    });
    let described = kubectl.run(&["describe", "hpa", "load"]);
    described.prints(&["SuccessfulRescale", "above target", "ScalingActive", "AbleToScale", "ScalingLimited"]);
    // The load goes, and so do the pods.
    kubectl.run(&["rollout", "status", "deployment/load", "--timeout=60s"]).ok();
    let patch = r#"[{"op":"replace","path":"/spec/template/spec/containers/0/command/2","value":"sleep 100000"}]"#;
    kubectl.run(&["patch", "deployment", "load", "--type=json", "-p", patch]).ok();
    kubectl.run(&["rollout", "status", "deployment/load", "--timeout=60s"]).ok();
    replicas("1");
    eventually(PATIENCE, || {
        let described = kubectl.run(&["describe", "hpa", "load"]).result()?;
        check(described.contains("reason: All metrics below target"), || described.clone())
    });
}

fn autoscaling_with_both_kubectls() {
    for version in Version::ALL {
        let kubectl = namespace(&format!("autoscale-{}", version.text().replace('.', "-"))).version(version);
        kubectl.apply(&deployment("web", 1, IDLE));
        let autoscale = ["autoscale", "deployment", "web", "--min=2", "--max=10", "--cpu-percent=80"];
        kubectl.run(&autoscale).prints(&["horizontalpodautoscaler.autoscaling/web autoscaled"]);
        eventually(PATIENCE, || {
            let replicas = kubectl.path(&["deployment", "web"], "{.spec.replicas}")?;
            check(replicas == "2", || replicas)
        });
        kubectl.run(&["get", "hpa"]).prints(&["REFERENCE", "MINPODS", "Deployment/web", "/80%", "10"]);
        let old = kubectl.json(&["horizontalpodautoscalers.v1.autoscaling", "web"]);
        assert_eq!(old["spec"]["targetCPUUtilizationPercentage"], 80, "{old}");
        let new = kubectl.json(&["horizontalpodautoscalers.v2.autoscaling", "web"]);
        assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80, "{new}");
        // What cannot be had is told.
        kubectl.run(&["create", "deployment", "plain", "--image=busybox", "--", "sleep", "1000"]).ok();
        kubectl.run(&["autoscale", "deployment", "plain", "--max=3", "--cpu-percent=50"]).ok();
        kubectl.run(&["autoscale", "deployment", "nobody", "--max=3"]).fails_with("not found");
        eventually(PATIENCE, || {
            let described = kubectl.run(&["describe", "hpa", "plain"]).result()?;
            check(described.contains("FailedGetResourceMetric"), || described.clone())
        });
        kubectl
            .run(&["patch", "hpa", "web", "--type=merge", "-p", r#"{"spec":{"maxReplicas":1}}"#])
            .fails_with("must be greater than or equal to `minReplicas`");
    }
}

fn quota(name: &str, hard: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: {name}, labels: {{kind: {name}}}}}\nspec:\n  hard: {hard}\n"
    )
}

/// Waits until a quota says that this much is used.
#[track_caller]
fn used(kubectl: &Kubectl, quota: &str, resource: &str, wanted: &str) {
    eventually(PATIENCE, || {
        let all = kubectl.json(&["quota", quota]);
        let seen = all["status"]["used"][resource].as_str().unwrap_or_default().to_owned();
        check(seen == wanted, || format!("{resource}: {seen:?} instead of {wanted:?} in {}", all["status"]))
    });
}

fn pod(name: &str, resources: &str) -> String {
    crate::workloads::pod(name, &format!("command: [sleep, '1000']\nresources: {resources}"))
        .replace("terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 0")
}

fn quotas_refuse_and_are_released() {
    let kubectl = namespace("quota");
    kubectl.apply(&quota("q", "{pods: '3', requests.cpu: 300m, limits.memory: 100Mi, resourcequotas: '1'}"));
    used(&kubectl, "q", "resourcequotas", "1");
    used(&kubectl, "q", "pods", "0");
    kubectl.feed(&["apply", "-f", "-"], &pod("silent", "{}")).fails_with(
        "pods \"silent\" is forbidden: failed quota: q: must specify limits.memory for: main; requests.cpu for: main",
    );
    let some = "{requests: {cpu: 200m}, limits: {memory: 30Mi}}";
    kubectl.apply(&pod("a", some));
    used(&kubectl, "q", "requests.cpu", "200m");
    kubectl.feed(&["apply", "-f", "-"], &pod("b", some)).fails_with(
        "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=200m, used: requests.cpu=200m, limited: requests.cpu=300m",
    );
    kubectl.run(&["get", "quota"]).prints(&[
        "REQUEST",
        "LIMIT",
        "requests.cpu: 200m/300m",
        "limits.memory: 30Mi/100Mi",
    ]);
    kubectl.run(&["describe", "quota", "q"]).prints(&["Used", "Hard", "200m"]);
    let this = kubectl.namespace.clone().expect("a new one");
    kubectl.run(&["describe", "namespace", &this]).prints(&["Resource Quotas", "limits.memory"]);
    kubectl.run(&["delete", "pod", "a"]).ok();
    used(&kubectl, "q", "requests.cpu", "0");
    kubectl.apply(&pod("b", some));
    // Changed, and gone.
    kubectl.run(&["patch", "quota", "q", "-p", r#"{"spec":{"hard":{"requests.cpu":"1"}}}"#]).ok();
    eventually(PATIENCE, || {
        let hard = kubectl.path(&["quota", "q"], "{.status.hard.requests\\.cpu}")?;
        check(hard == "1", || hard)
    });
    kubectl.apply(&pod("c", some));
    used(&kubectl, "q", "requests.cpu", "400m");
    kubectl.run(&["delete", "quota", "q"]).ok();
    kubectl.run(&["get", "quota", "q"]).fails_with("resourcequotas \"q\" not found");
    kubectl.apply(&pod("d", "{}"));
    // Of many at once only as many pass as there is room for.
    kubectl.apply(&quota("few", "{configmaps: '6'}"));
    used(&kubectl, "few", "configmaps", "1");
    let mut at_once: Vec<_> = (0..12).map(|i| kubectl.start(&["create", "configmap", &format!("c{i}")])).collect();
    let ended: Vec<_> = at_once.iter_mut().map(|c| c.end(PATIENCE)).collect();
    assert_eq!(ended.iter().filter(|code| **code == Some(0)).count(), 5, "{ended:?}");
    used(&kubectl, "few", "configmaps", "6");
}

fn quotas_count_objects() {
    let kubectl = namespace("quota-counts");
    kubectl.run(&["create", "secret", "generic", "before"]).ok();
    let hard = "{secrets: '5', configmaps: '5', services: '5', services.nodeports: '1', services.loadbalancers: '1', \
                replicationcontrollers: '1', count/replicasets.apps: '5', persistentvolumeclaims: '2', requests.storage: 2Gi, \
                count/deployments.apps: '1'}";
    kubectl.apply(&quota("q", hard));
    used(&kubectl, "q", "secrets", "1");
    kubectl.run(&["create", "secret", "generic", "s"]).ok();
    used(&kubectl, "q", "secrets", "2");
    kubectl.run(&["delete", "secret", "s"]).ok();
    used(&kubectl, "q", "secrets", "1");
    kubectl.run(&["create", "configmap", "c"]).ok();
    used(&kubectl, "q", "configmaps", "2");
    kubectl.run(&["delete", "configmap", "c"]).ok();
    used(&kubectl, "q", "configmaps", "1");
    kubectl.run(&["create", "service", "clusterip", "a", "--tcp=80"]).ok();
    kubectl.run(&["create", "service", "nodeport", "b", "--tcp=80"]).ok();
    used(&kubectl, "q", "services", "2");
    used(&kubectl, "q", "services.nodeports", "1");
    kubectl.run(&["create", "service", "loadbalancer", "c", "--tcp=80"]).fails_with(
        "exceeded quota: q, requested: services.nodeports=1, used: services.nodeports=1, limited: services.nodeports=1",
    );
    kubectl.run(&["delete", "service", "a", "b"]).ok();
    used(&kubectl, "q", "services.nodeports", "0");
    kubectl.run(&["create", "service", "loadbalancer", "c", "--tcp=80"]).ok();
    used(&kubectl, "q", "services.loadbalancers", "1");
    kubectl.run(&["delete", "service", "c"]).ok();
    used(&kubectl, "q", "services", "0");
    kubectl.apply(
        "apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: r}
spec:
  replicas: 0
  selector: {matchLabels: {app: r}}
  template: {metadata: {labels: {app: r}}, spec: {containers: [{name: a, image: busybox}]}}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: r}
spec:
  replicas: 0
  selector: {app: r}
  template: {metadata: {labels: {app: r}}, spec: {containers: [{name: a, image: busybox}]}}
",
    );
    used(&kubectl, "q", "count/replicasets.apps", "1");
    used(&kubectl, "q", "replicationcontrollers", "1");
    kubectl.run(&["delete", "rs,rc", "r"]).ok();
    used(&kubectl, "q", "count/replicasets.apps", "0");
    used(&kubectl, "q", "replicationcontrollers", "0");
    let claim = |name: &str, size: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  storageClassName: none\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: {size}}}}}\n"
        )
    };
    kubectl.apply(&claim("a", "1Gi"));
    used(&kubectl, "q", "requests.storage", "1Gi");
    kubectl.feed(&["apply", "-f", "-"], &claim("b", "2Gi")).fails_with(
        "exceeded quota: q, requested: requests.storage=2Gi, used: requests.storage=1Gi, limited: requests.storage=2Gi",
    );
    kubectl.run(&["delete", "pvc", "a"]).ok();
    used(&kubectl, "q", "requests.storage", "0");
}

fn quotas_and_limit_ranges_are_objects_like_others() {
    let (kubectl, other) = (namespace("quota-objects"), namespace("quota-others"));
    kubectl
        .feed(&["apply", "-f", "-"], &quota("bad", "{podz: '1'}"))
        .fails_with("must be a standard resource for quotas");
    for kubectl in [&kubectl, &other] {
        kubectl.apply(&quota("qq", "{cpu: '1', memory: 500Mi}"));
        kubectl.apply(
            "apiVersion: v1\nkind: LimitRange\nmetadata: {name: l, labels: {kind: qq}}\nspec:\n  limits: [{type: Container, max: {cpu: '1'}}]\n",
        );
    }
    for kind in ["quota", "limitrange"] {
        let all = kubectl.run(&["get", kind, "-A", "-l", "kind=qq", "--no-headers"]).ok();
        assert_eq!(all.lines().count(), 2, "{all}");
    }
    kubectl.run(&["patch", "quota", "qq", "-p", r#"{"spec":{"hard":{"memory":"750Mi"}}}"#]).ok();
    used(&kubectl, "qq", "memory", "0");
    assert_eq!(kubectl.path(&["quota", "qq"], "{.spec.hard.memory}").unwrap(), "750Mi");
    let patch = r#"{"spec":{"limits":[{"type":"Container","max":{"cpu":"2"}}]}}"#;
    kubectl.run(&["patch", "limitrange", "l", "--type=merge", "-p", patch]).ok();
    assert_eq!(kubectl.path(&["limitrange", "l"], "{.spec.limits[0].max.cpu}").unwrap(), "2");
    // A status is the controller's: what others write of it does not stay, and never touches the spec.
    let patch = r#"{"status":{"hard":{"cpu":"7"}},"spec":{"hard":{"cpu":"8"}}}"#;
    kubectl.run(&["patch", "quota", "qq", "--subresource=status", "--type=merge", "-p", patch]).ok();
    eventually(PATIENCE, || {
        let seen = kubectl.path(&["quota", "qq"], "{.status.hard.cpu} {.spec.hard.cpu}")?;
        check(seen == "1 1", || seen)
    });
    kubectl.run(&["delete", "quota,limitrange", "-l", "kind=qq"]).ok();
    let left = kubectl.run(&["get", "quota,limitrange", "-A", "-l", "kind=qq", "--no-headers"]).ok();
    let there = other.namespace.clone().expect("a new one");
    assert!(left.lines().count() == 2 && left.lines().all(|l| l.starts_with(&there)), "{left}");
}

fn a_quota_stops_a_controller() {
    let kubectl = namespace("quota-rc");
    kubectl.apply(&quota("q", "{pods: '2'}"));
    used(&kubectl, "q", "pods", "0");
    kubectl.apply(
        "apiVersion: v1
kind: ReplicationController
metadata: {name: r}
spec:
  replicas: 3
  selector: {app: r}
  template:
    metadata: {labels: {app: r}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}]
",
    );
    let failure = "{.status.conditions[?(@.type=='ReplicaFailure')].message}";
    eventually(PATIENCE, || {
        let seen = kubectl.path(&["rc", "r"], failure)?;
        // A pod that is just being written may be counted twice for a moment.
        let told = ["used: pods=2, limited: pods=2", "used: pods=3, limited: pods=2"];
        let exceeded = seen.contains("exceeded quota: q, requested: pods=1, ");
        check(exceeded && told.iter().any(|told| seen.contains(told)), || seen.clone())
    });
    kubectl.run(&["scale", "rc", "r", "--replicas=2"]).ok();
    eventually(PATIENCE, || {
        let seen = kubectl.path(&["rc", "r"], failure)?;
        check(seen.is_empty(), || seen.clone())
    });
}

fn limit_ranges_complete_and_refuse() {
    let kubectl = namespace("limits");
    kubectl.apply(
        "apiVersion: v1
kind: LimitRange
metadata: {name: l}
spec:
  limits:
  - type: Container
    min: {cpu: 50m, memory: 10Mi}
    max: {cpu: 500m, memory: 100Mi}
    defaultRequest: {cpu: 100m, memory: 20Mi}
    default: {cpu: 500m, memory: 50Mi}
  - type: PersistentVolumeClaim
    max: {storage: 1Gi}
",
    );
    kubectl.run(&["describe", "limits", "l"]).prints(&["Container", "500m", "100Mi", "PersistentVolumeClaim"]);
    let resources = |name: &str| kubectl.json(&["pod", name])["spec"]["containers"][0]["resources"].clone();
    kubectl.apply(&pod("plain", "{}"));
    let wanted =
        serde_json::json!({"requests": {"cpu": "100m", "memory": "20Mi"}, "limits": {"cpu": "500m", "memory": "50Mi"}});
    assert_eq!(resources("plain"), wanted);
    let told = kubectl.path(&["pod", "plain"], "{.metadata.annotations.kubernetes\\.io/limit-ranger}").unwrap();
    assert_eq!(
        told,
        "LimitRanger plugin set: cpu, memory request for container main; cpu, memory limit for container main"
    );
    kubectl.apply(&pod("partly", "{requests: {cpu: 200m}, limits: {memory: 40Mi}}"));
    let partly = resources("partly");
    assert_eq!((&partly["requests"]["cpu"], &partly["limits"]["memory"]), (&"200m".into(), &"40Mi".into()), "{partly}");
    assert_eq!((&partly["requests"]["memory"], &partly["limits"]["cpu"]), (&"40Mi".into(), &"500m".into()), "{partly}");
    let refused = |name: &str, resources: &str, why: &str| {
        kubectl
            .feed(&["apply", "-f", "-"], &pod(name, resources))
            .fails_with(&format!("pods \"{name}\" is forbidden: {why}"));
    };
    refused("big", "{limits: {cpu: '1'}}", "maximum cpu usage per Container is 500m, but limit is 1");
    refused("small", "{requests: {cpu: 10m}}", "minimum cpu usage per Container is 50m, but request is 10m");
    kubectl
        .feed(&["apply", "-f", "-"], "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: c}\nspec:\n  accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 2Gi}}\n")
        .fails_with("persistentvolumeclaims \"c\" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi");
    // Changed and gone at once.
    let patch = r#"{"spec":{"limits":[{"type":"Container","min":{"cpu":"5m"}}]}}"#;
    kubectl.run(&["patch", "limitrange", "l", "--type=merge", "-p", patch]).ok();
    kubectl.apply(&pod("small", "{requests: {cpu: 10m}}"));
    kubectl.run(&["delete", "limitrange", "l"]).ok();
    kubectl.apply(&pod("free", "{}"));
    assert_eq!(resources("free"), serde_json::json!({}));
}
