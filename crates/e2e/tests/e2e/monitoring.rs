//! A real Prometheus finds what there is in the cluster through the API, and scrapes it.

use std::time::Duration;

use serde_json::Value;
use skiff_e2e::{Kubectl, eventually, wait::check};

use crate::{shared, tests};

tests![prometheus_finds_nodes_pods_and_the_api_server];

const PATIENCE: Duration = Duration::from_secs(90);

/// The rules that everybody copies: the API server, the kubelets with their containers, and pods and Services by the
/// annotations `prometheus.io/scrape`, `port` and `path`.
const PROMETHEUS: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: prometheus}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: prometheus}
rules:
- apiGroups: ['']
  resources: [nodes, nodes/metrics, nodes/proxy, services, endpoints, pods]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- nonResourceURLs: [/metrics]
  verbs: [get]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: prometheus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: prometheus}
subjects:
- {kind: ServiceAccount, name: prometheus, namespace: monitoring}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: prometheus}
data:
  prometheus.yml: |
    global: {scrape_interval: 1s}
    scrape_configs:
    - job_name: apiservers
      kubernetes_sd_configs: [{role: endpoints}]
      scheme: https
      tls_config: {ca_file: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt}
      authorization: {credentials_file: /var/run/secrets/kubernetes.io/serviceaccount/token}
      relabel_configs:
      - source_labels: [__meta_kubernetes_namespace, __meta_kubernetes_service_name, __meta_kubernetes_endpoint_port_name]
        action: keep
        regex: default;kubernetes;https
    - job_name: nodes
      kubernetes_sd_configs: [{role: node}]
      scheme: https
      tls_config: {ca_file: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt, insecure_skip_verify: true}
      authorization: {credentials_file: /var/run/secrets/kubernetes.io/serviceaccount/token}
    - job_name: containers
      kubernetes_sd_configs: [{role: node}]
      scheme: https
      tls_config: {ca_file: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt}
      authorization: {credentials_file: /var/run/secrets/kubernetes.io/serviceaccount/token}
      relabel_configs:
      - {target_label: __address__, replacement: 'kubernetes.default.svc:443'}
      - source_labels: [__meta_kubernetes_node_name]
        target_label: __metrics_path__
        replacement: /api/v1/nodes/$1/proxy/metrics/cadvisor
    - job_name: pods
      kubernetes_sd_configs: [{role: pod}]
      relabel_configs:
      - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape]
        action: keep
        regex: true
      - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_path]
        target_label: __metrics_path__
        regex: (.+)
      - source_labels: [__address__, __meta_kubernetes_pod_annotation_prometheus_io_port]
        target_label: __address__
        regex: ([^:]+)(?::\d+)?;(\d+)
        replacement: $1:$2
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
    - job_name: services
      kubernetes_sd_configs: [{role: endpointslice}]
      relabel_configs:
      - source_labels: [__meta_kubernetes_service_annotation_prometheus_io_scrape]
        action: keep
        regex: true
      - source_labels: [__meta_kubernetes_service_annotation_prometheus_io_path]
        target_label: __metrics_path__
        regex: (.+)
      - source_labels: [__address__, __meta_kubernetes_service_annotation_prometheus_io_port]
        target_label: __address__
        regex: ([^:]+)(?::\d+)?;(\d+)
        replacement: $1:$2
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: prometheus}
spec:
  selector: {matchLabels: {app: prometheus}}
  template:
    metadata: {labels: {app: prometheus}}
    spec:
      serviceAccountName: prometheus
      securityContext: {runAsUser: 65534, runAsNonRoot: true, fsGroup: 65534}
      containers:
      - name: prometheus
        image: prometheus
        imagePullPolicy: IfNotPresent
        args: [--config.file=/etc/prometheus/prometheus.yml, --storage.tsdb.path=/prometheus]
        ports: [{name: web, containerPort: 9090}]
        readinessProbe: {httpGet: {path: /-/ready, port: web}, periodSeconds: 1}
        volumeMounts:
        - {name: config, mountPath: /etc/prometheus}
        - {name: data, mountPath: /prometheus}
      volumes:
      - {name: config, configMap: {name: prometheus}}
      - {name: data, emptyDir: {}}
---
apiVersion: v1
kind: Service
metadata: {name: prometheus}
spec:
  selector: {app: prometheus}
  ports: [{port: 9090, targetPort: web}]
";

/// An application with metrics, annotated on its pods, and on its Service as the guide has it.
const APPLICATION: &str = r"
apiVersion: v1
kind: ConfigMap
metadata: {name: pages}
data:
  metrics: |
    # TYPE orders_total counter
    orders_total 42
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: my-app}
spec:
  replicas: 2
  selector: {matchLabels: {app: my-app}}
  template:
    metadata:
      labels: {app: my-app}
      annotations: {prometheus.io/scrape: 'true', prometheus.io/port: '8080', prometheus.io/path: /metrics}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: app
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [httpd, -f, -p, '8080', -h, /pages]
        volumeMounts: [{name: pages, mountPath: /pages}]
      volumes: [{name: pages, configMap: {name: pages}}]
---
apiVersion: v1
kind: Service
metadata:
  name: my-app
  annotations: {prometheus.io/scrape: 'true', prometheus.io/port: '8080', prometheus.io/path: /metrics}
spec:
  selector: {app: my-app}
  ports: [{port: 80, targetPort: 8080}]
";

/// The values that Prometheus answers a query with.
fn query(kubectl: &Kubectl, query: &str) -> Result<Vec<f64>, String> {
    let path = format!("/api/v1/namespaces/monitoring/services/prometheus:9090/proxy/api/v1/query?query={query}");
    let answer: Value =
        serde_json::from_str(&kubectl.run(&["get", "--raw", &path]).result()?).map_err(|error| error.to_string())?;
    let rows = answer["data"]["result"].as_array().ok_or_else(|| answer.to_string())?;
    Ok(rows.iter().filter_map(|row| row["value"][1].as_str()?.parse().ok()).collect())
}

fn prometheus_finds_nodes_pods_and_the_api_server() {
    shared::load(&["prometheus"]);
    let kubectl = shared::cluster().in_new("monitoring");
    kubectl.apply(APPLICATION);
    kubectl.apply(PROMETHEUS);
    kubectl.run(&["rollout", "status", "deployment/my-app", "--timeout=90s"]).ok();
    kubectl.run(&["rollout", "status", "deployment/prometheus", "--timeout=90s"]).ok();
    // Two nodes, two pods, each found by every way that leads to it.
    for (job, count) in [("apiservers", 1), ("nodes", 2), ("containers", 2), ("pods", 2), ("services", 2)] {
        eventually(PATIENCE, || {
            let up = query(&kubectl, &format!("up%7Bjob=%22{job}%22%7D"))?;
            check(up == vec![1.0; count], || {
                let targets =
                    "/api/v1/namespaces/monitoring/services/prometheus:9090/proxy/api/v1/targets?state=active";
                format!("{job}: {up:?}\n{}", kubectl.run(&["get", "--raw", targets]).stdout)
            })
        });
    }
    // And what they tell is what one asks for.
    for (what, least) in [
        ("orders_total{job=\"pods\"}", 42.0),
        ("sum(apiserver_request_total)", 1.0),
        ("sum(kubelet_running_pods)", 2.0),
        ("container_memory_working_set_bytes{namespace=\"monitoring\",container=\"prometheus\"}", 1e6),
        ("sum(rate(container_cpu_usage_seconds_total{namespace=\"monitoring\"}[30s]))", 0.0),
    ] {
        let encoded = what.replace(' ', "%20").replace('"', "%22").replace('{', "%7B").replace('}', "%7D");
        eventually(PATIENCE, || {
            let values = query(&kubectl, &encoded)?;
            check(values.first().is_some_and(|value| *value >= least), || format!("{what}: {values:?}"))
        });
    }
}
