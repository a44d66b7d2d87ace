//! Claims, volumes and their data.

use skiff_e2e::{Kubectl, eventually, wait::check};

use crate::{
    shared, tests,
    workloads::{PATIENCE, phase, ready},
};

tests![
    a_claims_data_outlives_its_pod,
    a_volume_made_by_hand,
    a_claim_that_nothing_fits,
    ephemeral_claims_go_with_their_pod,
    classes_claims_and_volumes_keep_their_rules,
    volumes_and_classes_in_every_verb,
];

/// A claim with further fields of its spec.
fn claim(name: &str, size: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: {size}}}}}
  {more}
---
"
    )
}

/// A pod that has a claim's sub-path `data` at /data and runs a command.
fn user(name: &str, claim: &str, command: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, '{command}']
    volumeMounts: [{{name: data, mountPath: /data, subPath: data}}]
  volumes:
  - name: data
    persistentVolumeClaim: {{claimName: {claim}}}
---
"
    )
}

#[track_caller]
fn event(kubectl: &Kubectl, object: &str, reason: &str, message: &str) {
    eventually(PATIENCE, || {
        let field = format!("--field-selector=involvedObject.name={object},reason={reason}");
        let messages = kubectl.path(&["events", &field], "{.items[*].message}")?;
        check(messages.contains(message), || format!("{reason} of {object}: {messages}"))
    });
}

fn a_claims_data_outlives_its_pod() {
    let kubectl = shared::cluster().in_new("claims");
    kubectl.run(&["get", "storageclass"]).prints(&["standard (default)", "WaitForFirstConsumer", "Delete"]);
    kubectl.apply(&claim("data", "1Gi", ""));
    event(&kubectl, "data", "WaitForFirstConsumer", "waiting for first consumer to be created before binding");
    kubectl.run(&["get", "pvc"]).prints(&["data", "Pending", "standard"]);
    kubectl.apply(&user("writer", "data", "echo kept > /data/file; id -u > /data/user"));
    phase(&kubectl, "writer", "Succeeded");
    event(&kubectl, "data", "ProvisioningSucceeded", "Successfully provisioned volume pvc-");
    kubectl.run(&["get", "pvc", "data"]).prints(&["Bound", "pvc-", "1Gi", "RWO"]);
    kubectl.run(&["describe", "pvc", "data"]).prints(&["Bound", "Used By:", "writer", "kubernetes.io/pvc-protection"]);
    let volume = kubectl.path(&["pvc", "data"], "{.spec.volumeName}").unwrap();
    kubectl.run(&["describe", "pv", &volume]).prints(&["Node Affinity:", "HostPath", "claims/data"]);
    let path = kubectl.path(&["pv", &volume], "{.spec.hostPath.path}").unwrap();
    let node = kubectl.path(&["pod", "writer"], "{.spec.nodeName}").unwrap();

    kubectl.run(&["delete", "pod", "writer"]).ok();
    kubectl.apply(&user("reader", "data", "cat /data/file; sleep 1000"));
    ready(&kubectl, "reader");
    eventually(PATIENCE, || {
        let log = kubectl.run(&["logs", "reader"]).result()?;
        check(log == "kept\n", || log)
    });
    assert_eq!(kubectl.path(&["pod", "reader"], "{.spec.nodeName}").unwrap(), node, "it goes where its data is");

    // More room.
    let more = r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#;
    kubectl.run(&["patch", "pvc", "data", "-p", more]).ok();
    eventually(PATIENCE, || {
        let size = kubectl.path(&["pvc", "data"], "{.status.capacity.storage}")?;
        check(size == "2Gi", || size)
    });
    let less = kubectl.run(&["patch", "pvc", "data", "-p", &more.replace("2Gi", "1Gi")]);
    assert!(less.stderr.contains("field can not be less than status.capacity"), "{less:?}");

    // In use it stays.
    kubectl.run(&["delete", "pvc", "data", "--wait=false"]).ok();
    kubectl.run(&["get", "pvc", "data"]).prints(&["Terminating"]);
    let nodes = kubectl.home.join("skiff/clusters/shared/nodes");
    let directory = nodes.join(&node).join("rootfs").join(path.trim_start_matches('/'));
    assert!(directory.join("data/file").exists(), "{}", directory.display());
    kubectl.run(&["delete", "pod", "reader"]).ok();
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", "pvc,pv", "--ignore-not-found", "-o", "name"]).result()?;
        check(!left.contains(&volume) && !left.contains("/data"), || left)
    });
    assert!(!directory.exists(), "{}", directory.display());
}

fn a_volume_made_by_hand() {
    let kubectl = shared::cluster().in_new("by-hand");
    kubectl.apply(
        "apiVersion: v1
kind: PersistentVolume
metadata: {name: by-hand, labels: {kind: hand}}
spec:
  capacity: {storage: 5Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: manual
  hostPath: {path: /mnt/by-hand}
",
    );
    eventually(PATIENCE, || {
        kubectl.path(&["pv", "by-hand"], "{.status.phase}").and_then(|p| check(p == "Available", || p))
    });
    kubectl.apply(&claim("hand", "3Gi", "storageClassName: manual"));
    eventually(PATIENCE, || {
        let row = kubectl.run(&["get", "pvc", "hand"]).result()?;
        check(["Bound", "by-hand", "5Gi"].iter().all(|w| row.contains(w)), || row)
    });
    kubectl.run(&["get", "pv", "by-hand"]).prints(&["Retain", "Bound", "by-hand/hand", "manual"]);
    kubectl.apply(&user("writer", "hand", "echo x > /data/file"));
    phase(&kubectl, "writer", "Succeeded");
    kubectl.run(&["delete", "pod", "writer"]).ok();
    kubectl.run(&["delete", "pvc", "hand"]).ok();
    eventually(PATIENCE, || {
        kubectl.path(&["pv", "by-hand"], "{.status.phase}").and_then(|p| check(p == "Released", || p))
    });
    kubectl.run(&["delete", "pv", "by-hand"]).ok();
}

fn a_claim_that_nothing_fits() {
    let kubectl = shared::cluster().in_new("unfit");
    kubectl.apply(&(claim("none", "1Gi", "storageClassName: ''") + &user("pod", "none", "sleep 1000")));
    event(
        &kubectl,
        "none",
        "FailedBinding",
        "no persistent volumes available for this claim and no storage class is set",
    );
    event(&kubectl, "pod", "FailedScheduling", "pod has unbound immediate PersistentVolumeClaims");
    kubectl.run(&["get", "pods"]).prints(&["pod", "Pending"]);
    kubectl.apply(&claim("unknown", "1Gi", "storageClassName: nobody"));
    event(&kubectl, "unknown", "ProvisioningFailed", "storageclass.storage.k8s.io \"nobody\" not found");
}

fn ephemeral_claims_go_with_their_pod() {
    let kubectl = shared::cluster().in_new("ephemeral");
    kubectl.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo x > /scratch/$(POD)-file; sleep 1000']
    env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts: [{name: scratch, mountPath: /scratch, subPathExpr: $(POD)}]
  volumes:
  - name: scratch
    ephemeral:
      volumeClaimTemplate:
        metadata: {labels: {type: scratch}}
        spec:
          accessModes: [ReadWriteOncePod]
          resources: {requests: {storage: 1Gi}}
",
    );
    ready(&kubectl, "box");
    kubectl.run(&["get", "pvc", "-l", "type=scratch"]).prints(&["box-scratch", "Bound", "RWOP"]);
    // The sub-path is a directory of the volume.
    let volume = kubectl.path(&["pvc", "box-scratch"], "{.spec.volumeName}").unwrap();
    let path = kubectl.path(&["pv", &volume], "{.spec.hostPath.path}").unwrap();
    let node = kubectl.path(&["pod", "box"], "{.spec.nodeName}").unwrap();
    let rootfs = kubectl.home.join("skiff/clusters/shared/nodes").join(node).join("rootfs");
    eventually(PATIENCE, || {
        let file = rootfs.join(path.trim_start_matches('/')).join("box/box-file");
        check(file.exists(), || format!("{} is missing", file.display()))
    });
    kubectl.run(&["delete", "pod", "box"]).ok();
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", "pvc", "-o", "name"]).result()?;
        check(left.is_empty(), || left)
    });
}

fn classes_claims_and_volumes_keep_their_rules() {
    let kubectl = shared::cluster().in_new("storage-rules");
    let bad = kubectl.feed(&["apply", "-f", "-"], &claim("c", "1Gi", "").replace("[ReadWriteOnce]", "[]"));
    assert!(bad.stderr.contains("spec.accessModes: Required value: at least 1 access mode is required"), "{bad:?}");
    kubectl.apply(&claim("c", "1Gi", "storageClassName: slow"));
    let changed = kubectl.run(&["patch", "pvc", "c", "-p", r#"{"spec":{"accessModes":["ReadWriteMany"]}}"#]);
    let wanted =
        "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    assert!(changed.stderr.contains(wanted), "{changed:?}");
    let grown = kubectl.run(&["patch", "pvc", "c", "-p", r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#]);
    assert!(grown.stderr.contains("spec is immutable") || grown.stderr.contains("Only bound"), "{grown:?}");
    let class = "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: rules}
provisioner: example.com/disk
parameters: {type: ssd}
";
    kubectl.apply(class);
    kubectl.run(&["get", "storageclass", "rules"]).prints(&["example.com/disk", "Delete", "Immediate", "false"]);
    let changed = kubectl.feed(&["apply", "-f", "-"], &class.replace("ssd", "hdd"));
    assert!(changed.stderr.contains("updates to parameters are forbidden."), "{changed:?}");
    kubectl.run(&["delete", "storageclass", "rules"]).ok();
}

/// Creates, reads, lists, patches, deletes, creates again, replaces, and deletes by label.
pub(crate) fn every_verb(kubectl: &Kubectl, resource: &str, manifest: &str, collection: &str) {
    let name = format!("{resource}/verbs");
    let patch = r#"{"metadata":{"labels":{"patched":"yes"}}}"#;
    for round in 0..2 {
        kubectl.feed(&["create", "-f", "-"], manifest).ok();
        kubectl.run(&["get", &name]).ok();
        if round == 0 {
            kubectl.run(&["patch", &name, "-p", patch]).ok();
            kubectl.run(&["get", resource, "-l", "patched=yes"]).prints(&["verbs"]);
            kubectl.run(&["delete", &name]).ok();
        }
    }
    let mut object = kubectl.json(&[&name]);
    object["metadata"]["labels"]["replaced"] = "yes".into();
    kubectl.feed(&["replace", "-f", "-"], &object.to_string()).ok();
    kubectl.run(&["get", resource, "-l", "replaced=yes"]).prints(&["verbs"]);
    kubectl.run(&["delete", "--raw", &format!("{collection}?labelSelector=replaced%3Dyes")]).ok();
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", resource, "-l", "replaced=yes", "-o", "name"]).result()?;
        check(left.is_empty(), || left)
    });
}

/// Patches and replaces the status.
fn status(kubectl: &Kubectl, resource: &str, manifest: &str, field: &str) {
    let name = format!("{resource}/verbs");
    kubectl.feed(&["create", "-f", "-"], manifest).ok();
    eventually(PATIENCE, || {
        let phase = kubectl.run(&["get", &name, "--subresource=status", "-o", "jsonpath={.status.phase}"]).result()?;
        check(["Pending", "Available"].contains(&phase.as_str()), || phase)
    });
    let patch = format!(r#"{{"status":{field}}}"#);
    kubectl.run(&["patch", &name, "--subresource=status", "--type=merge", "-p", &patch]).ok();
    let mut object = kubectl.json(&[&name]);
    assert!(object["status"].to_string().contains("as patched"), "{object}");
    let replaced = object["status"].to_string().replace("as patched", "as replaced");
    object["status"] = serde_json::from_str(&replaced).expect("was JSON before");
    kubectl.feed(&["replace", "--subresource=status", "-f", "-"], &object.to_string()).ok();
    let object = kubectl.json(&[&name]);
    assert!(object["status"].to_string().contains("as replaced"), "{object}");
    kubectl.run(&["delete", &name]).ok();
}

fn volumes_and_classes_in_every_verb() {
    let kubectl = shared::server("storage-verbs");
    let labels = "metadata: {name: verbs, labels: {verbs: 'yes'}}";
    let volume = format!(
        "apiVersion: v1
kind: PersistentVolume
{labels}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  storageClassName: verbs
  hostPath: {{path: /mnt/verbs}}
"
    );
    let claim = claim("verbs", "2Gi", "storageClassName: verbs").replace("metadata: {name: verbs}", labels);
    let class = format!("apiVersion: storage.k8s.io/v1\nkind: StorageClass\n{labels}\nprovisioner: example.com/none\n");
    every_verb(&kubectl, "persistentvolumes", &volume, "/api/v1/persistentvolumes");
    every_verb(&kubectl, "persistentvolumeclaims", &claim, "/api/v1/namespaces/storage-verbs/persistentvolumeclaims");
    every_verb(&kubectl, "storageclasses", &class, "/apis/storage.k8s.io/v1/storageclasses");
    status(&kubectl, "persistentvolumes", &volume, r#"{"message":"as patched","reason":"E2E"}"#);
    let condition = r#"{"conditions":[{"type":"E2E","status":"True","reason":"Set","message":"as patched"}]}"#;
    status(&kubectl, "persistentvolumeclaims", &claim, condition);
}
