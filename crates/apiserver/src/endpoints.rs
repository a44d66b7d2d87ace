//! From a Service to the addresses that serve it.

use crate::{
    object::Filter,
    registry::{Registry, engine::cache_status},
};

/// An address that a Service leads to: host and port.
pub type Address = (String, u16);

/// A ready endpoint.
pub struct Endpoint {
    pub address: Address,
    /// The name of the pod that it is said to be.
    pub pod: Option<String>,
}

/// The ready endpoints behind the port of this name.
pub async fn ready(
    registry: &Registry,
    namespace: &str,
    service: &str,
    port_name: &str,
) -> Result<Vec<Endpoint>, skiff_api::Status> {
    let slices = registry.builtin("discovery.k8s.io", "endpointslices");
    let filter = Filter { namespace: namespace.to_owned(), ..Filter::default() };
    let listed = slices.cache.list(&filter, 0, None).await.map_err(|e| cache_status(&e))?;
    let mut found = Vec::new();
    for slice in listed.objects.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(service)) {
        let slice = slice.value();
        let ports = slice["ports"].as_array().into_iter().flatten();
        let number =
            ports.filter(|p| p["name"].as_str().unwrap_or_default() == port_name).find_map(|p| p["port"].as_u64());
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] != false
                && let Some(ip) = endpoint["addresses"][0].as_str()
            {
                let pod = endpoint["targetRef"]["name"].as_str().map(str::to_owned);
                found.push(Endpoint { address: (ip.to_owned(), number), pod });
            }
        }
    }
    Ok(found)
}

/// Whether there are endpoints of a Service at all.
pub fn any(registry: &Registry, namespace: &str, service: &str) -> bool {
    let slices = registry.builtin("discovery.k8s.io", "endpointslices");
    let all = slices.cache.peek_all();
    all.iter().any(|s| *s.namespace == *namespace && s.label("kubernetes.io/service-name") == Some(service))
}

/// Where a Service's port leads, for calls that the server makes itself. As upstream's server does it with
/// `--enable-aggregator-routing`: to the endpoints, which needs no packet rules on this machine.
pub async fn of_service(registry: &Registry, namespace: &str, name: &str, port: u16) -> Result<Vec<Address>, String> {
    let services = registry.builtin("", "services");
    let found = services.cache.get(&services.key(namespace, name)).await.map_err(|e| e.to_string())?;
    let service = found.ok_or_else(|| format!("service {name:?} not found"))?.value();
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        return Ok(vec![(spec["externalName"].as_str().unwrap_or_default().to_owned(), port)]);
    }
    let found = spec["ports"].as_array().into_iter().flatten().find(|p| p["port"] == port);
    let Some(found) = found else { return Err(format!("no service port {port} found for service {name:?}")) };
    let port_name = found["name"].as_str().unwrap_or_default();
    let addresses = ready(registry, namespace, name, port_name).await.map_err(|e| e.message)?;
    match addresses.is_empty() {
        true => Err(format!("no endpoints available for service {name:?}")),
        false => Ok(addresses.into_iter().map(|endpoint| endpoint.address).collect()),
    }
}
