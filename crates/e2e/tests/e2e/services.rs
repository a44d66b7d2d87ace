//! What Services can be told: affinity, policies, names elsewhere, endpoints by hand, and names of every form.

use std::collections::BTreeSet;

use skiff_e2e::{Kubectl, eventually, wait::check};

use crate::{
    network::{get, on_both_nodes},
    shared::{self, WORKER},
    tests,
    workloads::{PATIENCE, ready},
};

tests![
    clients_stay_with_their_pod,
    services_become_other_names_and_back,
    traffic_stays_on_the_node_and_nodes_tell,
    endpoints_made_by_hand,
    names_of_every_form,
    services_are_checked,
];

fn web(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web, pod: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: busybox
    imagePullPolicy: IfNotPresent
    command:
    - sh
    - -c
    - mkdir /www; echo {name} > /www/index.html; httpd -p 8081 -h /www; exec httpd -f -p 8080 -h /www
    readinessProbe: {{httpGet: {{port: 8080, path: /}}, periodSeconds: 1}}
---
"
    )
}

fn two(namespace: &str) -> Kubectl {
    on_both_nodes(namespace, web)
}

fn patch(kubectl: &Kubectl, service: &str, patch: &str) {
    kubectl.run(&["patch", "service", service, "--type=merge", "-p", patch]).ok();
}

/// Who answers fifteen requests in a row.
fn answers(kubectl: &Kubectl, from: &str, url: &str) -> Result<BTreeSet<String>, String> {
    (0..15).map(|_| get(kubectl, from, url).map(|answer| answer.trim().to_owned())).collect()
}

fn clients_stay_with_their_pod() {
    let kubectl = two("affinity");
    kubectl.apply(&web("three", WORKER));
    ready(&kubectl, "three");
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  type: NodePort\n  sessionAffinity: ClientIP\n  selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n");
    let spec = |path: &str| kubectl.path(&["service", "web"], path).unwrap();
    assert_eq!(spec("{.spec.sessionAffinityConfig.clientIP.timeoutSeconds}"), "10800");
    let host = kubectl.path(&["pod", "two"], "{.status.hostIP}").unwrap();
    let urls = [
        format!("http://{}/", spec("{.spec.clusterIP}")),
        format!("http://{host}:{}/", spec("{.spec.ports[0].nodePort}")),
    ];
    let expect = |count: usize| {
        for url in &urls {
            eventually(PATIENCE, || {
                let all = answers(&kubectl, "one", url)?;
                check(all.len() == count, || format!("{url}: {all:?} instead of {count}"))
            });
        }
    };
    expect(1);
    patch(&kubectl, "web", r#"{"spec":{"sessionAffinity":"None"}}"#);
    expect(3);
    patch(&kubectl, "web", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#);
    expect(1);
}

fn lookup(kubectl: &Kubectl, kind: &str, name: &str, wanted: &[&str]) {
    eventually(PATIENCE, || {
        let said = kubectl.run(&["exec", "one", "--", "nslookup", &format!("-type={kind}"), name]);
        check(wanted.iter().all(|text| said.stdout.contains(text)), || format!("{wanted:?} of {name}: {said:?}"))
    });
}

fn services_become_other_names_and_back() {
    let kubectl = two("renamed");
    kubectl.run(&["create", "service", "externalname", "web", "--external-name", "one.example.com"]).ok();
    kubectl.run(&["get", "service", "web"]).prints(&["ExternalName", "<none>", "one.example.com"]);
    let name = "web.renamed.svc.cluster.local";
    lookup(&kubectl, "cname", name, &["canonical name = one.example.com"]);
    patch(&kubectl, "web", r#"{"spec":{"externalName":"two.example.com"}}"#);
    lookup(&kubectl, "cname", name, &["canonical name = two.example.com"]);
    let ports = r#""selector":{"app":"web"},"ports":[{"port":80,"targetPort":8080,"protocol":"TCP"}]"#;
    patch(&kubectl, "web", &format!(r#"{{"spec":{{"type":"NodePort","externalName":null,{ports}}}}}"#));
    let spec = |path: &str| kubectl.path(&["service", "web"], path).unwrap();
    let (ip, port) = (spec("{.spec.clusterIP}"), spec("{.spec.ports[0].nodePort}"));
    lookup(&kubectl, "a", name, &[&ip]);
    let host = kubectl.path(&["pod", "two"], "{.status.hostIP}").unwrap();
    for url in [format!("http://{ip}/"), "http://web/".to_owned(), format!("http://{host}:{port}/")] {
        eventually(PATIENCE, || get(&kubectl, "one", &url));
    }
    patch(
        &kubectl,
        "web",
        r#"{"spec":{"type":"ExternalName","externalName":"three.example.com","clusterIP":null,"clusterIPs":null}}"#,
    );
    lookup(&kubectl, "cname", name, &["canonical name = three.example.com"]);
    assert_eq!((spec("{.spec.clusterIP}"), spec("{.spec.ports[0].nodePort}")), (String::new(), String::new()));
    patch(&kubectl, "web", r#"{"spec":{"type":"ClusterIP","externalName":null}}"#);
    let ip = spec("{.spec.clusterIP}");
    lookup(&kubectl, "a", name, &[&ip]);
    for url in [format!("http://{ip}/"), "http://web/".to_owned()] {
        eventually(PATIENCE, || get(&kubectl, "one", &url));
    }
}

fn traffic_stays_on_the_node_and_nodes_tell() {
    let kubectl = two("local-traffic");
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  internalTrafficPolicy: Local\n  selector: {pod: two}\n  ports: [{port: 8182, targetPort: 8080}]\n");
    let spec = |path: &str| kubectl.path(&["service", "web"], path).unwrap();
    let (ip, port) = (spec("{.spec.clusterIP}"), spec("{.spec.healthCheckNodePort}"));
    let nodes = ["one", "two"].map(|pod| kubectl.path(&["pod", pod], "{.status.hostIP}").unwrap());
    let health = |node: &str| {
        let url = format!("http://{node}:{port}/healthz");
        let said = kubectl.run(&["exec", "one", "--", "wget", "-T", "2", "-O", "-", &url]);
        format!("{}{}", said.stdout, said.stderr)
    };
    for (node, wanted) in nodes.iter().zip(["503", r#""localEndpoints":1"#]) {
        eventually(PATIENCE, || {
            let said = health(node);
            check(said.contains(wanted), || format!("{node}: {said} instead of {wanted}"))
        });
    }
    let url = format!("http://{ip}:8182/");
    eventually(PATIENCE, || get(&kubectl, "two", &url));
    get(&kubectl, "one", &url).unwrap_err();
    patch(&kubectl, "web", r#"{"spec":{"internalTrafficPolicy":"Cluster"}}"#);
    eventually(PATIENCE, || get(&kubectl, "one", &url));
    patch(&kubectl, "web", r#"{"spec":{"externalTrafficPolicy":"Cluster"}}"#);
    assert_eq!(spec("{.spec.healthCheckNodePort}"), "");
}

fn endpoints_made_by_hand() {
    let kubectl = two("slices-by-hand");
    let address = |pod: &str| kubectl.path(&["pod", pod], "{.status.podIP}").unwrap();
    let slice = |name: &str, address: &str, port: u16| {
        format!(
            "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: {port}, protocol: TCP}}]
endpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]
---
"
        )
    };
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports: [{name: http, port: 80}]\n");
    kubectl.apply(&(slice("web-a", &address("one"), 8080) + &slice("web-b", &address("two"), 8081)));
    eventually(PATIENCE, || {
        let all = answers(&kubectl, "one", "http://web/")?;
        check(all.len() == 2, || format!("{all:?}"))
    });
    // The same pod with two ports.
    kubectl.apply(&slice("web-b", &address("one"), 8081));
    eventually(PATIENCE, || {
        let all = answers(&kubectl, "two", "http://web/")?;
        check(all.iter().eq(["one"]), || format!("{all:?}"))
    });
}

fn names_of_every_form() {
    let kubectl = two("forms");
    kubectl.apply(
        "apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: postgres, port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: early}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {app: db}
  ports: [{name: postgres, port: 5432}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 1
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: box
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sleep, '100000']
        readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
",
    );
    let ip = eventually(PATIENCE, || {
        let ip = kubectl.path(&["pod", "db-0"], "{.status.podIP}")?;
        check(!ip.is_empty(), || "no address yet".to_owned()).map(|()| ip)
    });
    // Before it is ready only who asked for it sees it.
    lookup(&kubectl, "a", "early.forms.svc.cluster.local", &[&ip]);
    let early = kubectl.run(&["exec", "one", "--", "nslookup", "db.forms.svc.cluster.local"]);
    assert!(!early.stdout.contains(&ip), "{early:?}");
    kubectl.run(&["exec", "db-0", "--", "touch", "/ready"]).ok();
    lookup(&kubectl, "a", "db-0.db.forms.svc.cluster.local", &[&ip]);
    lookup(&kubectl, "a", "db.forms.svc.cluster.local", &[&ip]);
    lookup(&kubectl, "srv", "_postgres._tcp.db.forms.svc.cluster.local", &["5432", "db-0.db.forms.svc.cluster.local"]);
    let pod = kubectl.path(&["pod", "two"], "{.status.podIP}").unwrap();
    lookup(&kubectl, "a", &format!("{}.forms.pod.cluster.local", pod.replace('.', "-")), &[&pod]);
    lookup(&kubectl, "srv", "_http._tcp.web.forms.svc.cluster.local", &["80", "web.forms.svc.cluster.local"]);
    let reverse = |ip: &str| {
        let mut parts: Vec<&str> = ip.split('.').collect();
        parts.reverse();
        format!("{}.in-addr.arpa", parts.join("."))
    };
    let web = kubectl.path(&["service", "web"], "{.spec.clusterIP}").unwrap();
    lookup(&kubectl, "ptr", &reverse(&web), &["web.forms.svc.cluster.local"]);
    lookup(&kubectl, "ptr", &reverse(&ip), &["db-0.db.forms.svc.cluster.local"]);
}

fn services_are_checked() {
    let kubectl = shared::server("services-checked");
    let service = |spec: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: bad}}\nspec: {{ports: [{{port: 80}}], {spec}}}\n")
    };
    for (spec, message) in [
        ("ipFamilyPolicy: RequireDualStack", "this cluster is not configured for dual-stack services"),
        ("ipFamilies: [IPv6]", "not configured on this cluster"),
        ("loadBalancerSourceRanges: [10.0.0.0/8]", "may only be used when `type` is 'LoadBalancer'"),
        ("trafficDistribution: Far", "Unsupported value: \"Far\""),
    ] {
        let refused = kubectl.feed(&["apply", "-f", "-"], &service(spec));
        assert!(refused.stderr.contains(message), "{message}: {refused:?}");
    }
}
