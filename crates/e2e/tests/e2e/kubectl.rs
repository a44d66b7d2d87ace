//! `skiff kubectl` beside kubectl 1.36: the same lines on the same objects, and what both print and end with.

use skiff_e2e::{Kubectl, Output, Version, eventually, wait::check};

use crate::{shared, tests, workloads::PATIENCE};

tests![reading, changing, refusing, streams_and_names, copying, editing];

/// Objects that the lines are about.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: two}, annotations: {note: a}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers: [{name: first, image: "busybox:1.36", command: ["true"]}]
  containers:
  - name: a
    image: busybox:1.36
    command: [sh, -c, "echo A1; echo A2; sleep 1000"]
    env: [{name: PLAIN, value: x}, {name: KEY, valueFrom: {configMapKeyRef: {name: settings, key: mode}}}]
    resources: {requests: {cpu: 10m}, limits: {memory: 64Mi}}
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
    volumeMounts: [{name: dir, mountPath: /dir}]
  - {name: b, image: "busybox:1.36", command: [sh, -c, "echo B1; sleep 1000"]}
  volumes: [{name: dir, emptyDir: {}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {mode: fast, text: "one\ntwo: three\n", number: "8080"}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {password: secret123}
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {selector: {app: two}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "busybox:1.36", command: [echo, done]}]}}}
"#;

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: nginx, image: 'nginx:1.21'}]
";

/// What differs from call to call, or from one namespace to the other: ages and times, hashes, uids, ports.
fn normal(text: &str, namespace: &str) -> String {
    let mut out = String::new();
    for line in text.replace(namespace, "NAMESPACE").lines() {
        let words = line.split(' ').filter(|word| !word.is_empty()).map(|word| {
            let plain = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            let digits = plain.chars().filter(char::is_ascii_digit).count();
            let age = !plain.is_empty()
                && plain.chars().all(|c| c.is_ascii_digit() || "smhd".contains(c))
                && plain.ends_with(['s', 'm', 'h', 'd'])
                && plain.starts_with(|c: char| c.is_ascii_digit());
            let time = plain.len() >= 8 && digits >= 6 && plain.contains(':');
            let unique = plain.len() >= 32 && digits >= 8 && !plain.contains('/');
            if age || time || unique { "…".to_owned() } else { word.to_owned() }
        });
        // The width of a column follows what is in it.
        let line = words.collect::<Vec<_>>().join(" ");
        if line.trim_start().starts_with("resourceVersion:") || line.chars().all(|c| c == '-' || c == ' ') {
            continue;
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[track_caller]
fn same(line: &str, theirs: &Output, ours: &Output, namespaces: [&str; 2]) {
    compared(line, theirs, ours, namespaces).unwrap_or_else(|difference| panic!("{difference}"));
}

fn compared(line: &str, theirs: &Output, ours: &Output, namespaces: [&str; 2]) -> Result<(), String> {
    let [a, b] = namespaces;
    let show = |output: &Output, namespace| {
        format!("{:?}\n{}---\n{}", output.code, normal(&output.stdout, namespace), normal(&output.stderr, namespace))
    };
    let (theirs, ours) = (show(theirs, a), show(ours, b));
    check(theirs == ours, || format!("kubectl {line}\n=== kubectl 1.36\n{theirs}\n=== skiff kubectl\n{ours}"))
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// Each line by both, one after the other, in the same namespace: none of them changes anything.
fn compare(kubectl: &Kubectl, lines: &[&str]) {
    let namespace = kubectl.namespace.as_deref().unwrap();
    for line in lines {
        // Nodes have pods of other tests, which come and go between two calls.
        eventually(PATIENCE, || {
            let theirs = kubectl.run(&words(line));
            let ours = kubectl.version(Version::Own).run(&words(line));
            compared(line, &theirs, &ours, [namespace, namespace])
        });
    }
}

fn reading() {
    let kubectl = shared::cluster().in_new("kubectl-reading");
    kubectl.apply(OBJECTS);
    kubectl.run(&["wait", "--for=condition=Ready", "pod/two", "--timeout=60s"]).ok();
    kubectl.run(&["wait", "--for=condition=Complete", "job/once", "--timeout=60s"]).ok();
    let lines = [
        "get pods",
        "get pods,services",
        "get all",
        "get pods -o wide",
        "get pods --show-labels",
        "get pods -L app",
        "get pods --no-headers",
        "get pod two -o yaml",
        "get pod two -o json",
        "get pods -o yaml",
        "get pods -o name",
        "get cm,secret",
        "get cm settings -o yaml",
        "get pod two -o jsonpath={.spec.containers[*].name}",
        "get pods -o jsonpath={range.items[*]}{.metadata.name}{end}",
        "get pods -o custom-columns=NAME:.metadata.name,IMAGES:.spec.containers[*].image,NONE:.foo",
        "get pods --sort-by=.metadata.name",
        "get pods -l app=two",
        "get pods -l app=none",
        "get pods --field-selector status.phase=Running",
        "get pods -n nowhere",
        "get nodes",
        "get nodes -o wide",
        "get namespaces",
        "get storageclass",
        "get componentstatuses",
        "get endpoints",
        "describe pod two",
        "describe service two",
        "describe configmap settings",
        "describe secret hidden",
        "describe job once",
        "describe node shared-worker",
        "describe clusterrole view",
        "logs two",
        "logs two -c b",
        "logs two --tail=1",
        "logs job/once",
        "exec two -- echo hello",
        "exec two -c b -- sh -c exit",
        "explain pod",
        "explain pod.spec.containers",
        "explain deployment.spec.strategy",
        "api-resources",
        "api-versions",
        "cluster-info",
        "config current-context",
        "config get-contexts",
        "config view",
        "auth can-i get pods",
        "auth can-i get pods --as=nobody",
        "auth whoami",
        "wait --for=condition=Ready pod/two",
        "wait --for=jsonpath={.status.phase}=Running pod/two",
        "create deployment x --image=nginx --dry-run=client -o yaml",
        "create service nodeport x --tcp=80:8080 --dry-run=client -o yaml",
        "create configmap x --from-literal=a=1 --dry-run=client -o yaml",
        "create secret generic x --from-literal=a=1 --dry-run=client -o yaml",
        "create job x --image=busybox --dry-run=client -o yaml -- echo hi",
        "create cronjob x --image=busybox --schedule=@daily --dry-run=client -o yaml",
        "create role x --verb=get,list --resource=pods,deployments.apps --dry-run=client -o yaml",
        "create rolebinding x --role=x --serviceaccount=a:b --dry-run=client -o yaml",
        "create clusterrolebinding x --clusterrole=view --user=bob --user=eve --dry-run=server -o name",
        "create ingress x --rule=foo.com/bar*=svc:80,tls=s --dry-run=client -o yaml",
        "create quota x --hard=pods=1 --dry-run=client -o yaml",
        "create poddisruptionbudget x --selector=a=b --min-available=1 --dry-run=client -o yaml",
        "run x --image=busybox --env=A=b --restart=Never --dry-run=client -o yaml -- sh",
    ];
    compare(&kubectl, &lines);
}

fn refusing() {
    let kubectl = shared::server("kubectl-refusing");
    let lines = [
        "get",
        "get foo",
        "get pods nope",
        "get pods nope nope2",
        "get pods nope --ignore-not-found",
        "get pods --foo",
        "get pods -z",
        "get pods -o foo",
        "describe pod nope",
        "logs",
        "logs nope",
        "logs nope --since=x",
        "exec nope -- ls",
        "exec nope",
        "port-forward nope",
        "delete",
        "delete pod",
        "delete pod nope",
        "delete deployment/nope service/nope",
        "delete pods --all",
        "apply",
        "apply -f nope.yaml",
        "create",
        "create deployment x",
        "create namespace default",
        "create configmap x --from-file=nope",
        "scale deployment x",
        "scale deployment x --replicas=1",
        "rollout status",
        "rollout status deployment/nope",
        "rollout undo deployment/nope",
        "set image deployment/nope a=b",
        "label pod nope a=b",
        "annotate pod nope",
        "expose deployment nope --port=80",
        "autoscale deployment nope --max=2",
        "run",
        "run x --image=busybox --rm",
        "patch deployment nope -p {}",
        "cordon nope",
        "drain nope",
        "wait --for=condition=Ready pod/nope",
        "wait pod/nope",
        "explain foo",
        "explain pod.foo",
        "certificate approve nope",
        "config use-context nope",
        "auth can-i",
        "top pod nope --foo",
        "get pods --context nope",
    ];
    compare(&kubectl, &lines);
}

/// A line, and what it has on its standard input.
type Row<'a> = (&'a str, &'a str);

/// Each line by both, each in a namespace of its own.
fn changing() {
    let image = DEPLOYMENT.replace("1.21", "1.25");
    let labelled = DEPLOYMENT
        .replace("labels: {app: web}}\nspec:\n  replicas: 1", "labels: {app: web, more: x}}\nspec:\n  replicas: 2");
    let bad = DEPLOYMENT.replace("image: 'nginx:1.21'", "image: 'nginx:1.21', nothing: 1");
    let rows: &[Row<'_>] = &[
        ("apply -f - --dry-run=client", DEPLOYMENT),
        ("apply -f - --dry-run=server", DEPLOYMENT),
        ("apply -f -", DEPLOYMENT),
        ("apply -f -", DEPLOYMENT),
        ("rollout status deployment/web --timeout=60s", ""),
        ("apply -f -", &labelled),
        ("apply -f -", &bad),
        ("get deployment web -o jsonpath={.spec.replicas},{.metadata.labels}", ""),
        ("apply -f -", DEPLOYMENT),
        ("get deployment web -o jsonpath={.spec.replicas},{.metadata.labels}", ""),
        ("apply -f - --server-side", &image),
        ("apply -f - --server-side --force-conflicts", &image),
        ("rollout status deployment/web --timeout=60s", ""),
        ("rollout history deployment/web", ""),
        ("rollout history deployment/web --revision=9", ""),
        ("rollout undo deployment/web", ""),
        ("rollout undo deployment/web --to-revision=9", ""),
        ("rollout pause deployment/web", ""),
        ("rollout pause deployment/web", ""),
        ("rollout restart deployment/web", ""),
        ("rollout resume deployment/web", ""),
        ("rollout restart deployment/web", ""),
        ("rollout status deployment/web --timeout=60s", ""),
        ("set image deployment/web nginx=nginx:1.25", ""),
        ("set image deployment/web nope=nginx:1.25", ""),
        ("set env deployment/web A=b", ""),
        ("set env deployment/web --list", ""),
        ("set resources deployment/web --limits=memory=100Mi", ""),
        ("scale deployment web --replicas=2", ""),
        ("autoscale deployment web --min=2 --max=10 --cpu-percent=80", ""),
        ("expose deployment web --port=80", ""),
        ("expose deployment web --port=80", ""),
        ("label deployment web tier=front", ""),
        ("label deployment web tier=back", ""),
        ("label deployment web tier=back --overwrite", ""),
        ("label deployment web tier-", ""),
        ("annotate deployment web note=x", ""),
        ("patch deployment web -p {\"spec\":{\"replicas\":1}}", ""),
        ("patch deployment web -p {\"spec\":{\"replicas\":1}}", ""),
        ("create configmap settings --from-literal=a=1", ""),
        ("create configmap settings --from-literal=a=1", ""),
        ("create secret docker-registry regcred --docker-server=r --docker-username=u --docker-password=p", ""),
        ("get secret regcred -o jsonpath={.data}", ""),
        ("create serviceaccount robot", ""),
        ("create job once --image=busybox:1.36 -- true", ""),
        ("create -f -", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n"),
        ("create -f -", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n"),
        ("replace -f -", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\ndata: {a: b}\n"),
        ("create -f -", "apiVersion: v1\nkind: Pood\nmetadata: {name: other}\n"),
        ("diff -f -", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: unlike}\n---\n"),
        ("run -i --rm --restart=Never --image=busybox:1.36 asker -- true", ""),
        ("delete configmap settings other", ""),
        ("delete -f -", DEPLOYMENT),
        ("delete service web", ""),
        ("delete hpa,job --all", ""),
    ];
    let theirs = shared::cluster().in_new("kubectl-theirs");
    let ours = shared::cluster().in_new("kubectl-ours").version(Version::Own);
    for (line, input) in rows {
        // Its head names files of its own; the end says that there is a difference.
        let [a, b] = [&theirs, &ours].map(|kubectl| kubectl.feed(&words(line), input));
        if line.starts_with("diff") {
            assert_eq!((a.code, b.code), (Some(1), Some(1)), "{b:?}");
            continue;
        }
        // How far a rollout is when it is first looked at is up to the cluster, as is whether a pod that ends at once is
        // still there to be attached to.
        if line.starts_with("rollout status") || line.starts_with("run") {
            let last = |output: &Output| output.stdout.lines().last().map(str::to_owned);
            assert_eq!(
                (a.code, last(&a)),
                (b.code, last(&b).map(|l| l.replace("kubectl-ours", "kubectl-theirs"))),
                "{line}: {b:?}"
            );
            continue;
        }
        same(line, &a, &b, ["kubectl-theirs", "kubectl-ours"]);
    }
}

/// Input and exit codes of commands, a watch, ports, and the program under the name of kubectl.
fn streams_and_names() {
    let kubectl = shared::cluster().in_new("kubectl-streams").version(Version::Own);
    let mut watched = kubectl.start(&["get", "pods", "--watch"]);
    kubectl
        .run(&["run", "web", "--image=nginx:1.21", "--port=80", "--expose"])
        .prints(&["service/web created", "pod/web created"]);
    watched.line(PATIENCE, |line| line.starts_with("web") && line.contains("Running"));
    let output = kubectl.feed(&["exec", "-i", "web", "--", "cat"], "one\ntwo\n");
    assert_eq!((output.stdout.as_str(), output.code), ("one\ntwo\n", Some(0)));
    let output = kubectl.run(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.stdout.as_str(), output.code), ("out\n", Some(7)));
    assert_eq!(output.stderr, "err\ncommand terminated with exit code 7\n");

    let mut log = kubectl.start(&["logs", "-f", "web"]);
    for (target, port) in [("web", 8581), ("service/web", 8582)] {
        let mut forward = kubectl.start(&["port-forward", target, &format!("{port}:80")]);
        forward.line(PATIENCE, |line| line.contains(&format!("Forwarding from 127.0.0.1:{port} -> 80")));
        let page = eventually(PATIENCE, || skiff_e2e::cluster::curl(&[&format!("http://localhost:{port}")]).result());
        assert!(page.contains("Welcome to nginx!"), "{page}");
    }
    log.line(PATIENCE, |line| line.contains("\"GET / HTTP/1.1\" 200"));
    let mut proxy = kubectl.start(&["proxy", "--port=8583"]);
    proxy.line(PATIENCE, |line| line.contains("Starting to serve on 127.0.0.1:8583"));
    let page =
        skiff_e2e::cluster::curl(&["http://127.0.0.1:8583/api/v1/namespaces/kubectl-streams/services/web/proxy/"]).ok();
    assert!(page.contains("Welcome to nginx!"), "{page}");

    let link = kubectl.home.join("kubectl");
    std::os::unix::fs::symlink(kubectl.program(), &link).unwrap();
    let mut called = std::process::Command::new(&link);
    called.args(["-n", "kubectl-streams", "get", "pods", "-o", "name"]).env("KUBECONFIG", &kubectl.kubeconfig);
    assert_eq!(skiff_e2e::command::run(&mut called, "").ok(), "pod/web\n");
}

/// Files into a container and out of it, by both.
fn copying() {
    let kubectl = shared::cluster().in_new("kubectl-cp");
    kubectl.apply(&crate::workloads::sleeper("box"));
    crate::workloads::ready(&kubectl, "box");
    let namespace = kubectl.namespace.clone().expect("a new one");
    let home = skiff_e2e::Home::new();
    std::fs::create_dir_all(home.dir.join("tree/deep")).unwrap();
    home.file("tree/a", "a\n");
    home.file("tree/deep/b", "b\n");
    std::os::unix::fs::symlink("a", home.dir.join("tree/link")).unwrap();
    let lines = [
        "cp tree box:/tmp/WHO",
        // Into a folder that is there.
        "cp tree/a box:/tmp/WHO/deep",
        "cp tree/a NAMESPACE/box:/tmp/WHO/renamed",
        "exec box -- ls -R /tmp/WHO",
        "cp box:/tmp/WHO back-WHO",
        "cp box:tmp/WHO/deep/b single-WHO",
        "cp box:/tmp/WHO/a .",
        "cp nothing box:/tmp",
        "cp tree back",
        "cp box:/a box:/b",
        "cp box: x",
        "cp tree",
        "cp tree none:/tmp",
        "cp tree a/b/c:/tmp",
        "cp -c other tree box:/tmp",
    ];
    for line in lines {
        let run = |version: Version, who: &str| {
            let kubectl = kubectl.version(version);
            let line = line.replace("WHO", who).replace("NAMESPACE", &namespace);
            let mut command = kubectl.command(&words(&line));
            command.current_dir(&home.dir);
            let mut output = skiff_e2e::command::run(&mut command, "");
            // Whether this still comes before the real one ends is chance.
            output.stdout =
                output.stdout.replace(who, "WHO").replace("tar: removing leading '/' from member names\n", "");
            output.stderr = output.stderr.replace(who, "WHO");
            output
        };
        let (theirs, ours) = (run(Version::V1_36, "theirs"), run(Version::Own, "ours00"));
        same(line, &theirs, &ours, [&namespace, &namespace]);
    }
    // The real one ends with 0 or 1 then, whichever of two of its parts is first.
    let missing = kubectl.version(Version::Own).run(&["cp", "box:/nothing", "nothing"]);
    assert!(missing.stdout.contains("tar: /nothing: No such file or directory"), "{missing:?}");
    missing.fails_with("command terminated with exit code 1");
    // The real one also says that nobody took what it sent.
    let mut nowhere = kubectl.version(Version::Own).command(&["cp", "tree", "box:/no/such/folder/x"]);
    let nowhere = skiff_e2e::command::run(nowhere.current_dir(&home.dir), "");
    assert!(nowhere.stderr.starts_with("tar: can't change directory to '/no/such/folder'"), "{nowhere:?}");
    nowhere.fails_with("command terminated with exit code 1");
    let mut tree = std::process::Command::new("diff");
    tree.args(["-r", "back-theirs", "back-ours00"]).current_dir(&home.dir);
    skiff_e2e::command::run(&mut tree, "").ok();
    assert_eq!(std::fs::read(home.dir.join("back-ours00/deep/b")).unwrap(), b"b\n");
    assert_eq!(std::fs::read(home.dir.join("single-ours00")).unwrap(), b"b\n");
    assert!(!home.dir.join("back-ours00/link").exists(), "links are left out");
}

fn editing() {
    let kubectl = shared::server("kubectl-editing");
    kubectl.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {mode: slow}\n");
    let edit = |version: Version, editor: &str| {
        let kubectl = kubectl.version(version);
        let mut command = kubectl.command(&["edit", "configmap", "settings"]);
        command.env("KUBE_EDITOR", editor);
        skiff_e2e::command::run(&mut command, "")
    };
    for editor in ["sed -i s/slow/fast/", "true", "sed -i s/fast/slow/"] {
        // What one changes the other changes back.
        let ours = edit(Version::Own, editor);
        if editor.contains("s/") {
            assert_eq!(ours.ok(), "configmap/settings edited\n");
            continue;
        }
        let namespace = kubectl.namespace.as_deref().unwrap();
        same(editor, &edit(Version::V1_36, editor), &ours, [namespace, namespace]);
    }
}
