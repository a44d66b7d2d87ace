use serde_json::{Value, json};

use super::*;

struct World;

impl Objects for World {
    /// Every Service has port 80; `none` does not exist.
    fn service(&self, _: &str, name: &str) -> Option<Arc<Service>> {
        let service = match name {
            "none" => return None,
            "outside" => json!({"metadata": {}, "spec": {"type": "ExternalName", "externalName": "example.com"}}),
            _ => json!({"metadata": {}, "spec": {"ports": [{"name": "http", "port": 80}]}}),
        };
        Some(Arc::new(serde_json::from_value(service).unwrap()))
    }

    fn slices(&self, _: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        // The name's length tells Services apart.
        let address = format!("10.0.0.{}", service.len());
        let slice = json!({"metadata": {}, "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": [
            {"addresses": [address], "conditions": {"ready": true}},
            {"addresses": ["10.9.9.9"], "conditions": {"ready": false}}]});
        vec![Arc::new(serde_json::from_value(slice).unwrap())]
    }

    fn certificate(&mut self, _: &str, _: &str) -> Option<Arc<CertifiedKey>> {
        None
    }
}

fn ingress(name: &str, annotations: Value, spec: Value) -> Arc<Ingress> {
    let mut own = json!({});
    for (key, value) in annotations.as_object().unwrap() {
        own[format!("nginx.ingress.kubernetes.io/{key}")] = value.clone();
    }
    let object = json!({"metadata": {"namespace": "a", "name": name, "annotations": own}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": {"service": {"name": service, "port": {"number": 80}}}})
}

/// Which Service, and which path it sees.
fn find(routes: &Routes, host: &str, path: &str) -> Option<(String, Option<String>)> {
    let found = routes.find(host, path)?;
    let name = match &found.target.backend {
        Backend::Endpoints(endpoints) => endpoints.first().map_or("nobody".to_owned(), ToString::to_string),
        Backend::Name(name, port) => format!("{name}:{port}"),
    };
    Some((name, found.path))
}

fn rule(host: &str, paths: &[Value]) -> Value {
    json!({"host": host, "http": {"paths": paths}})
}

#[test]
fn paths_in_upstreams_order() {
    let paths = [
        path("/", "Prefix", "1"),
        path("/foo", "Prefix", "22"),
        path("/foo", "Exact", "333"),
        path("/foo/bar/", "Prefix", "4444"),
        path("/impl", "ImplementationSpecific", "55555"),
    ];
    let routes = build(&[ingress("i", json!({}), json!({"rules": [rule("a.com", &paths)]}))], &mut World);
    for (path, service) in [
        ("/", 1),
        ("/foo", 3),
        ("/foo/", 2),
        ("/foobar", 1),
        ("/foo/bar", 4),
        ("/foo/bar/x", 4),
        ("/foo/barx", 2),
        ("/impl/x", 5),
        ("/Foo", 1),
    ] {
        assert_eq!(find(&routes, "a.com", path), Some((format!("10.0.0.{service}:8080"), None)), "{path}");
    }
    assert_eq!(find(&routes, "b.com", "/"), None);
}

#[test]
fn hosts_wildcards_and_defaults() {
    let backend = json!({"service": {"name": "333", "port": {"name": "http"}}});
    let spec = json!({"defaultBackend": backend, "rules": [
        rule("a.com", &[path("/x", "Prefix", "1")]), rule("*.a.com", &[path("/", "Prefix", "22")]),
        rule("other.com", &[path("/", "Prefix", "none"), path("/out", "Prefix", "outside")])]});
    let routes = build(&[ingress("i", json!({}), spec)], &mut World);
    let service = |host: &str, path: &str| find(&routes, host, path).unwrap().0;
    assert_eq!(service("a.com", "/x"), "10.0.0.1:8080");
    assert_eq!(service("a.com", "/y"), "10.0.0.3:8080");
    assert_eq!(service("b.a.com", "/y"), "10.0.0.2:8080");
    assert_eq!(service("c.b.a.com", "/y"), "10.0.0.3:8080", "one label only");
    assert_eq!(service("unknown", "/"), "10.0.0.3:8080");
    assert_eq!(service("other.com", "/"), "nobody");
    assert_eq!(service("other.com", "/out/x"), "example.com:80");
}

#[test]
fn rewriting() {
    let spec = json!({"rules": [rule("a.com", &[path("/api(/|$)(.*)", "ImplementationSpecific", "1")])]});
    let routes = build(&[ingress("i", json!({"rewrite-target": "/$2"}), spec)], &mut World);
    let seen = |path: &str| find(&routes, "a.com", path).map(|found| found.1.unwrap());
    assert_eq!(seen("/api/users/7").as_deref(), Some("/users/7"));
    assert_eq!(seen("/api").as_deref(), Some("/"));
    assert_eq!(seen("/apix"), None);
    // As a guide has it: everything becomes the root.
    let spec = json!({"rules": [rule("", &[path("/", "Prefix", "1")])]});
    let routes = build(&[ingress("i", json!({"rewrite-target": "/"}), spec)], &mut World);
    assert_eq!(find(&routes, "any", "/some/where").unwrap().1.as_deref(), Some("/"));
}

#[test]
fn the_first_ingress_counts_and_tls_is_by_host() {
    let one = ingress("a", json!({}), json!({"rules": [rule("a.com", &[path("/", "Prefix", "1")])]}));
    let two = ingress(
        "b",
        json!({}),
        json!({
        "tls": [{"hosts": ["a.com"], "secretName": "missing"}],
        "rules": [rule("a.com", &[path("/", "Prefix", "22"), path("/b", "Prefix", "22")]), rule("b.com", &[])]}),
    );
    let routes = build(&[two, one], &mut World);
    assert_eq!(find(&routes, "a.com", "/").unwrap().0, "10.0.0.1:8080");
    assert_eq!(find(&routes, "a.com", "/b").unwrap().0, "10.0.0.2:8080");
    assert!(routes.find("a.com", "/").unwrap().tls);
    assert!(routes.certificate("a.com").is_none());
}
