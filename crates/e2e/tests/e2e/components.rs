//! Each part of the control plane stopped alone: what goes on, what does not, and what happens afterwards.

use std::time::Duration;

use skiff_e2e::{Cluster, Home, Kubectl, Server, eventually, wait::check};

use crate::{
    tests,
    workloads::{PATIENCE, ready, sleeper},
};

tests![each_part_stopped_alone, parts_that_are_left_out];

const OK: [&str; 3] =
    ["scheduler            Healthy   ok", "controller-manager   Healthy   ok", "etcd-0               Healthy   ok"];

fn phase(kubectl: &Kubectl, pod: &str) -> String {
    kubectl.path(&["pod", pod], "{.status.phase}").unwrap_or_default()
}

fn each_part_stopped_alone() {
    let cluster = Cluster::create("parts", &[]);
    cluster.load(&["busybox"]);
    let home = &cluster.home;
    let kubectl = cluster.kubectl().within("default");
    let switch = |what: &[&str]| home.skiff(&[&["cluster", "components", "parts"], what].concat());
    switch(&[]).prints(&["NODE", "parts-control-plane", "apiserver", "scheduler", "controller-manager", "kubelet"]);
    let statuses = kubectl.run(&["get", "componentstatuses"]);
    assert!(statuses.stderr.contains("Warning: v1 ComponentStatus is deprecated in v1.19+"), "{statuses:?}");
    statuses.prints(&OK);
    kubectl.apply(&sleeper("before"));
    kubectl
        .run(&["create", "deployment", "web", "--image=busybox:1.36", "--replicas=2", "--", "sleep", "1000000"])
        .ok();
    ready(&kubectl, "before");
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();

    // Without a scheduler new pods wait, and old ones run.
    switch(&["--stop", "scheduler"]).prints(&["scheduler            stopped"]);
    kubectl.run(&["get", "cs"]).prints(&[
        "scheduler            Unhealthy   Get",
        "10259/healthz",
        "connection refused",
    ]);
    kubectl.apply(&sleeper("new"));
    kubectl.run(&["scale", "deployment", "web", "--replicas=3"]).ok();
    eventually(PATIENCE, || {
        let pods = kubectl.run(&["get", "pods", "-l", "app=web", "--no-headers"]).result()?;
        check(pods.lines().count() == 3 && pods.contains("Pending"), || pods)
    });
    assert_eq!(phase(&kubectl, "new"), "Pending");
    assert_eq!(kubectl.path(&["pod", "new"], "{.spec.nodeName}").unwrap(), "");
    assert_eq!(phase(&kubectl, "before"), "Running");
    kubectl.run(&["exec", "before", "--", "true"]).ok();
    switch(&["--start", "scheduler"]).ok();
    ready(&kubectl, "new");
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();

    // Without controllers a dead pod is not replaced.
    switch(&["--stop", "controller-manager"]).prints(&["controller-manager   stopped"]);
    kubectl.run(&["get", "cs"]).prints(&["controller-manager   Unhealthy", "10257/healthz"]);
    let pods = || kubectl.run(&["get", "pods", "-l", "app=web", "-o", "name"]).ok();
    let victim = pods().lines().next().unwrap().to_owned();
    kubectl.run(&["delete", &victim, "--grace-period=1"]).ok();
    assert_eq!(pods().lines().count(), 2);
    kubectl.run(&["create", "deployment", "unmanaged", "--image=busybox:1.36"]).ok();
    // The scheduler and the kubelet work, so whatever controllers made would be there by the time this one runs.
    kubectl.apply(&sleeper("meanwhile"));
    ready(&kubectl, "meanwhile");
    assert_eq!(pods().lines().count(), 2);
    assert_eq!(kubectl.run(&["get", "replicasets", "-l", "app=unmanaged", "-o", "name"]).ok(), "");
    switch(&["--start", "controller-manager"]).ok();
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    assert_eq!(pods().lines().count(), 3);

    // Without the API server nothing can be asked or changed, and containers go on.
    let started = kubectl.path(&["pod", "before"], "{.status.containerStatuses[0].containerID}").unwrap();
    switch(&["--stop", "apiserver"]).prints(&["apiserver            stopped"]);
    kubectl.run(&["get", "pods"]).fails_with("refused");
    let sleeping = skiff_e2e::leftovers::processes(&home.dir).iter().filter(|(_, c)| c.contains("sleep")).count();
    assert!(sleeping >= 3, "{sleeping} containers run");
    switch(&["--start", "apiserver"]).ok();
    eventually(PATIENCE, || kubectl.run(&["get", "pods"]).result());
    assert_eq!(kubectl.path(&["pod", "before"], "{.status.containerStatuses[0].containerID}").unwrap(), started);
    assert_eq!(kubectl.path(&["pod", "before"], "{.status.containerStatuses[0].restartCount}").unwrap(), "0");
    // All find each other again.
    kubectl.run(&["scale", "deployment", "web", "--replicas=4"]).ok();
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=90s"]).ok();

    // Without the kubelet its containers go on too, and new ones wait for it.
    switch(&["--stop", "kubelet"]).prints(&["kubelet              stopped"]);
    kubectl.apply(&sleeper("late"));
    eventually(PATIENCE, || {
        let node = kubectl.path(&["pod", "late"], "{.spec.nodeName}")?;
        check(!node.is_empty(), || "it is not scheduled".to_owned())
    });
    assert_eq!(phase(&kubectl, "late"), "Pending");
    switch(&["--start", "kubelet"]).ok();
    ready(&kubectl, "late");
    assert_eq!(kubectl.path(&["pod", "before"], "{.status.containerStatuses[0].restartCount}").unwrap(), "0");

    switch(&["--stop", "frobnicator"]).fails_with("frobnicator");
    switch(&["--stop", "dns"]).fails_with("coredns");
    switch(&["--node", "nobody"]).fails_with("nobody");
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

fn parts_that_are_left_out() {
    let server = Server::start_with(Home::new(), &["--disable", "scheduler,controller-manager"]);
    let kubectl = server.kubectl();
    kubectl.run(&["get", "cs"]).prints(&[
        "scheduler            Unhealthy",
        "controller-manager   Unhealthy",
        "etcd-0               Healthy",
    ]);
    kubectl.run(&["create", "deployment", "d", "-n", "default", "--image=nginx"]).ok();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(kubectl.run(&["get", "replicasets", "-A", "-o", "name"]).ok(), "");
    let home = Home::new();
    home.skiff(&["server", "--disable", "apiserver"]).fails_with("API server");
    home.skiff(&["server", "--disable", "nonsense"]).fails_with("nonsense");
    home.skiff(&["server", "--eviction-hard", "memory.free<1Mi"]).fails_with("unsupported eviction signal");
}
