//! Credentials for registries as docker keeps them: the content of Secrets of the types
//! `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`, and a user's `~/.docker/config.json`.

use std::collections::BTreeMap;

use base64::Engine as _;
use serde::Deserialize;

/// What a file says of registries. Parts of it that are not about credentials are not looked at.
#[derive(Debug, Default, Deserialize)]
pub struct DockerConfig {
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

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry")
    }
}

/// Credentials for one registry, or a part of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Host, and perhaps the beginning of repositories: `example.com/team`.
    pub registry: String,
    pub username: String,
    pub password: String,
    /// Instead of a password; empty if there is none.
    pub identity_token: String,
}

impl DockerConfig {
    /// Reads `config.json`.
    pub fn parse(json: &[u8]) -> Result<DockerConfig, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Reads the older form, which is the list of registries alone.
    pub fn parse_entries(json: &[u8]) -> Result<DockerConfig, serde_json::Error> {
        Ok(DockerConfig { auths: serde_json::from_slice(json)? })
    }

    /// Those for the registry of an image, in no order.
    pub fn matching(&self, image: &str) -> Vec<Credentials> {
        let image = qualified(image);
        let all = self.auths.iter().map(|(registry, entry)| (normalised(registry), entry));
        all.filter(|(registry, _)| covers(registry, &image))
            .map(|(registry, entry)| entry.credentials(registry))
            .collect()
    }
}

impl Entry {
    fn credentials(&self, registry: String) -> Credentials {
        let Entry { username, password, auth, identity_token } = self.clone();
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.trim()).unwrap_or_default();
        let (username, password) = match String::from_utf8_lossy(&decoded).split_once(':') {
            Some((user, password)) => (user.to_owned(), password.trim_end_matches('\0').to_owned()),
            None => (username, password),
        };
        Credentials { registry, username, password, identity_token }
    }
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
    use super::*;

    #[test]
    fn entries_are_for_registries_and_parts_of_them() {
        let config = DockerConfig::parse(
            br#"{"credsStore": "desktop", "auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
                "example.com": {"username": "all", "password": "p"},
                "example.com/team": {"username": "team", "password": "p"},
                "*.example.org": {"username": "star", "password": "p"}
            }}"#,
        )
        .unwrap();
        let users = |image: &str| config.matching(image).into_iter().map(|c| c.username).collect::<Vec<_>>();
        assert_eq!(users("nginx:latest"), ["hub"]);
        assert_eq!(config.matching("nginx")[0].password, "pw");
        assert_eq!(users("example.com/team/x:1"), ["all", "team"]);
        assert_eq!(users("a.example.org/x:1"), ["star"]);
        assert!(users("other.com/x").is_empty());
        assert!(!format!("{config:?}").contains("pw"), "no secret in a debug text");
    }

    #[test]
    fn the_older_form_is_the_list_alone() {
        let config = DockerConfig::parse_entries(br#"{"localhost:5000": {"auth": "YTpi"}}"#).unwrap();
        assert_eq!(config.matching("localhost:5000/x")[0].username, "a");
    }
}
