//! Credentials for registries from a pod's `imagePullSecrets`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Secret};
use skiff_api::docker_config::{Credentials, DockerConfig};
use skiff_cri::v1::AuthConfig;

use crate::{kubelet::Kubelet, pod::PodExt};

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
    let mut found: Vec<Credentials> = secrets.iter().flat_map(|secret| config(secret).matching(image)).collect();
    found.sort_by_key(|credentials| std::cmp::Reverse(credentials.registry.len()));
    let auth = |credentials: Credentials| AuthConfig {
        username: credentials.username,
        password: credentials.password,
        identity_token: credentials.identity_token,
        server_address: credentials.registry,
        ..AuthConfig::default()
    };
    found.into_iter().map(auth).collect()
}

fn config(secret: &Secret) -> DockerConfig {
    let data = secret.data.as_ref();
    let get = |key: &str| data.and_then(|d| d.get(key)).map(|v| v.0.as_slice());
    let parsed = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => get(".dockerconfigjson").map(DockerConfig::parse),
        Some("kubernetes.io/dockercfg") => get(".dockercfg").map(DockerConfig::parse_entries),
        _ => None,
    };
    parsed
        .transpose()
        .unwrap_or_else(|error| {
            tracing::warn!(secret = ?secret.metadata.name, %error, "a pull secret cannot be read");
            None
        })
        .unwrap_or_default()
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
