//! What a pod's `/etc/resolv.conf` and `/etc/hosts` say, and its host name.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod};
use skiff_cri::v1::DnsConfig;

use crate::pod::PodExt;

/// The option that pods with cluster DNS get, so that short names of Services are searched for.
const CLUSTER_OPTIONS: &str = "ndots:5";
/// Limits of the resolver, of which the rest is left out.
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// Longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 63;

/// What the node knows of DNS.
pub(crate) struct NodeDns<'a> {
    pub(crate) cluster_dns: &'a [IpAddr],
    pub(crate) cluster_domain: &'a str,
    /// Content of the node's resolver configuration.
    pub(crate) resolv_conf: &'a str,
}

/// Reads a resolver configuration.
pub(crate) fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let rest = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect::<Vec<_>>();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            // The last one counts.
            Some("search") => {
                config.searches = rest(words).into_iter().map(|s| s.trim_end_matches('.').to_owned()).collect();
            }
            Some("options") => config.options = rest(words),
            _ => {}
        }
    }
    config
}

/// The pod's resolver configuration by its DNS policy.
pub(crate) fn dns_config(pod: &Pod, node: &NodeDns<'_>) -> DnsConfig {
    let spec = PodExt::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod.host_network(),
        _ => false,
    };
    let host = || parse_resolv_conf(node.resolv_conf);
    let mut config = match policy {
        "None" => DnsConfig::default(),
        _ if cluster && !node.cluster_dns.is_empty() => {
            let domain = node.cluster_domain;
            let own = [format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.to_owned()];
            let searches = own.into_iter().chain(host().searches).collect();
            DnsConfig {
                servers: node.cluster_dns.iter().map(IpAddr::to_string).collect(),
                searches,
                options: vec![CLUSTER_OPTIONS.to_owned()],
            }
        }
        _ => host(),
    };
    if let Some(own) = &spec.dns_config {
        config.servers.extend(own.nameservers.iter().flatten().cloned());
        config.searches.extend(own.searches.iter().flatten().map(|s| s.trim_end_matches('.').to_owned()));
        for option in own.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            config.options.retain(|o| o.split(':').next() != Some(name));
            config.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            });
        }
    }
    dedup(&mut config.servers);
    dedup(&mut config.searches);
    config.servers.truncate(MAX_SERVERS);
    config.searches.truncate(MAX_SEARCHES);
    while config.searches.join(" ").len() > MAX_SEARCH_CHARS {
        config.searches.pop();
    }
    config
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// The pod's host name, and its DNS domain if it has one.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = PodExt::spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return (name.to_owned(), None);
    }
    let name = match spec.hostname.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => name.to_owned(),
        None => {
            let name: String = pod.name().chars().take(MAX_HOSTNAME).collect();
            name.trim_end_matches(['-', '.']).to_owned()
        }
    };
    let domain = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    (name, domain.map(|sub| format!("{sub}.{}.svc.{cluster_domain}", pod.namespace())))
}

/// The host name that the kernel shows in the pod.
pub(crate) fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (name, domain) = hostname(pod, cluster_domain);
    match domain {
        Some(domain) if PodExt::spec(pod).set_hostname_as_fqdn == Some(true) => {
            let full = format!("{name}.{domain}");
            if full.len() > 64 {
                return Err(format!(
                    "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
                    full.len()
                ));
            }
            Ok(full)
        }
        _ => Ok(name),
    }
}

/// The pod's `/etc/hosts`. `node_hosts` is the node's own file, for pods in its network.
pub(crate) fn hosts_file(pod: &Pod, pod_ips: &[String], cluster_domain: &str, node_hosts: Option<&str>) -> String {
    let mut text = match node_hosts {
        Some(hosts) => format!("# Kubernetes-managed hosts file (host network).\n{hosts}"),
        None => {
            let mut text = String::from("# Kubernetes-managed hosts file.\n");
            text.push_str("127.0.0.1\tlocalhost\n");
            text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
            text.push_str(
                "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
            );
            let (name, domain) = hostname(pod, cluster_domain);
            for ip in pod_ips {
                match &domain {
                    Some(domain) => text.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n")),
                    None => text.push_str(&format!("{ip}\t{name}\n")),
                }
            }
            text
        }
    };
    text.push_str(&aliases(PodExt::spec(pod).host_aliases.as_deref().unwrap_or_default()));
    text
}

fn aliases(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RESOLV: &str = "# made by hand\nnameserver 192.0.2.1\nsearch example.com.\noptions edns0\n";

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "n"}, "spec": spec})).unwrap()
    }

    fn config(spec: serde_json::Value) -> DnsConfig {
        let dns = ["10.96.0.10".parse().unwrap()];
        dns_config(&pod(spec), &NodeDns { cluster_dns: &dns, cluster_domain: "cluster.local", resolv_conf: RESOLV })
    }

    #[test]
    fn by_policy() {
        let cluster = config(json!({"containers": []}));
        assert_eq!(cluster.servers, ["10.96.0.10"]);
        assert_eq!(cluster.searches, ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"]);
        assert_eq!(cluster.options, ["ndots:5"]);
        let host = config(json!({"containers": [], "hostNetwork": true}));
        assert_eq!((host.servers, host.options), (vec!["192.0.2.1".to_owned()], vec!["edns0".to_owned()]));
        let default = config(json!({"containers": [], "dnsPolicy": "Default"}));
        assert_eq!(default.servers, ["192.0.2.1"]);
        let own =
            json!({"nameservers": ["192.0.2.7"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}]});
        let none = config(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own.clone()}));
        assert_eq!((none.servers, none.options), (vec!["192.0.2.7".to_owned()], vec!["ndots:2".to_owned()]));
        assert_eq!(config(json!({"containers": [], "dnsConfig": own})).options, ["ndots:2"]);
    }

    #[test]
    fn host_names_and_hosts() {
        let pod = pod(json!({
            "containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["x", "y"]}],
        }));
        let hosts = hosts_file(&pod, &["10.0.0.2".into()], "cluster.local", None);
        assert!(hosts.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(hosts.contains("10.0.0.2\th.s.n.svc.cluster.local\th\n"));
        assert!(hosts.ends_with("\n# Entries added by HostAliases.\n192.0.2.9\tx\ty\n"));
        assert_eq!(kernel_hostname(&pod, "cluster.local").unwrap(), "h");
    }
}
