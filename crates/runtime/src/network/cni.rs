//! CNI plug-ins, run as programs (specification 1.1).

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;

use super::{NetworkError, PodNetwork, PodNetworkRequest};

/// The interface in the pod.
const INTERFACE: &str = "eth0";
/// Used for configurations that do not say.
const DEFAULT_VERSION: &str = "0.2.0";

/// Pod networks by the first configuration in a directory, read anew for every pod: replacing the
/// network needs no restart.
pub struct CniNetwork {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    /// Where the results of ADD are kept, which DEL and CHECK get back.
    cache_dir: PathBuf,
}

/// A network configuration: a list of plug-ins that are run one after the other.
#[derive(Debug)]
struct Configuration {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

impl CniNetwork {
    /// Reads configurations from `conf_dir` (usually `/etc/cni/net.d`), finds plug-ins in `bin_dirs`
    /// (usually `/opt/cni/bin`) and keeps results in `cache_dir`.
    pub fn new(conf_dir: &Path, bin_dirs: &[PathBuf], cache_dir: &Path) -> CniNetwork {
        CniNetwork { conf_dir: conf_dir.to_owned(), bin_dirs: bin_dirs.to_owned(), cache_dir: cache_dir.to_owned() }
    }

    /// The first usable configuration by file name, as everywhere.
    fn configuration(&self) -> Result<Configuration, NetworkError> {
        let mut files: Vec<PathBuf> = match std::fs::read_dir(&self.conf_dir) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(_) => return Err(NetworkError::NotInitialized),
        };
        files.retain(|path| {
            let extension = path.extension().and_then(|e| e.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        });
        files.sort();
        for path in files {
            match read_configuration(&path) {
                Ok(configuration) => return Ok(configuration),
                Err(reason) => {
                    tracing::warn!(path = %path.display(), %reason, "unusable CNI configuration");
                }
            }
        }
        Err(NetworkError::NotInitialized)
    }

    fn find_plugin(&self, kind: &str) -> Result<PathBuf, NetworkError> {
        let invalid = kind.is_empty() || kind.contains('/');
        let found = self.bin_dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file());
        found.filter(|_| !invalid).ok_or_else(|| {
            NetworkError::Other(format!(
                "failed to find plugin {kind:?} in path {:?}",
                self.bin_dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>()
            ))
        })
    }

    fn cache_file(&self, pod: &PodNetworkRequest) -> PathBuf {
        self.cache_dir.join(format!("{}.json", pod.sandbox_id))
    }

    async fn add(&self, pod: &PodNetworkRequest) -> Result<Vec<IpAddr>, NetworkError> {
        let configuration = self.configuration()?;
        let mut result = None;
        for plugin in &configuration.plugins {
            let input = input(&configuration, plugin, pod, result.as_ref());
            let output = self.run(plugin, "ADD", pod, &input).await?;
            if !output.is_null() {
                result = Some(output);
            }
        }
        let result = result.unwrap_or(Value::Null);
        let kept = json!({ "name": configuration.name, "result": result });
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(&self.cache_dir)?;
            std::fs::write(self.cache_file(pod), kept.to_string())
        };
        write().map_err(|e| NetworkError::Other(format!("cannot keep the result: {e}")))?;
        let ips = addresses(&result);
        if ips.is_empty() {
            return Err(NetworkError::Other("the plugins gave the pod no address".to_owned()));
        }
        Ok(ips)
    }

    async fn delete(&self, pod: &PodNetworkRequest) -> Result<(), NetworkError> {
        let configuration = match self.configuration() {
            // Nothing is connected by nothing.
            Err(NetworkError::NotInitialized) if !self.cache_file(pod).exists() => return Ok(()),
            configuration => configuration?,
        };
        let kept: Option<Value> =
            std::fs::read(self.cache_file(pod)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let previous = kept.as_ref().and_then(|kept| kept.get("result")).filter(|r| !r.is_null());
        for plugin in configuration.plugins.iter().rev() {
            let input = input(&configuration, plugin, pod, previous);
            self.run(plugin, "DEL", pod, &input).await?;
        }
        match std::fs::remove_file(self.cache_file(pod)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::Other(format!("cannot remove the kept result: {e}")))
            }
            _ => Ok(()),
        }
    }

    async fn run(
        &self,
        plugin: &Map<String, Value>,
        command: &str,
        pod: &PodNetworkRequest,
        input: &Value,
    ) -> Result<Value, NetworkError> {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let path = self.find_plugin(kind)?;
        let failed = |source| NetworkError::Run { plugin: kind.to_owned(), source };
        let bin_path: Vec<_> = self.bin_dirs.iter().map(|d| d.display().to_string()).collect();
        let netns = match command {
            "DEL" if !pod.netns.exists() => String::new(),
            _ => pod.netns.display().to_string(),
        };
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.sandbox_id, pod.uid
        );
        let mut child = tokio::process::Command::new(&path)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.sandbox_id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", args)
            .env("CNI_PATH", bin_path.join(":"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(input.to_string().as_bytes()).await {
                // It may answer without reading.
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(failed(e)),
                _ => {}
            }
        }
        let output = child.wait_with_output().await.map_err(failed)?;
        let parsed: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.status.success() {
            return Ok(parsed.unwrap_or(Value::Null));
        }
        let text = |key| {
            let value = parsed.as_ref().and_then(|p| p.get(key)).and_then(Value::as_str);
            value.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let message = match (text("msg"), text("details")) {
            (Some(msg), Some(details)) => format!("{msg}; {details}"),
            (Some(msg), None) => msg,
            _ => format!("netplugin failed: {}: {:?}", output.status, String::from_utf8_lossy(&output.stderr)),
        };
        let command = if command == "DEL" { "delete" } else { "add" };
        Err(NetworkError::Plugin { plugin: kind.to_owned(), command: command.to_owned(), message })
    }
}

impl PodNetwork for CniNetwork {
    fn status(&self) -> Result<(), NetworkError> {
        self.configuration().map(|_| ())
    }

    fn setup<'a>(&'a self, pod: &'a PodNetworkRequest) -> BoxFuture<'a, Result<Vec<IpAddr>, NetworkError>> {
        Box::pin(self.add(pod))
    }

    fn teardown<'a>(&'a self, pod: &'a PodNetworkRequest) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(self.delete(pod))
    }
}

fn read_configuration(path: &Path) -> Result<Configuration, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let Value::Object(object) = value else { return Err("not an object".to_owned()) };
    let text = |key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    let plugins = match object.get("plugins") {
        Some(Value::Array(plugins)) => plugins
            .iter()
            .map(|p| p.as_object().cloned().ok_or("a plugin is not an object"))
            .collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err("plugins is not a list".to_owned()),
        // A single plug-in is a list of one.
        None => vec![object.clone()],
    };
    if plugins.is_empty() || plugins.iter().any(|p| !p.get("type").is_some_and(Value::is_string)) {
        return Err("no plugins, or one without a type".to_owned());
    }
    Ok(Configuration {
        name: text("name").filter(|name| !name.is_empty()).ok_or("no name")?,
        version: text("cniVersion").unwrap_or_else(|| DEFAULT_VERSION.to_owned()),
        plugins,
    })
}

/// What a plug-in reads: its own configuration with the list's name and version, the result so far, and
/// those values of the pod that it says it understands.
fn input(
    configuration: &Configuration,
    plugin: &Map<String, Value>,
    pod: &PodNetworkRequest,
    previous: Option<&Value>,
) -> Value {
    let mut object = plugin.clone();
    object.insert("name".to_owned(), json!(configuration.name));
    object.insert("cniVersion".to_owned(), json!(configuration.version));
    let capabilities = object.remove("capabilities").unwrap_or(Value::Null);
    let understands = |name: &str| capabilities.get(name) == Some(&Value::Bool(true));
    let mut runtime = Map::new();
    if understands("portMappings") && !pod.port_mappings.is_empty() {
        let mappings: Vec<_> = pod
            .port_mappings
            .iter()
            .map(|m| {
                json!({
                    "hostPort": m.host_port,
                    "containerPort": m.container_port,
                    "protocol": m.protocol,
                    "hostIP": m.host_ip,
                })
            })
            .collect();
        runtime.insert("portMappings".to_owned(), Value::Array(mappings));
    }
    if understands("io.kubernetes.cri.pod-annotations") {
        let annotations: Map<_, _> = pod.annotations.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        runtime.insert("io.kubernetes.cri.pod-annotations".to_owned(), Value::Object(annotations));
    }
    if !runtime.is_empty() {
        object.insert("runtimeConfig".to_owned(), Value::Object(runtime));
    }
    if let Some(previous) = previous {
        object.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(object)
}

/// The pod's addresses in a result, in both the newer form and the one before 0.3.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let parse = |text: &str| text.split('/').next().and_then(|ip| ip.parse().ok());
    if let Some(ips) = result.get("ips").and_then(Value::as_array) {
        let of = |ip: &Value| ip.get("address").and_then(Value::as_str).and_then(parse);
        return ips.iter().filter_map(of).collect();
    }
    ["ip4", "ip6"].iter().filter_map(|key| result.get(key)?.get("ip")?.as_str().and_then(parse)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory with plug-ins that note how they were called.
    fn network() -> (tempfile::TempDir, CniNetwork) {
        let dir = tempfile::tempdir().expect("a directory");
        for sub in ["net.d", "bin", "cache"] {
            std::fs::create_dir(dir.path().join(sub)).expect("a directory");
        }
        let log = dir.path().join("log");
        let script = |name: &str, body: &str| {
            let path = dir.path().join("bin").join(name);
            let text = format!(
                "#!/bin/sh\nin=$(cat)\necho \"{name} $CNI_COMMAND $CNI_IFNAME $CNI_ARGS $in\" >> {}\n{body}\n",
                log.display()
            );
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        };
        script(
            "first",
            r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"},{"address":"fd00::3/64"}]}' || true"#,
        );
        script("second", r#"[ $CNI_COMMAND = ADD ] && echo "$in" | sed 's/.*"prevResult"://; s/}$//' || true"#);
        script("broken", r#"echo '{"code":7,"msg":"no room","details":"at all"}'; exit 1"#);
        let bins = [dir.path().join("bin")];
        let network = CniNetwork::new(&dir.path().join("net.d"), &bins, &dir.path().join("cache"));
        (dir, network)
    }

    fn pod() -> PodNetworkRequest {
        PodNetworkRequest {
            sandbox_id: "abc".into(),
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            netns: "/proc/self/ns/net".into(),
            port_mappings: vec![super::super::PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: "tcp",
                host_ip: String::new(),
            }],
            annotations: Vec::new(),
        }
    }

    fn configure(dir: &tempfile::TempDir, file: &str, text: &str) {
        std::fs::write(dir.path().join("net.d").join(file), text).expect("written");
    }

    #[tokio::test]
    async fn chains_plugins() {
        let (dir, network) = network();
        let status = network.status().expect_err("nothing there");
        assert_eq!(status.to_string(), "cni plugin not initialized");
        network.teardown(&pod()).await.expect("nothing to do");
        configure(&dir, "00-bad.conf", "{");
        configure(
            &dir,
            "10-net.conflist",
            r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"first"},
                {"type":"second","capabilities":{"portMappings":true}}]}"#,
        );
        network.status().expect("ready");
        let ips = network.setup(&pod()).await.expect("connected");
        assert_eq!(ips, ["10.1.2.3", "fd00::3"].map(|ip| ip.parse::<IpAddr>().expect("an address")));
        network.teardown(&pod()).await.expect("disconnected");
        let log = std::fs::read_to_string(dir.path().join("log")).expect("called");
        let lines: Vec<_> = log.lines().collect();
        let starts = ["first ADD eth0", "second ADD eth0", "second DEL eth0", "first DEL eth0"];
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}");
            assert!(line.contains("K8S_POD_NAME=web"), "{line}");
        }
        assert!(!lines[0].contains("prevResult") && lines[1].contains("prevResult"));
        assert!(lines[1].contains(r#""hostPort":8080"#) && lines[2].contains("10.1.2.3"));
        assert!(!dir.path().join("cache/abc.json").exists());
    }

    #[tokio::test]
    async fn failures_name_the_plugin() {
        let (dir, network) = network();
        configure(&dir, "10.conf", r#"{"name":"net","type":"broken"}"#);
        let error = network.setup(&pod()).await.expect_err("fails");
        assert_eq!(error.to_string(), "plugin type=\"broken\" failed (add): no room; at all");
        configure(&dir, "00.conf", r#"{"name":"net","type":"../../bin/sh"}"#);
        let error = network.setup(&pod()).await.expect_err("fails");
        assert!(error.to_string().starts_with("failed to find plugin"), "{error}");
    }
}
