//! What is special about pods: defaults, admission, binding, and what may change.

use serde_json::{Value, json};

use crate::api::{Api, PODS, pod, text};

#[tokio::test]
async fn a_pod_gets_what_the_cluster_adds() {
    let api = Api::start().await;
    let p = api.created(PODS, pod("p")).await;
    let spec = &p["spec"];
    assert_eq!(
        (&spec["restartPolicy"], &spec["dnsPolicy"], &spec["schedulerName"]),
        (&json!("Always"), &json!("ClusterFirst"), &json!("default-scheduler"))
    );
    assert_eq!(
        (&spec["terminationGracePeriodSeconds"], &spec["serviceAccountName"], &spec["priority"]),
        (&json!(30), &json!("default"), &json!(0))
    );
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    let container = &spec["containers"][0];
    assert_eq!(
        (&container["imagePullPolicy"], &container["terminationMessagePolicy"]),
        (&json!("Always"), &json!("File"))
    );
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!((&p["status"]["phase"], &p["status"]["qosClass"]), (&json!("Pending"), &json!("BestEffort")));

    let mut other = pod("q");
    other["spec"]["serviceAccountName"] = "nobody".into();
    let (code, status) = api.post(PODS, other).await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        "pods \"q\" is forbidden: error looking up service account default/nobody: serviceaccount \"nobody\" not found"
    );
    let mut other = pod("q");
    other["spec"]["priorityClassName"] = "none".into();
    let (code, status) = api.post(PODS, other).await;
    assert_eq!(
        (code, &status["message"]),
        (403, &json!("pods \"q\" is forbidden: no PriorityClass with name none was found"))
    );
}

#[tokio::test]
async fn faults_of_a_pod_are_all_told() {
    let api = Api::start().await;
    let mut bad = pod("p");
    bad["spec"]["containers"] = json!([{"name": "A"}, {"name": "b", "image": "i"}, {"name": "b", "image": "i"}]);
    bad["spec"]["restartPolicy"] = "Sometimes".into();
    let (code, status) = api.post(PODS, bad).await;
    assert_eq!(code, 422);
    let message = text(&status["message"]);
    for part in [
        "spec.containers[0].name: Invalid value: \"A\"",
        "spec.containers[0].image: Required value",
        "spec.containers[2].name: Duplicate value: \"b\"",
        "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let (code, status) = api.post(PODS, json!({"metadata": {"name": "p"}, "spec": {"containers": []}})).await;
    assert_eq!((code, &status["message"]), (422, &json!("Pod \"p\" is invalid: spec.containers: Required value")));
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let api = Api::start().await;
    api.created(PODS, pod("p")).await;
    let path = format!("{PODS}/p/binding");
    let binding = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    assert_eq!(
        api.post(&path, json!({"metadata": {"name": "p"}, "target": {"kind": "Pod", "name": "x"}})).await.0,
        422
    );
    assert_eq!(api.post(&path, binding("n1")).await.0, 201);
    let (code, status) = api.post(&path, binding("n2")).await;
    assert_eq!(code, 409);
    assert_eq!(
        status["message"],
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
    );
    let (_, p) = api.get(&format!("{PODS}/p")).await;
    assert_eq!((&p["spec"]["nodeName"], &p["status"]["conditions"][0]["type"]), (&json!("n1"), &json!("PodScheduled")));
    assert_eq!(api.post(&format!("{PODS}/none/binding"), binding("n1")).await.0, 404);
}

#[tokio::test]
async fn little_of_a_pod_may_change() {
    let api = Api::start().await;
    api.created(PODS, pod("p")).await;
    let path = format!("{PODS}/p");
    let (code, p) = api.patch(&path, "strategic", json!({"spec": {"containers": [{"name": "c", "image": "j"}]}})).await;
    assert_eq!(code, 200, "{p}");
    let (code, status) = api.patch(&path, "merge", json!({"spec": {"hostname": "h"}})).await;
    assert_eq!(code, 422);
    assert!(text(&status["message"]).starts_with("Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"), "{status}");
    // The status has its own way in, and the spec has none there.
    let (code, p) = api
        .patch(&format!("{path}/status"), "merge", json!({"status": {"phase": "Running"}, "spec": {"hostname": "h"}}))
        .await;
    assert_eq!((code, &p["status"]["phase"], &p["spec"]["hostname"]), (200, &json!("Running"), &Value::Null));
    let debug =
        json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "busybox", "targetContainerName": "c"}]}});
    let (code, p) = api.patch(&format!("{path}/ephemeralcontainers"), "strategic", debug).await;
    assert_eq!((code, &p["spec"]["ephemeralContainers"][0]["name"]), (200, &json!("d")), "{p}");
}
