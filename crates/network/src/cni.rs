//! The built-in network as a CNI plugin (specification 1.0 and 1.1).
//!
//! The binary is linked into the CNI directory as `skiff-cni`; a runtime calls it with the command in
//! the environment and the configuration on standard input. The same configuration file that names it
//! is what [`PodNetworkConfig`] is read from by the in-process fast path.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Error, NetNs, PodNetwork, PodNetworkConfig, Subnet,
    hostport::HostPort,
    ipam::Attachment,
    pod::{DEFAULT_BRIDGE, DEFAULT_DATA_DIR},
};

/// The plugin's `type`: the name of the program that runtimes look for.
pub const PLUGIN_TYPE: &str = "skiff-cni";
const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];

/// The plugin's configuration, as it stands in a `.conflist`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginConfig {
    #[serde(default)]
    pub cni_version: String,
    #[serde(default)]
    pub name: String,
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// The primary range.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Subnet,
    /// All ranges where there are several, the primary one first.
    #[serde(rename = "podCIDRs", default, skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<Subnet>,
    /// Absent: no masquerading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade_except: Option<Vec<Subnet>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    #[serde(default, skip_serializing)]
    runtime_config: RuntimeConfig,
    #[serde(rename = "cni.dev/valid-attachments", default, skip_serializing)]
    valid_attachments: Option<Vec<ValidAttachment>>,
    #[serde(default, skip_serializing)]
    prev_result: Option<serde_json::Value>,
}

fn default_bridge() -> String {
    DEFAULT_BRIDGE.to_owned()
}

fn default_data_dir() -> PathBuf {
    PathBuf::from(DEFAULT_DATA_DIR)
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Vec<HostPort>,
}

#[derive(Debug, Clone, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl PluginConfig {
    fn network(&self) -> PodNetworkConfig {
        PodNetworkConfig {
            bridge: self.bridge.clone(),
            pod_cidrs: if self.pod_cidrs.is_empty() { vec![self.pod_cidr] } else { self.pod_cidrs.clone() },
            masquerade_except: self.masquerade_except.clone(),
            mtu: self.mtu,
            data_dir: self.data_dir.clone(),
        }
    }
}

/// The `.conflist` that makes a runtime call this plugin for the given network.
pub fn conflist(config: &PodNetworkConfig) -> String {
    let mut plugin = json!({
        "type": PLUGIN_TYPE,
        "bridge": config.bridge,
        "podCIDR": config.pod_cidrs.first(),
        "dataDir": config.data_dir,
        "capabilities": { "portMappings": true },
    });
    if config.pod_cidrs.len() > 1 {
        plugin["podCIDRs"] = json!(config.pod_cidrs);
    }
    if let Some(exceptions) = &config.masquerade_except {
        plugin["masqueradeExcept"] = json!(exceptions);
    }
    if let Some(mtu) = config.mtu {
        plugin["mtu"] = json!(mtu);
    }
    let list = json!({ "cniVersion": "1.0.0", "name": "skiff", "plugins": [plugin] });
    format!("{list:#}\n")
}

/// A failure in the form of the specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CniError {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    pub code: u32,
    pub msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
}

/// The specification's well-known codes, and one of our own.
mod code {
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(super) const IO_FAILURE: u32 = 5;
    pub(super) const DECODING_FAILURE: u32 = 6;
    pub(super) const INVALID_CONFIG: u32 = 7;
    pub(super) const NETWORK_FAILURE: u32 = 100;
}

impl CniError {
    fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { cni_version: VERSIONS[0].to_owned(), code, msg: msg.into(), details: String::new() }
    }
}

impl From<Error> for CniError {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Invalid(_) => code::INVALID_CONFIG,
            _ => code::NETWORK_FAILURE,
        };
        Self::new(code, error.chain())
    }
}

/// The parameters that a runtime passes in the environment.
#[derive(Debug, Clone, Default)]
pub struct Invocation {
    pub command: String,
    pub container_id: Option<String>,
    pub netns: Option<PathBuf>,
    pub interface: Option<String>,
}

impl Invocation {
    /// Reads `CNI_*`.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            command: variable("CNI_COMMAND").unwrap_or_default(),
            container_id: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS").map(PathBuf::from),
            interface: variable("CNI_IFNAME"),
        }
    }

    fn container_id(&self) -> Result<&str, CniError> {
        self.container_id.as_deref().ok_or_else(|| missing("CNI_CONTAINERID"))
    }

    fn interface(&self) -> Result<&str, CniError> {
        self.interface.as_deref().ok_or_else(|| missing("CNI_IFNAME"))
    }

    fn netns(&self) -> Result<&Path, CniError> {
        self.netns.as_deref().ok_or_else(|| missing("CNI_NETNS"))
    }
}

fn missing(variable: &str) -> CniError {
    CniError::new(code::INVALID_ENVIRONMENT, format!("required env variables [{variable}] missing"))
}

/// Runs as a plugin process: command from the environment, configuration from standard input, result
/// or error on standard output. Returns the exit code.
pub fn cni_main() -> u8 {
    let mut input = Vec::new();
    let result = match io::stdin().read_to_end(&mut input) {
        Ok(_) => run(&Invocation::from_environment(), &input),
        Err(error) => Err(CniError::new(code::IO_FAILURE, error.to_string())),
    };
    let (output, exit) = match result {
        Ok(output) => (output, 0),
        Err(error) => (serde_json::to_string(&error).ok(), 1),
    };
    if let Some(output) = output
        && io::stdout().write_all(output.as_bytes()).is_err()
    {
        return 1;
    }
    exit
}

/// Carries out one command. `Ok(None)` is success without output.
pub fn run(invocation: &Invocation, input: &[u8]) -> Result<Option<String>, CniError> {
    if invocation.command == "VERSION" {
        let version = json!({ "cniVersion": VERSIONS[1], "supportedVersions": VERSIONS });
        return Ok(Some(version.to_string()));
    }
    let config: PluginConfig =
        serde_json::from_slice(input).map_err(|e| CniError::new(code::DECODING_FAILURE, e.to_string()))?;
    if !VERSIONS.contains(&config.cni_version.as_str()) {
        let message =
            format!("incompatible CNI versions; config is {:?}, plugin supports {VERSIONS:?}", config.cni_version);
        return Err(CniError::new(code::INCOMPATIBLE_VERSION, message));
    }
    execute(invocation, &config).map_err(|mut error| {
        error.cni_version.clone_from(&config.cni_version);
        error
    })
}

fn execute(invocation: &Invocation, config: &PluginConfig) -> Result<Option<String>, CniError> {
    let open = || PodNetwork::attach(config.network());
    match invocation.command.as_str() {
        "ADD" => {
            let netns = invocation.netns()?;
            let (id, interface) = (invocation.container_id()?, invocation.interface()?);
            let namespace = NetNs::open(netns)?;
            let ports: Vec<HostPort> = served_ports(config);
            let pod = open()?.setup(id, namespace.as_fd(), interface, &ports)?;
            let mac = pod.mac.map(|byte| format!("{byte:02x}")).join(":");
            let result = json!({
                "cniVersion": config.cni_version,
                "interfaces": [
                    { "name": config.bridge },
                    { "name": pod.host_interface },
                    { "name": interface, "mac": mac, "sandbox": netns },
                ],
                "ips": pod.ips.iter().map(|ip| json!({
                    "address": Subnet::host(ip.address),
                    "gateway": ip.gateway,
                    "interface": 2,
                })).collect::<Vec<_>>(),
                "routes": pod.ips.iter().map(|ip| {
                    let everything = if ip.address.is_ipv4() { Subnet::ALL_IPV4 } else { Subnet::ALL_IPV6 };
                    json!({ "dst": everything, "gw": ip.gateway })
                }).collect::<Vec<_>>(),
                "dns": {},
            });
            Ok(Some(result.to_string()))
        }
        "DEL" => {
            open()?.teardown(invocation.container_id()?, invocation.interface()?)?;
            Ok(None)
        }
        "CHECK" => {
            if config.prev_result.is_none() {
                return Err(CniError::new(code::INVALID_CONFIG, "prevResult is required by CHECK"));
            }
            let namespace = NetNs::open(invocation.netns()?)?;
            open()?.check(invocation.container_id()?, namespace.as_fd(), invocation.interface()?)?;
            Ok(None)
        }
        "STATUS" => {
            open()?;
            Ok(None)
        }
        "GC" => {
            let valid = config
                .valid_attachments
                .as_ref()
                .ok_or_else(|| CniError::new(code::INVALID_CONFIG, "cni.dev/valid-attachments is required by GC"))?;
            let wanted: HashSet<Attachment> = valid
                .iter()
                .map(|attachment| Attachment {
                    container_id: attachment.container_id.clone(),
                    interface: attachment.ifname.clone(),
                })
                .collect();
            open()?.collect_garbage(&wanted)?;
            Ok(None)
        }
        "" => Err(missing("CNI_COMMAND")),
        other => Err(CniError::new(code::INVALID_ENVIRONMENT, format!("unknown CNI_COMMAND: {other}"))),
    }
}

/// Runtimes list every container port; those without a host port have zero there.
fn served_ports(config: &PluginConfig) -> Vec<HostPort> {
    let ports = config.runtime_config.port_mappings.iter();
    ports.filter(|port| port.host_port != 0).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixture {
        node: NetNs,
        pod: NetNs,
        pin: PathBuf,
        data_dir: PathBuf,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            let base = std::env::temp_dir().join(format!("skiff-cni-{name}-{}", std::process::id()));
            let pin = base.join("pod");
            Self {
                node: NetNs::create().unwrap(),
                pod: NetNs::create_pinned(&pin).unwrap(),
                pin,
                data_dir: base.join("data"),
            }
        }

        fn call(&self, command: &str, extra: serde_json::Value) -> Result<Option<serde_json::Value>, CniError> {
            let mut config = json!({
                "cniVersion": "1.1.0", "name": "skiff", "type": PLUGIN_TYPE,
                "podCIDR": "10.244.0.0/24", "dataDir": self.data_dir,
            });
            for (key, value) in extra.as_object().unwrap() {
                config[key] = value.clone();
            }
            let invocation = Invocation {
                command: command.to_owned(),
                container_id: Some("c1".to_owned()),
                netns: Some(self.pin.clone()),
                interface: Some("eth0".to_owned()),
            };
            let output = self.node.run(|| run(&invocation, config.to_string().as_bytes())).unwrap()?;
            Ok(output.map(|text| serde_json::from_str(&text).unwrap()))
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = crate::netns::unpin(&self.pin);
            let _ = std::fs::remove_dir_all(self.pin.parent().unwrap());
        }
    }

    #[test]
    fn a_container_comes_and_goes() {
        let fixture = Fixture::new("one");
        fixture.call("STATUS", json!({})).unwrap();
        let ports = json!({ "runtimeConfig": { "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "" },
            { "hostPort": 0, "containerPort": 81, "protocol": "udp" },
        ]}});
        let result = fixture.call("ADD", ports).unwrap().unwrap();
        assert_eq!(result["ips"][0]["address"], "10.244.0.2/32");
        assert_eq!(result["ips"][0]["gateway"], "10.244.0.1");
        assert_eq!(result["interfaces"][2]["mac"], "0a:58:0a:f4:00:02");
        let mut inside = crate::links::Links::open_in(fixture.pod.as_fd()).unwrap();
        assert!(inside.find("eth0").unwrap().unwrap().up);
        let check = |fixture: &Fixture| fixture.call("CHECK", json!({ "prevResult": result }));
        check(&fixture).unwrap();
        let keep = json!({ "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0" }] });
        fixture.call("GC", keep).unwrap();
        check(&fixture).unwrap();
        fixture.call("GC", json!({ "cni.dev/valid-attachments": [] })).unwrap();
        assert_eq!(check(&fixture).unwrap_err().code, code::INVALID_CONFIG);
        fixture.call("DEL", json!({})).unwrap();
        fixture.call("DEL", json!({})).unwrap();
    }

    #[test]
    fn bad_calls_are_answered_with_the_specification_s_codes() {
        let call = |command: &str, input: &str| {
            let invocation = Invocation { command: command.to_owned(), ..Invocation::default() };
            run(&invocation, input.as_bytes())
        };
        let version = call("VERSION", "{}").unwrap().unwrap();
        assert!(version.contains("\"1.1.0\""));
        assert_eq!(call("ADD", "{").unwrap_err().code, code::DECODING_FAILURE);
        let old = r#"{"cniVersion":"0.2.0","podCIDR":"10.244.0.0/24"}"#;
        assert_eq!(call("ADD", old).unwrap_err().code, code::INCOMPATIBLE_VERSION);
        let good = r#"{"cniVersion":"1.0.0","podCIDR":"10.244.0.0/24"}"#;
        let error = call("ADD", good).unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        assert_eq!(error.msg, "required env variables [CNI_NETNS] missing");
        assert_eq!(call("", good).unwrap_err().code, code::INVALID_ENVIRONMENT);
        assert_eq!(call("DANCE", good).unwrap_err().msg, "unknown CNI_COMMAND: DANCE");
    }

    #[test]
    fn the_conflist_is_read_back() {
        let mut config = PodNetworkConfig::new(vec!["10.244.3.0/24".parse().unwrap()]);
        config.masquerade_except = Some(vec!["10.244.0.0/16".parse().unwrap()]);
        let list: serde_json::Value = serde_json::from_str(&conflist(&config)).unwrap();
        let plugin: PluginConfig = serde_json::from_value(list["plugins"][0].clone()).unwrap();
        assert_eq!(plugin.network().pod_cidrs, config.pod_cidrs);
        assert_eq!(plugin.network().masquerade_except, config.masquerade_except);
        assert_eq!(list["plugins"][0]["podCIDRs"], serde_json::Value::Null);
        config.pod_cidrs.push("fd00:10:244:3::/64".parse().unwrap());
        let list: serde_json::Value = serde_json::from_str(&conflist(&config)).unwrap();
        let plugin: PluginConfig = serde_json::from_value(list["plugins"][0].clone()).unwrap();
        assert_eq!(plugin.network().pod_cidrs, config.pod_cidrs);
    }

    #[test]
    fn a_container_of_two_families() {
        let fixture = Fixture::new("two");
        let ranges = json!({ "podCIDRs": ["10.244.0.0/24", "fd00:10:244::/64"] });
        let result = fixture.call("ADD", ranges.clone()).unwrap().unwrap();
        assert_eq!(
            result["ips"],
            json!([
                { "address": "10.244.0.2/32", "gateway": "10.244.0.1", "interface": 2 },
                { "address": "fd00:10:244::2/128", "gateway": "fd00:10:244::1", "interface": 2 },
            ])
        );
        assert_eq!(result["routes"][1], json!({ "dst": "::/0", "gw": "fd00:10:244::1" }));
        let mut check = ranges.clone();
        check["prevResult"] = result;
        fixture.call("CHECK", check).unwrap();
        fixture.call("DEL", ranges).unwrap();
    }
}
