//! The control plane: store, API server, and who calls it in process.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use serde_json::json;
use skiff_apiserver::{ApiServer, Config, ServiceAccountTokens, ServiceRange, User};
use skiff_client::Informers;
use skiff_pki::Kubeconfig;
use skiff_store::{Embedded, Store};

use crate::certificates::{Certificates, choose_provider};

/// What a control plane is told.
pub(crate) struct Options {
    pub(crate) data_dir: PathBuf,
    /// Under which nodes and pods reach the API, at `port`.
    pub(crate) node_ip: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) service_cidr: String,
    pub(crate) pod_cidr: String,
    /// Further names of the API server.
    pub(crate) names: Vec<String>,
    /// With which nodes may join: `abcdef.0123456789abcdef`.
    pub(crate) bootstrap_token: Option<String>,
}

/// A control plane that serves.
pub(crate) struct ControlPlane {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) tls: Arc<rustls::ServerConfig>,
    pub(crate) certificates: Certificates,
    data_dir: PathBuf,
}

/// Opens the store and starts the API server on it.
pub(crate) async fn start(options: Options) -> Result<ControlPlane> {
    choose_provider();
    let service_range = ServiceRange::parse(&options.service_cidr)
        .ok_or_else(|| anyhow!("{} is no IPv4 range such as 10.96.0.0/16", options.service_cidr))?;
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend(options.names);
    let addresses: [IpAddr; 3] = [Ipv4Addr::LOCALHOST.into(), options.node_ip.into(), service_range.nth(1).into()];
    let certificates = Certificates::load_or_create(&options.data_dir.join("pki"), &names, &addresses)?;

    let store_dir = options.data_dir.join("db");
    std::fs::create_dir_all(&store_dir).with_context(|| format!("cannot make {}", store_dir.display()))?;
    let store: Arc<dyn Store> =
        Arc::new(Embedded::open(store_dir.join("state.redb"), &skiff_store::Options::default())?);
    tokio::spawn(skiff_store::compact_periodically(store.clone(), skiff_store::DEFAULT_COMPACTION_PERIOD));

    let (private, public) = &certificates.token_key;
    let server = ApiServer::start(Config {
        store,
        service_range,
        tokens: ServiceAccountTokens::new(private, public)?,
        kubelet_client: certificates.kubelet_client_tls()?,
        advertise: SocketAddr::from((options.node_ip, options.port)),
    })
    .await?;
    let authority = certificates.authority.clone();
    tokio::spawn(skiff_scheduler::run(
        client(&server, "system:kube-scheduler", &[], "kube-scheduler"),
        Informers::new(client(&server, "system:kube-scheduler", &[], "kube-scheduler")),
    ));
    let informers = Informers::new(client(&server, "system:kube-controller-manager", &[], "kube-controller-manager"));
    tokio::spawn(skiff_controllers::run(
        skiff_controllers::Config { authority, pod_cidr: options.pod_cidr },
        informers,
    ));
    if let Some(token) = &options.bootstrap_token {
        let client = client(&server, "system:kube-controller-manager", &[], "bootstrap-token");
        ensure_bootstrap_token(client, token).await?;
    }
    Ok(ControlPlane { server, tls: certificates.server_tls()?, certificates, data_dir: options.data_dir })
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
    let object = serde_json::from_value(json!({
        "metadata": {"name": format!("bootstrap-token-{id}")},
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
