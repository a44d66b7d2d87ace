//! Where requests go: a value made of all Ingresses, and a pure function from host and path to a target.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::EndpointSlice,
    networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressServiceBackend},
};
use regex::{Regex, RegexBuilder};
use rustls::sign::CertifiedKey;

use crate::annotations::{self, Settings};

/// All routes at one moment.
#[derive(Debug, Default)]
pub struct Routes {
    hosts: HashMap<String, Host>,
    /// By what follows the `*` of a wildcard, with its dot.
    wildcards: HashMap<String, Host>,
    /// Rules without a host.
    any: Host,
    /// For what no rule is for.
    default: Option<Arc<Target>>,
}

/// The rules of a host.
#[derive(Debug, Default)]
struct Host {
    /// The one that counts first.
    locations: Vec<Location>,
    /// Of the Ingress that named the host first.
    default: Option<Arc<Target>>,
    /// Certificate if there is one; `Some(None)`: TLS with the fallback certificate.
    tls: Option<Option<Arc<CertifiedKey>>>,
}

#[derive(Debug)]
struct Location {
    matcher: Matcher,
    /// As the rule has it.
    path: String,
    target: Arc<Target>,
}

#[derive(Debug)]
enum Matcher {
    Exact,
    /// Whole elements of the path; kept without a slash at the end.
    Elements(String),
    Regex(Regex),
}

impl Matcher {
    fn matches(&self, rule: &str, path: &str) -> bool {
        match self {
            Self::Exact => rule == path,
            Self::Elements(prefix) => {
                path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

/// Where a rule leads.
#[derive(Debug)]
pub struct Target {
    /// `namespace/name` of the Ingress.
    pub ingress: String,
    pub settings: Arc<Settings>,
    pub backend: Backend,
    next: AtomicUsize,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Ready endpoints of a Service; none if it does not exist, or none is ready.
    Endpoints(Vec<SocketAddr>),
    /// A name outside, of a Service of type ExternalName.
    Name(String, u16),
}

impl Target {
    /// The endpoints in the order in which they are to be tried: each request begins with another one.
    pub fn in_turn(&self) -> Vec<String> {
        match &self.backend {
            Backend::Name(name, port) => vec![format!("{name}:{port}")],
            Backend::Endpoints(endpoints) if endpoints.is_empty() => Vec::new(),
            Backend::Endpoints(endpoints) => {
                let first = self.next.fetch_add(1, Ordering::Relaxed) % endpoints.len();
                endpoints.iter().cycle().skip(first).take(endpoints.len()).map(ToString::to_string).collect()
            }
        }
    }
}

/// A request's target, and what it needs of the rule.
#[derive(Debug)]
pub struct Found {
    pub target: Arc<Target>,
    /// The path that pods see, if it differs.
    pub path: Option<String>,
    /// Whether the host has TLS.
    pub tls: bool,
}

impl Routes {
    /// The rules that count for a host: its own, a wildcard's, those of any host.
    fn host(&self, name: &str) -> Option<&Host> {
        let wildcard = || self.wildcards.get(&name[name.find('.')?..]);
        self.hosts.get(name).or_else(wildcard)
    }

    /// Where a request leads. `host` in lower case and without a port, `path` without a query.
    pub fn find(&self, host: &str, path: &str) -> Option<Found> {
        let rules = self.host(host).unwrap_or(&self.any);
        let found = rules.locations.iter().find(|location| location.matcher.matches(&location.path, path));
        let tls = rules.tls.is_some();
        match found {
            Some(location) => Some(Found { target: location.target.clone(), path: location.rewritten(path), tls }),
            None => {
                let target = rules.default.as_ref().or(self.default.as_ref())?;
                Some(Found { target: target.clone(), path: None, tls })
            }
        }
    }

    /// The certificate of a host; the fallback one counts where there is none.
    pub fn certificate(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        self.host(host)?.tls.clone().flatten()
    }
}

impl Location {
    fn rewritten(&self, path: &str) -> Option<String> {
        let target = self.target.settings.rewrite.as_ref()?;
        let Matcher::Regex(regex) = &self.matcher else {
            return None;
        };
        // The path as a whole is replaced.
        let captures = regex.captures(path)?;
        let mut rewritten = String::new();
        captures.expand(&braced(target), &mut rewritten);
        if !rewritten.starts_with('/') {
            rewritten.insert(0, '/');
        }
        Some(rewritten)
    }
}

/// `$1` as `${1}`: otherwise `$1x` would mean a group of the name `1x`.
fn braced(target: &str) -> String {
    let mut out = String::with_capacity(target.len());
    let mut characters = target.chars().peekable();
    while let Some(character) = characters.next() {
        out.push(character);
        if character == '$' && characters.peek().is_some_and(char::is_ascii_digit) {
            out.push('{');
            while let Some(digit) = characters.next_if(char::is_ascii_digit) {
                out.push(digit);
            }
            out.push('}');
        }
    }
    out
}

/// What routes are made of beside Ingresses.
pub trait Objects {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    /// The certificate in a Secret.
    fn certificate(&mut self, namespace: &str, secret: &str) -> Option<Arc<CertifiedKey>>;
}

/// Makes the routes of these Ingresses. Where two say something of the same, the older one counts.
pub fn build(ingresses: &[Arc<Ingress>], objects: &mut dyn Objects) -> Routes {
    let mut sorted: Vec<&Arc<Ingress>> = ingresses.iter().collect();
    sorted.sort_by_key(|i| {
        let created = i.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, i.metadata.namespace.clone(), i.metadata.name.clone())
    });
    let mut routes = Routes::default();
    for ingress in sorted {
        add(&mut routes, ingress, objects);
    }
    let Routes { hosts, wildcards, any, .. } = &mut routes;
    for host in hosts.values_mut().chain(wildcards.values_mut()).chain([any]) {
        // Stable: of equal paths the one that came first.
        host.locations.sort_by_key(|location| {
            let kind = u8::from(!matches!(location.matcher, Matcher::Exact));
            (std::cmp::Reverse(location.path.trim_end_matches('/').len()), kind)
        });
    }
    routes
}

fn add(routes: &mut Routes, ingress: &Ingress, objects: &mut dyn Objects) {
    let (Some(namespace), Some(name)) = (&ingress.metadata.namespace, &ingress.metadata.name) else {
        return;
    };
    let Some(spec) = &ingress.spec else { return };
    let key = format!("{namespace}/{name}");
    let (settings, faults) = annotations::parse(ingress.metadata.annotations.as_ref());
    for fault in faults {
        tracing::warn!(ingress = key, fault, "annotation");
    }
    let settings = Arc::new(settings);
    let target = |backend: &IngressBackend, objects: &mut dyn Objects| {
        let service = backend.service.as_ref();
        Arc::new(Target {
            ingress: key.clone(),
            settings: settings.clone(),
            backend: service.map_or(Backend::Endpoints(Vec::new()), |service| resolve(namespace, service, objects)),
            next: AtomicUsize::new(0),
        })
    };
    let default = spec.default_backend.as_ref().map(|backend| target(backend, objects));
    if routes.default.is_none() {
        routes.default = default.clone();
    }
    for rule in spec.rules.iter().flatten() {
        let host = host_of(routes, rule.host.as_deref().unwrap_or_default());
        if host.default.is_none() {
            host.default = default.clone();
        }
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            match matcher(path, settings.regex) {
                Ok(matcher) => host.locations.push(Location {
                    matcher,
                    path: path.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()),
                    target: target(&path.backend, objects),
                }),
                Err(error) => tracing::warn!(ingress = key, %error, "path"),
            }
        }
    }
    for tls in spec.tls.iter().flatten() {
        let secret = tls.secret_name.as_deref().filter(|name| !name.is_empty());
        let certificate = secret.and_then(|name| objects.certificate(namespace, name));
        // Without names it is for all of the Ingress.
        let own = || spec.rules.iter().flatten().filter_map(|rule| rule.host.as_deref());
        let named: Vec<&str> = tls.hosts.iter().flatten().map(String::as_str).collect();
        let names: Vec<&str> = if named.is_empty() { own().collect() } else { named };
        for name in names {
            let host = host_of(routes, name);
            if !matches!(host.tls, Some(Some(_))) {
                host.tls = Some(certificate.clone());
            }
        }
    }
}

fn host_of<'a>(routes: &'a mut Routes, name: &str) -> &'a mut Host {
    let name = name.to_ascii_lowercase();
    match (name.is_empty(), name.strip_prefix('*')) {
        (true, _) => &mut routes.any,
        (false, Some(suffix)) => routes.wildcards.entry(suffix.to_owned()).or_default(),
        (false, None) => routes.hosts.entry(name).or_default(),
    }
}

fn matcher(rule: &HTTPIngressPath, regex: bool) -> Result<Matcher, regex::Error> {
    let path = rule.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    if rule.path_type == "Exact" {
        return Ok(Matcher::Exact);
    }
    if regex {
        return RegexBuilder::new(&format!("^{path}")).case_insensitive(true).build().map(Matcher::Regex);
    }
    Ok(Matcher::Elements(path.trim_end_matches('/').to_owned()))
}

fn resolve(namespace: &str, backend: &IngressServiceBackend, objects: &dyn Objects) -> Backend {
    let none = Backend::Endpoints(Vec::new());
    let Some(service) = objects.service(namespace, &backend.name) else {
        return none;
    };
    let Some(spec) = &service.spec else { return none };
    let wanted = backend.port.as_ref();
    if spec.type_.as_deref() == Some("ExternalName") {
        let number = wanted.and_then(|port| u16::try_from(port.number?).ok()).unwrap_or(80);
        return spec.external_name.clone().map_or(none, |name| Backend::Name(name, number));
    }
    let is_wanted = |port: &&k8s_openapi::api::core::v1::ServicePort| match wanted {
        Some(wanted) => match &wanted.name {
            Some(name) => port.name.as_ref() == Some(name),
            None => wanted.number == Some(port.port),
        },
        None => false,
    };
    let Some(port) = spec.ports.iter().flatten().find(is_wanted) else {
        return none;
    };
    let name = port.name.as_deref().unwrap_or_default();
    let mut found: Vec<SocketAddr> = Vec::new();
    for slice in objects.slices(namespace, &backend.name) {
        let number = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or_default() == name);
        let Some(number) = number.and_then(|p| u16::try_from(p.port?).ok()) else {
            continue;
        };
        let is_ready = |conditions: Option<bool>| conditions.unwrap_or(true);
        for endpoint in slice.endpoints.iter().flatten() {
            if is_ready(endpoint.conditions.as_ref().and_then(|conditions| conditions.ready)) {
                let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
                found.extend(addresses.map(|address| SocketAddr::new(address, number)));
            }
        }
    }
    found.sort();
    found.dedup();
    Backend::Endpoints(found)
}

#[cfg(test)]
mod tests;
