//! Pods on two nodes, Services and names.

use skiff_e2e::{Kubectl, cluster::curl, eventually, wait::check};

use crate::{
    shared::{self, CONTROL_PLANE, WORKER},
    tests,
    workloads::{PATIENCE, ready},
};

tests![
    pods_on_two_nodes_reach_each_other_without_nat,
    services_answer_on_every_node,
    names_of_services_and_pods,
    a_service_without_pods_refuses,
    an_isolated_cluster_has_no_way_out,
];

fn web(name: &str, node: &str) -> String {
    web_with(name, node, "")
}

/// A pod whose page is its name; `more` are lines of its container.
pub(crate) fn web_with(name: &str, node: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web, pod: {name}}}}}
spec:
  nodeName: {node}
  hostname: {name}
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'mkdir /www; hostname > /www/index.html; exec httpd -f -v -p 8080 -h /www']
{more}---
"
    )
}

fn two(namespace: &str) -> Kubectl {
    on_both_nodes(namespace, web)
}

/// A new namespace with the pods `one` and `two`, each on a node of its own: `web` makes them of name and node.
pub(crate) fn on_both_nodes(namespace: &str, web: fn(&str, &str) -> String) -> Kubectl {
    let kubectl = shared::cluster().in_new(namespace);
    kubectl.apply(&(web("one", CONTROL_PLANE) + &web("two", WORKER)));
    ready(&kubectl, "one");
    ready(&kubectl, "two");
    kubectl
}

/// What a pod gets from a URL.
pub(crate) fn get(kubectl: &Kubectl, from: &str, url: &str) -> Result<String, String> {
    kubectl.run(&["exec", from, "--", "wget", "-q", "-T", "3", "-O", "-", url]).result()
}

fn address(kubectl: &Kubectl, pod: &str) -> String {
    kubectl.path(&["pod", pod], "{.status.podIP}").unwrap()
}

fn pods_on_two_nodes_reach_each_other_without_nat() {
    let kubectl = two("two-nodes");
    for (from, to) in [("one", "two"), ("two", "one"), ("one", "one")] {
        let url = format!("http://{}:8080/", address(&kubectl, to));
        assert_eq!(eventually(PATIENCE, || get(&kubectl, from, &url)), format!("{to}\n"));
        // The server has seen the client's own address.
        let client = address(&kubectl, from);
        eventually(PATIENCE, || {
            let log = kubectl.run(&["logs", to]).result()?;
            check(log.contains(&client), || format!("{client} is not in {log}"))
        });
    }
    let nodes = ["one", "two"].map(|pod| kubectl.path(&["pod", pod], "{.status.hostIP}").unwrap());
    assert_ne!(nodes[0], nodes[1]);
}

fn services_answer_on_every_node() {
    let kubectl = two("two-services");
    kubectl.apply(
        "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 8180, targetPort: 8080}]
",
    );
    let spec = |path: &str| kubectl.path(&["service", "web"], path).unwrap();
    let (ip, node_port) = (spec("{.spec.clusterIP}"), spec("{.spec.ports[0].nodePort}"));
    let hosts = ["one", "two"].map(|pod| kubectl.path(&["pod", pod], "{.status.hostIP}").unwrap());
    let urls = [
        format!("http://{ip}:8180/"),
        "http://web:8180/".to_owned(),
        format!("http://{}:{node_port}/", hosts[0]),
        format!("http://{}:{node_port}/", hosts[1]),
    ];
    for from in ["one", "two"] {
        for url in &urls {
            // Both pods answer, their own one too.
            for wanted in ["one\n", "two\n"] {
                eventually(PATIENCE, || {
                    let answer = get(&kubectl, from, url).map_err(|error| format!("{from} {url}: {error}"))?;
                    check(answer == wanted, || format!("{from} {url}: only {answer:?}"))
                });
            }
        }
    }
    // From this machine, on localhost.
    eventually(PATIENCE, || {
        let external = kubectl.run(&["get", "service", "web"]).result()?;
        check(external.contains("localhost"), || external)
    });
    for wanted in ["one\n", "two\n"] {
        eventually(PATIENCE, || {
            let answer = curl(&["http://localhost:8180/"]).result()?;
            check(answer == wanted, || format!("only {answer:?}"))
        });
    }
    // A pod that goes is not asked any more.
    kubectl.run(&["delete", "pod", "two"]).ok();
    eventually(PATIENCE, || {
        let addresses = kubectl.path(&["endpoints", "web"], "{.subsets[*].addresses[*].ip}")?;
        check(addresses.split(' ').count() == 1, || addresses)
    });
    eventually(PATIENCE, || {
        (0..10).try_for_each(|_| get(&kubectl, "one", &urls[0]).and_then(|answer| check(answer == "one\n", || answer)))
    });
}

fn names_of_services_and_pods() {
    let kubectl = two("names");
    kubectl.run(&["create", "service", "clusterip", "web", "--tcp=8080"]).ok();
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: each}\nspec:\n  clusterIP: None\n  selector: {app: web}\n  ports: [{name: http, port: 8080}]\n");
    let lookup = |from: &str, name: &str, wanted: &[&str]| {
        eventually(PATIENCE, || {
            let said = kubectl.run(&["exec", from, "--", "nslookup", name]);
            check(wanted.iter().all(|address| said.stdout.contains(address)), || {
                format!("{wanted:?} of {name}: {said:?}")
            })
        });
    };
    let ip = kubectl.path(&["service", "web"], "{.spec.clusterIP}").unwrap();
    let (one, two) = (address(&kubectl, "one"), address(&kubectl, "two"));
    for from in ["one", "two"] {
        lookup(from, "kubernetes.default.svc.cluster.local", &["10.96.0.1"]);
        lookup(from, "web.names.svc.cluster.local", &[&ip]);
        lookup(from, "each.names.svc.cluster.local", &[&one, &two]);
        kubectl.run(&["exec", from, "--", "cat", "/etc/resolv.conf"]).prints(&[
            "search names.svc.cluster.local svc.cluster.local cluster.local",
            "nameserver 10.96.0.10",
            "ndots:5",
        ]);
        kubectl.run(&["exec", from, "--", "cat", "/etc/hosts"]).prints(&[&address(&kubectl, from), "localhost"]);
    }
    let none = kubectl.run(&["exec", "one", "--", "nslookup", "nobody.names.svc.cluster.local"]);
    assert!(none.stdout.contains("NXDOMAIN") || none.stderr.contains("NXDOMAIN"), "{none:?}");
}

fn a_service_without_pods_refuses() {
    let kubectl = two("nobody-home");
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec:\n  selector: {app: none}\n  ports: [{port: 80}]\n");
    let ip = kubectl.path(&["service", "empty"], "{.spec.clusterIP}").unwrap();
    // At once, not by waiting for an answer that does not come.
    eventually(PATIENCE, || match get(&kubectl, "one", &format!("http://{ip}/")) {
        Err(error) if error.contains("refused") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn an_isolated_cluster_has_no_way_out() {
    let kubectl = two("isolated");
    for from in ["one", "two"] {
        // How soon it fails differs: the kernel limits how many errors it sends to one sender.
        let error = get(&kubectl, from, "http://192.0.2.1/").unwrap_err();
        assert!(["unreachable", "No route to host", "timed out"].iter().any(|said| error.contains(said)), "{error}");
    }
}
