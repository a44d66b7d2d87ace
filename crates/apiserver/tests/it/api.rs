//! A server of its own for each test, and the ways to ask it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use skiff_apiserver::{ApiServer, Body, Config, MASTERS, ServiceAccountTokens, ServiceRange, User};
use skiff_store::{Store, memory::MemoryStore};

/// Longest wait for anything that should happen at once.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server and the user who asks it.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) store: Arc<dyn Store>,
    user: Option<Arc<User>>,
    headers: HeaderMap,
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) code: u16,
    pub(crate) body: Value,
    pub(crate) headers: HeaderMap,
}

impl Reply {
    /// The texts of the `Warning` headers.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.headers.get_all(header::WARNING).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }
}

/// Where a server says that it is which has no others beside it.
const ALONE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6443);

impl Api {
    /// A server on a store in memory, asked by an administrator.
    pub(crate) async fn start() -> Api {
        Api::on(Arc::new(MemoryStore::new())).await
    }

    /// With Service ranges of its own.
    pub(crate) async fn with_services(ranges: &str) -> Api {
        Api::at(Arc::new(MemoryStore::new()), ranges, ALONE, false).await
    }

    pub(crate) async fn on(store: Arc<dyn Store>) -> Api {
        let api = Api::restarted(store).await;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        api.created("/api/v1/namespaces/default/serviceaccounts", account).await;
        api
    }

    /// A further server on a store that has been in use.
    pub(crate) async fn restarted(store: Arc<dyn Store>) -> Api {
        Api::at(store, "10.96.0.0/24", ALONE, false).await
    }

    /// One of several servers on a store.
    pub(crate) async fn sharing(store: Arc<dyn Store>, advertise: SocketAddr) -> Api {
        Api::at(store, "10.96.0.0/24", advertise, true).await
    }

    async fn at(store: Arc<dyn Store>, service_ranges: &str, advertise: SocketAddr, shared: bool) -> Api {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (private, public) = skiff_pki::signing_key().unwrap();
        let kubelet_client = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let server = ApiServer::start(Config {
            store: store.clone(),
            service_ranges: ServiceRange::parse_list(service_ranges).unwrap(),
            tokens: ServiceAccountTokens::new(&private, &public).unwrap(),
            kubelet_client: Arc::new(kubelet_client),
            front_proxy: None,
            advertise,
            shared,
        })
        .await
        .unwrap();
        let admin = User::known("admin", &[MASTERS]);
        Api { server, store, user: Some(Arc::new(admin)), headers: HeaderMap::new() }
    }

    /// The same server asked by somebody else.
    pub(crate) fn by(&self, user: User) -> Api {
        Api { user: Some(Arc::new(user)), ..self.clone() }
    }

    /// The same server asked by somebody without a certificate.
    pub(crate) fn without_certificate(&self) -> Api {
        Api { user: None, ..self.clone() }
    }

    /// The same with one more header in each request.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Api {
        let mut api = self.clone();
        api.headers.append(name, value.parse().unwrap());
        api
    }

    pub(crate) async fn send(&self, method: &str, path: &str, content_type: &str, body: impl Into<Bytes>) -> Reply {
        let response = self.open(method, path, content_type, body).await;
        let (parts, body) = response.into_parts();
        let bytes =
            tokio::time::timeout(DEADLINE, body.collect()).await.expect("an answer in time").unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Reply { code: parts.status.as_u16(), body, headers: parts.headers }
    }

    async fn open(&self, method: &str, path: &str, ty: &str, body: impl Into<Bytes>) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if !ty.is_empty() {
            request = request.header(header::CONTENT_TYPE, ty);
        }
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
        let mut request = request.body(body).unwrap();
        request.headers_mut().extend(self.headers.clone());
        let answer = self.server.clone().handle(self.user.clone(), request);
        tokio::time::timeout(DEADLINE, answer).await.expect("an answer in time")
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let reply = self.send("GET", path, "", "").await;
        (reply.code, reply.body)
    }

    /// Reads an object until it is as wanted.
    pub(crate) async fn eventually(&self, path: &str, wanted: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let reading = async {
            loop {
                last = self.get(path).await.1;
                if wanted(&last) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, reading).await.is_err() {
            panic!("{path} stays {last}");
        }
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let reply = self.send("POST", path, "application/json", body.to_string()).await;
        (reply.code, reply.body)
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        let reply = self.send("PUT", path, "application/json", body.to_string()).await;
        (reply.code, reply.body)
    }

    /// A patch of type `json`, `merge` or `strategic`.
    pub(crate) async fn patch(&self, path: &str, kind: &str, body: Value) -> (u16, Value) {
        let ty = match kind {
            "json" => "application/json-patch+json",
            "merge" => "application/merge-patch+json",
            _ => "application/strategic-merge-patch+json",
        };
        let reply = self.send("PATCH", path, ty, body.to_string()).await;
        (reply.code, reply.body)
    }

    pub(crate) async fn delete(&self, path: &str, options: Value) -> (u16, Value) {
        let body = if options.is_null() { String::new() } else { options.to_string() };
        let reply = self.send("DELETE", path, "application/json", body).await;
        (reply.code, reply.body)
    }

    /// Creates what must be creatable.
    pub(crate) async fn created(&self, path: &str, body: Value) -> Value {
        let (code, object) = self.post(path, body).await;
        assert_eq!(code, 201, "{object}");
        object
    }

    /// Begins a watch.
    pub(crate) async fn watch(&self, path: &str) -> Watch {
        let response = self.open("GET", path, "", "").await;
        assert_eq!(response.status(), 200, "{path}");
        Watch { body: response.into_body(), read: Vec::new() }
    }
}

/// A watch under way.
pub(crate) struct Watch {
    body: Body,
    read: Vec<u8>,
}

impl Watch {
    /// The next event; nothing once the watch has ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("an event in time")?;
            self.read.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event's object.
    pub(crate) async fn seen(&mut self) -> (String, String) {
        let event = self.next().await.expect("an event");
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";

pub(crate) fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

pub(crate) fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

pub(crate) fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }})
}

/// The names of a list's items.
pub(crate) fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().expect("a list").iter().map(|i| text(&i["metadata"]["name"])).collect()
}
