use serde_json::{Value, json};

use super::*;

fn views() -> Vec<View> {
    let node = NodeInfo {
        name: "one".to_owned(),
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
        service_cidrs: Vec::new(),
        zone: Some("a".to_owned()),
    };
    node.views()
}

fn node() -> View {
    views().remove(0)
}

fn service(spec: Value) -> Service {
    let mut object = json!({
        "metadata": { "namespace": "default", "name": "web" },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "protocol": "TCP" }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn slice(endpoints: Value) -> Arc<EndpointSlice> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": { "namespace": "default", "name": "web-1" },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
            "endpoints": endpoints,
        }))
        .unwrap(),
    )
}

fn endpoint(last: u8, node: &str, conditions: Value) -> Value {
    json!({ "addresses": [format!("10.244.0.{last}")], "nodeName": node, "conditions": conditions })
}

fn ready() -> Value {
    json!({ "ready": true })
}

/// The wants in a readable form: `map key → value`, numbers and addresses in decimal.
fn show(service: &Service, slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let wants = wants(service, slices, &node(), None, &mut Numbers::default());
    let mut lines: Vec<String> = wants
        .elements
        .values()
        .zip(wants.elements.keys())
        .filter(|(_, (map, ..))| ![Map::Hairpin, Map::ClusterIps, Map::ServiceIds, Map::NodePortIds].contains(map))
        .map(|(element, (map, ..))| format!("{} {}{}", map.name(), bytes(&element.key), data(element)))
        .collect();
    lines.sort();
    lines
}

fn bytes(key: &Key) -> String {
    let fields: Vec<String> =
        key.0.chunks(4).map(|field| format!("{}.{}.{}.{}", field[0], field[1], field[2], field[3])).collect();
    fields.join(" ")
}

fn data(element: &Element) -> String {
    use skiff_network::nft::Data;
    match &element.data {
        None => element.key_end.as_ref().map(|end| format!(" – {}", bytes(end))).unwrap_or_default(),
        Some(Data::Value(value)) => format!(" → {}", bytes(value)),
        Some(Data::Verdict(verdict)) => format!(" → {verdict:?}"),
    }
}

fn endpoints(service: &Service, slices: &[Arc<EndpointSlice>]) -> [Vec<u8>; 2] {
    let wants = wants(service, slices, &node(), None, &mut Numbers::default());
    let lists = wants.order.values().next().cloned().unwrap_or_default();
    lists.map(|list| list.iter().map(last_byte).collect())
}

fn last_byte(endpoint: &SocketAddr) -> u8 {
    match endpoint.ip() {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    }
}

#[test]
fn each_family_sees_its_own_addresses() {
    let both = service(json!({
        "clusterIPs": ["10.96.0.1", "fd00:10:96::1"], "externalIPs": ["192.0.2.7", "2001:db8::7"],
        "ipFamilies": ["IPv4", "IPv6"],
    }));
    let mut six = EndpointSlice::clone(&slice(json!([{ "addresses": ["fd00:10:244::5"], "nodeName": "one" }])));
    six.address_type = "IPv6".to_owned();
    let slices = [slice(json!([endpoint(1, "one", ready())])), Arc::new(six)];
    let fronts = |service: &Service, view: &View| {
        let wants = wants(service, &slices, view, None, &mut Numbers::default());
        let lists = wants.order.values().next().cloned().unwrap_or_default();
        let fronts = wants.elements.keys().filter(|(map, ..)| *map == Map::Services).count();
        (fronts, lists[0].iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let [four, six] = views().try_into().unwrap();
    assert_eq!(fronts(&both, &four), (2, vec!["10.244.0.1:8080".to_owned()]));
    assert_eq!(fronts(&both, &six), (2, vec!["[fd00:10:244::5]:8080".to_owned()]));
    let single = service(json!({ "clusterIPs": ["10.96.0.1"], "externalIPs": ["2001:db8::7"] }));
    assert_eq!(fronts(&single, &six), (0, Vec::new()), "a Service without an address of the family");
}

#[test]
fn a_cluster_address_leads_to_its_endpoints() {
    let slice = slice(json!([endpoint(1, "one", ready()), endpoint(2, "two", ready())]));
    assert_eq!(
        show(&service(json!({})), &[slice]),
        [
            "endpoints 2.0.0.0 0.0.0.0 → 10.244.0.1 31.144.0.0",
            "endpoints 2.0.0.0 1.0.0.0 → 10.244.0.2 31.144.0.0",
            "services 10.96.0.1 6.0.0.0 0.80.0.0 → Goto(\"cluster-address-2\")",
        ]
    );
}

#[test]
fn services_without_endpoints_are_refused() {
    let spec = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] });
    assert_eq!(
        show(&service(spec), &[]),
        [
            "no-endpoint-nodeports 6.0.0.0 117.128.0.0 → Goto(\"reject\")",
            "no-endpoints 10.96.0.1 6.0.0.0 0.80.0.0 → Goto(\"reject\")",
        ]
    );
}

#[test]
fn local_policy_keeps_traffic_on_the_node_or_drops_it() {
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "ports": [{ "port": 80, "nodePort": 30080 }],
    });
    let here = slice(json!([endpoint(1, "one", ready()), endpoint(2, "two", ready())]));
    let shown = show(&service(spec.clone()), &[here]);
    assert!(
        shown.contains(&"nodeports 6.0.0.0 117.128.0.0 → Goto(\"external-nodeport-local-2-1\")".to_owned()),
        "{shown:#?}"
    );
    assert!(shown.contains(&"endpoints 3.0.0.0 0.0.0.0 → 10.244.0.1 31.144.0.0".to_owned()), "{shown:#?}");
    let elsewhere = slice(json!([endpoint(2, "two", ready())]));
    let shown = show(&service(spec), &[elsewhere]);
    assert!(
        shown.contains(&"nodeports 6.0.0.0 117.128.0.0 → Goto(\"external-nodeport-local-1-0\")".to_owned()),
        "{shown:#?}"
    );
    assert!(shown.contains(&"no-endpoint-nodeports 6.0.0.0 117.128.0.0 → Drop".to_owned()), "{shown:#?}");
}

#[test]
fn internal_local_policy_uses_local_endpoints_only() {
    let spec = json!({ "internalTrafficPolicy": "Local" });
    let both = slice(json!([endpoint(1, "one", ready()), endpoint(2, "two", ready())]));
    let shown = show(&service(spec.clone()), &[both]);
    assert!(
        shown.contains(&"services 10.96.0.1 6.0.0.0 0.80.0.0 → Goto(\"cluster-address-local-1\")".to_owned()),
        "{shown:#?}"
    );
    let elsewhere = slice(json!([endpoint(2, "two", ready())]));
    let shown = show(&service(spec), &[elsewhere]);
    assert!(shown.contains(&"no-endpoints 10.96.0.1 6.0.0.0 0.80.0.0 → Drop".to_owned()), "{shown:#?}");
}

#[test]
fn source_ranges_guard_load_balancer_addresses() {
    let mut service = service(json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"] }));
    service.status = serde_json::from_value(json!({ "loadBalancer": { "ingress": [
        { "ip": "203.0.113.5", "ipMode": "VIP" }, { "ip": "203.0.113.6", "ipMode": "Proxy" }, { "hostname": "localhost" },
    ]}}))
    .unwrap();
    let shown = show(&service, &[slice(json!([endpoint(1, "one", ready())]))]);
    let front = "203.0.113.5 6.0.0.0 0.80.0.0";
    assert!(shown.contains(&format!("restricted {front}")), "{shown:#?}");
    assert!(shown.contains(&format!("allowed-sources {front} 192.0.2.0 – {front} 192.0.2.255")), "{shown:#?}");
    assert!(shown.contains(&format!("services {front} → Goto(\"external-address-1\")")), "{shown:#?}");
    assert!(!shown.iter().any(|line| line.contains("203.0.113.6")), "{shown:#?}");
}

#[test]
fn affinity_is_part_of_the_chain_s_name() {
    let spec =
        json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 60 } } });
    let shown = show(&service(spec), &[slice(json!([endpoint(1, "one", ready())]))]);
    assert!(
        shown.contains(&"services 10.96.0.1 6.0.0.0 0.80.0.0 → Goto(\"cluster-address-1-for-60s\")".to_owned()),
        "{shown:#?}"
    );
    assert!(shown.contains(&"affinity-endpoints 2.0.0.0 10.244.0.1 31.144.0.0".to_owned()), "{shown:#?}");
}

#[test]
fn others_services_are_left_alone() {
    let slices = [slice(json!([endpoint(1, "one", ready())]))];
    for spec in [json!({ "clusterIP": "None" }), json!({ "type": "ExternalName", "clusterIP": "" })] {
        assert_eq!(show(&service(spec), &slices), Vec::<String>::new());
    }
    let mut labelled = service(json!({}));
    labelled.metadata.labels = Some([(SERVICE_PROXY_NAME.to_owned(), "other".to_owned())].into());
    assert_eq!(show(&labelled, &slices), Vec::<String>::new());
}

#[test]
fn terminating_endpoints_serve_when_no_other_does() {
    let service = service(json!({ "externalTrafficPolicy": "Local" }));
    let ending = || json!({ "ready": false, "serving": true, "terminating": true });
    let cases = [
        (json!([endpoint(1, "one", ready()), endpoint(2, "two", ending())]), [vec![1], vec![1]]),
        (json!([endpoint(1, "one", ending()), endpoint(2, "two", ending())]), [vec![1, 2], vec![1]]),
        // Ready ones elsewhere, but here only one that ends: local traffic still has it.
        (json!([endpoint(1, "one", ending()), endpoint(2, "two", ready())]), [vec![2], vec![1]]),
        (json!([endpoint(1, "one", json!({ "ready": false }))]), [vec![], vec![]]),
        (
            json!([endpoint(1, "one", json!({ "ready": false, "serving": false, "terminating": true }))]),
            [vec![], vec![]],
        ),
        (json!([endpoint(1, "one", json!({}))]), [vec![1], vec![1]]),
    ];
    for (list, expected) in cases {
        assert_eq!(endpoints(&service, &[slice(list.clone())]), expected, "{list}");
    }
}

#[test]
fn hints_choose_the_zone_when_all_endpoints_have_them() {
    let hinted = |last, zone: &str| {
        let mut endpoint = endpoint(last, "two", ready());
        endpoint["hints"] = json!({ "forZones": [{ "name": zone }] });
        endpoint
    };
    let service = service(json!({}));
    let [cluster, _] = endpoints(&service, &[slice(json!([hinted(1, "a"), hinted(2, "b")]))]);
    assert_eq!(cluster, [1]);
    let [cluster, _] = endpoints(&service, &[slice(json!([hinted(1, "b"), hinted(2, "b")]))]);
    assert_eq!(cluster, [1, 2], "none for our zone");
    let [cluster, _] = endpoints(&service, &[slice(json!([hinted(1, "a"), endpoint(2, "two", ready())]))]);
    assert_eq!(cluster, [1, 2], "not all have hints");
}

#[test]
fn endpoints_keep_their_numbers() {
    let address = |last| SocketAddr::from(([10, 0, 0, last], 80));
    let order = |previous: &[u8], wanted: &[u8]| -> Vec<u8> {
        let previous: Vec<_> = previous.iter().map(|last| address(*last)).collect();
        let wanted = wanted.iter().map(|last| address(*last)).collect();
        stable_order(&previous, &wanted).iter().map(last_byte).collect()
    };
    assert_eq!(order(&[], &[1, 2, 3]), [1, 2, 3]);
    assert_eq!(order(&[3, 1], &[1, 2, 3]), [3, 1, 2]);
    assert_eq!(order(&[1, 2, 3, 4], &[2, 3, 4]), [4, 2, 3]);
    assert_eq!(order(&[1, 2, 3], &[2, 3, 4]), [4, 2, 3]);
    assert_eq!(order(&[1, 2], &[]), Vec::<u8>::new());
}

#[test]
fn numbers_are_given_back() {
    let mut numbers = Numbers::default();
    let port: PortKey = (String::new(), Protocol::Tcp);
    let first = numbers.of("default/a", &port);
    assert_eq!(numbers.of("default/a", &port), first);
    assert_eq!(first % 2, 0);
    let second = numbers.of("default/b", &port);
    assert_ne!(second, first);
    numbers.release("default/a", |_| false);
    assert_eq!(numbers.of("default/c", &port), first);
}
