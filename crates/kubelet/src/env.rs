//! A container's environment: `envFrom`, `env`, and the Services of the namespace.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};

use crate::{
    expansion::expand,
    fields::{self, Addresses, Allocatable},
    pod::PodExt,
};

/// The ConfigMaps and Secrets that a container's environment names. `None`: looked for and not there.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    pub(crate) secrets: HashMap<String, Option<Arc<Secret>>>,
}

/// Names of the ConfigMaps and Secrets to look up for [`environment`].
pub(crate) fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (config_maps, secrets)
}

/// What the environment is made of besides the pod itself.
pub(crate) struct Context<'a> {
    pub(crate) sources: &'a Sources,
    pub(crate) services: &'a [Arc<Service>],
    pub(crate) addresses: &'a Addresses,
    pub(crate) allocatable: &'a Allocatable,
}

/// Name and value of each variable, in order. The error is the message of `CreateContainerConfigError`.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    context: &Context<'_>,
) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut result = Environment::default();
    let links = PodExt::spec(pod).enable_service_links.unwrap_or(true);
    let service_env = service_environment(context.services, pod.namespace(), links);
    let services: HashMap<&str, &str> = service_env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();

    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match config_map(context.sources, &reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        result.set_checked(format!("{prefix}{key}"), value.clone().into_bytes());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match secret(context.sources, &reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        result.set_checked(format!("{prefix}{key}"), value.0.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(value), None) => Some(
                expand(value, |name| result.get(name).or_else(|| services.get(name).map(|v| (*v).to_owned())))
                    .into_bytes(),
            ),
            (_, Some(source)) => value_from(pod, container, source, context)?,
            (None, None) => Some(Vec::new()),
        };
        if let Some(value) = value {
            result.set(var.name.clone(), value);
        }
    }
    for (name, value) in service_env {
        if !result.values.contains_key(&name) {
            result.set(name, value.into_bytes());
        }
    }
    let Environment { order, mut values } = result;
    Ok(order.into_iter().filter_map(|name| values.remove_entry(&name)).collect())
}

/// `None` for an optional key that is not there: the variable is not set.
fn value_from(
    pod: &Pod,
    container: &Container,
    source: &k8s_openapi::api::core::v1::EnvVarSource,
    context: &Context<'_>,
) -> Result<Option<Vec<u8>>, String> {
    let namespace = pod.namespace();
    if let Some(selector) = &source.field_ref {
        return fields::field(pod, context.addresses, &selector.field_path).map(|v| Some(v.into_bytes()));
    }
    if let Some(selector) = &source.resource_field_ref {
        let of = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
            None => container.clone(),
            Some(name) => pod
                .all_containers()
                .into_iter()
                .map(|(_, c)| c)
                .find(|c| c.name == name)
                .ok_or_else(|| format!("container {name} not found"))?,
        };
        return fields::resource(selector, &of, context.allocatable).map(|v| Some(v.into_bytes()));
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let Some(map) = config_map(context.sources, &selector.name) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", selector.name)) };
        };
        let value = map.data.as_ref().and_then(|data| data.get(&selector.key));
        return match value {
            Some(value) => Ok(Some(value.clone().into_bytes())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", selector.key, selector.name)),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let Some(secret) = secret(context.sources, &selector.name) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", selector.name)) };
        };
        let value = secret.data.as_ref().and_then(|data| data.get(&selector.key));
        return match value {
            Some(value) => Ok(Some(value.0.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", selector.key, selector.name)),
        };
    }
    Err("unsupported source of an environment variable".to_owned())
}

fn config_map<'a>(sources: &'a Sources, name: &str) -> Option<&'a ConfigMap> {
    sources.config_maps.get(name)?.as_deref()
}

fn secret<'a>(sources: &'a Sources, name: &str) -> Option<&'a Secret> {
    sources.secrets.get(name)?.as_deref()
}

/// Variables in the order in which they were first set.
#[derive(Default)]
struct Environment {
    order: Vec<String>,
    values: HashMap<String, Vec<u8>>,
}

impl Environment {
    fn set(&mut self, name: String, value: Vec<u8>) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    /// Leaves out what cannot be the name of a variable, as a ConfigMap's key may.
    fn set_checked(&mut self, name: String, value: Vec<u8>) {
        if !name.is_empty() && !name.contains('=') && name.is_ascii() {
            self.set(name, value);
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).map(|v| String::from_utf8_lossy(v).into_owned())
    }
}

/// `X_SERVICE_HOST` and its like, for the Services of the namespace if `links`, and for the API server's own.
pub(crate) fn service_environment(services: &[Arc<Service>], namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut chosen: Vec<&Service> = services
        .iter()
        .map(|s| &**s)
        .filter(|s| {
            let (of, name) = (s.metadata.namespace.as_deref(), s.metadata.name.as_deref());
            let master = of == Some("default") && name == Some("kubernetes");
            let own = of == Some(namespace) && links;
            // A Service of the same name in the pod's own namespace wins.
            own || (master && !(links && services.iter().any(|o| shadows_master(o, namespace))))
        })
        .filter(|s| {
            let ip = s.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default();
            !ip.is_empty() && ip != "None"
        })
        .collect();
    chosen.sort_by_key(|s| s.metadata.name.clone());
    let mut out = Vec::new();
    for service in chosen {
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        let name = upper(service.metadata.name.as_deref().unwrap_or_default());
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        out.push((format!("{name}_SERVICE_HOST"), ip.to_owned()));
        out.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                out.push((format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string()));
            }
        }
        for (i, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
            if i == 0 {
                out.push((format!("{name}_PORT"), url.clone()));
            }
            out.push((prefix.clone(), url));
            out.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            out.push((format!("{prefix}_PORT"), port.port.to_string()));
            out.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    out
}

fn shadows_master(service: &Service, namespace: &str) -> bool {
    namespace != "default"
        && service.metadata.namespace.as_deref() == Some(namespace)
        && service.metadata.name.as_deref() == Some("kubernetes")
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn env(container: serde_json::Value, sources: &Sources) -> Result<Vec<(String, String)>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [], "enableServiceLinks": true},
        }))
        .unwrap();
        let service = |namespace: &str, name: &str, ip: &str, port: u16| -> Arc<Service> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name, "namespace": namespace},
                    "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": port, "protocol": "TCP"}]},
                }))
                .unwrap(),
            )
        };
        let services = [
            service("default", "kubernetes", "10.96.0.1", 443),
            service("n", "my-db", "10.96.0.7", 5432),
            service("n", "headless", "None", 1),
            service("other", "x", "10.96.0.9", 1),
        ];
        let context = Context {
            sources,
            services: &services,
            addresses: &Addresses::default(),
            allocatable: &Allocatable::default(),
        };
        let made = environment(&pod, &serde_json::from_value(container).unwrap(), &context)?;
        Ok(made.into_iter().map(|(k, v)| (k, String::from_utf8(v).unwrap())).collect())
    }

    #[test]
    fn own_variables_first_then_services() {
        let made = env(
            json!({"name": "c", "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "value": "$(A)-$(MY_DB_SERVICE_HOST)-$(NO)"},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]}),
            &Sources::default(),
        )
        .unwrap();
        let get = |name: &str| made.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        assert_eq!(made[0], ("A".into(), "1".into()));
        assert_eq!(get("B"), Some("1-10.96.0.7-$(NO)"));
        assert_eq!(get("POD"), Some("p"));
        assert_eq!(get("MY_DB_PORT_5432_TCP"), Some("tcp://10.96.0.7:5432"));
        assert_eq!(get("KUBERNETES_SERVICE_PORT"), Some("443"));
        assert_eq!(get("MY_DB_SERVICE_PORT_HTTP"), Some("5432"));
        assert_eq!(get("X_SERVICE_HOST"), None);
        assert_eq!(get("HEADLESS_SERVICE_HOST"), None);
    }

    #[test]
    fn missing_objects_and_keys_are_upstreams_messages() {
        let key = |optional| json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": optional}}}]});
        assert_eq!(env(key(false), &Sources::default()).unwrap_err(), "configmap \"m\" not found");
        let map = Arc::new(ConfigMap { data: Some([("x".into(), "y".into())].into()), ..Default::default() });
        let sources = Sources { config_maps: [("m".into(), Some(map))].into(), ..Default::default() };
        assert_eq!(env(key(false), &sources).unwrap_err(), "couldn't find key k in ConfigMap n/m");
        assert!(env(key(true), &sources).unwrap().iter().all(|(k, _)| k != "A"));
        let from = json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}]});
        assert_eq!(env(from, &sources).unwrap()[0], ("P_x".into(), "y".into()));
    }
}
