//! The server: the path of a request, written once, and the connections that requests come over.

use std::{
    convert::Infallible,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures::{FutureExt as _, future::BoxFuture};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Value, json};
use skiff_api::{Kind, Status};
use skiff_store::Store;
use tokio::net::TcpListener;

use crate::{
    admission::{Admission, Attributes, Operation},
    aggregator::{self, Aggregator, FrontProxy},
    auth::{self, ServiceAccountTokens, User},
    authn::Authenticator,
    bootstrap, connect, custom, discovery, eviction,
    gate::Gate,
    http::{Body, BoxError, failure, full, json as json_response, read_body, respond, text},
    metrics::Metrics,
    openapi::OpenApi,
    proxy::{self, Backends},
    quota,
    rbac::{self, Authorizer},
    registry::{
        Registry,
        engine::{Engine, Part},
    },
    render::{self, encoded},
    request::{Query, RequestInfo, Warnings},
    resources::{self, Asked},
    reviews,
    services::{ServiceAddresses, ServiceRange},
    subresources,
    usage::{self, Usage},
    watches,
};

/// How long a request that is no watch and no stream may take.
const REQUEST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// How long the store may take to say that it is there, as upstream's `--etcd-readycheck-timeout`.
const STORE_CHECK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// What the server needs from outside.
pub struct Config {
    pub store: Arc<dyn Store>,
    /// The addresses of Services: a range, or one of each family with the default family first.
    pub service_ranges: Vec<ServiceRange>,
    /// For tokens of service accounts.
    pub tokens: ServiceAccountTokens,
    /// With which the server speaks to kubelets.
    pub kubelet_client: Arc<rustls::ClientConfig>,
    /// With which the server passes requests on to servers of aggregated APIs; without one those are asked anonymously.
    pub front_proxy: Option<FrontProxy>,
    /// Address and port of this server as pods reach it: the endpoint of the `kubernetes` Service.
    pub advertise: std::net::SocketAddr,
    /// Whether other API servers work on the store too: who is alive is then kept there, and so is who has which address
    /// and node port.
    pub shared: bool,
}

/// See the [module](self).
pub struct ApiServer {
    engine: Engine,
    authenticator: Authenticator,
    authorizer: Arc<Authorizer>,
    backends: Backends,
    usage: Usage,
    aggregator: Aggregator,
    openapi: OpenApi,
    metrics: Metrics,
    advertise: std::net::SocketAddr,
    ready: std::sync::atomic::AtomicBool,
    gate: Gate,
    component_health: std::sync::OnceLock<ComponentHealth>,
}

/// How the control plane's components are, by upstream's name: `scheduler`, `controller-manager`, `etcd-0`.
pub type ComponentHealth = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

impl ApiServer {
    /// Fills the caches, makes what every cluster has, and is then ready to serve.
    pub async fn start(config: Config) -> Result<Arc<ApiServer>, Status> {
        let registry = Arc::new(Registry::new(&config.store));
        registry.start();
        let authorizer = Arc::new(Authorizer::new(registry.clone()));
        let server = Arc::new(ApiServer {
            authenticator: Authenticator { registry: registry.clone(), tokens: Arc::new(config.tokens) },
            engine: Engine {
                admission: Admission {
                    registry: registry.clone(),
                    authorizer: authorizer.clone(),
                    default_class: Default::default(),
                    hooks: Default::default(),
                    policies: Default::default(),
                    mutating: Default::default(),
                },
                registry,
                store: config.store,
                services: ServiceAddresses::new(config.service_ranges),
                quotas: Arc::default(),
                shared: config.shared,
            },
            authorizer,
            backends: Backends::new(config.kubelet_client),
            usage: Usage::default(),
            aggregator: Aggregator::default(),
            openapi: OpenApi::default(),
            metrics: Metrics::default(),
            advertise: config.advertise,
            ready: false.into(),
            gate: Gate::default(),
            component_health: std::sync::OnceLock::new(),
        });
        bootstrap::run(&server.engine, config.advertise, config.front_proxy.as_ref()).await?;
        if let Some(front_proxy) = config.front_proxy {
            server.aggregator.identify(front_proxy.identity);
        }
        if config.shared {
            let store = server.engine.store.clone();
            tokio::spawn(bootstrap::servers::run(Arc::downgrade(&server), store, config.advertise));
        }
        tokio::spawn(aggregator::run(Arc::downgrade(&server)));
        tokio::spawn(custom::controller::run(Arc::downgrade(&server)));
        tokio::spawn(quota::run(Arc::downgrade(&server), server.engine.quotas.clone()));
        server.ready.store(true, std::sync::atomic::Ordering::Release);
        Ok(server)
    }

    /// Tells pods that this one of several servers ends.
    pub async fn leave(&self) -> Result<(), Status> {
        match self.engine.shared {
            true => bootstrap::servers::leave(&self.engine, self.advertise).await,
            false => Ok(()),
        }
    }

    /// The path of a request. `certificate` is the user of the connection's verified client certificate, or the
    /// component that calls in process.
    pub fn handle(
        self: Arc<Self>,
        certificate: Option<Arc<User>>,
        request: Request<Body>,
    ) -> BoxFuture<'static, Response<Body>> {
        async move { self.journey(certificate, request).await }.boxed()
    }

    async fn journey(self: Arc<Self>, certificate: Option<Arc<User>>, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = RequestInfo::parse(request.method(), request.uri(), &query);
        // A panic ends one request, not the server.
        let outcome = AssertUnwindSafe(self.steps(certificate.as_deref(), &info, &query, request)).catch_unwind().await;
        let response = match outcome {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => failure(&status),
            Err(_) => {
                failure(&Status::internal("the server panicked while handling this request; this is a bug of skiff"))
            }
        };
        self.metrics.observe(&info, response.status().as_u16(), started.elapsed());
        response
    }

    async fn steps(
        self: &Arc<Self>,
        certificate: Option<&User>,
        info: &RequestInfo,
        query: &Query,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let user = self.authenticator.user(certificate, request.headers()).await?;
        // Administrators need no roles, but may ask about those of others.
        if !user.in_group(auth::MASTERS)
            || info.group.ends_with("authorization.k8s.io")
            || request.headers().contains_key("impersonate-user")
        {
            self.authorizer.settle().await;
        }
        let user = self.impersonate(user, request.headers())?;
        self.authorize(&user, info)?;
        let unbounded = info.verb == "watch" || proxies(&info.subresource);
        let work = self.authorized(user, info, query, request);
        if unbounded {
            return work.await;
        }
        tokio::time::timeout(REQUEST_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| Err(Status::timeout("request did not complete within the allotted timeout")))
    }

    /// A request of a user who may make it.
    async fn authorized(
        self: &Arc<Self>,
        user: User,
        info: &RequestInfo,
        query: &Query,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let registry = &self.engine.registry;
        if !info.version.is_empty()
            && let Some(remote) = self.aggregator.remote(registry, &info.group, &info.version).await?
        {
            return Ok(aggregator::forward(registry, &remote, &user, request).await);
        }
        if let Some(path) = info.path.strip_prefix("/openapi/v3/apis/")
            && let Some((group, version)) = path.split_once('/')
            && let Some(remote) = self.aggregator.remote(registry, group, version).await?
        {
            return Ok(aggregator::forward(registry, &remote, &user, request).await);
        }
        if !info.is_resource {
            return self.path(info, request.method(), request.headers()).await;
        }
        let kind = registry.kind(&info.group, &info.version, &info.resource).await?;
        self.resource(user, kind, info, query, request).await
    }

    fn impersonate(&self, user: User, headers: &http::HeaderMap) -> Result<User, Status> {
        let Some(wanted) = auth::impersonated(headers)? else { return Ok(user) };
        let check = |group: &str, resource: &str, name: &str, namespace: &str| {
            let asked = rbac::Attributes {
                verb: "impersonate",
                group,
                resource,
                name,
                namespace,
                is_resource: true,
                ..Default::default()
            };
            match self.authorizer.allows(&user, &asked) {
                Some(_) => Ok(()),
                None => Err(Status::forbidden(group, resource, name, rbac::refusal(&user, &asked))),
            }
        };
        match wanted.name.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':')) {
            Some((namespace, name)) => check("", "serviceaccounts", name, namespace)?,
            None => check("", "users", &wanted.name, "")?,
        }
        for group in wanted
            .groups
            .iter()
            .filter(|g| !g.starts_with("system:authenticated") && !g.starts_with("system:serviceaccounts"))
        {
            check("", "groups", group, "")?;
        }
        if !wanted.uid.is_empty() {
            check("authentication.k8s.io", "uids", &wanted.uid, "")?;
        }
        for (key, values) in &wanted.extra {
            for value in values {
                check("authentication.k8s.io", &format!("userextras/{key}"), value, "")?;
            }
        }
        Ok(wanted)
    }

    fn authorize(&self, user: &User, info: &RequestInfo) -> Result<(), Status> {
        let resource = info.resource_path();
        let asked = rbac::Attributes {
            verb: &info.verb,
            group: &info.group,
            resource: &resource,
            name: &info.name,
            namespace: &info.namespace,
            path: &info.path,
            is_resource: info.is_resource,
        };
        if self.authorizer.allows(user, &asked).is_some() {
            return Ok(());
        }
        // Whoever said nothing of himself is asked to, except where health is public.
        if user.is_anonymous() {
            return Err(Status::unauthorized());
        }
        let why = rbac::refusal(user, &asked);
        Err(if info.is_resource {
            Status::forbidden(&info.group, &info.resource, &info.name, why)
        } else {
            let mut status = Status::new(403, "Forbidden", why);
            status.details = json!({}).into();
            status
        })
    }

    /// Paths that are no resources.
    async fn path(
        &self,
        info: &RequestInfo,
        method: &Method,
        headers: &http::HeaderMap,
    ) -> Result<Response<Body>, Status> {
        let parts: Vec<&str> = info.path.split('/').filter(|p| !p.is_empty()).collect();
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        let registry = &self.engine.registry;
        let kinds = match parts.first() {
            None | Some(&("api" | "apis" | "openapi")) => registry.kinds().await?,
            _ => Vec::new(),
        };
        let listed = match parts.first() {
            None | Some(&("api" | "apis" | "openapi")) => self.aggregated(registry).await?,
            _ => Vec::new(),
        };
        Ok(match parts.as_slice() {
            [] => json_response(200, &root_paths(&kinds, &listed)),
            ["version"] => json_response(200, &version()),
            ["livez" | "healthz", ..] => text(200, "ok"),
            ["readyz", ..] => self.readyz().await,
            ["metrics"] => {
                respond(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics.text(&self.engine.registry))
            }
            ["api"] => discovery::core(&kinds, headers, &self.advertise.to_string()),
            ["apis"] => discovery::all(&kinds, &listed, headers),
            ["api", version] => {
                json_response(200, &discovery::resource_list(&kinds, "", version).ok_or_else(Status::no_such_resource)?)
            }
            ["apis", group] => {
                json_response(200, &discovery::api_group(&kinds, &listed, group).ok_or_else(Status::no_such_resource)?)
            }
            ["apis", group, version] => json_response(
                200,
                &discovery::resource_list(&kinds, group, version).ok_or_else(Status::no_such_resource)?,
            ),
            ["openapi", "v2"] => OpenApi::v2(registry, &kinds, headers),
            ["openapi", "v3"] => json_response(200, &OpenApi::index(registry, &kinds, &listed)),
            ["openapi", "v3", rest @ ..] => {
                self.openapi.answer(registry, &kinds, &rest.join("/"), headers).ok_or_else(Status::no_such_resource)?
            }
            [".well-known", "openid-configuration"] => json_response(
                200,
                &json!({
                    "issuer": auth::ISSUER,
                    "jwks_uri": format!("https://{}/openid/v1/jwks", self.advertise),
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["ES256"],
                }),
            ),
            ["api" | "apis", ..] => return Err(Status::no_such_resource()),
            // Whoever is lost is told where he could go.
            _ => json_response(404, &root_paths(&registry.kinds().await?, &self.aggregated(registry).await?)),
        })
    }

    /// The aggregated APIs with what their servers say of themselves.
    async fn aggregated(&self, registry: &Registry) -> Result<Vec<discovery::Aggregated>, Status> {
        let remotes = self.aggregator.remotes(registry).await?;
        let listed = remotes.iter().map(|(_, remote)| {
            let document = self.aggregator.documents().get(&remote.name);
            discovery::Aggregated { remote: remote.clone(), document }
        });
        Ok(listed.collect())
    }

    /// Not without the store: a load balancer leads elsewhere then.
    async fn readyz(&self) -> Response<Body> {
        let failed = |check: &str| text(500, format!("[-]{check} failed: reason withheld\nreadyz check failed\n"));
        if !self.ready.load(std::sync::atomic::Ordering::Acquire) {
            return failed("poststarthook");
        }
        match tokio::time::timeout(STORE_CHECK_TIMEOUT, self.engine.store.latest()).await {
            Ok(Ok(_)) => text(200, "ok"),
            _ => failed("etcd"),
        }
    }

    async fn resource(
        self: &Arc<Self>,
        user: User,
        kind: &'static Kind,
        info: &RequestInfo,
        query: &Query,
        request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        if kind.namespaced && info.namespace.is_empty() && !matches!(info.verb.as_str(), "list" | "watch") {
            return Err(Status::method_not_allowed());
        }
        if !info.subresource.is_empty() && !kind.has_subresource(&info.subresource) {
            return Err(Status::no_such_resource());
        }
        connect::admit(&self.engine, &user, kind, info, query).await?;
        if kind.plural == "pods" && ["log", "exec", "attach", "portforward"].contains(&info.subresource.as_str()) {
            return proxy::to_kubelet(&self.engine, &self.backends, info, query, request).await;
        }
        if info.subresource == "proxy" {
            return proxy::to_backend(&self.engine, &self.backends, info, request).await;
        }
        let (parts, body) = request.into_parts();
        let pretty = query.get("pretty").is_some_and(|p| p == "true" || p == "1");
        let accepted = render::negotiate(&parts.headers, pretty)?;
        if kind.group == skiff_api::kinds::METRICS {
            return usage::answer(self, kind, info, query, accepted).await;
        }
        let body = read_body(body).await?;
        let Some(resource) = self.engine.registry.stored(kind) else {
            return self.review(user, kind, info, query, &parts.headers, accepted, body).await;
        };
        let version = resource.version(kind.version);
        let headers = &parts.headers;
        let warnings = Warnings::default();
        let asked = Asked {
            info,
            query,
            headers,
            user: &user,
            kind,
            resource: &resource,
            version,
            accepted,
            body,
            warnings: warnings.clone(),
        };
        let mut response = self.verb(&asked).await.unwrap_or_else(|status| failure(&status));
        render::warn(&mut response, &warnings.take());
        Ok(response)
    }

    async fn verb(&self, asked: &Asked<'_>) -> Result<Response<Body>, Status> {
        let engine = &self.engine;
        let info = asked.info;
        match (info.subresource.as_str(), info.verb.as_str()) {
            ("", "get") => resources::get(engine, asked).await,
            ("", "list") => resources::list(engine, asked).await,
            ("", "watch") => watches::watch(engine, asked).await,
            ("", "create") if info.name.is_empty() => resources::create(engine, asked).await,
            ("", "update") if !info.name.is_empty() => resources::update(engine, asked, Part::Main).await,
            ("", "patch") if !info.name.is_empty() => resources::patch(engine, asked, Part::Main).await,
            ("", "delete") => resources::delete(engine, asked).await,
            ("", "deletecollection") if asked.kind.verbs().contains(&"deletecollection") => {
                resources::delete_collection(engine, asked).await
            }
            ("status" | "approval", "get") => resources::get(engine, asked).await,
            ("status" | "approval", "update") => resources::update(engine, asked, Part::Status).await,
            ("status" | "approval", "patch") => resources::patch(engine, asked, Part::Status).await,
            ("scale", "get" | "update" | "patch") => subresources::scale(engine, asked).await,
            ("binding", "create") => subresources::bind(engine, asked, &info.name).await,
            ("eviction", "create") => eviction::evict(engine, asked).await,
            ("token", "create") => subresources::token(engine, &self.authenticator.tokens, asked).await,
            ("finalize", "update") => subresources::finalize(engine, asked).await,
            ("ephemeralcontainers" | "resize", "get" | "update" | "patch") => {
                subresources::pod_part(engine, asked).await
            }
            _ => Err(Status::method_not_allowed()),
        }
    }

    /// Kinds of which nothing is kept.
    async fn review(
        &self,
        user: User,
        kind: &'static Kind,
        info: &RequestInfo,
        query: &Query,
        headers: &http::HeaderMap,
        accepted: render::Accepted,
        body: bytes::Bytes,
    ) -> Result<Response<Body>, Status> {
        if kind.kind == "ComponentStatus" {
            return self.component_status(info, accepted);
        }
        if info.verb != "create" {
            return Err(Status::method_not_allowed());
        }
        if kind.kind == "Binding" {
            let pods = self.engine.registry.builtin("", "pods");
            let asked = Asked {
                info,
                query,
                headers,
                user: &user,
                kind: pods.kind,
                resource: pods,
                version: None,
                accepted,
                body,
                warnings: Warnings::default(),
            };
            let binding = resources::decode_bytes(asked.media_type(), &asked.body)?.value;
            let name = binding["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            return subresources::bind(&self.engine, &asked, &name).await;
        }
        let media_type = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default();
        let options = crate::request::WriteOptions::parse(query)?;
        let (mut value, warnings) = resources::decode_object(
            kind,
            media_type,
            &body,
            options.field_validation,
            None,
            skiff_api::decode::Extent::Whole,
        )?;
        let attributes = Attributes {
            namespace: if kind.namespaced { info.namespace.clone() } else { String::new() },
            ..Attributes::new(&user, Operation::Create, kind, "", &options)
        };
        self.engine.admission.ask(&attributes, &mut value).await?;
        let answer = match kind.kind {
            "TokenReview" => self.authenticator.review(value).await,
            "SelfSubjectRulesReview" => reviews::rules(&self.authorizer, value, &user)?,
            "SelfSubjectReview" => {
                let mut value = value;
                value["status"] = json!({"userInfo": reviews::user_value(&user)});
                value
            }
            _ => reviews::access(&self.authorizer, kind, &info.namespace, value, &user)?,
        };
        let mut response = encoded(accepted, 201, answer.to_string().into());
        render::warn(&mut response, &warnings);
        Ok(response)
    }

    /// The old way to ask whether the control plane is well.
    fn component_status(&self, info: &RequestInfo, accepted: render::Accepted) -> Result<Response<Body>, Status> {
        let health = |name: &str| self.component_health.get().map_or(Ok(()), |health| health(name));
        let component = |name: &str| {
            let condition = match health(name) {
                Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
                Err(error) => json!({"type": "Healthy", "status": "False", "message": error}),
            };
            json!({
                "kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition],
            })
        };
        let names = ["scheduler", "controller-manager", "etcd-0"];
        let value = match info.verb.as_str() {
            "get" if names.contains(&info.name.as_str()) => component(&info.name),
            "get" => return Err(Status::not_found("", "componentstatuses", &info.name)),
            "list" if accepted.form == render::Form::Table => {
                let cells = |n: &&str| match health(n) {
                    Ok(()) => json!([n, "Healthy", "ok", ""]),
                    Err(error) => json!([n, "Unhealthy", error, ""]),
                };
                let row = |n: &&str| json!({"cells": cells(n), "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": n}}});
                let column = |n: &str, f: &str| json!({"name": n, "type": "string", "format": f, "description": n, "priority": 0});
                json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
                    "columnDefinitions": [column("Name", "name"), column("Status", ""), column("Message", ""), column("Error", "")],
                    "rows": names.iter().map(row).collect::<Vec<_>>(),
                })
            }
            "list" => {
                json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": names.map(component)})
            }
            _ => return Err(Status::method_not_allowed()),
        };
        let mut response = encoded(accepted, 200, value.to_string().into());
        render::warn(&mut response, &["v1 ComponentStatus is deprecated in v1.19+".to_owned()]);
        Ok(response)
    }

    /// Whether resources of a kind are served here at all, for those who enter in process.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.engine.registry
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn backends(&self) -> &Backends {
        &self.backends
    }

    pub(crate) fn aggregator(&self) -> &Aggregator {
        &self.aggregator
    }

    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Signs tokens of service accounts.
    pub fn tokens(&self) -> &Arc<ServiceAccountTokens> {
        &self.authenticator.tokens
    }

    /// A way in for a component of this process: its requests take the same path as those over HTTPS, as this user.
    pub fn in_process(self: &Arc<Self>, user: User) -> InProcess {
        InProcess { server: self.clone(), user: Arc::new(user) }
    }

    /// Lets clients in this process in, or cuts them off as if the server had ended. Those on the network are cut off
    /// by dropping [`serve`](Self::serve).
    pub fn set_open(&self, open: bool) {
        self.gate.set(open);
    }

    /// Who knows how the other components are; the first one counts.
    pub fn set_component_health(&self, health: ComponentHealth) {
        let _ = self.component_health.set(health);
    }

    /// Serves HTTPS on a listener until the future is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) -> std::io::Result<()> {
        let acceptor = tokio_rustls::TlsAcceptor::from(tls);
        // They end with the future.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                // Out of descriptors, or a client that is already gone: the next one may have more luck.
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (server, acceptor) = (self.clone(), acceptor.clone());
            connections.spawn(async move {
                if let Err(error) = server.connection(stream, acceptor).await {
                    tracing::debug!(error, "connection ended");
                }
            });
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: tokio::net::TcpStream,
        acceptor: tokio_rustls::TlsAcceptor,
    ) -> Result<(), BoxError> {
        const HANDSHAKE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
        let user = certificate.and_then(|c| auth::user_of_certificate(c)).map(Arc::new);
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let (server, user) = (self.clone(), user.clone());
            async move {
                let request = request.map(|b| b.map_err(BoxError::from).boxed_unsync());
                Ok::<_, Infallible>(server.handle(user, request).await)
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().max_concurrent_streams(1000).adaptive_window(true);
        builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await
    }
}

/// Subresources that are streams of their own length.
fn proxies(subresource: &str) -> bool {
    ["log", "exec", "attach", "portforward", "proxy"].contains(&subresource)
}

fn root_paths(kinds: &[&'static Kind], aggregated: &[discovery::Aggregated]) -> Value {
    let mut paths: Vec<String> =
        vec!["/.well-known/openid-configuration".into(), "/api".into(), "/api/v1".into(), "/apis".into()];
    for (group, version) in discovery::group_versions(kinds).into_iter().filter(|(g, _)| !g.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    for of in aggregated {
        paths.push(format!("/apis/{}", of.remote.group));
        paths.push(format!("/apis/{}/{}", of.remote.group, of.remote.version));
    }
    for path in ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"] {
        paths.push(path.into());
    }
    paths.sort();
    paths.dedup();
    json!({ "paths": paths })
}

/// `/version`.
fn version() -> Value {
    let version = crate::KUBERNETES_VERSION;
    let minor = version.split('.').nth(1).unwrap_or_default();
    json!({
        "major": "1",
        "minor": minor,
        "emulationMajor": "1",
        "emulationMinor": minor,
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": minor,
        "gitVersion": crate::git_version(),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }),
    })
}

/// See [`ApiServer::in_process`]; a service that clients in the same process call.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<ApiServer>,
    user: Arc<User>,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, user) = (self.server.clone(), self.user.clone());
        let request = request
            .map(|b| if b.is_end_stream() { full(bytes::Bytes::new()) } else { b.map_err(Into::into).boxed_unsync() });
        Box::pin(async move {
            server.gate.pass(server.advertise)?;
            let response = server.clone().handle(Some(user), request).await;
            Ok(server.gate.guard(response))
        })
    }
}
