use serde_json::{Value, json};

use super::*;
use crate::zone;

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 2));

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// The cluster that all questions below are asked of.
fn zone() -> Zone {
    let mut zone = Zone::default();
    for name in ["default", "kube-system"] {
        zone.set_namespace(&read::<zone::Namespace>(json!({ "metadata": { "name": name } })));
    }
    let mut service = |name: &str, spec: Value| {
        let object = json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec });
        zone.set_service(&read::<zone::Service>(object));
    };
    let ports = json!([{ "name": "http", "port": 80 }, { "name": "dns", "port": 53, "protocol": "UDP" }]);
    service("web", json!({ "clusterIP": "10.96.0.7", "ports": ports }));
    service("db", json!({ "clusterIP": "None", "ports": [{ "name": "sql", "port": 5432 }] }));
    service("none", json!({ "clusterIP": "None" }));
    service("pending", json!({ "clusterIP": "" }));
    service("out", json!({ "type": "ExternalName", "externalName": "example.com" }));
    service("in", json!({ "type": "ExternalName", "externalName": "web.default.svc.cluster.local." }));
    service("circle", json!({ "type": "ExternalName", "externalName": "circle.default.svc.cluster.local" }));
    let slice = |name: &str, service: &str, ports: Value, endpoints: Value| {
        let labels = json!({ "kubernetes.io/service-name": service, "other": "label" });
        read::<zone::Slice>(json!({
            "metadata": { "name": name, "namespace": "default", "labels": labels },
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        }))
    };
    zone.set_slice(&slice(
        "db-1",
        "db",
        json!([{ "name": "sql", "port": 5432, "protocol": "TCP" }]),
        json!([
            { "addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": { "ready": true } },
            { "addresses": ["10.244.0.6"], "conditions": {} },
            { "addresses": ["10.244.0.7"], "hostname": "db-2", "conditions": { "ready": false } },
        ]),
    ));
    zone.set_slice(&slice("web-1", "web", json!([]), json!([{ "addresses": ["10.244.0.9"] }])));
    zone
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn decide(query: &Message, zone: &Zone) -> Decision {
    Answerer::new("cluster.local").unwrap().decide(query, zone, OWN)
}

/// `NOERROR: records | additional records`, or `forward`, or `chase NAME`.
fn show(decision: Decision) -> String {
    let records = |records: &[Record]| {
        records.iter().map(|r| format!("{} {} {}", r.name, r.record_type(), r.data)).collect::<Vec<_>>().join(", ")
    };
    match decision {
        Decision::Forward => "forward".to_owned(),
        Decision::Chase { so_far, target } => format!("chase {target}: {}", records(&so_far.answers)),
        Decision::Reply(reply) => {
            assert!(reply.metadata.authoritative || reply.metadata.response_code != ResponseCode::NoError);
            // Nothing found is always explained by the zone's SOA.
            let negative = reply.answers.is_empty()
                && matches!(reply.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
            assert_eq!(reply.authorities.len(), usize::from(negative));
            let code = reply.metadata.response_code;
            let code = match code {
                ResponseCode::NoError if reply.answers.is_empty() => "no data".to_owned(),
                ResponseCode::NoError => "ok".to_owned(),
                ResponseCode::NXDomain => "no such name".to_owned(),
                code => format!("{code:?}"),
            };
            let mut text = code;
            for section in [&reply.answers, &reply.additionals] {
                if !section.is_empty() {
                    text.push_str(if text.contains(": ") { " | " } else { ": " });
                    text.push_str(&records(section));
                }
            }
            text
        }
    }
}

#[test]
fn names_of_two_families() {
    use RecordType::{A, AAAA, MX, PTR, SRV};
    let mut zone = zone();
    let service = |name: &str, spec: Value| {
        read::<zone::Service>(json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec }))
    };
    let both = json!({
        "clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.8", "fd00:10:96::8"], "ports": [{ "name": "http", "port": 80 }],
    });
    zone.set_service(&service("both", both));
    zone.set_service(&service("six", json!({ "clusterIP": "fd00:10:96::9", "clusterIPs": ["fd00:10:96::9"] })));
    let slice = read::<zone::Slice>(json!({
        "metadata": { "name": "db-6", "namespace": "default", "labels": { "kubernetes.io/service-name": "db" } },
        "addressType": "IPv6", "ports": [{ "name": "sql", "port": 5432, "protocol": "TCP" }],
        "endpoints": [
            { "addresses": ["fd00:10:244::5"], "hostname": "db-0" }, { "addresses": ["fd00:10:244::6"] },
        ],
    }));
    zone.set_slice(&slice);
    let reverse = |last: &str, network: &str| format!("{last}{}.{network}.0.1.0.0.0.0.d.f.ip6.arpa.", ".0".repeat(19));
    let (service, pod) = ("6.9.0.0", "4.4.2.0");
    let cases = [
        ("both.default.svc.cluster.local.", A, "ok: both.default.svc.cluster.local. A 10.96.0.8"),
        ("both.default.svc.cluster.local.", AAAA, "ok: both.default.svc.cluster.local. AAAA fd00:10:96::8"),
        ("both.default.svc.cluster.local.", MX, "no data"),
        ("six.default.svc.cluster.local.", A, "no data"),
        ("six.default.svc.cluster.local.", AAAA, "ok: six.default.svc.cluster.local. AAAA fd00:10:96::9"),
        (
            "_http._tcp.both.default.svc.cluster.local.",
            SRV,
            "ok: _http._tcp.both.default.svc.cluster.local. SRV 0 50 80 both.default.svc.cluster.local. | \
             both.default.svc.cluster.local. A 10.96.0.8, both.default.svc.cluster.local. AAAA fd00:10:96::8",
        ),
        ("db-0.db.default.svc.cluster.local.", A, "ok: db-0.db.default.svc.cluster.local. A 10.244.0.5"),
        ("db-0.db.default.svc.cluster.local.", AAAA, "ok: db-0.db.default.svc.cluster.local. AAAA fd00:10:244::5"),
        (
            "db.default.svc.cluster.local.",
            AAAA,
            "ok: db.default.svc.cluster.local. AAAA fd00:10:244::5, db.default.svc.cluster.local. AAAA fd00:10:244::6",
        ),
        (
            "fd00-10-244--6.db.default.svc.cluster.local.",
            AAAA,
            "ok: fd00-10-244--6.db.default.svc.cluster.local. AAAA fd00:10:244::6",
        ),
        (
            "fd00-10-244--7.default.pod.cluster.local.",
            AAAA,
            "ok: fd00-10-244--7.default.pod.cluster.local. AAAA fd00:10:244::7",
        ),
        ("fd00-10-244--7.default.pod.cluster.local.", A, "no data"),
        ("10-244-0-7.default.pod.cluster.local.", AAAA, "no data"),
    ];
    for (name, kind, expected) in cases {
        assert_eq!(show(decide(&query(name, kind), &zone)), expected, "{name} {kind}");
    }
    for (name, expected) in [
        (reverse("8", service), "both.default.svc.cluster.local."),
        (reverse("5", pod), "db-0.db.default.svc.cluster.local."),
        (reverse("6", pod), "fd00-10-244--6.db.default.svc.cluster.local."),
    ] {
        assert_eq!(show(decide(&query(&name, PTR), &zone)), format!("ok: {name} PTR {expected}"));
    }
    assert_eq!(show(decide(&query(&reverse("f", pod), PTR), &zone)), "forward");
    // The addresses go with the Service, the names of endpoints with their slice.
    zone.remove_service(&("default".to_owned(), "both".to_owned()));
    assert_eq!(show(decide(&query(&reverse("8", service), PTR), &zone)), "forward");
}

#[test]
fn names_of_the_cluster() {
    use RecordType::{A, AAAA, CNAME, MX, PTR, SRV, TXT};
    let cases = [
        ("web.default.svc.cluster.local.", A, "ok: web.default.svc.cluster.local. A 10.96.0.7"),
        ("WEB.default.svc.Cluster.Local.", A, "ok: WEB.default.svc.Cluster.Local. A 10.96.0.7"),
        ("web.default.svc.cluster.local.", AAAA, "no data"),
        ("web.default.svc.cluster.local.", MX, "no data"),
        ("pending.default.svc.cluster.local.", A, "no data"),
        ("nobody.default.svc.cluster.local.", A, "no such name"),
        ("web.other.svc.cluster.local.", A, "no such name"),
        ("web.cluster.local.", A, "no such name"),
        ("a.b.c.d.e.cluster.local.", A, "no such name"),
        // Headless: every ready endpoint, by name too.
        (
            "db.default.svc.cluster.local.",
            A,
            "ok: db.default.svc.cluster.local. A 10.244.0.5, db.default.svc.cluster.local. A 10.244.0.6",
        ),
        ("db-0.db.default.svc.cluster.local.", A, "ok: db-0.db.default.svc.cluster.local. A 10.244.0.5"),
        ("db-0.db.default.svc.cluster.local.", AAAA, "no data"),
        ("10-244-0-6.db.default.svc.cluster.local.", A, "ok: 10-244-0-6.db.default.svc.cluster.local. A 10.244.0.6"),
        ("db-2.db.default.svc.cluster.local.", A, "no such name"),
        ("none.default.svc.cluster.local.", A, "no such name"),
        // Ports.
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            "ok: _http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local. | web.default.svc.cluster.local. A 10.96.0.7",
        ),
        ("_http._udp.web.default.svc.cluster.local.", SRV, "no such name"),
        ("_http._tcp.web.default.svc.cluster.local.", A, "no data"),
        ("_tcp.web.default.svc.cluster.local.", SRV, "no data"),
        ("_sctp.web.default.svc.cluster.local.", SRV, "no such name"),
        (
            "_sql._tcp.db.default.svc.cluster.local.",
            SRV,
            "ok: _sql._tcp.db.default.svc.cluster.local. SRV 0 50 5432 db-0.db.default.svc.cluster.local., \
             _sql._tcp.db.default.svc.cluster.local. SRV 0 50 5432 10-244-0-6.db.default.svc.cluster.local. | \
             db-0.db.default.svc.cluster.local. A 10.244.0.5, 10-244-0-6.db.default.svc.cluster.local. A 10.244.0.6",
        ),
        // Other names.
        ("out.default.svc.cluster.local.", A, "chase example.com.: out.default.svc.cluster.local. CNAME example.com."),
        ("out.default.svc.cluster.local.", CNAME, "ok: out.default.svc.cluster.local. CNAME example.com."),
        (
            "in.default.svc.cluster.local.",
            A,
            "ok: in.default.svc.cluster.local. CNAME web.default.svc.cluster.local., web.default.svc.cluster.local. A 10.96.0.7",
        ),
        ("circle.default.svc.cluster.local.", A, "ServFail"),
        // Pods, by their address, whether they are there or not.
        ("10-244-1-5.default.pod.cluster.local.", A, "ok: 10-244-1-5.default.pod.cluster.local. A 10.244.1.5"),
        ("10-244-1-5.other.pod.cluster.local.", A, "no such name"),
        ("10-244-1-500.default.pod.cluster.local.", A, "no such name"),
        ("010-244-1-5.default.pod.cluster.local.", A, "no such name"),
        // The zone itself.
        ("default.svc.cluster.local.", A, "no data"),
        ("other.svc.cluster.local.", A, "no such name"),
        ("svc.cluster.local.", A, "no data"),
        ("cluster.local.", A, "no data"),
        ("dns-version.cluster.local.", TXT, "ok: dns-version.cluster.local. TXT 1.1.0"),
        ("ns.dns.cluster.local.", A, "ok: ns.dns.cluster.local. A 10.244.0.2"),
        // Reverse names.
        ("7.0.96.10.in-addr.arpa.", PTR, "ok: 7.0.96.10.in-addr.arpa. PTR web.default.svc.cluster.local."),
        ("5.0.244.10.in-addr.arpa.", PTR, "ok: 5.0.244.10.in-addr.arpa. PTR db-0.db.default.svc.cluster.local."),
        ("9.0.244.10.in-addr.arpa.", PTR, "ok: 9.0.244.10.in-addr.arpa. PTR 10-244-0-9.web.default.svc.cluster.local."),
        ("7.0.96.10.in-addr.arpa.", A, "no data"),
        ("1.1.1.1.in-addr.arpa.", PTR, "forward"),
        // Everything else.
        ("example.com.", A, "forward"),
        ("local.", A, "forward"),
        (".", A, "forward"),
    ];
    let zone = zone();
    for (name, kind, expected) in cases {
        assert_eq!(show(decide(&query(name, kind), &zone)), expected, "{name} {kind}");
    }
}

#[test]
fn the_zone_introduces_itself() {
    let zone = zone();
    let Decision::Reply(soa) = decide(&query("cluster.local.", RecordType::SOA), &zone) else { panic!() };
    assert!(
        soa.answers[0].data.to_string().starts_with("ns.dns.cluster.local. hostmaster.cluster.local. "),
        "{}",
        soa.answers[0].data
    );
    assert_eq!(
        show(decide(&query("cluster.local.", RecordType::NS), &zone)),
        "ok: cluster.local. NS ns.dns.cluster.local. | ns.dns.cluster.local. A 10.244.0.2"
    );
}

#[test]
fn negative_answers_may_be_kept_as_long_as_others() {
    let zone = zone();
    let Decision::Reply(reply) = decide(&query("x.default.svc.cluster.local.", RecordType::A), &zone) else { panic!() };
    let RData::SOA(soa) = &reply.authorities[0].data else { panic!() };
    assert_eq!((reply.authorities[0].ttl, soa.minimum), (30, 30));
}

#[test]
fn queries_that_cannot_be_answered_are_refused() {
    let zone = zone();
    let mut update = query("web.default.svc.cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(show(decide(&update, &zone)), "NotImp");
    let mut none = query("x.", RecordType::A);
    none.queries.clear();
    assert_eq!(show(decide(&none, &zone)), "FormErr");
    let mut chaos = query("web.default.svc.cluster.local.", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(show(decide(&chaos, &zone)), "Refused");
}

#[test]
fn answers_take_turns() {
    let zone = zone();
    let firsts: Vec<String> = (0..4)
        .map(|id| {
            let mut query = query("db.default.svc.cluster.local.", RecordType::A);
            query.metadata.id = id;
            let Decision::Reply(reply) = decide(&query, &zone) else { panic!() };
            assert_eq!(reply.metadata.id, id);
            reply.answers[0].data.to_string()
        })
        .collect();
    assert_eq!(firsts, ["10.244.0.5", "10.244.0.6", "10.244.0.5", "10.244.0.6"]);
}

#[test]
fn large_answers_are_cut_over_udp() {
    let mut zone = zone();
    let endpoints: Vec<Value> = (0..100).map(|n| json!({ "addresses": [format!("10.244.1.{n}")] })).collect();
    let labels = json!({ "kubernetes.io/service-name": "db" });
    zone.set_slice(&read(json!({
        "metadata": { "name": "db-2", "namespace": "default", "labels": labels }, "addressType": "IPv4",
        "ports": [{ "name": "sql", "port": 5432 }], "endpoints": endpoints,
    })));
    let mut query = query("db.default.svc.cluster.local.", RecordType::A);
    let Decision::Reply(reply) = decide(&query, &zone) else { panic!() };
    assert_eq!(reply.answers.len(), 102);
    let sent = |query: &Message| {
        let bytes = encode_udp(&reply, query).unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        assert!(message.metadata.truncation);
        (bytes.len(), message.answers.len())
    };
    let (small, few) = sent(&query);
    assert!(small <= 512 && few > 20, "{small} {few}");
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    query.set_edns(edns);
    let (large, more) = sent(&query);
    assert!(large > 1000 && large <= 1232 && more > few, "{large} {more}");
}

#[test]
fn services_and_slices_that_change_leave_nothing_behind() {
    let mut zone = zone();
    let key = |name: &str| ("default".to_owned(), name.to_owned());
    let moved = json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": { "clusterIP": "10.96.0.8" } });
    zone.set_service(&read(moved));
    assert_eq!(show(decide(&query("7.0.96.10.in-addr.arpa.", RecordType::PTR), &zone)), "forward");
    assert_eq!(
        show(decide(&query("web.default.svc.cluster.local.", RecordType::A), &zone)),
        "ok: web.default.svc.cluster.local. A 10.96.0.8"
    );
    zone.remove_slice(&key("db-1"));
    assert_eq!(show(decide(&query("db.default.svc.cluster.local.", RecordType::A), &zone)), "no such name");
    zone.remove_service(&key("web"));
    assert_eq!(show(decide(&query("web.default.svc.cluster.local.", RecordType::A), &zone)), "no such name");
    zone.remove_namespace(&(String::new(), "kube-system".to_owned()));
    assert!(!zone.has_namespace("kube-system"));
}
