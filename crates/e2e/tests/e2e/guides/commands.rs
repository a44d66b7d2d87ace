//! The guides' lists of commands: each of them, on objects of the names that the guides use.

use std::fs;

use skiff_e2e::{Kubectl, Version, cluster::curl, eventually};

use super::{PATIENCE, manifest};
use crate::{shared, tests};

tests![lists_of_commands, contexts_and_namespaces, following_and_forwarding];

/// A command and something that it prints. `{pod}` is a pod of the Deployment, `{node}` a node.
type Row = (&'static str, &'static str);

/// "Quick Reference Guide", "Common Commands", "Basic kubectl Commands" and "Troubleshooting Commands", in an order in
/// which each has something to work on. One that occurs several times is here once.
const COMMANDS: &[Row] = &[
    ("version", "Server Version: v1.36"),
    ("cluster-info", "Kubernetes control plane is running at https://127.0.0.1:"),
    ("get nodes", "Ready"),
    ("get nodes -o wide", "INTERNAL-IP"),
    ("describe nodes", "Allocated resources:"),
    ("describe node {node}", "Conditions:"),
    ("get namespaces", "kube-system"),
    ("api-resources", "deployments"),
    ("explain pod", "KIND:       Pod"),
    ("explain pod.spec.containers", "FIELD: containers <[]Container>"),
    ("apply -f {deployment.yaml} --dry-run=client", "deployment.apps/nginx-deployment created (dry run)"),
    ("apply -f {deployment.yaml} --dry-run=server", "deployment.apps/nginx-deployment created (server dry run)"),
    ("apply -f {deployment.yaml}", "deployment.apps/nginx-deployment created"),
    ("apply -f {deployment.yaml}", "deployment.apps/nginx-deployment unchanged"),
    ("rollout status deployment/nginx-deployment", "successfully rolled out"),
    ("apply -f {myapp/}", "configmap/app-config created"),
    ("delete -f {myapp/}", "configmap \"app-config\" deleted"),
    ("create deployment nginx --image=nginx:1.21 --replicas=2", "deployment.apps/nginx created"),
    ("rollout status deployment nginx", "successfully rolled out"),
    ("expose deployment nginx --port=80", "service/nginx exposed"),
    ("get deployments", "nginx"),
    ("get services", "ClusterIP"),
    ("get services -o wide", "app=nginx"),
    ("get endpoints", "nginx"),
    ("get endpoints nginx", ":80"),
    ("get pods", "Running"),
    ("get pods --all-namespaces", "kube-system"),
    ("get pods -A", "kube-system"),
    ("get pods -o wide", "10.244."),
    ("get pods --show-labels", "app=nginx"),
    ("get pods,services", "service/nginx"),
    ("get pod {pod} -o yaml", "kind: Pod"),
    ("get pod {pod} -o json", "\"kind\": \"Pod\""),
    ("get all", "deployment.apps/nginx"),
    ("describe pod {pod}", "Started"),
    ("describe service nginx", "Endpoints:"),
    ("describe deployment nginx", "RollingUpdateStrategy:"),
    ("logs {pod}", ""),
    ("logs -l app=nginx --tail=50", ""),
    ("logs {pod} -c nginx", ""),
    ("logs deployment/nginx", ""),
    ("exec {pod} -- ls /", "etc"),
    ("exec {pod} -- cat /etc/resolv.conf", "nameserver 10.96.0.10"),
    ("scale deployment nginx --replicas=5", "deployment.apps/nginx scaled"),
    ("set image deployment/nginx nginx=nginx:1.25", "deployment.apps/nginx image updated"),
    ("rollout status deployment/nginx", "successfully rolled out"),
    ("rollout history deployment/nginx", "REVISION  CHANGE-CAUSE"),
    ("rollout undo deployment/nginx", "deployment.apps/nginx rolled back"),
    ("rollout status deployment nginx", "successfully rolled out"),
    ("rollout undo deployment/nginx --to-revision=2", "deployment.apps/nginx rolled back"),
    ("rollout restart deployment/nginx", "deployment.apps/nginx restarted"),
    ("rollout status deployment nginx", "successfully rolled out"),
    ("diff -f {deployment.yaml}", ""),
    ("get events", "Scaled up replica set"),
    ("get events --sort-by=.metadata.creationTimestamp", "REASON"),
    ("get events -A", "NAMESPACE"),
    ("create configmap app-config --from-file={config.yaml}", "configmap/app-config created"),
    ("create secret generic app-secrets --from-literal=password=secret123", "secret/app-secrets created"),
    (
        "create secret docker-registry regcred --docker-server=registry.example --docker-username=u --docker-password=p --docker-email=e@example.com",
        "secret/regcred created",
    ),
    ("get configmaps", "app-config"),
    ("get secrets", "regcred       kubernetes.io/dockerconfigjson"),
    ("describe secret app-secrets", "password:  9 bytes"),
    ("get pv", ""),
    ("delete pod {pod}", "deleted"),
    ("delete pods -l app=nginx", "deleted"),
    ("delete pods --all", "deleted"),
    ("rollout status deployment nginx", "successfully rolled out"),
    ("delete pod {pod} --grace-period=0 --force", "force deleted"),
    ("delete deployment nginx", "deployment.apps \"nginx\" deleted"),
    ("delete service nginx", "service \"nginx\" deleted"),
    ("delete -f {deployment.yaml}", "deployment.apps \"nginx-deployment\" deleted"),
];

fn lists_of_commands() {
    for version in Version::WITH_OURS {
        let kubectl =
            shared::cluster().version(version).in_new(&format!("commands-{}", version.text().replace('.', "-")));
        let config = kubectl.home.join("config.yaml");
        fs::write(&config, "debug: true\n").unwrap();
        for (command, prints) in COMMANDS {
            let pod = kubectl.path(&["pods", "-l", "app=nginx"], "{.items[0].metadata.name}").unwrap_or_default();
            let words = command.split(' ').map(|word| {
                word.replace("{pod}", &pod)
                    .replace("{node}", shared::WORKER)
                    .replace("{deployment.yaml}", &manifest("nginx-deployment.yaml"))
                    .replace("{myapp/}", &manifest("myapp-configs"))
                    .replace("{config.yaml}", config.to_str().unwrap())
            });
            let words: Vec<_> = words.collect();
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let output = kubectl.run(&words);
            // `--force` warns where others print.
            let said = format!("{}{}", output.stdout, output.stderr);
            output.ok();
            assert!(said.contains(prints), "kubectl {command} did not print {prints:?} but:\n{said}");
        }
        kubectl.run(&["delete", "namespace", kubectl.namespace.as_deref().unwrap()]).ok();
    }
}

/// "Configuration and Context".
fn contexts_and_namespaces() {
    let shared = shared::cluster();
    let kubeconfig = shared.home.join("contexts.kubeconfig");
    fs::copy(&shared.kubeconfig, &kubeconfig).unwrap();
    let kubectl = Kubectl { kubeconfig, ..shared };
    let name = kubectl.run(&["config", "current-context"]).ok();
    assert_eq!(name, "skiff-shared\n");
    kubectl.run(&["config", "get-contexts"]).prints(&["*         skiff-shared   skiff-shared"]);
    kubectl.run(&["config", "use-context", "skiff-shared"]).prints(&["Switched to context \"skiff-shared\"."]);
    kubectl
        .run(&["config", "use-context", "docker-desktop"])
        .fails_with("no context exists with the name: \"docker-desktop\"");
    kubectl
        .run(&["config", "view"])
        .prints(&["current-context: skiff-shared", "certificate-authority-data: DATA+OMITTED"]);
    kubectl
        .run(&["config", "set-context", "--current", "--namespace=kube-system"])
        .prints(&["Context \"skiff-shared\" modified."]);
    kubectl.run(&["get", "pods"]).prints(&["coredns-"]);
    kubectl.run(&["get", "pods", "-l", "k8s-app=kube-dns"]).prints(&["1/1     Running"]);
    kubectl.run(&["logs", "-l", "k8s-app=kube-dns"]).ok();
}

/// What goes on until it is ended: `-w`, `logs -f`, `port-forward`, `proxy`, and what asks for a terminal.
fn following_and_forwarding() {
    let kubectl = shared::cluster().in_new("following");
    let mut events = kubectl.start(&["get", "events", "-w"]);
    let mut watched = kubectl.start(&["get", "pods", "--watch"]);
    kubectl.run(&["run", "my-pod", "--image=nginx:1.21", "--port=80", "--expose"]).prints(&["pod/my-pod created"]);
    watched.line(PATIENCE, |line| line.starts_with("my-pod") && line.contains("Running"));
    events.line(PATIENCE, |line| line.contains("Started"));
    let mut log = kubectl.start(&["logs", "-f", "my-pod"]);

    for (target, port) in [("my-pod", 8480), ("pod/my-pod", 8481), ("service/my-pod", 8482)] {
        let mut forward = kubectl.start(&["port-forward", target, &format!("{port}:80")]);
        forward.line(PATIENCE, |line| line.contains(&format!("Forwarding from 127.0.0.1:{port} -> 80")));
        let page = eventually(PATIENCE, || curl(&[&format!("http://localhost:{port}")]).result());
        assert!(page.contains("Welcome to nginx!"), "{page}");
    }
    log.line(PATIENCE, |line| line.contains("\"GET / HTTP/1.1\" 200"));

    let mut proxy = kubectl.start(&["proxy", "--port=8483"]);
    proxy.line(PATIENCE, |line| line.contains("Starting to serve on 127.0.0.1:8483"));
    let page = curl(&["http://127.0.0.1:8483/api/v1/namespaces/following/services/my-pod/proxy/"]).ok();
    assert!(page.contains("Welcome to nginx!"), "{page}");

    let shell = kubectl.feed(&["exec", "-i", "my-pod", "--", "/bin/bash"], "echo from $HOSTNAME\n").ok();
    assert_eq!(shell, "from my-pod\n");
    let asked = ["run", "debug", "--image=busybox:1.36", "-i", "--rm", "--restart=Never", "--", "nslookup", "my-pod"];
    // Busybox tries the name in each search domain, and calls it a failure that it is in one of them alone.
    let answer = kubectl.feed(&asked, "").stdout;
    assert!(answer.contains("Name:\tmy-pod.following.svc.cluster.local"), "{answer}");
    let asked = [
        "run",
        "test",
        "--image=busybox:1.36",
        "-i",
        "--rm",
        "--restart=Never",
        "--",
        "wget",
        "-qO-",
        "http://my-pod:80",
    ];
    kubectl.feed(&asked, "").prints(&["Welcome to nginx!"]);
}
