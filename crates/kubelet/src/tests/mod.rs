//! The whole kubelet against a runtime and an API server in memory.

mod api;
mod cri;
mod server;

use std::{path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Node, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use skiff_client::{Informers, fake::FakeApi};
use tokio::{sync::oneshot, task::JoinHandle};

use self::{api::Api as TestApi, cri::FakeRuntime};
use crate::{Config, run, volumes::mounts};

/// A node with a kubelet that can be stopped and started.
struct Node1 {
    client: Client,
    runtime: FakeRuntime,
    dir: PathBuf,
    server: Option<crate::ServerConfig>,
    kubelet: Option<(oneshot::Sender<()>, JoinHandle<Result<(), crate::Error>>)>,
}

impl Drop for Node1 {
    fn drop(&mut self) {
        // Its workers must have ended, or they make directories anew.
        if let Some((stop, task)) = self.kubelet.take() {
            let _ = stop.send(());
            tokio::task::block_in_place(|| {
                let ended = tokio::time::timeout(Duration::from_secs(5), task);
                let _ = tokio::runtime::Handle::current().block_on(ended);
            });
        }
        let _ = mounts::remove_tree(&self.dir);
    }
}

impl Node1 {
    async fn new() -> Node1 {
        Node1::with_server(None).await
    }

    async fn with_server(server: Option<crate::ServerConfig>) -> Node1 {
        let client = skiff_client::in_process(TestApi(FakeApi::new()), "test", "default");
        let dir = std::env::temp_dir().join(format!("skiff-kubelet-{:x}", rand::random::<u64>()));
        let mut node = Node1 { client, runtime: FakeRuntime::new(), dir, server, kubelet: None };
        node.start();
        node
    }

    fn start(&mut self) {
        let mut config = Config::new("node", "127.0.0.1".parse().unwrap());
        config.root_dir = self.dir.join("kubelet");
        config.pod_logs_dir = self.dir.join("logs");
        config.cgroup_mount = None;
        // However full the disk of the machine is that this runs on.
        config.eviction_hard = "".parse().unwrap();
        config.server = self.server.clone();
        let (runtime, images) =
            skiff_cri::connect_in_process(Arc::new(self.runtime.clone()), Arc::new(self.runtime.clone()));
        let (stop, stopped) = oneshot::channel();
        let informers = Informers::new(self.client.clone());
        let running = run(config, self.client.clone(), informers, runtime, images, async {
            let _ = stopped.await;
        });
        self.kubelet = Some((stop, tokio::spawn(running)));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.kubelet.take().unwrap();
        let _ = stop.send(());
        task.await.unwrap().unwrap();
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn create(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = json!("node");
        let pod = json!({"metadata": {"name": name}, "spec": spec, "status": {"phase": "Pending"}});
        self.pods().create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }

    /// Waits until the pod is as wanted.
    async fn until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let pod = serde_json::to_value(self.pods().get_opt(name).await.unwrap()).unwrap();
            if holds(&pod) {
                return pod;
            }
            assert!(tokio::time::Instant::now() < deadline, "{name} never became {what}: {pod:#}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_ready(&self, name: &str) -> Value {
        self.until(name, "ready", |pod| condition(pod, "Ready")["status"] == "True").await
    }

    /// What is said of a deletion by an API server with grace.
    async fn delete(&self, name: &str, grace: i64) {
        let now = jiff::Timestamp::now();
        let body = json!({"metadata": {"deletionTimestamp": now.to_string(), "deletionGracePeriodSeconds": grace}});
        self.pods().patch(name, &PatchParams::default(), &Patch::Merge(body)).await.unwrap();
    }

    async fn until_event(&self, reason: &str, message: &str) {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let all = events.list(&Default::default()).await.unwrap();
            let told: Vec<(String, String)> =
                all.items.into_iter().map(|e| (e.reason.unwrap_or_default(), e.message.unwrap_or_default())).collect();
            if told.iter().any(|(r, m)| r == reason && m == message) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "no event {reason} {message:?}: {told:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.and_then(|c| c.iter().find(|c| c["type"] == kind)).unwrap_or(&Value::Null)
}

fn container(name: &str, image: &str) -> Value {
    json!({"name": name, "image": image, "imagePullPolicy": "IfNotPresent"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_life() {
    let node = Node1::new().await;
    node.create("web", json!({"containers": [container("a", "run"), container("b", "run")]})).await;
    let pod = node.until_ready("web").await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "10.0.0.1");
    assert_eq!(pod["status"]["hostIP"], "127.0.0.1");
    assert!(pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("skiff://container-"));
    node.until_event("Pulled", "Container image \"run\" already present on machine and can be accessed by the pod")
        .await;
    node.until_event("Created", "Container created").await;
    node.until_event("Started", "Container started").await;
    node.delete("web", 30).await;
    node.until("web", "deleted", Value::is_null).await;
    node.until_event("Killing", "Stopping container a").await;
    assert_eq!(node.runtime.count("stop_container a 30"), 1);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !node.runtime.state.lock().sandboxes.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the sandbox stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let left = |dir: &str| std::fs::read_dir(node.dir.join(dir)).unwrap().count();
    while left("kubelet/pods") + left("logs") > 0 {
        assert!(tokio::time::Instant::now() < deadline, "directories stay");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_kubelet_restarts_nothing() {
    let mut node = Node1::new().await;
    node.create("web", json!({"containers": [container("a", "run")]})).await;
    node.create("gone", json!({"containers": [container("g", "run")]})).await;
    let before = node.until_ready("web").await;
    node.until_ready("gone").await;
    node.stop().await;
    node.pods().delete("gone", &DeleteParams::default()).await.unwrap();
    node.start();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    // Who was removed meanwhile is cleaned up, which shows that the new kubelet has looked.
    while node.runtime.state.lock().sandboxes.len() > 1 {
        let calls = || node.runtime.state.lock().calls.clone();
        assert!(tokio::time::Instant::now() < deadline, "an orphan stays: {:#?}", calls());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.create("next", json!({"containers": [container("n", "run")]})).await;
    node.until_ready("next").await;
    let after = node.until_ready("web").await;
    assert_eq!(before["status"], after["status"]);
    assert_eq!(node.runtime.count("create_container a"), 1);
    assert_eq!(node.runtime.count("run_pod_sandbox web"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_back_off_and_completions_complete() {
    let node = Node1::new().await;
    node.create("crash", json!({"containers": [container("c", "exit-3")]})).await;
    node.create("done", json!({"restartPolicy": "Never", "containers": [container("d", "exit-0")]})).await;
    node.create("failed", json!({"restartPolicy": "Never", "containers": [container("f", "exit-1")]})).await;
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let pod = node.until("crash", "backed off", |pod| waiting(pod)["reason"] == "CrashLoopBackOff").await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let full = format!("crash_default({uid})");
    assert_eq!(waiting(&pod)["message"], format!("back-off 10s restarting failed container=c pod={full}"));
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 1, "the first restart is immediate");
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    node.until_event("BackOff", &format!("Back-off restarting failed container c in pod {full}")).await;
    let done = node.until("done", "done", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(condition(&done, "Ready")["reason"], "PodCompleted");
    let failed = node.until("failed", "failed", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(failed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pulled_or_waited_for() {
    let node = Node1::new().await;
    node.create("pull", json!({"containers": [container("p", "pulled")]})).await;
    node.until_ready("pull").await;
    node.until_event("Pulling", "Pulling image \"pulled\"").await;
    node.create("missing", json!({"containers": [container("m", "missing")]})).await;
    let reason = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    node.until("missing", "failed to pull", |pod| reason(pod) == "ErrImagePull").await;
    let pod = node.until("missing", "backed off", |pod| reason(pod) == "ImagePullBackOff").await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"],
        "Back-off pulling image \"missing\": ErrImagePull: no such image missing:latest"
    );
    node.until_event("Failed", "Failed to pull image \"missing\": no such image missing:latest").await;
    node.create("never", json!({"containers": [{"name": "n", "image": "missing", "imagePullPolicy": "Never"}]})).await;
    node.until("never", "refused", |pod| reason(pod) == "ErrImageNeverPull").await;
    node.create("bad", json!({"containers": [container("b", "Bad Name")]})).await;
    node.until("bad", "refused", |pod| reason(pod) == "InvalidImageName").await;
    node.delete("missing", 30).await;
    node.until("missing", "deleted", Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_and_sidecars_in_order() {
    let node = Node1::new().await;
    let mut sidecar = container("s", "run");
    sidecar["restartPolicy"] = json!("Always");
    let init = [container("i", "exit-0"), sidecar, container("j", "exit-0")];
    node.create("web", json!({"initContainers": init, "containers": [container("a", "run")]})).await;
    let pod = node.until_ready("web").await;
    let created: Vec<String> = {
        let state = node.runtime.state.lock();
        state.calls.iter().filter_map(|c| c.strip_prefix("create_container ").map(str::to_owned)).collect()
    };
    assert_eq!(created, ["i", "s", "j", "a"]);
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    node.delete("web", 30).await;
    node.until("web", "deleted", Value::is_null).await;
    let stops: Vec<String> = {
        let state = node.runtime.state.lock();
        state.calls.iter().filter(|c| c.starts_with("stop_container ")).map(|c| c[15..16].to_owned()).collect()
    };
    assert_eq!(stops, ["a", "s"], "the sidecar ends last");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_follow_their_objects() {
    let node = Node1::new().await;
    let spec = json!({
        "containers": [{
            "name": "a", "image": "run", "imagePullPolicy": "IfNotPresent",
            "volumeMounts": [{"name": "config", "mountPath": "/config"}, {"name": "token", "mountPath": "/token"}],
            "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
        }],
        "volumes": [
            {"name": "config", "configMap": {"name": "m"}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        ],
    });
    node.create("web", spec).await;
    node.until_event("FailedMount", "MountVolume.SetUp failed for volume \"config\" : configmap \"m\" not found").await;
    let maps: Api<ConfigMap> = Api::namespaced(node.client.clone(), "default");
    let map = |value: &str| serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"k": value}})).unwrap();
    maps.create(&PostParams::default(), &map("one")).await.unwrap();
    node.until_ready("web").await;
    let (config, token) = {
        let state = node.runtime.state.lock();
        let made = &state.containers[&node_id(&state, "a")].config;
        let path = |at: &str| PathBuf::from(&made.mounts.iter().find(|m| m.container_path == at).unwrap().host_path);
        assert!(made.envs.iter().any(|e| e.key == "K" && e.value == b"one"));
        (path("/config"), path("/token"))
    };
    assert_eq!(std::fs::read_to_string(config.join("k")).unwrap(), "one");
    assert_eq!(std::fs::read_to_string(token.join("token")).unwrap(), "a-token");
    maps.replace("m", &PostParams::default(), &map("two")).await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while std::fs::read_to_string(config.join("k")).unwrap() != "two" {
        assert!(tokio::time::Instant::now() < deadline, "the volume does not follow");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn node_id(state: &cri::State, name: &str) -> String {
    let found = state.containers.iter().find(|(_, c)| c.status.metadata.as_ref().unwrap().name == name);
    found.unwrap().0.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_key_is_a_configuration_error() {
    let node = Node1::new().await;
    let env = json!([{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
    node.create("web", json!({"containers": [{"name": "a", "image": "run:1", "env": env}]})).await;
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let pod = node.until("web", "refused", |pod| waiting(pod)["reason"] == "CreateContainerConfigError").await;
    assert_eq!(waiting(&pod)["message"], "secret \"s\" not found");
    node.until_event("Failed", "Error: secret \"s\" not found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_restart_and_gate() {
    let node = Node1::new().await;
    let probe = |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    let mut live = container("l", "run");
    live["livenessProbe"] = probe("fail");
    let mut ready = container("r", "run");
    ready["readinessProbe"] = probe("true");
    let mut unready = container("u", "run");
    unready["readinessProbe"] = probe("fail");
    node.create("ready", json!({"containers": [ready]})).await;
    node.create("unready", json!({"containers": [unready]})).await;
    node.create("live", json!({"terminationGracePeriodSeconds": 7, "containers": [live]})).await;
    node.until_ready("ready").await;
    node.until_event("Unhealthy", "Readiness probe failed: said").await;
    node.until_event("Unhealthy", "Liveness probe failed: said").await;
    node.until_event("Killing", "Container l failed liveness probe, will be restarted").await;
    node.until("live", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    assert!(node.runtime.count("stop_container l 7") >= 1);
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    node.until("live", "backed off", |pod| waiting(pod) == "CrashLoopBackOff").await;
    let pod = node.until("unready", "running", |pod| pod["status"]["phase"] == "Running").await;
    assert_eq!(condition(&pod, "Ready")["message"], "containers with unready status: [u]");
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_and_a_grace_can_be_shortened() {
    let node = Node1::new().await;
    let mut hooked = container("h", "run");
    hooked["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["post"]}}, "preStop": {"exec": {"command": ["pre"]}}});
    node.create("hooked", json!({"containers": [hooked]})).await;
    node.create("slow", json!({"containers": [container("s", "slow")]})).await;
    node.until_ready("hooked").await;
    node.until_ready("slow").await;
    assert_eq!(node.runtime.count("exec post"), 1);
    node.delete("hooked", 30).await;
    node.until("hooked", "deleted", Value::is_null).await;
    assert_eq!(node.runtime.count("exec pre"), 1);
    node.delete("slow", 600).await;
    node.until_event("Killing", "Stopping container s").await;
    node.delete("slow", 1).await;
    node.until("slow", "deleted", Value::is_null).await;
    assert_eq!(node.runtime.count("stop_container s 1"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_sandbox_is_replaced() {
    let node = Node1::new().await;
    node.create("web", json!({"containers": [container("a", "run")]})).await;
    node.until_ready("web").await;
    let id = node.runtime.id_of("a").unwrap();
    {
        let mut state = node.runtime.state.lock();
        let sandbox = state.sandboxes.values_mut().next().unwrap();
        sandbox.state = skiff_cri::v1::PodSandboxState::NotReady as i32;
    }
    node.runtime.exit(&id, 137);
    node.until_event("SandboxChanged", "Pod sandbox changed, it will be killed and re-created.").await;
    // More than one restart if the container's end was seen before the sandbox's.
    let pod = node.until("web", "ready again", |pod| {
        condition(pod, "Ready")["status"] == "True" && pod["status"]["podIP"] != "10.0.0.1"
    });
    assert!(pod.await["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_say_of_readiness_is_put_right() {
    let node = Node1::new().await;
    node.create("web", json!({"containers": [container("a", "run")]})).await;
    node.until_ready("web").await;
    let conditions = json!([{"type": "Ready", "status": "False"}, {"type": "x.io/mine", "status": "True"}]);
    let body = json!({"status": {"conditions": conditions}});
    node.pods().patch_status("web", &PatchParams::default(), &Patch::Strategic(body)).await.unwrap();
    let pod = node.until_ready("web").await;
    assert_eq!(condition(&pod, "x.io/mine")["status"], "True");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_is_registered_and_leased() {
    let node = Node1::new().await;
    let nodes: Api<Node> = Api::all(node.client.clone());
    let leases: Api<Lease> = Api::namespaced(node.client.clone(), "kube-node-lease");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let found = serde_json::to_value(nodes.get_opt("node").await.unwrap()).unwrap();
        let lease = leases.get_opt("node").await.unwrap();
        let ready = condition(&found, "Ready")["reason"] == "KubeletReady";
        if ready && let Some(lease) = lease {
            assert_eq!(lease.spec.unwrap().lease_duration_seconds, Some(40));
            assert_eq!(found["metadata"]["labels"]["kubernetes.io/os"], "linux");
            assert_eq!(found["status"]["nodeInfo"]["containerRuntimeVersion"], "skiff://1");
            assert_eq!(found["status"]["addresses"][0], json!({"type": "InternalIP", "address": "127.0.0.1"}));
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "not ready: {found:#}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_pods_at_once() {
    let node = Node1::new().await;
    let creations = (0..50).map(|i| {
        let (name, spec) = (format!("p{i}"), json!({"containers": [container("a", "run")]}));
        let node = &node;
        async move { node.create(&name, spec).await }
    });
    futures::future::join_all(creations).await;
    for i in 0..50 {
        node.until_ready(&format!("p{i}")).await;
    }
}
