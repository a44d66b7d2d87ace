//! Where the API server is and how to prove who one is: given directly, from a kubeconfig file, or
//! from what every pod finds in its file system.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

/// Where the kubelet mounts a pod's service account.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How to reach and authenticate to an API server over HTTPS.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host:port`, optionally with a path prefix.
    pub server: String,
    /// Certificate authorities to trust. Empty trusts nobody.
    pub ca: Pem,
    /// The name to expect in the server's certificate, if it is not the host of `server`.
    pub tls_server_name: Option<String>,
    /// Who we are.
    pub credentials: Credentials,
    /// For requests that name none.
    pub default_namespace: String,
    /// Names the component to the server, which derives field managers from it: `name/version …`.
    pub user_agent: String,
}

/// PEM text, or a file that holds it. Files are looked at again for every new connection, so that
/// renewed certificates come into use without a restart.
#[derive(Clone)]
pub enum Pem {
    /// The text itself.
    Inline(Vec<u8>),
    /// Where to find it.
    File(PathBuf),
}

impl Pem {
    /// The text.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Pem::Inline(pem) => Ok(pem.clone()),
            Pem::File(path) => std::fs::read(path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // It may be a private key.
            Pem::Inline(pem) => write!(f, "Inline({} bytes)", pem.len()),
            Pem::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// How a client authenticates.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Not at all.
    #[default]
    Anonymous,
    /// With a client certificate.
    Certificate {
        /// The certificate and its chain.
        certificate: Pem,
        /// Its private key.
        key: Pem,
    },
    /// With a token that stays the same.
    Token(String),
    /// With a token in a file that is replaced now and then.
    TokenFile(PathBuf),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Anonymous => f.write_str("Anonymous"),
            Credentials::Certificate { certificate, .. } => f.debug_tuple("Certificate").field(certificate).finish(),
            Credentials::Token(_) => f.write_str("Token(..)"),
            Credentials::TokenFile(path) => f.debug_tuple("TokenFile").field(path).finish(),
        }
    }
}

/// Why no [`Config`] or no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kubeconfig file is no kubeconfig.
    #[error("{} is not a valid kubeconfig", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<serde_saphyr::Error>,
    },
    /// A context, cluster or user that something refers to is not in the kubeconfig.
    #[error("{} has no {kind} {name:?}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// `context`, `cluster` or `user`.
        kind: &'static str,
        /// The name looked for.
        name: String,
    },
    /// The kubeconfig asks for something that this client does not do.
    #[error("{}: {what} is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field concerned.
        what: &'static str,
    },
    /// Not in a pod.
    #[error("not running in a pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be set")]
    NotInCluster,
    /// The server's URL makes no sense.
    #[error("invalid server address {server:?}: {what}")]
    Server {
        /// The address.
        server: String,
        /// What is wrong.
        what: String,
    },
    /// A certificate, key or CA bundle is unusable.
    #[error("cannot use the {what}: {reason}")]
    Tls {
        /// Which one.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// Base64 data of a kubeconfig is not base64.
    #[error("{}: {field} is not valid base64", path.display())]
    Base64 {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Why.
        #[source]
        source: base64::DecodeError,
    },
}

impl Config {
    /// A configuration for `server` that trusts `ca`; anonymous, namespace `default`.
    pub fn new(server: impl Into<String>, ca: Pem) -> Config {
        Config {
            server: server.into(),
            ca,
            tls_server_name: None,
            credentials: Credentials::Anonymous,
            default_namespace: "default".into(),
            user_agent: concat!("skiff/", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// Names the component.
    #[must_use]
    pub fn with_user_agent(mut self, user_agent: impl Into<String>) -> Config {
        self.user_agent = user_agent.into();
        self
    }

    /// Authenticates with these credentials.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Config {
        self.credentials = credentials;
        self
    }

    /// From a kubeconfig file: its current context, or the one named. Files that it refers to are
    /// relative to its folder.
    ///
    /// Caveats: no exec plugins, auth providers, passwords, proxies or switched-off verification.
    pub fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Kubeconfig::parse(path, &text)?.config(path, context)
    }

    /// From what the kubelet puts into every pod.
    pub fn in_cluster() -> Result<Config, ConfigError> {
        let environment = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = environment("KUBERNETES_SERVICE_HOST").ok_or(ConfigError::NotInCluster)?;
        let port = environment("KUBERNETES_SERVICE_PORT").ok_or(ConfigError::NotInCluster)?;
        Config::from_service_account(&host, &port, Path::new(SERVICE_ACCOUNT_DIR))
    }

    fn from_service_account(host: &str, port: &str, dir: &Path) -> Result<Config, ConfigError> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let mut config = Config::new(format!("https://{host}:{port}"), Pem::File(dir.join("ca.crt")));
        config.credentials = Credentials::TokenFile(dir.join("token"));
        let namespace = dir.join("namespace");
        config.default_namespace = std::fs::read_to_string(&namespace)
            .map_err(|source| ConfigError::Read { path: namespace, source })?
            .trim()
            .to_owned();
        Ok(config)
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: Option<String>,
    clusters: Option<Vec<Named>>,
    users: Option<Vec<Named>>,
    contexts: Option<Vec<Named>>,
}

/// An entry of any of the three lists: each has a name and one of the other fields.
#[derive(Deserialize)]
struct Named {
    name: String,
    cluster: Option<Cluster>,
    user: Option<User>,
    context: Option<Context>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    proxy_url: Option<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    exec: Option<BTreeMap<String, serde_json::Value>>,
    auth_provider: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

impl Kubeconfig {
    fn parse(path: &Path, text: &str) -> Result<Kubeconfig, ConfigError> {
        serde_saphyr::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    fn config(self, path: &Path, context: Option<&str>) -> Result<Config, ConfigError> {
        let name = context.map(str::to_owned).or(self.current_context).unwrap_or_default();
        let context = find(path, "context", &name, self.contexts, |entry| entry.context)?;
        let cluster = find(path, "cluster", &context.cluster, self.clusters, |entry| entry.cluster)?;
        let user = if context.user.is_empty() {
            User::default()
        } else {
            find(path, "user", &context.user, self.users, |entry| entry.user)?
        };
        for (found, what) in [
            (cluster.insecure_skip_tls_verify == Some(true), "insecure-skip-tls-verify"),
            (cluster.proxy_url.is_some(), "proxy-url"),
            (user.exec.is_some(), "exec"),
            (user.auth_provider.is_some(), "auth-provider"),
            (user.username.is_some(), "username"),
        ] {
            if found {
                return Err(ConfigError::Unsupported { path: path.to_owned(), what });
            }
        }
        let ca =
            pem(path, "certificate-authority-data", cluster.certificate_authority_data, cluster.certificate_authority)?;
        let mut config = Config::new(cluster.server, ca.unwrap_or(Pem::Inline(Vec::new())));
        config.tls_server_name = cluster.tls_server_name;
        config.default_namespace = context.namespace.unwrap_or_else(|| "default".into());
        let certificate = pem(path, "client-certificate-data", user.client_certificate_data, user.client_certificate)?;
        let key = pem(path, "client-key-data", user.client_key_data, user.client_key)?;
        // As in client-go, a token file wins over a token.
        config.credentials = match (user.token_file, user.token, certificate, key) {
            (Some(file), ..) => Credentials::TokenFile(relative_to(path, file)),
            (None, Some(token), ..) => Credentials::Token(token),
            (None, None, Some(certificate), Some(key)) => Credentials::Certificate { certificate, key },
            _ => Credentials::Anonymous,
        };
        Ok(config)
    }
}

fn find<T>(
    path: &Path,
    kind: &'static str,
    name: &str,
    entries: Option<Vec<Named>>,
    part: impl Fn(Named) -> Option<T>,
) -> Result<T, ConfigError> {
    let mut entries = entries.into_iter().flatten();
    let entry = entries.find(|entry| entry.name == name).and_then(part);
    entry.ok_or_else(|| ConfigError::Missing { path: path.to_owned(), kind, name: name.to_owned() })
}

/// As in client-go, data wins over a file.
fn pem(
    path: &Path,
    field: &'static str,
    data: Option<String>,
    file: Option<PathBuf>,
) -> Result<Option<Pem>, ConfigError> {
    match (data, file) {
        (Some(data), _) => BASE64_STANDARD
            .decode(data.trim())
            .map(|pem| Some(Pem::Inline(pem)))
            .map_err(|source| ConfigError::Base64 { path: path.to_owned(), field, source }),
        (None, Some(file)) => Ok(Some(Pem::File(relative_to(path, file)))),
        (None, None) => Ok(None),
    }
}

fn relative_to(kubeconfig: &Path, file: PathBuf) -> PathBuf {
    kubeconfig.parent().map_or(file.clone(), |dir| dir.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = r"
apiVersion: v1
kind: Config
current-context: a
clusters:
- name: one
  cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: Y2E=}
- name: two
  cluster: {server: 'https://example.invalid', certificate-authority: pki/ca.crt}
contexts:
- name: a
  context: {cluster: one, user: cert, namespace: web}
- name: b
  context: {cluster: two, user: token}
- name: c
  context: {cluster: two, user: nobody}
- name: d
  context: {cluster: two, user: plugin}
users:
- name: cert
  user: {client-certificate-data: Y2VydA==, client-key-data: a2V5}
- name: token
  user: {tokenFile: /var/token, token: unused}
- name: plugin
  user: {exec: {command: aws}}
preferences: {}
";

    fn config(context: Option<&str>) -> Result<Config, ConfigError> {
        let path = Path::new("/home/me/.kube/config");
        Kubeconfig::parse(path, KUBECONFIG)?.config(path, context)
    }

    #[test]
    fn the_current_context_is_the_default() {
        let config = config(None).unwrap();
        assert_eq!(config.server, "https://127.0.0.1:6443");
        assert_eq!(config.default_namespace, "web");
        assert_eq!(config.ca.read().unwrap(), b"ca");
        let Credentials::Certificate { certificate, key } = config.credentials else { panic!() };
        assert_eq!((certificate.read().unwrap(), key.read().unwrap()), (b"cert".to_vec(), b"key".to_vec()));
    }

    #[test]
    fn files_are_relative_to_the_kubeconfig_and_a_token_file_wins() {
        let config = config(Some("b")).unwrap();
        assert_eq!(format!("{:?}", config.ca), r#"File("/home/me/.kube/pki/ca.crt")"#);
        assert_eq!(format!("{:?}", config.credentials), r#"TokenFile("/var/token")"#);
    }

    #[test]
    fn what_is_missing_or_unsupported_is_named() {
        let message = |context| config(Some(context)).unwrap_err().to_string();
        assert_eq!(message("c"), r#"/home/me/.kube/config has no user "nobody""#);
        assert_eq!(message("d"), "/home/me/.kube/config: exec is not supported");
        assert_eq!(message("x"), r#"/home/me/.kube/config has no context "x""#);
    }

    #[test]
    fn service_account_files_of_a_pod() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("namespace"), "kube-system\n").unwrap();
        let config = Config::from_service_account("fd00::1", "443", dir.path()).unwrap();
        assert_eq!(config.server, "https://[fd00::1]:443");
        assert_eq!(config.default_namespace, "kube-system");
    }
}
