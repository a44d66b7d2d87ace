//! NetworkPolicies of the guides, with real packets between two nodes.

use std::time::{Duration, Instant};

use skiff_e2e::{Kubectl, eventually, wait::check};

use crate::{
    shared::{self, CONTROL_PLANE, WORKER},
    tests,
    workloads::{PATIENCE, ready},
};

tests![
    frontend_to_backend_only,
    deny_all_and_what_is_let_out_again,
    an_api_between_frontend_and_database,
    tenants_are_apart,
    policies_are_checked_and_shown,
];

/// A pod that answers on 8080 (named `web`) and 5432.
fn pod(name: &str, app: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: busybox
    imagePullPolicy: IfNotPresent
    ports: [{{name: web, containerPort: 8080}}]
    command:
    - sh
    - -c
    - mkdir /www; echo {name} > /www/index.html; httpd -p 5432 -h /www; exec httpd -f -p 8080 -h /www
    readinessProbe: {{httpGet: {{port: web, path: /}}, periodSeconds: 1}}
---
"
    )
}

fn reaches(kubectl: &Kubectl, from: &str, host: &str, port: u16) -> Result<String, String> {
    let url = format!("http://{host}:{port}/");
    kubectl.run(&["exec", from, "--", "wget", "-q", "-T", "1", "-O", "-", &url]).result()
}

/// Who reaches whom: `(from, to, port, allowed)`.
fn expect(kubectl: &Kubectl, ways: &[(&str, &str, u16, bool)]) {
    for (from, to, port, allowed) in ways {
        let host = kubectl.path(&["pod", to], "{.status.podIP}").unwrap();
        eventually(PATIENCE, || {
            let answer = reaches(kubectl, from, &host, *port);
            check(answer.is_ok() == *allowed, || format!("{from} to {to}:{port}, allowed {allowed}: {answer:?}"))
        });
    }
}

fn frontend_to_backend_only() {
    let kubectl = shared::cluster().in_new("policy-frontend");
    kubectl.apply(
        &(pod("backend", "backend", WORKER)
            + &pod("frontend", "frontend", CONTROL_PLANE)
            + &pod("other", "other", WORKER)),
    );
    for name in ["backend", "frontend", "other"] {
        ready(&kubectl, name);
    }
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: backend}\nspec:\n  selector: {app: backend}\n  ports: [{port: 80, targetPort: 8080}]\n");
    expect(&kubectl, &[("frontend", "backend", 8080, true), ("other", "backend", 8080, true)]);
    kubectl.apply(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: allow-frontend-to-backend
spec:
  podSelector:
    matchLabels:
      app: backend
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: frontend
    ports:
    - protocol: TCP
      port: 8080
",
    );
    expect(
        &kubectl,
        &[
            ("other", "backend", 8080, false),
            ("frontend", "backend", 8080, true),
            ("frontend", "backend", 5432, false),
            ("backend", "other", 8080, true),
        ],
    );
    // Through the Service it is the pod's port that counts.
    eventually(PATIENCE, || reaches(&kubectl, "frontend", "backend", 80));
    reaches(&kubectl, "other", "backend", 80).unwrap_err();
    // The node's probes go on.
    let status = "{.status.conditions[?(@.type=='Ready')].status}";
    assert_eq!(kubectl.path(&["pod", "backend"], status).unwrap(), "True");
    // A label is enough, at once.
    kubectl.run(&["label", "pod", "other", "app=frontend", "--overwrite"]).ok();
    let start = Instant::now();
    let host = kubectl.path(&["pod", "backend"], "{.status.podIP}").unwrap();
    eventually(PATIENCE, || reaches(&kubectl, "other", &host, 8080));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    kubectl.run(&["delete", "networkpolicy", "allow-frontend-to-backend"]).ok();
    expect(&kubectl, &[("frontend", "backend", 5432, true)]);
}

fn deny_all_and_what_is_let_out_again() {
    let kubectl = shared::cluster().in_new("policy-deny");
    kubectl.apply(&(pod("one", "one", CONTROL_PLANE) + &pod("two", "two", WORKER)));
    ready(&kubectl, "one");
    ready(&kubectl, "two");
    expect(&kubectl, &[("one", "two", 8080, true)]);
    kubectl.apply(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: deny-all
spec:
  podSelector: {}
  policyTypes:
  - Ingress
  - Egress
",
    );
    expect(&kubectl, &[("one", "two", 8080, false), ("two", "one", 8080, false)]);
    let names = || kubectl.run(&["exec", "one", "--", "nslookup", "kubernetes.default.svc.cluster.local"]).result();
    names().unwrap_err();
    // Names for all, and one way by name of the port and range of addresses.
    kubectl.apply(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: names}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
    ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out}
spec:
  podSelector: {matchLabels: {app: one}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 10.244.0.0/16}}]
    ports: [{port: 8000, endPort: 8100}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: in}
spec:
  podSelector: {matchLabels: {app: two}}
  ingress:
  - ports: [{port: web}]
",
    );
    eventually(PATIENCE, names);
    expect(&kubectl, &[("one", "two", 8080, true), ("one", "two", 5432, false), ("two", "one", 8080, false)]);
}

fn an_api_between_frontend_and_database() {
    let kubectl = shared::cluster().in_new("policy-api");
    kubectl.apply(
        &[("frontend", WORKER), ("api", CONTROL_PLANE), ("database", WORKER)]
            .map(|(name, node)| pod(name, name, node))
            .concat(),
    );
    for name in ["frontend", "api", "database"] {
        ready(&kubectl, name);
    }
    kubectl.apply(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: api-policy
spec:
  podSelector:
    matchLabels:
      app: api
  policyTypes:
    - Ingress
    - Egress
  ingress:
    - from:
        - podSelector:
            matchLabels:
              app: frontend
      ports:
        - protocol: TCP
          port: 8080
  egress:
    - to:
        - podSelector:
            matchLabels:
              app: database
      ports:
        - protocol: TCP
          port: 5432
",
    );
    expect(
        &kubectl,
        &[
            ("api", "database", 8080, false),
            ("api", "database", 5432, true),
            ("api", "frontend", 8080, false),
            ("frontend", "api", 8080, true),
            ("frontend", "api", 5432, false),
            ("database", "api", 8080, false),
            ("frontend", "database", 8080, true),
        ],
    );
}

fn tenants_are_apart() {
    let alpha = shared::cluster().in_new("tenant-alpha");
    let beta = shared::cluster().in_new("tenant-beta");
    for (kubectl, node) in [(&alpha, WORKER), (&beta, CONTROL_PLANE)] {
        kubectl.apply(&(pod("one", "web", node) + &pod("two", "web", CONTROL_PLANE)));
        ready(kubectl, "one");
        ready(kubectl, "two");
    }
    alpha.run(&["label", "namespace", "tenant-alpha", "tenant=alpha"]).ok();
    beta.run(&["label", "namespace", "tenant-beta", "tenant=beta"]).ok();
    let address = |kubectl: &Kubectl| kubectl.path(&["pod", "one"], "{.status.podIP}").unwrap();
    alpha.apply(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: tenant-alpha-isolation
  namespace: tenant-alpha
spec:
  podSelector: {}
  policyTypes:
  - Ingress
  - Egress
  ingress:
  - from:
    - namespaceSelector:
        matchLabels:
          tenant: alpha
  egress:
  - to:
    - namespaceSelector:
        matchLabels:
          tenant: alpha
",
    );
    let way = |from: &Kubectl, to: &Kubectl, allowed: bool| {
        let host = address(to);
        eventually(PATIENCE, || {
            let answer = reaches(from, "two", &host, 8080);
            check(answer.is_ok() == allowed, || format!("{host}, allowed {allowed}: {answer:?}"))
        });
    };
    way(&beta, &alpha, false);
    way(&alpha, &beta, false);
    way(&alpha, &alpha, true);
    way(&beta, &beta, true);
    // The other namespace's label decides, at once.
    beta.run(&["label", "namespace", "tenant-beta", "tenant=alpha", "--overwrite"]).ok();
    way(&beta, &alpha, true);
    way(&alpha, &beta, true);
}

fn policies_are_checked_and_shown() {
    let kubectl = shared::server("policy-shown");
    kubectl.apply("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: api}\nspec:\n  podSelector: {matchLabels: {app: api}}\n  egress: [{}]\n");
    kubectl.run(&["get", "netpol"]).prints(&["NAME", "POD-SELECTOR", "AGE", "app=api"]);
    assert_eq!(kubectl.path(&["netpol", "api"], "{.spec.policyTypes}").unwrap(), r#"["Ingress","Egress"]"#);
    kubectl.run(&["describe", "netpol", "api"]).prints(&["PodSelector:     app=api", "Policy Types: Ingress, Egress"]);
    let bad = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: bad}\nspec:\n  podSelector: {}\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]\n";
    let refused = kubectl.feed(&["apply", "-f", "-"], bad);
    assert!(refused.stderr.contains("must be a valid CIDR value"), "{refused:?}");
}
