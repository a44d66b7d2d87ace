//! Ingresses: from this machine's ports 80 and 443 to pods.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use skiff_e2e::{Kubectl, cluster::curl, command, eventually, wait::check};

use crate::{
    shared::{self, CONTROL_PLANE, WORKER},
    tests,
    workloads::{PATIENCE, ready},
};

tests![hosts_paths_tls_and_updates, ingresses_are_checked_and_shown];

/// A pod and its Service; it answers with its name, and on /cgi-bin/env with what it was asked.
fn web(name: &str, node: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
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
    - |
      mkdir -p /www/cgi-bin /www/sub; echo {name} > /www/index.html; echo {name}-sub > /www/sub/index.html
      printf '#!/bin/sh\necho; echo {name} path=$REQUEST_URI; env\n' > /www/cgi-bin/env; chmod +x /www/cgi-bin/env
      exec httpd -f -p 8080 -h /www
    readinessProbe: {{httpGet: {{port: 8080, path: /}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
---
"#
    )
}

fn backend(service: &str) -> String {
    format!("{{service: {{name: {service}, port: {{number: 80}}}}}}")
}

fn get(args: &[&str]) -> Result<String, String> {
    curl(args).result()
}

fn answers(args: &[&str], wanted: &str) -> String {
    eventually(PATIENCE, || {
        let answer = get(args)?;
        check(answer.contains(wanted), || format!("{args:?}: {answer:?} instead of {wanted}"))?;
        Ok(answer)
    })
}

fn status(args: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--output", "/dev/null", "--max-time", "5", "--write-out", "%{http_code} %{redirect_url}"]);
    command::run(curl.args(args), "").stdout
}

fn hosts_paths_tls_and_updates() {
    let _port = shared::port_80();
    let kubectl = shared::cluster().in_new("ingress");
    let system = shared::cluster().within("kube-system");
    system.run(&["get", "deployment", "ingress"]).fails_with("NotFound");
    kubectl.run(&["get", "ingressclass"]).prints(&["NAME", "CONTROLLER", "PARAMETERS", "AGE", "skiff"]);
    kubectl
        .apply(&[("shop", WORKER), ("blog", CONTROL_PLANE), ("rest", WORKER)].map(|(n, node)| web(n, node)).concat());
    let removed = Removed(kubectl.clone());
    // As the guides have it: another class, hosts, and paths.
    kubectl.apply(&format!(
        "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: app}}
spec:
  ingressClassName: nginx
  defaultBackend: {rest}
  rules:
  - host: web.example.com
    http:
      paths:
      - {{path: /, pathType: Prefix, backend: {shop}}}
      - {{path: /sub, pathType: Prefix, backend: {blog}}}
      - {{path: /cgi-bin/env, pathType: Exact, backend: {shop}}}
  - host: '*.example.com'
    http: {{paths: [{{path: /, pathType: Prefix, backend: {blog}}}]}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: rewritten
  annotations: {{nginx.ingress.kubernetes.io/rewrite-target: /cgi-bin/env/$2}}
spec:
  rules:
  - host: api.example.org
    http: {{paths: [{{path: /api(/|$)(.*), pathType: ImplementationSpecific, backend: {shop}}}]}}
",
        rest = backend("rest"),
        shop = backend("shop"),
        blog = backend("blog"),
    ));
    for pod in ["shop", "blog", "rest"] {
        ready(&kubectl, pod);
    }
    let host = |name: &str| format!("Host: {name}");
    answers(&["-H", &host("web.example.com"), "http://localhost/"], "shop");
    answers(&["-H", &host("web.example.com"), "http://localhost/sub/"], "blog-sub");
    answers(&["-H", &host("other.example.com"), "http://localhost/"], "blog");
    answers(&["http://localhost/"], "rest");
    let seen = answers(&["-H", &host("web.example.com"), "http://localhost/cgi-bin/env?a=b"], "shop path=");
    for header in
        ["HTTP_X_FORWARDED_PROTO=http", "HTTP_X_FORWARDED_HOST=web.example.com", "HTTP_X_REAL_IP=", "QUERY_STRING=a=b"]
    {
        assert!(seen.contains(header), "{header}: {seen}");
    }
    // Without a class it got the default one; the path is another for the pod.
    assert_eq!(kubectl.path(&["ingress", "rewritten"], "{.spec.ingressClassName}").unwrap(), "skiff");
    answers(&["-H", &host("api.example.org"), "http://localhost/api/users"], "path=/cgi-bin/env/users");
    eventually(PATIENCE, || {
        let table = kubectl.run(&["get", "ingress", "app"]).result()?;
        let row = table.lines().nth(1).unwrap_or_default().to_owned();
        let cells = ["app", "nginx", "web.example.com,*.example.com", "localhost", "80"];
        check(row.split_whitespace().take(5).eq(cells), || table)
    });
    kubectl.run(&["describe", "ingress", "app"]).prints(&[
        "Address:          localhost",
        "Ingress Class:    nginx",
        "Default backend:  rest:80",
        "web.example.com",
        "/sub",
        "blog:80 (",
    ]);

    // TLS from a Secret.
    let directory = kubectl_directory("ingress-tls");
    let (key, certificate) = (directory.join("tls.key"), directory.join("tls.crt"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=myapp.example.com"]);
    openssl
        .args(["-addext", "subjectAltName=DNS:myapp.example.com", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    command::run(&mut openssl, "").ok();
    let flag = |name: &str, file: &std::path::Path| format!("--{name}={}", file.display());
    kubectl.run(&["create", "secret", "tls", "web-tls", &flag("cert", &certificate), &flag("key", &key)]).ok();
    kubectl.apply(&format!(
        "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: secure, annotations: {{nginx.ingress.kubernetes.io/ssl-redirect: 'true'}}}}
spec:
  tls: [{{hosts: [myapp.example.com], secretName: web-tls}}]
  rules:
  - host: myapp.example.com
    http: {{paths: [{{path: /, pathType: Prefix, backend: {}}}]}}
",
        backend("shop")
    ));
    let (ca, resolve) = (certificate.display().to_string(), "myapp.example.com:443:127.0.0.1");
    answers(&["--http2", "--cacert", &ca, "--resolve", resolve, "https://myapp.example.com/"], "shop");
    assert_eq!(
        status(&["-H", &host("myapp.example.com"), "http://localhost/x?y=z"]),
        "308 https://myapp.example.com/x?y=z"
    );
    get(&["https://localhost/"]).unwrap_err();
    answers(&["--insecure", "https://localhost/"], "rest");
    assert!(status(&["--insecure", "https://localhost/none"]).starts_with("404"));
    std::fs::remove_dir_all(&directory).unwrap();

    an_update_fails_no_request(&kubectl);
    drop(removed);
    // Without an Ingress there is no controller, and the port is free.
    eventually(PATIENCE, || check(get(&["http://localhost/"]).is_err(), || "port 80 still answers".to_owned()));
    eventually(PATIENCE, || {
        let left = system
            .run(&["get", "deployment,service,pod", "-l", "app.kubernetes.io/name=ingress", "-o", "name"])
            .result()?;
        check(left.trim().is_empty(), || left)
    });
}

/// Where a test may write.
fn kubectl_directory(name: &str) -> std::path::PathBuf {
    let directory = std::env::temp_dir().join(format!("skiff-e2e-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Rules and endpoints change under load.
fn an_update_fails_no_request(kubectl: &Kubectl) {
    let done = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU32::new(0));
    let load = {
        let (done, asked) = (done.clone(), asked.clone());
        std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if let Err(error) = get(&["-H", "Host: web.example.com", "http://localhost/"]) {
                    failures.push(error);
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
            failures
        })
    };
    for (index, service) in ["rest", "shop", "rest"].into_iter().enumerate() {
        let patch = format!(
            r#"[{{"op":"replace","path":"/spec/rules/0/http/paths/0/backend/service/name","value":"{service}"}}]"#
        );
        kubectl.run(&["patch", "ingress", "app", "--type=json", "-p", &patch]).ok();
        answers(&["-H", "Host: web.example.com", "http://localhost/"], service);
        let before = asked.load(Ordering::Relaxed);
        eventually(PATIENCE, || check(asked.load(Ordering::Relaxed) > before + 5, || format!("step {index}")));
    }
    done.store(true, Ordering::Relaxed);
    let failures = load.join().unwrap();
    assert!(failures.is_empty(), "{} of {}: {failures:?}", failures.len(), asked.load(Ordering::Relaxed));
}

/// Ports of this machine are given back also when a test fails.
struct Removed(Kubectl);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = self.0.run(&["delete", "ingress", "--all"]);
    }
}

fn ingresses_are_checked_and_shown() {
    let kubectl = shared::server("ingress-shown");
    let ingress = |spec: &str| {
        format!("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: bad}}\nspec: {spec}\n")
    };
    for (spec, message) in [
        ("{}", "either `defaultBackend` or `rules` must be specified"),
        ("{rules: [{host: 10.0.0.1}]}", "must be a DNS name, not an IP address"),
        (
            "{rules: [{http: {paths: [{path: a, pathType: Prefix, backend: {service: {name: a, port: {number: 1}}}}]}}]}",
            "must be an absolute path",
        ),
        (
            "{rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {}}}}]}}]}",
            "port name or number is required",
        ),
    ] {
        let refused = kubectl.feed(&["apply", "-f", "-"], &ingress(spec));
        assert!(refused.stderr.contains(message), "{message}: {refused:?}");
    }
    kubectl.apply(&ingress("{ingressClassName: other, defaultBackend: {service: {name: a, port: {name: http}}}}"));
    kubectl.run(&["get", "ingress"]).prints(&["NAME", "CLASS", "HOSTS", "ADDRESS", "PORTS", "AGE", "other", "*"]);
}
