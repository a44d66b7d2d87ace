//! Credentials for registries from a pod's `imagePullSecrets`.

use std::{collections::BTreeMap, sync::Arc};

use base64::Engine as _;
use k8s_openapi::api::core::v1::{Pod, Secret};
use serde::Deserialize;
use skiff_cri::v1::AuthConfig;

use crate::{kubelet::Kubelet, pod::PodExt};

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Clone, Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

/// The Secrets that a pod names for pulling. What is not there is left out; the pull then fails or works without.
pub(super) async fn of_pod(kubelet: &Kubelet, pod: &Pod) -> Vec<Arc<Secret>> {
    let mut found = Vec::new();
    for reference in PodExt::spec(pod).image_pull_secrets.iter().flatten() {
        match kubelet.secrets.get(pod.namespace(), &reference.name, &pod.uid()).await {
            Ok(Some(secret)) => found.push(secret),
            Ok(None) | Err(_) => {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    reference.name
                );
                kubelet.pod_warning(pod, "FailedToRetrieveImagePullSecret", &message);
            }
        }
    }
    found
}

/// Those credentials of the Secrets that are for the registry of an image, the most specific first.
pub(super) fn matching(secrets: &[Arc<Secret>], image: &str) -> Vec<AuthConfig> {
    let image = qualified(image);
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for secret in secrets {
        for (registry, entry) in entries(secret) {
            let registry = normalised(&registry);
            if covers(&registry, &image) {
                found.push((registry.len(), auth(&registry, entry)));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn entries(secret: &Secret) -> BTreeMap<String, Entry> {
    let data = secret.data.as_ref();
    let get = |key: &str| data.and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let parsed = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            get(".dockerconfigjson").map(|v| serde_json::from_slice::<DockerConfig>(v).map(|c| c.auths))
        }
        Some("kubernetes.io/dockercfg") => get(".dockercfg").map(serde_json::from_slice::<BTreeMap<String, Entry>>),
        _ => None,
    };
    match parsed {
        Some(Ok(entries)) => entries,
        Some(Err(error)) => {
            tracing::warn!(secret = ?secret.metadata.name, %error, "a pull secret cannot be read");
            BTreeMap::new()
        }
        None => BTreeMap::new(),
    }
}

fn auth(registry: &str, entry: Entry) -> AuthConfig {
    let mut config = AuthConfig {
        username: entry.username,
        password: entry.password,
        identity_token: entry.identity_token,
        server_address: registry.to_owned(),
        ..AuthConfig::default()
    };
    if let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim())
        && let Some((user, password)) = String::from_utf8_lossy(&decoded).split_once(':')
    {
        config.username = user.to_owned();
        config.password = password.trim_end_matches('\0').to_owned();
    }
    config
}

/// The registry as images name it: no scheme, no API version, Docker Hub by its one name.
fn normalised(registry: &str) -> String {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" | "docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// With the registry that is meant when none is named.
fn qualified(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    }
}

/// Whether an entry is for the image: same host (`*` stands for one label), and its path is a prefix.
fn covers(registry: &str, image: &str) -> bool {
    let (host, path) = registry.split_once('/').unwrap_or((registry, ""));
    let (image_host, image_path) = image.split_once('/').unwrap_or((image, ""));
    let labels = |host: &str| host.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (pattern, labels) = (labels(host), labels(image_host));
    let same_host = pattern.len() == labels.len() && pattern.iter().zip(&labels).all(|(p, l)| p == "*" || p == l);
    same_host && (path.is_empty() || image_path.starts_with(path))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn the_most_specific_entry_first() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "example.com": {"username": "all", "password": "p"},
            "example.com/team": {"username": "team", "password": "p"},
            "*.example.org": {"username": "star", "password": "p"}
        }}"#;
        let secret = Arc::new(Secret {
            type_: Some("kubernetes.io/dockerconfigjson".into()),
            data: Some([(".dockerconfigjson".to_owned(), ByteString(config.into()))].into()),
            ..Secret::default()
        });
        let users = |image: &str| -> Vec<String> {
            matching(std::slice::from_ref(&secret), image).into_iter().map(|a| a.username).collect()
        };
        assert_eq!(users("nginx:latest"), ["hub"]);
        assert_eq!(users("example.com/team/x:1"), ["team", "all"]);
        assert_eq!(users("a.example.org/x:1"), ["star"]);
        assert!(users("other.com/x").is_empty());
    }
}
