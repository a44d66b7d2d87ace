//! CSI: a driver that provisions, attaches, mounts, expands and snapshots, in pods as any other driver.

use std::{
    fs,
    path::{Path, PathBuf},
};

use skiff_e2e::{Cluster, Home, Kubectl, eventually, host, leftovers, wait::check};

use crate::{
    crashes::end,
    shared,
    storage::every_verb,
    tests,
    workloads::{PATIENCE, ready},
};

tests![
    a_drivers_volumes_move_grow_and_are_copied,
    a_driver_that_is_not_there,
    volumes_stay_mounted_without_their_daemon,
    devices_of_drivers_and_of_nodes,
    objects_in_every_verb,
];

/// A cluster with the driver of the tests.
struct Site {
    cluster: Cluster,
    kubectl: Kubectl,
    /// What its nodes share, and the home of that.
    shared: PathBuf,
    _home: Home,
}

impl Site {
    fn new(name: &str, workers: usize) -> Site {
        let home = Home::new();
        let shared = home.dir.join("shared");
        fs::create_dir_all(&shared).expect("a folder");
        fs::copy(host::built("skiff-csi-testdriver"), shared.join("driver")).expect("a file");
        let mount = format!("  extraMounts:\n  - {{hostPath: {}, containerPath: /srv/csi}}\n", shared.display());
        let roles = ["control-plane"].into_iter().chain(std::iter::repeat_n("worker", workers));
        let nodes: String = roles.map(|role| format!("- role: {role}\n{mount}")).collect();
        let config =
            home.file("cluster.yaml", &format!("kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n{nodes}"));
        let cluster = Cluster::create(name, &["--config", &config]);
        cluster.load(&["busybox"]);
        let all = cluster.kubectl();
        all.in_new("csi").apply(include_str!("csi/driver.yaml"));
        let kubectl = all.in_new("user");
        for node in all.path(&["nodes"], "{.items[*].metadata.name}").unwrap().split(' ') {
            eventually(PATIENCE, || {
                let drivers = all.path(&["csinode", node], "{.spec.drivers[*].nodeID}")?;
                check(drivers == format!("id-of-{node}"), || drivers)
            });
        }
        all.run(&["-n", "csi", "rollout", "status", "deployment/controller", "--timeout=60s"]).ok();
        Site { cluster, kubectl, shared, _home: home }
    }

    /// What the driver was asked, each as one line.
    fn calls(&self) -> String {
        fs::read_to_string(self.shared.join("calls")).unwrap_or_default()
    }

    /// Waits until the driver was asked this `count` times.
    #[track_caller]
    fn called(&self, what: &str, count: usize) {
        eventually(PATIENCE, || {
            let calls = self.calls();
            let seen = calls.lines().filter(|line| line.starts_with(what)).count();
            check(seen == count, || format!("{what} {seen} times in\n{calls}"))
        });
    }

    fn end(self) {
        let left = self.cluster.delete();
        assert!(left.is_empty(), "{left:#?}");
    }
}

fn claim(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: test
  resources: {{requests: {{storage: 1Gi}}}}
  {more}
---
"
    )
}

/// A pod that has a volume at /data, on a node if one is named.
fn user(name: &str, node: &str, volume: &str, command: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{{node}}}
  tolerations: [{{key: node-role.kubernetes.io/control-plane, operator: Exists}}]
  securityContext: {{fsGroup: 4242}}
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, '{command}; sleep 1000000']
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - name: data
    {volume}
---
"
    )
}

fn of_claim(name: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {name}}}")
}

fn at(node: &str) -> String {
    format!("kubernetes.io/hostname: {node}")
}

#[track_caller]
fn event(kubectl: &Kubectl, object: &str, reason: &str, message: &str) {
    eventually(PATIENCE, || {
        let field = format!("--field-selector=involvedObject.name={object},reason={reason}");
        let messages = kubectl.path(&["events", &field], "{.items[*].message}")?;
        check(messages.contains(message), || format!("{reason} of {object}: {messages}"))
    });
}

#[track_caller]
fn says(kubectl: &Kubectl, pod: &str, wanted: &str) {
    eventually(PATIENCE, || {
        let log = kubectl.run(&["logs", pod]).result()?;
        check(log.trim() == wanted, || log)
    });
}

fn a_drivers_volumes_move_grow_and_are_copied() {
    let site = Site::new("csi", 1);
    let kubectl = &site.kubectl;
    let (first, second) = ("csi-control-plane", "csi-worker");
    let ids = kubectl.path(&["node", second], r"{.metadata.annotations.csi\.volume\.kubernetes\.io/nodeid}").unwrap();
    assert_eq!(ids, format!("{{\"test.csi.skiff.local\":\"id-of-{second}\"}}"));

    // Provisioned for the pod's node, attached, staged with the class's secret, and the group's.
    kubectl.apply(&(claim("data", "") + &user("writer", &at(second), &of_claim("data"), "echo kept > /data/file")));
    ready(kubectl, "writer");
    let volume = kubectl.path(&["pvc", "data"], "{.spec.volumeName}").unwrap();
    event(kubectl, "writer", "SuccessfulAttachVolume", &format!("AttachVolume.Attach succeeded for volume {volume:?}"));
    let unique = format!("kubernetes.io/csi/test.csi.skiff.local^{volume}");
    let status = |node: &str| {
        let path = "{.status.volumesInUse[*]} {.status.volumesAttached[*].name}";
        kubectl.path(&["node", node], path)
    };
    assert_eq!(status(second).unwrap(), format!("{unique} {unique}"));
    let calls = site.calls();
    let staged = format!("NodeStageVolume {volume} id-of-{second} [attached-to=id-of-{second}] [key=opensesame]");
    assert!(calls.contains(&staged), "{calls}");
    for part in ["pod.name=writer", "pod.namespace=user", "ephemeral=false", "type=directory"] {
        assert!(calls.contains(part), "no {part} in {calls}");
    }
    kubectl.run(&["exec", "writer", "--", "stat", "-c", "%g", "/data/file"]).prints(&["4242"]);
    kubectl.run(&["get", "volumeattachments"]).prints(&["csi-", "test.csi.skiff.local", &volume, second, "true"]);

    // One node at a time: the next pod waits for the first one's end, and finds its data.
    kubectl.apply(&user("reader", &at(first), &of_claim("data"), "cat /data/file"));
    let taken = format!("Multi-Attach error for volume {volume:?} Volume is already used by pod(s) writer");
    event(kubectl, "reader", "FailedAttachVolume", &taken);
    kubectl.run(&["delete", "pod", "writer"]).ok();
    says(kubectl, "reader", "kept");
    site.called("NodeUnstageVolume", 1);
    site.called("ControllerUnpublishVolume", 1);
    eventually(PATIENCE, || status(second).and_then(|s| check(s.trim().is_empty(), || s)));
    // A second pod of the node shares what is staged.
    kubectl.apply(&user("sharer", &at(first), &of_claim("data"), "cat /data/file"));
    says(kubectl, "sharer", "kept");
    site.called("NodeStageVolume", 2);
    kubectl.run(&["delete", "pod", "sharer"]).ok();

    // It grows under the pod.
    kubectl.run(&["patch", "pvc", "data", "-p", r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#]).ok();
    eventually(PATIENCE, || {
        let size = kubectl.path(&["pvc", "data"], "{.status.capacity.storage} {.status.conditions}")?;
        check(size.trim() == "2Gi", || size)
    });
    event(kubectl, "data", "ExternalExpanding", "waiting for an external controller to expand this PVC");
    event(kubectl, "data", "FileSystemResizeSuccessful", "MountVolume.NodeExpandVolume succeeded for volume");
    site.called("NodeExpandVolume", 1);
    let stats = kubectl.run(&["get", "--raw", &format!("/api/v1/nodes/{first}/proxy/stats/summary")]).ok();
    assert!(stats.contains("\"capacityBytes\":2147483648"), "{stats}");

    // A snapshot of it, and a volume that begins with that.
    kubectl.apply(include_str!("csi/snapshots.yaml"));
    let defined = "crd/volumesnapshotcontents.snapshot.storage.k8s.io";
    kubectl.run(&["wait", "--for=condition=Established", defined, "--timeout=30s"]).ok();
    let snapshot = "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: yesterday}\n\
                    spec: {source: {persistentVolumeClaimName: data}}\n";
    eventually(PATIENCE, || kubectl.feed(&["apply", "-f", "-"], snapshot).result());
    eventually(PATIENCE, || {
        kubectl.path(&["volumesnapshot", "yesterday"], "{.status.readyToUse}").and_then(|r| check(r == "true", || r))
    });
    kubectl.run(&["exec", "reader", "--", "sh", "-c", "echo changed > /data/file"]).ok();
    let source = "dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: yesterday}";
    kubectl.apply(&(claim("copy", source) + &user("restored", "", &of_claim("copy"), "cat /data/file")));
    says(kubectl, "restored", "kept");
    let reference = kubectl.path(&["pvc", "copy"], "{.spec.dataSourceRef.name}").unwrap();
    assert_eq!(reference, "yesterday");

    // Volumes for one pod, made and taken away with it.
    let inline = "csi: {driver: test.csi.skiff.local}";
    kubectl.apply(&user("inline", &at(first), inline, "cat /data/pod; echo"));
    says(kubectl, "inline", "inline");
    kubectl.run(&["delete", "pod", "inline"]).ok();
    eventually(PATIENCE, || {
        let left = fs::read_dir(site.shared.join("ephemeral")).expect("a folder").count();
        check(left == 0, || format!("{left} left"))
    });

    limits(&site, first, second);

    // What is deleted goes, once nobody has it.
    kubectl.run(&["delete", "pods", "--all"]).ok();
    kubectl.run(&["delete", "pvc", "--all"]).ok();
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", "pv,volumeattachments", "-o", "name"]).result()?;
        check(left.is_empty(), || left)
    });
    site.called(&format!("DeleteVolume {volume}"), 1);
    assert_eq!(fs::read_dir(site.shared.join("volumes")).expect("a folder").count(), 0);
    // Its driver goes too.
    kubectl.run(&["delete", "daemonset", "node", "-n", "csi"]).ok();
    eventually(PATIENCE, || {
        let drivers = kubectl.path(&["csinode"], "{.items[*].spec.drivers[*].name}")?;
        check(drivers.is_empty(), || drivers)
    });
    site.end();
}

/// The driver takes two volumes on each node.
fn limits(site: &Site, first: &str, second: &str) {
    let kubectl = &site.kubectl;
    let count = kubectl.path(&["csinode", first], "{.spec.drivers[0].allocatable.count}").unwrap();
    assert_eq!(count, "2");
    kubectl.run(&["delete", "pod", "restored"]).ok();
    for name in ["one", "two", "three"] {
        kubectl.apply(&(claim(name, "") + &user(name, &at(second), &of_claim(name), "true")));
        match name {
            "three" => event(kubectl, name, "FailedScheduling", "1 node(s) exceed max volume count"),
            _ => ready(kubectl, name),
        }
    }
    kubectl.run(&["delete", "pod", "one"]).ok();
    ready(kubectl, "three");
}

fn a_driver_that_is_not_there() {
    let cluster = Cluster::create("nodriver", &[]);
    cluster.load(&["busybox"]);
    let kubectl = cluster.kubectl().in_new("user");
    kubectl.apply(
        "apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: none.example.com}
spec: {attachRequired: false, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: by-hand}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: none
  csi: {driver: none.example.com, volumeHandle: v1}
",
    );
    let claim = claim("hand", "").replace("storageClassName: test", "storageClassName: none");
    kubectl.apply(&(claim + &user("hand", "", &of_claim("hand"), "true")));
    let missing = "driver name none.example.com not found in the list of registered CSI drivers";
    let device = "kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient";
    let message = format!("MountVolume.MountDevice failed for volume \"by-hand\" : {device}: {missing}");
    event(&kubectl, "hand", "FailedMount", &message);
    kubectl.apply(&user("inline", "", "csi: {driver: none.example.com}", "true"));
    let client = "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client";
    let message = format!("MountVolume.SetUp failed for volume \"data\" : {client}: {missing}");
    event(&kubectl, "inline", "FailedMount", &message);
    kubectl.run(&["get", "csinodes"]).prints(&["nodriver-control-plane", "0"]);
    // Names that would be paths are refused.
    let bad = user("bad", "", "csi: {driver: ../../etc}", "true");
    let refused = kubectl.feed(&["apply", "-f", "-"], &bad);
    assert!(refused.stderr.contains("spec.volumes[0].csi.driver: Invalid value"), "{refused:?}");
    // Pods that never ran go at once.
    kubectl.run(&["delete", "pods", "--all", "--timeout=30s"]).ok();
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

fn volumes_stay_mounted_without_their_daemon() {
    let site = Site::new("csikill", 0);
    let kubectl = &site.kubectl;
    kubectl.apply(&(claim("data", "") + &user("box", "", &of_claim("data"), "true")));
    kubectl.apply(&(claim("other", "") + &user("gone", "", &of_claim("other"), "true")));
    for name in ["box", "gone"] {
        ready(kubectl, name);
    }
    let daemon = || {
        let all = leftovers::processes(&site.cluster.home.dir);
        all.into_iter().find(|(_, command)| command.contains("skiff server")).map(|(pid, _)| pid)
    };
    let before = daemon().expect("a daemon");
    end(before.cast_unsigned());
    // The container goes on writing where it did.
    eventually(PATIENCE, || {
        check(daemon().is_some_and(|now| now != before), || "no new daemon".to_owned())?;
        kubectl.run(&["get", "--raw", "/readyz"]).result().map(drop)
    });
    eventually(PATIENCE, || kubectl.run(&["exec", "box", "--", "sh", "-c", "echo later > /data/file"]).result());
    let volume = kubectl.path(&["pvc", "data"], "{.spec.volumeName}").unwrap();
    let written = fs::read_to_string(site.shared.join("volumes").join(&volume).join("file"));
    assert_eq!(written.expect("the container writes to its volume"), "later\n");
    let restarts = kubectl.path(&["pod", "box"], "{.status.containerStatuses[0].restartCount}").unwrap();
    assert_eq!(restarts, "0");
    // The new daemon knows what the old one has mounted, and takes it away.
    kubectl.run(&["delete", "pod", "box", "gone", "--timeout=60s"]).ok();
    site.called("NodeUnstageVolume", 2);
    kubectl.run(&["delete", "pvc", "--all", "--timeout=60s"]).ok();
    site.called("DeleteVolume", 2);
    eventually(PATIENCE, || {
        let left = kubectl.run(&["get", "pv,volumeattachments", "-o", "name"]).result()?;
        check(left.is_empty(), || left)
    });
    site.end();
}

/// A block device of 4 MiB, which is taken away with this.
struct Device {
    path: String,
    image: PathBuf,
}

impl Device {
    fn new(image: PathBuf) -> Device {
        fs::write(&image, vec![0; 4 << 20]).expect("a file");
        let path = run("losetup", &["--find", "--show", image.to_str().expect("UTF-8")]).trim().to_owned();
        Device { path, image }
    }

    /// Another name of it, in what the nodes share.
    fn name(&self, path: &Path) {
        use nix::sys::stat::{Mode, SFlag, mknod, stat};
        let device = stat(self.path.as_str()).expect("it is there").st_rdev;
        mknod(path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o600), device).expect("root may");
    }

    fn begins_with(&self, text: &str) -> Result<(), String> {
        let content = fs::read(&self.image).map_err(|e| e.to_string())?;
        check(content.starts_with(text.as_bytes()), || format!("{:?}", &content[..16]))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.path]);
    }
}

fn run(program: &str, args: &[&str]) -> String {
    skiff_e2e::command::run(std::process::Command::new(program).args(args), "").ok()
}

/// A pod that writes its name to a device.
fn writer(name: &str) -> String {
    let write = format!("echo {name} | dd of=/dev/xvda bs=512 count=1 conv=sync 2>/dev/null && sync && echo written");
    user(name, "", &of_claim(name), &write).replace(
        "volumeMounts: [{name: data, mountPath: /data}]",
        "volumeDevices: [{name: data, devicePath: /dev/xvda}]",
    )
}

fn devices_of_drivers_and_of_nodes() {
    let site = Site::new("csiblock", 0);
    let kubectl = &site.kubectl;
    let device = Device::new(site.shared.join("image"));
    device.name(&site.shared.join("device"));

    // Of the driver.
    kubectl.apply(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: device}
provisioner: test.csi.skiff.local
volumeBindingMode: WaitForFirstConsumer
parameters: {device: /srv/csi/device}
",
    );
    let block = |name: &str, class: &str| {
        claim(name, "volumeMode: Block").replace("storageClassName: test", &format!("storageClassName: {class}"))
    };
    kubectl.apply(&(block("driver", "device") + &writer("driver")));
    says(kubectl, "driver", "written");
    eventually(PATIENCE, || device.begins_with("driver\n"));
    // It is no directory, and is not taken for one.
    kubectl.apply(&user("wrong", "", &of_claim("driver"), "true"));
    eventually(PATIENCE, || {
        let waiting = "{.status.containerStatuses[0].state.waiting.message}";
        let message = kubectl.path(&["pod", "wrong"], waiting)?;
        check(message.contains("has volumeMode Block, but is specified in volumeMounts"), || message)
    });
    kubectl.run(&["delete", "pods", "--all", "--timeout=60s"]).ok();
    site.called("NodeUnstageVolume", 1);
    kubectl.run(&["delete", "pvc", "--all", "--timeout=60s"]).ok();
    site.called("DeleteVolume", 1);

    // Of the node.
    kubectl.apply(
        "apiVersion: v1
kind: PersistentVolume
metadata: {name: local}
spec:
  capacity: {storage: 4Gi}
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: local
  local: {path: /srv/csi/device}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [
    {key: kubernetes.io/hostname, operator: In, values: [csiblock-control-plane]}]}]}}
",
    );
    kubectl.apply(&(block("local", "local") + &writer("local")));
    says(kubectl, "local", "written");
    eventually(PATIENCE, || device.begins_with("local\n"));
    kubectl.run(&["delete", "pods", "--all", "--timeout=60s"]).ok();
    drop(device);
    site.end();
}

fn objects_in_every_verb() {
    let kubectl = shared::server("csi-verbs");
    let resources = kubectl.run(&["api-resources", "--api-group=storage.k8s.io", "-o", "wide"]).ok();
    let capacity = resources.lines().find(|line| line.starts_with("csistoragecapacities")).expect("it is there");
    for verb in ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"] {
        assert!(capacity.contains(verb), "{capacity}");
    }
    let manifest = |kind: &str, more: &str| {
        format!(
            "apiVersion: storage.k8s.io/v1\nkind: {kind}\nmetadata: {{name: verbs, labels: {{verbs: 'yes'}}}}\n{more}\n"
        )
    };
    let capacity = manifest("CSIStorageCapacity", "storageClassName: test\ncapacity: 1Gi");
    let mut watch = kubectl.start(&["get", "csistoragecapacities", "--watch", "--no-headers"]);
    every_verb(
        &kubectl,
        "csistoragecapacities",
        &capacity,
        "/apis/storage.k8s.io/v1/namespaces/csi-verbs/csistoragecapacities",
    );
    watch.line(PATIENCE, |line| line.starts_with("verbs"));
    let node = manifest("CSINode", "spec: {drivers: [{name: a.example.com, nodeID: x}]}");
    every_verb(&kubectl, "csinodes", &node, "/apis/storage.k8s.io/v1/csinodes");
    let driver = manifest("CSIDriver", "spec: {attachRequired: false}");
    kubectl.apply(&driver.replace("name: verbs", "name: other").replace("verbs: 'yes'", "verbs: 'no'"));
    every_verb(&kubectl, "csidrivers", &driver, "/apis/storage.k8s.io/v1/csidrivers");
    // Only that one was deleted.
    kubectl.run(&["get", "csidrivers", "-l", "verbs=no", "--no-headers"]).prints(&["other", "false", "Persistent"]);
    kubectl.run(&["delete", "csidriver", "other"]).ok();
    // What a node says of a driver stays.
    kubectl.apply(&node);
    let changed = kubectl.feed(&["apply", "-f", "-"], &node.replace("nodeID: x", "nodeID: other"));
    assert!(changed.stderr.contains("field is immutable"), "{changed:?}");
    kubectl.run(&["delete", "csinode", "verbs"]).ok();

    // A pod with a volume of its own, which nobody runs here.
    kubectl.apply(&user("inline", "", "csi: {driver: a.example.com, volumeAttributes: {a: b}}", "true"));
    let driver = kubectl.path(&["pod", "inline"], "{.spec.volumes[0].csi.driver}").unwrap();
    assert_eq!(driver, "a.example.com");
    kubectl.run(&["get", "pods"]).prints(&["inline", "Pending"]);
    kubectl.run(&["patch", "pod", "inline", "-p", r#"{"metadata":{"labels":{"patched":"yes"}}}"#]).ok();
    kubectl.run(&["get", "pods", "-l", "patched=yes"]).prints(&["inline"]);
    kubectl.run(&["delete", "pod", "inline", "--timeout=30s"]).ok();
}
