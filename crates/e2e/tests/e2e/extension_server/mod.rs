//! A server in a pod that extends the cluster (`server.py`), behind the Service `extension`.

use base64::Engine as _;
use skiff_e2e::Kubectl;
use skiff_pki::{Authority, Request, Usage};

use crate::shared;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/extension_server/server.py");

/// Runs the server in the namespace of `kubectl`, and returns the authority of its certificate in base64.
pub(crate) fn start(kubectl: &Kubectl, namespace: &str) -> String {
    shared::load(&["python"]);
    let (authority, pair) = Authority::generate("extension").unwrap();
    let name = format!("extension.{namespace}.svc");
    let serving = authority
        .issue(&Request {
            common_name: "extension",
            organization: None,
            usage: Usage::Server,
            dns_names: &[name],
            addresses: &[],
        })
        .unwrap();
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let config = ["configmap", "extension-apiserver-authentication", "-n", "kube-system"];
    // A cluster without aggregation would have none; webhooks do not need it.
    let proxies = kubectl.path(&config, "{.data.requestheader-client-ca-file}").unwrap_or_default();
    let proxies = if proxies.is_empty() { pair.certificate_pem.clone() } else { proxies };
    kubectl.run(&["create", "configmap", "extension", &format!("--from-file={PROGRAM}")]).ok();
    kubectl.apply(&format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: extension}}
data:
  tls.crt: {}
  tls.key: {}
  ca.crt: {}
---
apiVersion: v1
kind: Service
metadata: {{name: extension}}
spec:
  selector: {{app: extension}}
  ports: [{{port: 443, targetPort: 8443}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: extension}}
spec:
  selector: {{matchLabels: {{app: extension}}}}
  template:
    metadata: {{labels: {{app: extension}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: server
        image: python:3.11-slim
        imagePullPolicy: IfNotPresent
        command: [python3, -u, /program/server.py]
        readinessProbe: {{tcpSocket: {{port: 8443}}, periodSeconds: 1}}
        volumeMounts:
        - {{name: program, mountPath: /program}}
        - {{name: tls, mountPath: /tls}}
      volumes:
      - {{name: program, configMap: {{name: extension}}}}
      - {{name: tls, secret: {{secretName: extension}}}}
",
        encode(&serving.certificate_pem),
        encode(&serving.key_pem),
        encode(&proxies),
    ));
    kubectl.run(&["rollout", "status", "deployment/extension", "--timeout=60s"]).ok();
    encode(&pair.certificate_pem)
}
