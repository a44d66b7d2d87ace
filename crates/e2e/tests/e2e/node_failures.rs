//! Nodes that are lost and come back, and nodes that run short.

use std::{path::PathBuf, process::Command, time::Duration};

use serde_json::json;
use skiff_e2e::{Cluster, Home, Kubectl, command, eventually, leftovers, wait::check};

use crate::{tests, workloads::PATIENCE};

tests![a_lost_node_loses_its_pods_and_comes_back, a_full_disk_evicts_pods, short_memory_evicts_pods];

/// For what happens some seconds after something else.
const SLOW: Duration = Duration::from_secs(90);

fn condition(kubectl: &Kubectl, node: &str, kind: &str) -> Result<String, String> {
    kubectl.path(&["node", node], &format!("{{.status.conditions[?(@.type==\"{kind}\")].status}}"))
}

fn has_event(kubectl: &Kubectl, object: &str, reason: &str) -> Result<String, String> {
    let fields = format!("--field-selector=involvedObject.name={object},reason={reason}");
    let said = kubectl.run(&["get", "events", "-A", &fields, "--no-headers"]).result()?;
    check(said.contains(reason), || format!("no event {reason} of {object}: {said}"))?;
    Ok(said)
}

fn a_lost_node_loses_its_pods_and_comes_back() {
    let cluster = Cluster::create("lost", &["--nodes", "2", "--node-monitor-grace-period", "15s"]);
    cluster.load(&["busybox"]);
    let all = cluster.kubectl();
    let kubectl = all.within("default");
    let (worker, control_plane) = ("lost-worker", "lost-control-plane");
    let pod = |tolerations: serde_json::Value, wanted: &str| {
        json!({
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "tolerations": tolerations,
                "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                    "weight": 100, "preference": {"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": [wanted]}]}}]}},
                "containers": [{"name": "c", "image": "busybox:1.36", "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "1000000"]}],
            },
        })
    };
    // For two seconds it stays on a lost node; anywhere it may be.
    let tolerations = json!([
        {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2},
    ]);
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": pod(tolerations, worker)}});
    let mut daemon_pod = pod(json!([]), worker);
    daemon_pod["metadata"]["labels"]["app"] = "agent".into();
    let daemons = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": daemon_pod}});
    let ordinary = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "patient"},
        "spec": pod(json!([]), worker)["spec"]});
    for object in [&deployment, &daemons, &ordinary] {
        kubectl.apply(&object.to_string());
    }
    kubectl.run(&["rollout", "status", "deployment/web", "daemonset/agent", "--timeout=60s"]).ok();
    kubectl.run(&["wait", "--for=condition=Ready", "pod/patient", "--timeout=60s"]).ok();
    let of_web = |path: &str| kubectl.path(&["pods", "-l", "app=web"], path);
    let first = of_web("{.items[0].metadata.name}").unwrap();
    assert_eq!(of_web("{.items[*].spec.nodeName}").unwrap(), worker);
    // Five minutes, unless it says otherwise.
    let seconds = "{.spec.tolerations[?(@.key==\"node.kubernetes.io/unreachable\")].tolerationSeconds}";
    assert_eq!(kubectl.path(&["pod", "patient"], seconds).unwrap(), "300");

    // The worker's first process, and with it everything on the worker.
    let processes = leftovers::processes(&cluster.home.dir);
    let of_worker = |line: &str| line.contains("node-init") && line.contains(worker);
    let victims: Vec<_> = processes.into_iter().filter(|(_, line)| of_worker(line)).collect();
    assert!(!victims.is_empty(), "the worker has a first process");
    for (pid, _) in victims {
        command::run(Command::new("kill").args(["-9", &pid.to_string()]), "").ok();
    }
    eventually(SLOW, || {
        let status = condition(&all, worker, "Ready")?;
        check(status == "Unknown", || format!("Ready is {status}"))
    });
    all.run(&["get", "nodes"]).prints(&["lost-worker          NotReady"]);
    // The taint comes with the controller's next look.
    eventually(SLOW, || {
        let described = all.run(&["describe", "node", worker]).result()?;
        let parts =
            ["Kubelet stopped posting node status.", "NodeStatusUnknown", "node.kubernetes.io/unreachable:NoExecute"];
        check(parts.iter().all(|part| described.contains(part)), || described.clone())
    });
    // A new pod runs elsewhere, while the old one waits for its node.
    eventually(SLOW, || {
        let nodes = of_web("{range .items[*]}{.spec.nodeName}={.status.phase} {end}")?;
        check(nodes.contains(&format!("{control_plane}=Running")), || nodes)
    });
    has_event(&kubectl, &first, "TaintManagerEviction").unwrap();
    has_event(&kubectl, worker, "NodeNotReady").unwrap();
    let disrupted = kubectl.path(&["pod", &first], "{.status.conditions[?(@.type==\"DisruptionTarget\")].reason}");
    assert_eq!(disrupted.unwrap(), "DeletionByTaintManager");
    kubectl.run(&["get", "pod", &first]).prints(&["Terminating"]);
    kubectl.run(&["get", "pods", "-l", "app=agent"]).prints(&["Running"]);
    assert_eq!(
        kubectl.path(&["pod", "patient"], "{.status.conditions[?(@.type==\"Ready\")].status}").unwrap(),
        "False"
    );

    // Who knows that the node is gone says so, and need not wait.
    all.run(&["taint", "nodes", worker, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"]).ok();
    eventually(PATIENCE, || {
        let said = kubectl.run(&["get", "pod", &first, "patient", "--ignore-not-found"]).result()?;
        check(said.is_empty(), || said)
    });
    all.run(&["taint", "nodes", worker, "node.kubernetes.io/out-of-service-"]).ok();

    cluster.home.skiff(&["cluster", "start", "lost"]).ok();
    eventually(SLOW, || {
        let status = condition(&all, worker, "Ready")?;
        check(status == "True", || format!("Ready is {status}"))
    });
    eventually(PATIENCE, || {
        let taints = all.path(&["node", worker], "{.spec.taints}")?;
        check(!taints.contains("unreachable") && !taints.contains("not-ready"), || taints)
    });
    kubectl.run(&["rollout", "status", "daemonset/agent", "--timeout=60s"]).ok();
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

/// A file system of its own for pods' volumes, so that it can be filled without harm.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        command::run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=96m", "skiff-e2e"]).arg(&at), "").ok();
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = command::run(Command::new("umount").arg("--lazy").arg(&self.0), "");
        if let Err(error) = unmounted.result() {
            eprintln!("{error}");
        }
    }
}

fn a_full_disk_evicts_pods() {
    let disk = SmallDisk::new(std::env::temp_dir().join(format!("skiff-e2e-disk-{}", std::process::id())));
    let home = Home::new();
    let config = home.file(
        "full.yaml",
        &format!(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n  extraMounts:\n  \
             - {{hostPath: {}, containerPath: /var/lib/kubelet}}\n",
            disk.0.display()
        ),
    );
    let hard = ["--eviction-hard", "nodefs.available<40Mi", "--eviction-pressure-transition-period", "10s"];
    let cluster = Cluster::create("full", &[&["--config", &config], &hard[..]].concat());
    cluster.load(&["busybox"]);
    let (kubectl, node) = (cluster.kubectl().within("default"), "full-control-plane");
    let pod = |name: &str, script: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "busybox:1.36", "imagePullPolicy": "IfNotPresent",
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                "command": ["sh", "-c", format!("{script}; sleep 1000000")]}],
            "volumes": [{"name": "scratch", "emptyDir": {}}]}})
        .to_string()
    };
    kubectl.apply(&pod("bystander", "true"));
    kubectl.run(&["wait", "--for=condition=Ready", "pod/bystander", "--timeout=60s"]).ok();
    assert_eq!(condition(&kubectl, node, "DiskPressure").unwrap(), "False");
    kubectl.apply(&pod("hog", "dd if=/dev/zero of=/scratch/much bs=1M count=70"));
    eventually(SLOW, || {
        let status = kubectl.path(&["pod", "hog"], "{.status.phase} {.status.reason}: {.status.message}")?;
        let told = "Failed Evicted: The node was low on resource: ephemeral-storage. \
                    Threshold quantity: 40Mi, available: ";
        check(status.starts_with(told), || status)
    });
    has_event(&kubectl, "hog", "Evicted").unwrap();
    has_event(&kubectl, node, "EvictionThresholdMet").unwrap();
    eventually(PATIENCE, || has_event(&kubectl, node, "NodeHasDiskPressure"));
    let why = kubectl.path(&["pod", "hog"], "{.status.conditions[?(@.type==\"DisruptionTarget\")].reason}");
    assert_eq!(why.unwrap(), "TerminationByKubelet");
    // The disk has room again, and the pressure is over some seconds later; who did not use it was left alone.
    eventually(SLOW, || has_event(&kubectl, node, "NodeHasNoDiskPressure"));
    eventually(PATIENCE, || {
        let taints = kubectl.path(&["node", node], "{.spec.taints}")?;
        check(!taints.contains("disk-pressure"), || taints)
    });
    kubectl.run(&["get", "pod", "bystander"]).prints(&["1/1     Running   0"]);
    kubectl.run(&["describe", "pod", "hog"]).prints(&["Reason:           Evicted"]);
    kubectl.apply(&pod("later", "true"));
    kubectl.run(&["wait", "--for=condition=Ready", "pod/later", "--timeout=60s"]).ok();
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
    drop(disk);
}

fn short_memory_evicts_pods() {
    // A machine of one processor and 1 GiB, short of memory below half of it.
    let limits = ["--cpus", "1", "--memory", "1Gi"];
    let hard = ["--eviction-hard", "memory.available<512Mi", "--eviction-pressure-transition-period", "10s"];
    let cluster = Cluster::create("small", &[&limits[..], &hard].concat());
    cluster.load(&["busybox"]);
    let (kubectl, node) = (cluster.kubectl().within("default"), "small-control-plane");
    assert_eq!(kubectl.path(&["node", node], "{.status.capacity.cpu}").unwrap(), "1");
    assert_eq!(kubectl.path(&["node", node], "{.status.capacity.memory}").unwrap(), "1Gi");
    let pod = |name: &str, script: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "busybox:1.36", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script]}]}})
        .to_string()
    };
    kubectl.apply(&pod("bystander", "sleep 1000000"));
    kubectl.run(&["wait", "--for=condition=Ready", "pod/bystander", "--timeout=60s"]).ok();
    assert_eq!(condition(&kubectl, node, "MemoryPressure").unwrap(), "False");
    // It holds its buffer, because nobody reads what it writes.
    kubectl.apply(&pod("hog", "dd if=/dev/zero bs=600M count=2 | sleep 1000000"));
    eventually(SLOW, || {
        let status = kubectl.path(&["pod", "hog"], "{.status.phase} {.status.reason}: {.status.message}")?;
        let told = "Failed Evicted: The node was low on resource: memory. Threshold quantity: 512Mi, available: ";
        let who = ", request is 0, has larger consumption of memory. ";
        check(status.starts_with(told) && status.ends_with(who) && status.contains("Container c was using 6"), || {
            status
        })
    });
    has_event(&kubectl, "hog", "Evicted").unwrap();
    has_event(&kubectl, node, "EvictionThresholdMet").unwrap();
    eventually(PATIENCE, || has_event(&kubectl, node, "NodeHasInsufficientMemory"));
    // While it lasts, pods that promise nothing are kept away; then it is over, and who did not use it was left alone.
    eventually(SLOW, || has_event(&kubectl, node, "NodeHasSufficientMemory"));
    eventually(PATIENCE, || {
        let taints = kubectl.path(&["node", node], "{.spec.taints}")?;
        check(!taints.contains("memory-pressure"), || taints)
    });
    assert_eq!(condition(&kubectl, node, "MemoryPressure").unwrap(), "False");
    kubectl.run(&["get", "pod", "bystander"]).prints(&["1/1     Running   0"]);
    kubectl.apply(&pod("later", "sleep 1000000"));
    kubectl.run(&["wait", "--for=condition=Ready", "pod/later", "--timeout=60s"]).ok();
    let refused = cluster.home.skiff(&["cluster", "create", "huge", "--isolated", "--cpus", "1000"]);
    refused.fails_with("more than this machine has");
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}
