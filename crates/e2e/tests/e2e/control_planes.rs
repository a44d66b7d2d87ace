//! Several control planes on one etcd, behind a load balancer.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use skiff_e2e::{Home, Machine, Output, Wire, command, eventually, host, wait::check};

use crate::{tests, workloads::PATIENCE};

tests![several_control_planes_are_one_cluster];

/// What control planes of one cluster have in common, in the directory `pki`.
const SHARED: [&str; 8] = [
    "ca.crt",
    "ca.key",
    "sa.key",
    "sa.pub",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "encryption.yaml",
    "bootstrap-token",
];
/// Small, so that servers that knew nothing of each other would soon give one address twice.
const SERVICES: &str = "10.96.0.0/24";
const EVICTION: [&str; 2] = ["--eviction-hard", "memory.available<50Mi"];
/// The lease of a leader that is killed, and then some.
const TAKEOVER: Duration = Duration::from_secs(60);

fn several_control_planes_are_one_cluster() {
    let home = Home::new();
    let wire = Wire::new();
    let mut keeper = Machine::start(&home, &wire, "keeper", 1, 20);
    let mut etcd = start_etcd(&keeper);
    let mut servers: Vec<Machine> = [("first", 11), ("second", 12), ("third", 13)]
        .into_iter()
        .map(|(name, last)| Machine::start(&home, &wire, name, 1, last))
        .collect();
    let mut worker = Machine::start(&home, &wire, "worker", 2, 14);
    let addresses = servers.iter().map(|server| SocketAddr::from((server.address, 6443))).collect();
    let balancer = wire.balance(addresses);
    let url = format!("https://{}", balancer.address);

    // The first one makes the keys, and the others get them.
    let etcd_flags = etcd_flags(&keeper);
    let start = |server: &mut Machine| {
        let own = server.address.to_string();
        let mut args = vec!["server", "--node-ip", &own, "--service-cidr", SERVICES, EVICTION[0], EVICTION[1]];
        let balanced = balancer.address.ip().to_string();
        args.extend(["--apiserver-cert-extra-sans", &balanced]);
        args.extend(etcd_flags.iter().map(String::as_str));
        server.start_daemon(&args);
    };
    start(&mut servers[0]);
    ready(&servers[0], &servers[0]);
    let stranger = [&["server", "--data-dir", "/run/stranger", "--port", "7443"][..], &strs(&etcd_flags)].concat();
    servers[1].skiff(&stranger).fails_with("the cluster in this etcd has other keys");
    for number in [1, 2] {
        let pki = servers[number].file("var/lib/skiff/pki");
        fs::create_dir_all(&pki).unwrap();
        for file in SHARED {
            fs::copy(servers[0].file("var/lib/skiff/pki").join(file), pki.join(file)).unwrap();
        }
        start(&mut servers[number]);
    }
    let token = fs::read_to_string(servers[0].file("var/lib/skiff/pki/bootstrap-token")).unwrap();
    let authority = servers[0].file("var/lib/skiff/pki/ca.crt");
    let own = worker.address.to_string();
    let mut join = vec!["agent", "--server", &url, "--token", token.trim(), "--ca-file", authority.to_str().unwrap()];
    join.extend(["--node-ip", &own, "--service-cidr", SERVICES, EVICTION[0], EVICTION[1]]);
    worker.start_daemon(&join);
    for machine in servers.iter().chain([&worker]) {
        ready(&servers[0], machine);
        machine.skiff(&["image", "load", "--machine", host::prepared("images/busybox.tar").to_str().unwrap()]).ok();
    }
    let balanced = |machine: &Machine, args: &[&str]| machine.kubectl(&[&[&*format!("--server={url}")], args].concat());
    eventually(PATIENCE, || endpoints_are(&servers[0], &["192.168.71.11", "192.168.71.12", "192.168.71.13"]));

    no_address_is_given_twice(&servers);
    what_one_server_writes_the_others_read(&servers);

    servers[0].kubectl_fed(&["apply", "-f", "-"], DEPLOYMENT).ok();
    balanced(&servers[0], &["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let before = containers(&servers[0]);

    // The leader dies.
    let leader = eventually(PATIENCE, || leader(&servers[0]));
    let victim = servers.iter().position(|server| leader.starts_with(&format!("{}_", server.name))).unwrap();
    let other = (victim + 1) % servers.len();
    let over = Arc::new(AtomicBool::new(false));
    let acknowledged = thread::scope(|scope| {
        let writer = scope.spawn(|| write(&servers[other], &url, &over));
        servers[victim].strike_daemon();
        // Requests go on while it is dead.
        eventually(PATIENCE, || balanced(&servers[other], &["scale", "deployment/web", "--replicas=5"]).result());
        eventually(TAKEOVER, || {
            let now = self::leader(&servers[other])?;
            check(now != leader && !now.is_empty(), || format!("{now} leads"))
        });
        // Controllers and the scheduler work; the node whose server is dead may have been given one, too.
        eventually(PATIENCE, || {
            let path = "jsonpath={.items[*].spec.nodeName}";
            let nodes = balanced(&servers[other], &["get", "pods", "-l", "app=web", "-o", path]).result()?;
            check(nodes.split_whitespace().count() == 5, || nodes)
        });
        over.store(true, Ordering::Release);
        writer.join().unwrap()
    });
    assert!(acknowledged.len() > 10, "{} writes", acknowledged.len());
    let there = names(&balanced(&servers[other], &["get", "configmaps", "-o", "name"]).ok());
    let lost: Vec<_> = acknowledged.iter().filter(|name| !there.contains(*name)).collect();
    assert!(lost.is_empty(), "acknowledged and not there: {lost:?}");
    let left: Vec<String> =
        servers.iter().enumerate().filter(|(n, _)| *n != victim).map(|(_, s)| s.address.to_string()).collect();
    eventually(PATIENCE, || endpoints_are(&servers[other], &strs(&left)));

    // It comes back; no container has noticed anything.
    servers[victim].bury_daemon();
    start(&mut servers[victim]);
    ready(&servers[other], &servers[victim]);
    eventually(PATIENCE, || endpoints_are(&servers[victim], &["192.168.71.11", "192.168.71.12", "192.168.71.13"]));
    balanced(&servers[victim], &["rollout", "status", "deployment/web", "--timeout=60s"]).ok();
    let after = containers(&servers[victim]);
    let restarted: Vec<_> = before.difference(&after).collect();
    assert!(restarted.is_empty(), "{restarted:?} are not among {after:?}");

    // etcd dies too, and all go on where they were.
    kill_etcd(&keeper);
    etcd.wait().unwrap();
    eventually(PATIENCE, || {
        let readiness = servers[0].kubectl(&["get", "--raw", "/readyz"]).result();
        check(readiness.as_ref().is_err_and(|e| e.contains("etcd failed")), || format!("{readiness:?}"))
    });
    etcd = start_etcd(&keeper);
    eventually(PATIENCE, || {
        servers[0].kubectl(&["create", "configmap", "after-etcd"]).result()?;
        Ok(())
    });
    for server in &servers {
        eventually(PATIENCE, || server.kubectl(&["get", "configmap", "after-etcd"]).result());
    }

    balancer.end(&wire);
    for machine in servers.iter_mut().chain([&mut worker, &mut keeper]) {
        let left = machine.off();
        assert!(left.is_empty(), "{left:#?}");
    }
    etcd.wait().unwrap();
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: busybox
        imagePullPolicy: Never
        command: [httpd, -f, -p, '8080', -h, /etc]
";

/// Three at a time, each in its own server.
fn no_address_is_given_twice(servers: &[Machine]) {
    const EACH: usize = 30;
    let services = |server: &str| {
        let one = |number| {
            format!(
                "---
apiVersion: v1
kind: Service
metadata: {{name: {server}-{number}, labels: {{test: unique}}}}
spec: {{type: NodePort, ports: [{{port: 80}}]}}
"
            )
        };
        (0..EACH).map(one).collect::<String>()
    };
    thread::scope(|scope| {
        for server in servers {
            scope.spawn(|| server.kubectl_fed(&["create", "-f", "-"], &services(&server.name)).ok());
        }
    });
    let path = "jsonpath={range .items[*]}{.spec.clusterIP} {.spec.ports[0].nodePort}{\"\\n\"}{end}";
    let given = servers[0].kubectl(&["get", "services", "-l", "test=unique", "-o", path]).ok();
    let given: Vec<_> = given.lines().filter_map(|line| line.split_once(' ')).collect();
    let addresses: BTreeSet<_> = given.iter().map(|(address, _)| address).collect();
    let ports: BTreeSet<_> = given.iter().map(|(_, port)| port).collect();
    let all = EACH * servers.len();
    assert_eq!((given.len(), addresses.len(), ports.len()), (all, all, all), "{given:?}");
    // What one has given away, another one gives back and the third one gives again.
    let (address, port) = given[0];
    let name = servers[0].kubectl(&["get", "services", "-l", "test=unique", "-o", "name"]).ok();
    let first = name.lines().next().unwrap();
    let again = format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: again, labels: {{test: unique}}}}
spec: {{type: NodePort, clusterIP: {address}, ports: [{{port: 80, nodePort: {port}}}]}}
"
    );
    servers[2].kubectl_fed(&["create", "-f", "-"], &again).fails_with("provided IP is already allocated");
    servers[1].kubectl(&["delete", first]).ok();
    servers[2].kubectl_fed(&["create", "-f", "-"], &again).ok();
    servers[0].kubectl(&["delete", "services", "-l", "test=unique"]).ok();
}

/// Without waiting for it.
fn what_one_server_writes_the_others_read(servers: &[Machine]) {
    for round in 0..5 {
        let name = format!("seen-{round}");
        servers[round % 3].kubectl(&["create", "configmap", &name]).ok();
        servers[(round + 1) % 3].kubectl(&["get", "configmap", &name]).ok();
        let all = servers[(round + 2) % 3].kubectl(&["get", "configmaps", "-o", "name"]).ok();
        assert!(names(&all).contains(&name), "{all}");
    }
}

/// Creates ConfigMaps through the load balancer, and tells which were acknowledged.
fn write(machine: &Machine, url: &str, over: &AtomicBool) -> Vec<String> {
    let server = format!("--server={url}");
    let mut acknowledged = Vec::new();
    for number in 0.. {
        if over.load(Ordering::Acquire) {
            break;
        }
        let name = format!("written-{number}");
        // Those that were under way to the server that was killed may fail.
        if machine.kubectl(&[&server, "create", "configmap", &name, "--from-literal=a=b"]).result().is_ok() {
            acknowledged.push(name);
        }
    }
    acknowledged
}

fn names(listed: &str) -> BTreeSet<String> {
    listed.lines().filter_map(|line| Some(line.split_once('/')?.1.to_owned())).collect()
}

fn strs(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

fn ready(by: &Machine, machine: &Machine) {
    let node = format!("node/{}", machine.name);
    eventually(PATIENCE, || {
        let waited = by.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=1s"]);
        waited.result().map_err(|error| format!("{error}\n{}", machine.log()))
    });
}

fn endpoints_are(by: &Machine, expected: &[&str]) -> Result<(), String> {
    let path = "jsonpath={.endpoints[*].addresses[0]}";
    let found = by.kubectl(&["get", "endpointslice", "kubernetes", "-n", "default", "-o", path]).result()?;
    check(found.split(' ').collect::<Vec<_>>() == expected, || found)
}

fn leader(by: &Machine) -> Result<String, String> {
    let path = "jsonpath={.spec.holderIdentity}";
    by.kubectl(&["get", "lease", "kube-controller-manager", "-n", "kube-system", "-o", path]).result()
}

/// Containers of the Deployment, with how often each was started.
fn containers(by: &Machine) -> BTreeSet<String> {
    let what = "jsonpath={range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount}{\"\\n\"}{end}";
    by.kubectl(&["get", "pods", "-l", "app=web", "-o", what]).ok().lines().map(str::to_owned).collect()
}

/// Debian's etcd, which lets in only who has a certificate of its authority.
fn start_etcd(keeper: &Machine) -> Child {
    let dir = keeper.file("var/lib/etcd-pki");
    if !dir.exists() {
        fs::create_dir_all(&dir).unwrap();
        let openssl = |args: &[&str]| -> Output {
            let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
            command::run(Command::new("openssl").current_dir(&dir).args(new).args(args), "")
        };
        openssl(&["-subj", "/CN=etcd-ca", "-keyout", "ca.key", "-out", "ca.crt"]).ok();
        let names = format!("subjectAltName=IP:{}", keeper.address);
        let usage = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=serverAuth,clientAuth", &names];
        let signed =
            ["-subj", "/CN=etcd", "-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "etcd.key", "-out", "etcd.crt"];
        let extensions: Vec<&str> = usage.iter().flat_map(|usage| ["-addext", usage]).collect();
        openssl(&[&signed[..], &extensions].concat()).ok();
    }
    let client = format!("https://{}:2379", keeper.address);
    let peer = "http://127.0.0.1:2380";
    let args = [
        ["--data-dir", "/var/lib/etcd"],
        ["--log-level", "error"],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", peer],
        ["--initial-advertise-peer-urls", peer],
        ["--initial-cluster", &format!("default={peer}")],
        ["--trusted-ca-file", "/var/lib/etcd-pki/ca.crt"],
        ["--cert-file", "/var/lib/etcd-pki/etcd.crt"],
        ["--key-file", "/var/lib/etcd-pki/etcd.key"],
    ];
    let program = host::prepared("tools/etcd");
    let start = "echo $$ > /run/etcd.pid; exec \"$@\"";
    let words = [&["-euc", start, "sh", program.to_str().unwrap(), "--client-cert-auth"], args.as_flattened()].concat();
    let mut command = keeper.command(Path::new("/bin/sh"), &words);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// etcd itself; its parent is only what led into the machine.
fn kill_etcd(keeper: &Machine) {
    let kill = ["-c", "kill -9 $(cat /run/etcd.pid)"];
    command::run(&mut keeper.command(Path::new("/bin/sh"), &kill), "").ok();
}

fn etcd_flags(keeper: &Machine) -> Vec<String> {
    let file = |name: &str| keeper.file("var/lib/etcd-pki").join(name).display().to_string();
    vec![
        format!("--etcd-servers=https://{}:2379", keeper.address),
        format!("--etcd-cafile={}", file("ca.crt")),
        format!("--etcd-certfile={}", file("etcd.crt")),
        format!("--etcd-keyfile={}", file("etcd.key")),
    ]
}
