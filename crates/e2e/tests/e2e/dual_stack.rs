//! A cluster of two address families: pods, Services, names and policies of both.

use skiff_e2e::{Cluster, Home, Kubectl, cluster::curl, eventually, wait::check};

use crate::{
    network::{get, web_with},
    tests,
    workloads::{PATIENCE, ready},
};

tests![a_cluster_of_two_families];

const NODES: [&str; 2] = ["dual-control-plane", "dual-worker"];

/// What the pods here have beside a page.
const BOTH: &str = "    ports: [{containerPort: 8080, hostPort: 8090}]
    env:
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: HOSTS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
    readinessProbe: {httpGet: {port: 8080, path: /}, periodSeconds: 1}
";

/// The two addresses at a path, the IPv4 one first.
fn both(kubectl: &Kubectl, object: &[&str], path: &str) -> [String; 2] {
    let text = kubectl.path(object, path).unwrap();
    let all: Vec<String> = text.split(' ').map(str::to_owned).collect();
    assert!(all.len() == 2 && all[0].contains('.') && all[1].contains(':'), "{object:?} {path}: {text:?}");
    all.try_into().unwrap()
}

fn pod_ips(kubectl: &Kubectl, pod: &str) -> [String; 2] {
    both(kubectl, &["pod", pod], "{.status.podIPs[*].ip}")
}

/// As it stands in a URL.
fn host(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn patch(kubectl: &Kubectl, patch: &str) {
    kubectl.run(&["patch", "service", "web", "--type=merge", "-p", patch]).ok();
}

fn lookup(kubectl: &Kubectl, kind: &str, name: &str, wanted: &str) {
    eventually(PATIENCE, || {
        let said = kubectl.run(&["exec", "one", "--", "nslookup", &format!("-type={kind}"), name]);
        check(said.stdout.contains(wanted), || format!("{wanted} of {name}: {said:?}"))
    });
}

/// Both pods answer.
fn answers(kubectl: &Kubectl, from: &str, url: &str) {
    for wanted in ["one\n", "two\n"] {
        eventually(PATIENCE, || {
            let answer = get(kubectl, from, url).map_err(|error| format!("{from} {url}: {error}"))?;
            check(answer == wanted, || format!("{from} {url}: only {answer:?}"))
        });
    }
}

fn a_cluster_of_two_families() {
    let home = Home::new();
    let config = home.file(
        "dual.yaml",
        "kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking: {ipFamily: dual}
nodes: [{role: control-plane}, {role: worker}]
",
    );
    let cluster = Cluster::create("dual", &["--config", &config]);
    cluster.load(&["busybox"]);
    let kubectl = cluster.kubectl().in_new("dual");
    let [one, two] = NODES;
    kubectl.apply(&(web_with("one", one, BOTH) + &web_with("two", two, BOTH)));
    ready(&kubectl, "one");
    ready(&kubectl, "two");
    nodes_and_pods_show_both(&kubectl);
    pods_reach_each_other_without_nat(&kubectl);
    services_get_and_lose_a_family(&kubectl);
    services_answer_on_both(&kubectl);
    endpoints_are_of_one_family(&kubectl);
    policies_of_ipv6(&kubectl);
    let left = cluster.delete();
    assert!(left.is_empty(), "{left:#?}");
}

fn nodes_and_pods_show_both(kubectl: &Kubectl) {
    for (pod, node) in ["one", "two"].into_iter().zip(NODES) {
        let ranges = both(kubectl, &["node", node], "{.spec.podCIDRs[*]}");
        assert_eq!(kubectl.path(&["node", node], "{.spec.podCIDR}").unwrap(), ranges[0]);
        assert!(ranges[0].starts_with("10.244.") && ranges[1].starts_with("fd00:10:244:"), "{ranges:?}");
        let internal = "{.status.addresses[?(@.type==\"InternalIP\")].address}";
        let addresses = both(kubectl, &["node", node], internal);
        assert_eq!(both(kubectl, &["pod", pod], "{.status.hostIPs[*].ip}"), addresses);
        let ips = pod_ips(kubectl, pod);
        assert_eq!(kubectl.path(&["pod", pod], "{.status.podIP}").unwrap(), ips[0]);
        let seen = kubectl.run(&["exec", pod, "--", "sh", "-c", "echo $IPS $HOSTS"]).ok();
        assert_eq!(seen.trim(), format!("{} {}", ips.join(","), addresses.join(",")));
        let hosts = kubectl.run(&["exec", pod, "--", "cat", "/etc/hosts"]).ok();
        assert!(ips.iter().all(|ip| hosts.contains(ip.as_str())), "{hosts}");
    }
}

fn pods_reach_each_other_without_nat(kubectl: &Kubectl) {
    for (from, to) in [("one", "two"), ("two", "one"), ("one", "one")] {
        for (address, client) in pod_ips(kubectl, to).iter().zip(pod_ips(kubectl, from)) {
            let url = format!("http://{}:8080/", host(address));
            assert_eq!(eventually(PATIENCE, || get(kubectl, from, &url)), format!("{to}\n"), "{url}");
            // The server has seen the client's own address.
            eventually(PATIENCE, || {
                let log = kubectl.run(&["logs", to]).result()?;
                check(log.contains(&client), || format!("{client} is not in {log}"))
            });
        }
        // The host port answers on both of the node's addresses.
        for address in both(kubectl, &["pod", to], "{.status.hostIPs[*].ip}") {
            let url = format!("http://{}:8090/", host(&address));
            assert_eq!(eventually(PATIENCE, || get(kubectl, from, &url)), format!("{to}\n"), "{url}");
        }
    }
    // Nothing leads out, which is said at once.
    let said = kubectl.run(&["exec", "one", "--", "wget", "-T", "5", "-O", "-", "http://[2001:db8::1]/"]).fails();
    assert!(said.contains("unreachable") || said.contains("No route to host"), "{said}");
}

fn services_get_and_lose_a_family(kubectl: &Kubectl) {
    kubectl.apply(
        "apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 8190, targetPort: 8080}]
",
    );
    let spec = |path: &str| kubectl.path(&["service", "web"], path).unwrap();
    let address = spec("{.spec.clusterIP}");
    let single = || assert_eq!(spec("{.spec.ipFamilies[*]} {.spec.clusterIPs[*]}"), format!("IPv4 {address}"));
    single();
    patch(kubectl, r#"{"spec":{"ipFamilyPolicy":"RequireDualStack"}}"#);
    assert_eq!(spec("{.spec.ipFamilies[*]}"), "IPv4 IPv6");
    let addresses = both(kubectl, &["service", "web"], "{.spec.clusterIPs[*]}");
    assert_eq!(addresses[0], address);
    answers(kubectl, "one", &format!("http://[{}]:8190/", addresses[1]));
    let refused =
        kubectl.run(&["patch", "service", "web", "--type=merge", "-p", r#"{"spec":{"ipFamilies":["IPv4"]}}"#]);
    assert!(refused.stderr.contains("must be 'SingleStack' to release the secondary IP family"), "{refused:?}");
    patch(kubectl, r#"{"spec":{"ipFamilyPolicy":"SingleStack"}}"#);
    single();
    eventually(PATIENCE, || {
        let answer = get(kubectl, "one", &format!("http://[{}]:8190/", addresses[1]));
        check(answer.is_err(), || format!("it still answers: {answer:?}"))
    });
    eventually(PATIENCE, || {
        let said = kubectl.run(&["exec", "one", "--", "nslookup", "-type=aaaa", "web.dual.svc.cluster.local"]);
        check(!said.stdout.contains(&addresses[1]), || format!("the name still has it: {said:?}"))
    });
    patch(kubectl, r#"{"spec":{"ipFamilyPolicy":"PreferDualStack"}}"#);
}

fn services_answer_on_both(kubectl: &Kubectl) {
    let addresses = both(kubectl, &["service", "web"], "{.spec.clusterIPs[*]}");
    let name = "web.dual.svc.cluster.local";
    lookup(kubectl, "a", name, &addresses[0]);
    lookup(kubectl, "aaaa", name, &addresses[1]);
    let address: std::net::Ipv6Addr = addresses[1].parse().unwrap();
    let digits = format!("{:032x}", address.to_bits());
    let reverse: String = digits.chars().rev().map(|digit| format!("{digit}.")).collect();
    lookup(kubectl, "ptr", &format!("{reverse}ip6.arpa"), name);
    let port = kubectl.path(&["service", "web"], "{.spec.ports[0].nodePort}").unwrap();
    let nodes =
        NODES.map(|node| both(kubectl, &["node", node], "{.status.addresses[?(@.type==\"InternalIP\")].address}"));
    for from in ["one", "two"] {
        for address in &addresses {
            answers(kubectl, from, &format!("http://{}:8190/", host(address)));
        }
        for address in nodes.iter().flatten() {
            answers(kubectl, from, &format!("http://{}:{port}/", host(address)));
        }
        answers(kubectl, from, "http://web:8190/");
    }
    // From this machine, on localhost.
    for address in ["127.0.0.1", "[::1]"] {
        for wanted in ["one\n", "two\n"] {
            eventually(PATIENCE, || {
                let answer = curl(&[&format!("http://{address}:8190/")]).result()?;
                check(answer == wanted, || format!("only {answer:?}"))
            });
        }
    }
}

fn endpoints_are_of_one_family(kubectl: &Kubectl) {
    kubectl.apply(
        "apiVersion: v1
kind: Service
metadata: {name: pods}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  ipFamilies: [IPv6, IPv4]
  selector: {app: web}
  ports: [{port: 8080}]
",
    );
    let pods = ["one", "two"].map(|pod| pod_ips(kubectl, pod));
    let of_family = |family: usize| {
        let mut all = pods.each_ref().map(|ips| ips[family].clone());
        all.sort();
        all
    };
    let sorted = |text: String| {
        let mut all: Vec<String> = text.split(' ').map(str::to_owned).collect();
        all.sort();
        all
    };
    for (family, kind) in ["IPv4", "IPv6"].into_iter().enumerate() {
        eventually(PATIENCE, || {
            let path = format!("{{.items[?(@.addressType==\"{kind}\")].endpoints[*].addresses[*]}}");
            let slices = ["endpointslice", "-l", "kubernetes.io/service-name=pods"];
            let found = sorted(kubectl.path(&slices, &path)?);
            check(found == of_family(family), || format!("{kind}: {found:?}"))
        });
        let record = if kind == "IPv4" { "a" } else { "aaaa" };
        for address in of_family(family) {
            lookup(kubectl, record, "pods.dual.svc.cluster.local", &address);
        }
    }
    // Endpoints have the primary family only.
    eventually(PATIENCE, || {
        let found = sorted(kubectl.path(&["endpoints", "pods"], "{.subsets[*].addresses[*].ip}")?);
        check(found == of_family(1), || format!("{found:?}"))
    });
}

fn policies_of_ipv6(kubectl: &Kubectl) {
    let ranges = both(kubectl, &["node", NODES[1]], "{.spec.podCIDRs[*]}");
    let [four, six] = pod_ips(kubectl, "one");
    let reaches = |from: &str, address: &str, allowed: bool| {
        eventually(PATIENCE, || {
            let url = format!("http://{}:8080/", host(address));
            let answer = kubectl.run(&["exec", from, "--", "wget", "-q", "-T", "1", "-O", "-", &url]).result();
            check(answer.is_ok() == allowed, || format!("{from} to {address}, allowed {allowed}: {answer:?}"))
        });
    };
    let policy = |cidr: &str, except: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: one}}
spec:
  podSelector: {{matchLabels: {{pod: one}}}}
  ingress: [{{from: [{{ipBlock: {{cidr: \"{cidr}\"{except}}}}}], ports: [{{port: 8080}}]}}]
"
        )
    };
    kubectl.apply(&policy(&ranges[1], ""));
    reaches("two", &six, true);
    reaches("two", &four, false);
    let except = format!(", except: [\"{}/128\"]", pod_ips(kubectl, "two")[1]);
    kubectl.apply(&policy(&ranges[1], &except));
    reaches("two", &six, false);
    kubectl.apply(&policy(&ranges[0], ""));
    reaches("two", &four, true);
    reaches("two", &six, false);
    kubectl.run(&["delete", "networkpolicy", "one"]).ok();
    reaches("two", &six, true);
    reaches("two", &four, true);
}
