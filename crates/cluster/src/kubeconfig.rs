//! The user's kubeconfig: adding a cluster's context and taking it away again.
//!
//! Entries of others and fields that are unknown here are kept. Changes are made under the lock that
//! kubectl and other clients use: a file named like the kubeconfig with `.lock` appended, created
//! exclusively.

use std::{
    env, fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::{Error, Result, home::write_atomically};

/// A lock that is this old was left by a process that died; client-go would refuse forever.
const STALE_LOCK: Duration = Duration::from_secs(60);
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The file that changes go to: the first of `$KUBECONFIG` that exists, else its last, else
/// `~/.kube/config`.
pub fn default_path() -> Result<PathBuf> {
    if let Some(list) = env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
        let paths: Vec<PathBuf> = env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
        if let Some(path) = paths.iter().find(|path| path.exists()).or(paths.last()) {
            return Ok(path.clone());
        }
    }
    let home = env::home_dir().ok_or_else(|| Error::io("find the home directory")(io::ErrorKind::NotFound.into()))?;
    Ok(home.join(".kube/config"))
}

/// Adds the only cluster and user of `source` as the context `name`, and makes it the current one.
pub fn merge(path: &Path, name: &str, source: &[u8]) -> Result<()> {
    let source = parse(path, source)?;
    change(path, |config| set(config, name, &source)).and_then(|found| match found {
        true => Ok(()),
        false => Err(Error::Kubeconfig {
            file: path.to_owned(),
            message: "the server's kubeconfig has no cluster or user".to_owned(),
        }),
    })
}

/// A kubeconfig with the only cluster and user of `source`, as the context `name`.
pub fn named(name: &str, source: &[u8]) -> Result<String> {
    let nowhere = Path::new("-");
    let mut config = new();
    set(&mut config, name, &parse(nowhere, source)?);
    serde_saphyr::to_string(&config)
        .map_err(|error| Error::Kubeconfig { file: nowhere.to_owned(), message: error.to_string() })
}

/// An empty kubeconfig.
fn new() -> Map<String, Value> {
    Map::from_iter([("apiVersion".to_owned(), json!("v1")), ("kind".to_owned(), json!("Config"))])
}

/// Returns whether `source` has what a context needs.
fn set(config: &mut Map<String, Value>, name: &str, source: &Value) -> bool {
    let (cluster, user) = (&source["clusters"][0]["cluster"], &source["users"][0]["user"]);
    if cluster.is_null() || user.is_null() {
        return false;
    }
    put(config, "clusters", json!({ "name": name, "cluster": cluster }));
    put(config, "users", json!({ "name": name, "user": user }));
    put(config, "contexts", json!({ "name": name, "context": { "cluster": name, "user": name } }));
    config.insert("current-context".to_owned(), json!(name));
    true
}

/// Removes the context `name` with its cluster and user. If it was the current one, there is none then.
pub fn remove(path: &Path, name: &str) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    change(path, |config| {
        let mut changed = false;
        for list in ["clusters", "users", "contexts"] {
            if let Some(entries) = config.get_mut(list).and_then(Value::as_array_mut) {
                let before = entries.len();
                entries.retain(|entry| entry["name"] != name);
                changed |= entries.len() != before;
            }
        }
        if config.get("current-context").is_some_and(|current| current == name) {
            config.insert("current-context".to_owned(), json!(""));
            changed = true;
        }
        changed
    })?;
    Ok(())
}

fn put(config: &mut Map<String, Value>, list: &str, entry: Value) {
    let entries = config.entry(list).or_insert_with(|| json!([]));
    if !entries.is_array() {
        // `clusters: null`, as kubectl writes an empty list.
        *entries = json!([]);
    }
    if let Some(entries) = entries.as_array_mut() {
        entries.retain(|present| present["name"] != entry["name"]);
        entries.push(entry);
    }
}

fn parse(path: &Path, content: &[u8]) -> Result<Value> {
    let failed = |message: String| Error::Kubeconfig { file: path.to_owned(), message };
    let text = std::str::from_utf8(content).map_err(|error| failed(error.to_string()))?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str(text).map_err(|error| failed(error.to_string()))
}

/// `edit` returns whether it changed anything, which is returned.
fn change(path: &Path, edit: impl FnOnce(&mut Map<String, Value>) -> bool) -> Result<bool> {
    let failed = |message: String| Error::Kubeconfig { file: path.to_owned(), message };
    let action = || Error::io(format!("write {}", path.display()));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(action())?;
    }
    let _lock = Lock::take(path)?;
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
    };
    let mut config = match parse(path, &content)? {
        Value::Object(config) => config,
        Value::Null => new(),
        _ => return Err(failed("it is not a kubeconfig".to_owned())),
    };
    if !edit(&mut config) {
        return Ok(false);
    }
    let text = serde_saphyr::to_string(&config).map_err(|error| failed(error.to_string()))?;
    // A link (dotfiles) stays one, and so does the owner's choice of a stricter or wider mode.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&target).map_or(0o600, |metadata| metadata.mode() & 0o777);
    write_atomically(&target, text.as_bytes(), mode).map_err(action())?;
    Ok(true)
}

struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let created = fs::File::options().write(true).create_new(true).mode(0o600).open(&lock);
            match created {
                Ok(_) => return Ok(Self(lock)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let modified = fs::metadata(&lock).and_then(|metadata| metadata.modified());
                    if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE_LOCK)) {
                        // Somebody else may have removed it in the meantime.
                        let _ = fs::remove_file(&lock);
                        continue;
                    }
                    if Instant::now() >= deadline {
                        return Err(Error::Kubeconfig {
                            file: path.to_owned(),
                            message: format!(
                                "it is locked; remove {} if no other program is changing it",
                                lock.display()
                            ),
                        });
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(Error::io(format!("create {}", lock.display()))(error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If it cannot be removed, it is stale in a minute.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "\
apiVersion: v1
kind: Config
clusters:
- name: x
  cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: QUJD}
users:
- name: y
  user: {client-certificate-data: QUJD, client-key-data: REVG}
";

    struct File(PathBuf);

    impl File {
        fn new(name: &str) -> Self {
            Self(env::temp_dir().join(format!("skiff-kubeconfig-{name}-{}", std::process::id())))
        }

        fn read(&self) -> Value {
            parse(&self.0, &fs::read(&self.0).unwrap()).unwrap()
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_context_is_merged_and_removed() {
        let file = File::new("merge");
        let own = "apiVersion: v1\nkind: Config\npreferences: {colors: true}\ncurrent-context: work\ncontexts:\n- name: work\n  context: {cluster: work, user: me, namespace: \"007\"}\nclusters: null\n";
        fs::write(&file.0, own).unwrap();
        merge(&file.0, "skiff-dev", SERVER.as_bytes()).unwrap();
        merge(&file.0, "skiff-dev", SERVER.as_bytes()).unwrap();
        let merged = file.read();
        assert_eq!(merged["current-context"], "skiff-dev");
        assert_eq!(merged["preferences"]["colors"], true);
        assert_eq!(merged["contexts"][0]["context"]["namespace"], "007");
        assert_eq!(merged["contexts"][1]["context"]["cluster"], "skiff-dev");
        assert_eq!(merged["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(merged["users"][0]["user"]["client-key-data"], "REVG");
        remove(&file.0, "skiff-dev").unwrap();
        let removed = file.read();
        assert_eq!(removed["current-context"], "");
        assert_eq!(removed["contexts"].as_array().unwrap().len(), 1);
        assert!(!Path::new(&format!("{}.lock", file.0.display())).exists());
    }

    #[test]
    fn a_new_file_is_for_its_owner_only() {
        let file = File::new("mode");
        merge(&file.0, "skiff-dev", SERVER.as_bytes()).unwrap();
        assert_eq!(fs::metadata(&file.0).unwrap().mode() & 0o777, 0o600);
        assert_eq!(file.read()["kind"], "Config");
    }

    #[test]
    fn damaged_files_are_left_alone() {
        let file = File::new("damaged");
        fs::write(&file.0, "just text").unwrap();
        assert!(merge(&file.0, "skiff-dev", SERVER.as_bytes()).is_err());
        assert_eq!(fs::read_to_string(&file.0).unwrap(), "just text");
        remove(Path::new("/nonexistent/kubeconfig"), "x").unwrap();
    }

    #[test]
    fn writers_take_turns() {
        let file = File::new("turns");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &file.0;
                scope.spawn(move || merge(path, &format!("skiff-{n}"), SERVER.as_bytes()).unwrap());
            }
        });
        assert_eq!(file.read()["contexts"].as_array().unwrap().len(), 8);
    }
}
