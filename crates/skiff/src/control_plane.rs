//! The control plane: store, API server, and who calls it in process.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use serde_json::json;
use skiff_apiserver::{ApiServer, ComponentHealth, Config, ServiceAccountTokens, ServiceRange, User};
use skiff_client::Informers;
use skiff_cluster::node_config::{Component, Settings};
use skiff_pki::Kubeconfig;
use skiff_store::{Encrypted, Rule, Store};

use crate::{
    backend::{Backend, EtcdArgs},
    certificates::{Certificates, choose_provider},
    components::Components,
    election::elected,
    machine,
};

/// What a control plane is told.
pub(crate) struct Options {
    pub(crate) data_dir: PathBuf,
    /// Under which nodes and pods reach the API, at `port`.
    pub(crate) node_ip: Ipv4Addr,
    /// Further addresses of the API server.
    pub(crate) further_ips: Vec<IpAddr>,
    pub(crate) port: u16,
    pub(crate) service_cidr: String,
    pub(crate) pod_cidr: String,
    /// A real etcd to keep the state in.
    pub(crate) etcd: Option<EtcdArgs>,
    /// Further names and addresses of the API server, such as those of a load balancer.
    pub(crate) names: Vec<String>,
    /// What differs from the components' defaults.
    pub(crate) settings: Settings,
    /// Those that can be stopped and started; the control plane adds its own.
    pub(crate) components: Components,
    /// With which nodes may join: `abcdef.0123456789abcdef`.
    pub(crate) bootstrap_token: Option<String>,
}

/// A control plane that serves.
pub(crate) struct ControlPlane {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) store: Backend,
    /// What this server is called among the candidates to be a leader.
    pub(crate) identity: String,
    pub(crate) tls: Arc<rustls::ServerConfig>,
    pub(crate) certificates: Certificates,
    data_dir: PathBuf,
}

/// Opens the store and starts the API server on it.
pub(crate) async fn start(options: Options) -> Result<ControlPlane> {
    choose_provider();
    let service_ranges = ServiceRange::parse_list(&options.service_cidr).ok_or_else(|| {
        anyhow!("{} is neither a range such as 10.96.0.0/16 nor one of each address family", options.service_cidr)
    })?;
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), options.node_ip.into()];
    addresses.extend(&options.further_ips);
    addresses.extend(service_ranges.iter().map(|range| range.nth(1)));
    for name in options.names {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(name),
        }
    }
    let pki = options.data_dir.join("pki");
    let certificates = Certificates::load_or_create(&pki, &names, &addresses)?;
    let backend = Backend::open(options.data_dir.join("db"), options.etcd.as_ref()).await?;
    backend.check_keys(&certificates, &pki).await?;
    let encryption = options.settings.encryption_provider_config.as_deref();
    let encrypted = Encrypted::new(backend.store(), encryption_rules(&pki, encryption)?);
    // Before anything is served: what cannot be read is said here, and not by a cache that never fills.
    let anew = encrypted.encrypt_anew().await.context("the keys for encryption at rest do not fit the store")?;
    if anew > 0 {
        tracing::info!(objects = anew, "encrypted anew, with the first key of their resources");
    }
    let store: Arc<dyn Store> = Arc::new(encrypted);

    let (private, public) = &certificates.token_key;
    let server = ApiServer::start(Config {
        store,
        service_ranges,
        tokens: ServiceAccountTokens::new(private, public)?,
        kubelet_client: certificates.kubelet_client_tls()?,
        front_proxy: Some(certificates.front_proxy()?),
        advertise: SocketAddr::from((options.node_ip, options.port)),
        shared: backend.is_shared(),
    })
    .await?;
    let authority = certificates.authority.clone();
    let settings = &options.settings;
    let identity = format!("{}_{:016x}", machine::host_name()?, rand::random::<u64>());
    // A server that is alone has nobody to wait for.
    let (elect, candidate) = (backend.is_shared(), identity.clone());
    let api = server.clone();
    options.components.add(Component::Scheduler, !settings.disable.contains(&Component::Scheduler), move || {
        let client = client(&api, "system:kube-scheduler", &[], "kube-scheduler");
        let (candidate, own) = (candidate.clone(), client.clone());
        let start = move || skiff_scheduler::run(own.clone(), Informers::new(own.clone())).boxed();
        match elect {
            true => async move { elected(client, "kube-scheduler", &candidate, start).await }.boxed(),
            false => start(),
        }
    });
    let candidate = identity.clone();
    let (api, pod_cidr) = (server.clone(), options.pod_cidr);
    let grace = settings.node_monitor_grace_period_s.map(Duration::from_secs);
    let run = !settings.disable.contains(&Component::ControllerManager);
    options.components.add(Component::ControllerManager, run, move || {
        let client = client(&api, "system:kube-controller-manager", &[], "kube-controller-manager");
        let (candidate, own) = (candidate.clone(), client.clone());
        let (authority, pod_cidr) = (authority.clone(), pod_cidr.clone());
        let start = move || {
            let config = skiff_controllers::Config {
                authority: authority.clone(),
                pod_cidr: pod_cidr.clone(),
                node_monitor_grace_period: grace.unwrap_or(skiff_controllers::NODE_MONITOR_GRACE_PERIOD),
            };
            skiff_controllers::run(config, Informers::new(own.clone())).boxed()
        };
        match elect {
            true => async move { elected(client, "kube-controller-manager", &candidate, start).await }.boxed(),
            false => start(),
        }
    });
    server.set_component_health(component_health(options.components.clone(), backend.clone()));
    if let Some(token) = &options.bootstrap_token {
        let client = client(&server, "system:kube-controller-manager", &[], "bootstrap-token");
        ensure_bootstrap_token(client, token).await?;
    }
    Ok(ControlPlane {
        server,
        store: backend,
        identity,
        tls: certificates.server_tls()?,
        certificates,
        data_dir: options.data_dir,
    })
}

/// How objects are encrypted at rest: as a file of the user's says, or else with a key that is made at the first start.
fn encryption_rules(pki: &Path, given: Option<&Path>) -> Result<Vec<Rule>> {
    let path = given.map_or_else(|| pki.join("encryption.yaml"), Path::to_owned);
    let text = match skiff_pki::read(&path)? {
        Some(text) => text,
        None if given.is_some() => bail!("the encryption configuration {} is not there", path.display()),
        None => {
            let text = skiff_apiserver::default_encryption_configuration();
            skiff_pki::write_private(&path, &text)?;
            text
        }
    };
    skiff_apiserver::encryption_rules(&text)
        .with_context(|| format!("the encryption configuration {} cannot be used", path.display()))
}

/// What `kubectl get componentstatuses` says. Upstream asks the components' own ports, and says so when nobody is there.
fn component_health(components: Components, store: Backend) -> ComponentHealth {
    let running = move |component, port: u16| match components.is_running(component) {
        true => Ok(()),
        false => Err(format!(
            "Get \"https://127.0.0.1:{port}/healthz\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        )),
    };
    Box::new(move |name| match name {
        "scheduler" => running(Component::Scheduler, 10259),
        "controller-manager" => running(Component::ControllerManager, 10257),
        _ => store.health(),
    })
}

/// A client for a component of this process, which acts as this user.
pub(crate) fn client(server: &Arc<ApiServer>, user: &str, groups: &[&str], component: &str) -> kube::Client {
    skiff_client::in_process(server.in_process(User::known(user, groups)), component, "default")
}

impl ControlPlane {
    /// Writes the administrator's kubeconfig, for a server on this port of the loopback.
    pub(crate) fn write_kubeconfig(&self, port: u16) -> Result<()> {
        let kubeconfig = Kubeconfig {
            name: "skiff",
            server: &format!("https://127.0.0.1:{port}"),
            authority_pem: self.certificates.authority.certificate_pem(),
            user: &self.certificates.admin,
        };
        skiff_pki::write_private(&self.data_dir.join("admin.conf"), &kubeconfig.to_yaml())?;
        Ok(())
    }
}

/// Makes the Secret that lets nodes in with this token.
async fn ensure_bootstrap_token(client: kube::Client, token: &str) -> Result<()> {
    let (id, secret) =
        token.split_once('.').context("the bootstrap token is not of the form abcdef.0123456789abcdef")?;
    let secrets: Api<Secret> = Api::namespaced(client, "kube-system");
    let name = format!("bootstrap-token-{id}");
    // Looked for first: a webhook that cannot be reached must not keep the server from starting again.
    if secrets.get_metadata_opt(&name).await.context("cannot look for the bootstrap token")?.is_some() {
        return Ok(());
    }
    let object = serde_json::from_value(json!({
        "metadata": {"name": name},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": {
            "token-id": id, "token-secret": secret,
            "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
        },
    }))?;
    match secrets.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        created => created.context("cannot make the bootstrap token").map(|_| ()),
    }
}
