//! kubeconfig files: found as kubectl finds them, merged, read, and changed by `kubectl config`.

use std::path::{Path, PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};
use skiff_client::{Config, Credentials, Pem};

use crate::{
    error::{Error, Result},
    flags::Parsed,
    print::yaml,
};

/// The three lists of a kubeconfig, with the field that an entry has beside its name.
pub(crate) const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("contexts", "context"), ("users", "user")];
/// What kubectl talks to when nothing says where the server is.
const NOWHERE: &str = "localhost:8080";

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) content: Map<String, Value>,
}

/// All files, the first of which wins.
#[derive(Clone, Debug)]
pub(crate) struct Kubeconfig {
    pub(crate) files: Vec<File>,
    /// Where entries go that are in no file.
    pub(crate) default: PathBuf,
}

impl Kubeconfig {
    /// The file of `--kubeconfig`, those of `$KUBECONFIG`, or `~/.kube/config`. Files may be missing, but for the
    /// first of these.
    pub(crate) fn load(flags: &Parsed) -> Result<Kubeconfig> {
        if let Some(path) = flags.some("kubeconfig").filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            if !path.exists() {
                return Err(Error::text(format!("stat {}: no such file or directory", path.display())));
            }
            return Ok(Kubeconfig { files: vec![File::read(&path)?], default: path });
        }
        let mut paths: Vec<PathBuf> = std::env::var_os("KUBECONFIG").map_or_else(Vec::new, |list| {
            std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect()
        });
        if paths.is_empty() {
            paths.push(std::env::home_dir().unwrap_or_default().join(".kube/config"));
        }
        let default = paths.iter().find(|path| path.exists()).or(paths.last()).cloned().unwrap_or_default();
        let files: Result<_> = paths.iter().filter(|path| path.exists()).map(|path| File::read(path)).collect();
        Ok(Kubeconfig { files: files?, default })
    }

    /// An entry of a list, and the file that it is in.
    pub(crate) fn find(&self, list: &str, name: &str) -> Option<(&Value, &File)> {
        self.files.iter().find_map(|file| file.entry(list, name).map(|entry| (entry, file)))
    }

    /// Names of a list, in their order.
    pub(crate) fn names(&self, list: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for entry in self.files.iter().flat_map(|file| file.content.get(list).and_then(Value::as_array)).flatten() {
            let name = entry["name"].as_str().unwrap_or_default().to_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.sort();
        names
    }

    pub(crate) fn current_context(&self) -> &str {
        let set = self.files.iter().filter_map(|file| file.content.get("current-context")?.as_str());
        set.into_iter().find(|name| !name.is_empty()).unwrap_or_default()
    }

    /// The file that has an entry, or the one for new entries.
    pub(crate) fn file_of(&self, list: &str, name: &str) -> File {
        match self.find(list, name) {
            Some((_, file)) => file.clone(),
            None => self.default_file(),
        }
    }

    /// The file for what is in none yet.
    pub(crate) fn default_file(&self) -> File {
        let found = self.files.iter().find(|file| file.path == self.default).cloned();
        found.unwrap_or_else(|| File { path: self.default.clone(), content: new() })
    }

    /// The namespace of requests that name none, and whether a flag or the context says it.
    pub(crate) fn namespace(&self, flags: &Parsed) -> (String, bool) {
        if let Some(namespace) = flags.some("namespace").filter(|namespace| !namespace.is_empty()) {
            return (namespace.to_owned(), true);
        }
        let context = flags.some("context").unwrap_or(self.current_context());
        let namespace = self.find("contexts", context).and_then(|(entry, _)| entry["context"]["namespace"].as_str());
        match namespace.filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => (namespace.to_owned(), false),
            None => (in_cluster_namespace().unwrap_or_else(|| "default".to_owned()), false),
        }
    }

    /// How to reach the server, as files and flags say it.
    pub(crate) fn config(&self, flags: &Parsed) -> Result<Config> {
        let named = flags.some("context").filter(|name| !name.is_empty());
        let context_name = named.unwrap_or(self.current_context());
        let nothing = Value::Null;
        let context = match self.find("contexts", context_name) {
            Some((entry, _)) => &entry["context"],
            // Where the namespace is given, the context is looked for later, by somebody who says it otherwise.
            None if named.is_some() && flags.given("namespace") => {
                return Err(Error::text(format!("context {context_name:?} does not exist")));
            }
            None if named.is_some() => {
                let text = "Error in configuration: context was not found for specified context";
                return Err(Error::Plain(format!("{text}: {context_name}")));
            }
            None => &nothing,
        };
        let part = |list: &str, field: &str, flag: &str, kind: &str| -> Result<(Value, PathBuf)> {
            let given = flags.global(flag);
            let name = given.or(context[field].as_str()).unwrap_or_default();
            match self.find(list, name) {
                Some((entry, file)) => Ok((entry[kind].clone(), file.path.clone())),
                None if given.is_some() => Err(Error::text(format!("{kind} {name:?} does not exist"))),
                None => Ok((Value::Null, PathBuf::new())),
            }
        };
        let (cluster, cluster_file) = part("clusters", "cluster", "cluster", "cluster")?;
        let (user, user_file) = part("users", "user", "user", "user")?;
        let server = flags.some("server").or(cluster["server"].as_str()).unwrap_or_default();
        if server.is_empty() {
            return match Config::in_cluster() {
                Ok(config) => Ok(config),
                Err(_) => Err(Error::Unreachable { server: NOWHERE.into(), reason: "connection refused".into() }),
            };
        }
        if cluster["insecure-skip-tls-verify"] == true || flags.is("insecure-skip-tls-verify") {
            return Err(Error::text(
                "insecure-skip-tls-verify is not supported: name the server's certificate authority",
            ));
        }
        if cluster["proxy-url"].is_string() {
            return Err(Error::text("proxy-url is not supported"));
        }
        let server = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
        let ca = pem(&cluster, "certificate-authority", &cluster_file, flags)?.unwrap_or_else(system_authorities);
        let mut config = Config::new(server, ca);
        config.tls_server_name =
            flags.some("tls-server-name").or(cluster["tls-server-name"].as_str()).map(str::to_owned);
        config.default_namespace = self.namespace(flags).0;
        config.credentials = credentials(&user, &user_file, flags)?;
        Ok(config.with_user_agent(USER_AGENT))
    }

    /// One kubeconfig of all files, in kubectl's order.
    pub(crate) fn merged(&self) -> Value {
        let list = |list: &str, field: &str| -> Value {
            let names = self.names(list);
            let entries = names.iter().filter_map(|name| self.find(list, name));
            entries
                .map(|(entry, file)| {
                    let mut part = entry[field].clone();
                    absolute(&mut part, &file.path);
                    json!({"name": entry["name"], field: part})
                })
                .collect()
        };
        let lists = LISTS.map(|(name, field)| match list(name, field) {
            Value::Array(entries) if entries.is_empty() => Value::Null,
            entries => entries,
        });
        let [clusters, contexts, users] = lists;
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": self.current_context(),
            "clusters": clusters, "contexts": contexts, "users": users,
        })
    }
}

/// Field managers are derived from this.
const USER_AGENT: &str = "kubectl/v1.36.0 (linux/amd64) kubernetes/skiff";

impl File {
    fn read(path: &Path) -> Result<File> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::text(format!("error loading config file \"{}\": {error}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| failed(&crate::files::go_io(path, "open", &error)))?;
        if text.trim().is_empty() {
            return Ok(File { path: path.to_owned(), content: new() });
        }
        let value = skiff_api::decode::yaml(&text).map_err(|error| failed(&error))?.value;
        match value {
            Value::Object(content) => Ok(File { path: path.to_owned(), content }),
            _ => Err(failed(&"it is not a kubeconfig")),
        }
    }

    pub(crate) fn entry(&self, list: &str, name: &str) -> Option<&Value> {
        self.content.get(list)?.as_array()?.iter().find(|entry| entry["name"] == name)
    }

    /// Replaces or adds an entry; `None` takes it away.
    pub(crate) fn put(&mut self, list: &str, name: &str, entry: Option<Value>) {
        let entries = self.content.entry(list).or_insert_with(|| json!([]));
        if !entries.is_array() {
            *entries = json!([]);
        }
        let Some(entries) = entries.as_array_mut() else { return };
        let at = entries.iter().position(|present| present["name"] == name);
        match (at, entry) {
            (Some(at), Some(entry)) => entries[at] = entry,
            (Some(at), None) => drop(entries.remove(at)),
            (None, Some(entry)) => entries.push(entry),
            (None, None) => {}
        }
    }

    /// Writes it back, readable by its owner only unless it was otherwise before.
    pub(crate) fn write(&self) -> Result<()> {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
        let failed = |error: std::io::Error| Error::text(crate::files::go_io(&self.path, "open", &error));
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        // The lock of all of Kubernetes' clients.
        let lock = PathBuf::from(format!("{}.lock", self.path.display()));
        let taken = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&lock);
        taken.map_err(|error| Error::text(crate::files::go_io(&lock, "open", &error)))?;
        let text = yaml::to_string(&Value::Object(self.content.clone()));
        let target = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mode = std::fs::metadata(&target).map_or(0o600, |meta| meta.permissions().mode() & 0o777);
        let written = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(target.parent().unwrap_or(folder))?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode))?;
            file.persist(&target).map_err(|error| error.error)?;
            Ok(())
        }();
        let unlocked = std::fs::remove_file(&lock);
        written.and(unlocked).map_err(failed)
    }
}

fn new() -> Map<String, Value> {
    let Value::Object(content) = json!({"apiVersion": "v1", "kind": "Config"}) else { return Map::new() };
    content
}

fn in_cluster_namespace() -> Option<String> {
    Config::in_cluster().ok().map(|config| config.default_namespace)
}

/// What this machine trusts, for servers whose kubeconfig names no authority.
fn system_authorities() -> Pem {
    Pem::File("/etc/ssl/certs/ca-certificates.crt".into())
}

/// A flag's file, the data in the entry, or the file that it names.
fn pem(entry: &Value, field: &str, kubeconfig: &Path, flags: &Parsed) -> Result<Option<Pem>> {
    if let Some(path) = flags.some(field) {
        return Ok(Some(Pem::File(path.into())));
    }
    let data = format!("{field}-data");
    if let Some(text) = entry[&data].as_str().filter(|text| !text.is_empty()) {
        let decoded = BASE64_STANDARD.decode(text.trim());
        return decoded.map(|pem| Some(Pem::Inline(pem))).map_err(|error| Error::text(format!("{data}: {error}")));
    }
    let folder = kubeconfig.parent().unwrap_or(Path::new(""));
    Ok(entry[field].as_str().map(|path| Pem::File(folder.join(path))))
}

fn credentials(user: &Value, kubeconfig: &Path, flags: &Parsed) -> Result<Credentials> {
    if let Some(token) = flags.some("token") {
        return Ok(Credentials::Token(token.to_owned()));
    }
    for unsupported in ["exec", "auth-provider", "username"] {
        if !user[unsupported].is_null() {
            return Err(Error::text(format!("{unsupported} of a kubeconfig's user is not supported")));
        }
    }
    let folder = kubeconfig.parent().unwrap_or(Path::new(""));
    let certificate = pem(user, "client-certificate", kubeconfig, flags)?;
    let key = pem(user, "client-key", kubeconfig, flags)?;
    // As in client-go, a token file wins over a token.
    Ok(match (user["tokenFile"].as_str(), user["token"].as_str(), certificate, key) {
        (Some(file), ..) => Credentials::TokenFile(folder.join(file)),
        (None, Some(token), ..) => Credentials::Token(token.to_owned()),
        (None, None, Some(certificate), Some(key)) => Credentials::Certificate { certificate, key },
        _ => Credentials::Anonymous,
    })
}

/// Makes the paths of an entry independent of the file that it stands in.
fn absolute(part: &mut Value, kubeconfig: &Path) {
    let folder = kubeconfig.parent().unwrap_or(Path::new(""));
    for field in ["certificate-authority", "client-certificate", "client-key", "tokenFile"] {
        if let Some(path) = part[field].as_str().filter(|path| !path.is_empty()).map(|path| folder.join(path)) {
            part[field] = path.to_string_lossy().into();
        }
    }
}
