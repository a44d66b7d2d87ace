//! Aggregated APIs: groups that other servers serve, and this one passes on to them.
//!
//! An APIService names the Service behind a group's version. Requests for it are authenticated and authorized here, and
//! sent on with the names of the user in `X-Remote-*` headers; that they come from here is shown by the certificate of
//! the front proxy. Nothing is looked at while no APIService names a Service.

mod availability;
mod controller;
mod documents;
mod local;

use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use serde_json::Value;
use skiff_api::Status;

pub(crate) use self::{
    controller::run,
    documents::Document,
    local::{group_priority, register, version_priority},
};
use crate::{
    auth::User,
    compiled::Compiled,
    endpoints,
    http::{Body, text},
    object::Object,
    outbound::{Identity, Server, Trust},
    proxy,
    registry::{Registry, apiregistration::apiservice},
};

pub(crate) const GROUP: &str = "apiregistration.k8s.io";
pub(crate) const PLURAL: &str = "apiservices";

/// A certificate with which the server shows others that a request was passed on by it.
pub struct FrontProxy {
    /// The certificate's chain and its key.
    pub identity: (Vec<rustls_pki_types::CertificateDer<'static>>, rustls_pki_types::PrivateKeyDer<'static>),
    /// Of the authority that signed it, in PEM form.
    pub authority_pem: String,
    /// Of the authority of clients' certificates, in PEM form.
    pub client_authority_pem: String,
}

/// The name in that certificate, as kubeadm's.
pub const FRONT_PROXY_NAME: &str = "front-proxy-client";

/// An API that another server serves.
pub(crate) struct Remote {
    /// Of the APIService: `v1beta1.metrics.k8s.io`.
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) group_priority: i64,
    pub(crate) version_priority: i64,
    /// The Service that leads to it.
    namespace: String,
    service: String,
    port: u16,
    available: bool,
    /// What of the object matters here.
    spec: Value,
    server: Server,
}

impl Remote {
    /// `None` for what this server serves itself.
    fn read(object: &Object, identity: Option<&Arc<Identity>>) -> Option<Remote> {
        let value = object.value();
        let spec = &value["spec"];
        let service = spec["service"].as_object()?;
        let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or_default().to_owned();
        let (namespace, name) = (text(service.get("namespace")), text(service.get("name")));
        let trust = match spec["insecureSkipTLSVerify"] == true {
            true => Trust::Anybody,
            false => {
                let bundle = base64::engine::general_purpose::STANDARD.decode(text(spec.get("caBundle")));
                Trust::Authorities(bundle.unwrap_or_default())
            }
        };
        Some(Remote {
            name: object.name.to_string(),
            group: text(spec.get("group")),
            version: text(spec.get("version")),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            port: service.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            available: apiservice::available(&value).is_some_and(|c| c["status"] == "True"),
            server: Server::new(format!("{name}.{namespace}.svc"), trust, identity.cloned()),
            namespace,
            service: name,
            spec: spec.clone(),
        })
    }

    /// Where its version is discovered.
    fn path(&self) -> String {
        match self.group.is_empty() {
            true => format!("/api/{}", self.version),
            false => format!("/apis/{}/{}", self.group, self.version),
        }
    }
}

/// All aggregated APIs, in the order of their names.
pub(crate) type Remotes = Arc<Vec<(u64, Arc<Remote>)>>;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Aggregator {
    remotes: Compiled<Remote>,
    identity: OnceLock<Arc<Identity>>,
    documents: documents::Documents,
}

impl Aggregator {
    /// Shows this certificate to all servers from now on.
    pub(crate) fn identify(&self, identity: Identity) {
        let _ = self.identity.set(Arc::new(identity));
    }

    /// All APIs that others serve.
    pub(crate) async fn remotes(&self, registry: &Registry) -> Result<Remotes, Status> {
        let cache = &registry.builtin(GROUP, PLURAL).cache;
        self.remotes.of(cache, |o| Remote::read(o, self.identity.get())).await
    }

    /// Who serves a version of a group, if it is somebody else.
    pub(crate) async fn remote(
        &self,
        registry: &Registry,
        group: &str,
        version: &str,
    ) -> Result<Option<Arc<Remote>>, Status> {
        let all = self.remotes(registry).await?;
        Ok(all.iter().find(|(_, r)| r.group == group && r.version == version).map(|(_, r)| r.clone()))
    }

    pub(crate) fn documents(&self) -> &documents::Documents {
        &self.documents
    }
}

/// Passes a request of this user on, to the same path.
pub(crate) async fn forward(
    registry: &Registry,
    remote: &Remote,
    user: &User,
    request: Request<Body>,
) -> Response<Body> {
    let unavailable = || text(503, "service unavailable\n");
    if !remote.available {
        return unavailable();
    }
    let Ok(addresses) = endpoints::of_service(registry, &remote.namespace, &remote.service, remote.port).await else {
        return unavailable();
    };
    proxy::pass_on(request, |mut request| async {
        as_user(request.headers_mut(), user);
        let host = format!("{}.{}.svc", remote.service, remote.namespace);
        if let Ok(host) = HeaderValue::from_str(&host) {
            request.headers_mut().insert(header::HOST, host);
        }
        remote.server.send(request, &addresses).await
    })
    .await
    .unwrap_or_else(|why| text(503, format!("error trying to reach service: {why}\n")))
}

/// Says in a request's headers whose it is; what the client said there itself is taken away.
fn as_user(headers: &mut HeaderMap, user: &User) {
    let theirs: Vec<HeaderName> = headers.keys().filter(|k| k.as_str().starts_with("x-remote-")).cloned().collect();
    for name in theirs {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let key = format!("x-remote-extra-{}", escaped(key));
        for value in values {
            add(&key, value);
        }
    }
}

/// A key as part of a header's name: what may not stand there is percent-encoded, as upstream does it.
fn escaped(key: &str) -> String {
    let mut out = String::new();
    for byte in key.bytes() {
        match byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            true => out.push(char::from(byte.to_ascii_lowercase())),
            false => out.push_str(&format!("%{byte:02x}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_in_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-scopes", HeaderValue::from_static("all"));
        let mut user = User::known("jane", &["dev", "ops"]);
        user.extra.insert("example.com/a".into(), vec!["1".into()]);
        as_user(&mut headers, &user);
        assert_eq!(headers["x-remote-user"], "jane");
        let groups: Vec<_> = headers.get_all("x-remote-group").iter().map(|v| v.to_str().unwrap()).collect();
        assert!(groups.starts_with(&["dev", "ops"]), "{groups:?}");
        assert_eq!(headers["x-remote-extra-example.com%2fa"], "1");
        assert!(!headers.contains_key("x-remote-extra-scopes"));
    }
}
