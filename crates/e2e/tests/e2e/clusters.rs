//! The life of local clusters.

use std::{net::TcpListener, time::Duration};

use skiff_e2e::{Cluster, Home, Kubectl, Version, cluster::curl, eventually, leftovers, wait::check};

use crate::{
    tests,
    workloads::{PATIENCE, ready, sleeper},
};

tests![a_cluster_lives_stops_and_starts, names_and_ports_that_are_taken, a_configuration_of_kind, the_demonstration];

fn a_cluster_lives_stops_and_starts() {
    let cluster = Cluster::create("life", &[]);
    let home = &cluster.home;
    cluster.load(&["busybox", "nginx"]);
    cluster.created.clone().prints(&["Cluster \"life\" is ready after", "skiff-life"]);
    home.skiff(&["cluster", "list"]).prints(&["NAME", "life", "1/1", "skiff-life"]);
    let kubectl = cluster.kubectl();
    assert_eq!(kubectl.run(&["config", "current-context"]).ok(), "skiff-life\n");
    kubectl.run(&["get", "nodes"]).prints(&["life-control-plane   Ready", "control-plane"]);
    let kubectl = kubectl.within("default");
    kubectl.apply(&sleeper("box"));
    kubectl.run(&["create", "deployment", "web", "--image=nginx:1.25"]).ok();
    kubectl.run(&["expose", "deployment", "web", "--type=NodePort", "--port=80"]).ok();
    ready(&kubectl, "box");
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();

    // A port while it runs.
    let port = kubectl.path(&["service", "web"], "{.spec.ports[0].nodePort}").unwrap();
    home.skiff(&["cluster", "ports", "life", "--add", &format!("8280:{port}")]).prints(&["127.0.0.1:8280"]);
    eventually(PATIENCE, || curl(&["http://127.0.0.1:8280"]).result());
    home.skiff(&["cluster", "ports", "life"]).prints(&["127.0.0.1:8280"]);
    home.skiff(&["cluster", "ports", "life", "--remove", "8280"]).ok();
    curl(&["http://127.0.0.1:8280"]).fails();

    // Inside the node: its name, its processes, its pods' network.
    let inside = |command: &[&str]| home.skiff(&[&["cluster", "exec", "life", "--"], command].concat());
    assert_eq!(inside(&["hostname"]).ok(), "life-control-plane\n");
    inside(&["sh", "-c", "cat /proc/[0-9]*/comm"]).prints(&["nginx", "skiff"]);
    let ip = kubectl.path(&["pod", "-l", "app=web"], "{.items[0].status.podIP}").unwrap();
    inside(&["curl", "--silent", "--max-time", "10", &ip]).prints(&["Welcome to nginx!"]);
    assert_eq!(inside(&["sh", "-c", "exit 7"]).code, Some(7));
    inside(&["no-such-command"]).fails_with("run no-such-command in node life-control-plane");
    home.skiff(&["cluster", "ssh", "life", "--node", "nobody"]).fails_with("has no node \"nobody\"");

    home.skiff(&["cluster", "stop", "life"]).prints(&["Cluster \"life\" is stopped."]);
    inside(&["hostname"]).fails_with("is not running");
    home.skiff(&["cluster", "list"]).prints(&["0/1"]);
    kubectl.run(&["get", "pods"]).fails();
    assert!(leftovers::processes(&home.dir).is_empty());
    home.skiff(&["cluster", "stop", "life"]).ok();

    home.skiff(&["cluster", "start", "life"]).prints(&["Cluster \"life\" is running"]);
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    eventually(PATIENCE, || {
        let pods = kubectl.run(&["get", "pods"]).result()?;
        check(pods.lines().skip(1).all(|line| line.contains("1/1     Running")), || pods)
    });
    // Until the kubelet has looked, the status is the one from before.
    let hostname = eventually(PATIENCE, || kubectl.run(&["exec", "box", "--", "hostname"]).result());
    assert_eq!(hostname, "box\n");

    home.skiff(&["cluster", "delete", "life"]).prints(&["Cluster \"life\" is deleted."]);
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
    let config = std::fs::read_to_string(home.kubeconfig()).unwrap_or_default();
    assert!(!config.contains("skiff-life"), "{config}");
    home.skiff(&["cluster", "delete", "life"]).fails_with("life");
}

fn names_and_ports_that_are_taken() {
    let cluster = Cluster::create("taken", &[]);
    let home = &cluster.home;
    home.skiff(&["cluster", "create", "taken", "--isolated"]).fails_with("\"taken\"");
    cluster.kubectl().run(&["get", "nodes"]).prints(&["Ready"]);

    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let config = home.file(
        "ports.yaml",
        &format!(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n  extraPortMappings:\n  - {{containerPort: 80, hostPort: {port}}}\n"
        ),
    );
    let said = home.skiff(&["cluster", "create", "other", "--isolated", "--config", &config]).fails();
    assert!(said.contains(&format!("port {port}")) && said.contains("already in use"), "{said}");
    let list = home.skiff(&["cluster", "list"]).ok();
    assert!(!list.contains("other"), "{list}");
    drop(holder);
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

fn a_configuration_of_kind() {
    let home = Home::new();
    let config = home.file(
        "kind.yaml",
        "kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
name: configured
nodes:
- role: control-plane
  extraPortMappings:
  - {containerPort: 30080, hostPort: 8380}
- role: worker
  labels: {tier: front}
- role: worker
",
    );
    home.skiff(&["cluster", "create", "--isolated", "--config", &config]).prints(&["\"configured\""]);
    let kubectl = Kubectl {
        version: Version::V1_32,
        kubeconfig: home.kubeconfig(),
        home: home.dir.clone(),
        namespace: Some("default".into()),
    };
    let nodes = kubectl.run(&["get", "nodes", "-o", "name"]).ok();
    assert_eq!(nodes, "node/configured-control-plane\nnode/configured-worker\nnode/configured-worker2\n");
    let front = kubectl.run(&["get", "nodes", "-l", "tier=front", "-o", "name"]).ok();
    assert_eq!(front, "node/configured-worker\n");
    let archive = skiff_e2e::host::prepared("images/nginx.tar");
    home.skiff(&["image", "load", archive.to_str().unwrap(), "--cluster", "configured"])
        .prints(&["configured-worker2: "]);
    kubectl.run(&["create", "deployment", "web", "--image=nginx:1.25", "--replicas=3"]).ok();
    kubectl.run(&["create", "service", "nodeport", "web", "--tcp=80", "--node-port=30080"]).ok();
    eventually(PATIENCE, || curl(&["http://127.0.0.1:8380"]).result());
    // Spread over the nodes that may run it.
    kubectl.run(&["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let nodes = kubectl.path(&["pods", "-l", "app=web"], "{.items[*].spec.nodeName}").unwrap();
    let mut names: Vec<_> = nodes.split(' ').collect();
    names.sort();
    names.dedup();
    assert!(names.len() > 1, "{nodes}");
    home.skiff(&["cluster", "delete", "configured"]).ok();
}

fn the_demonstration() {
    let home = Home::new();
    let said = home.skiff(&["cluster", "create", "demo", "--isolated", "--demo"]);
    let all = format!("{}{}", said.stdout, said.stderr);
    said.ok();
    let url = all
        .split_whitespace()
        .find(|word| word.starts_with("http://localhost") || word.starts_with("http://127.0.0.1"));
    let url = url.unwrap_or_else(|| panic!("no address in\n{all}")).trim_end_matches(['.', ',', ')']);
    let page = eventually(Duration::from_secs(10), || curl(&[url]).result());
    assert!(page.to_lowercase().contains("<html") || page.to_lowercase().contains("<!doctype"), "{page}");
    home.skiff(&["cluster", "delete", "demo"]).ok();
}
