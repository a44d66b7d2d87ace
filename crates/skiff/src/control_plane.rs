//! The control plane: store, API server, and who calls it in process.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use skiff_apiserver::{ApiServer, Config, ServiceAccountTokens, ServiceRange, User};
use skiff_client::Informers;
use skiff_pki::Kubeconfig;
use skiff_store::{Embedded, Store};

use crate::certificates::Certificates;

/// How often the history of the store is forgotten, upstream's interval.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(300);

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
}

/// A control plane that serves.
pub(crate) struct ControlPlane {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) tls: Arc<rustls::ServerConfig>,
    pub(crate) certificates: Certificates,
}

/// Opens the store and starts the API server on it.
pub(crate) async fn start(options: Options) -> Result<ControlPlane> {
    // The first of two equal providers wins; it is the only one in this program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
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
    tokio::spawn(skiff_store::compact_periodically(store.clone(), COMPACTION_INTERVAL));

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
    let kubeconfig = Kubeconfig {
        name: "skiff",
        server: &format!("https://127.0.0.1:{}", options.port),
        authority_pem: certificates.authority.certificate_pem(),
        user: &certificates.admin,
    };
    skiff_pki::write_private(&options.data_dir.join("admin.conf"), &kubeconfig.to_yaml())?;
    Ok(ControlPlane { server, tls: certificates.server_tls()?, certificates })
}

/// A client for a component of this process, which acts as this user.
pub(crate) fn client(server: &Arc<ApiServer>, user: &str, groups: &[&str], component: &str) -> kube::Client {
    skiff_client::in_process(server.in_process(User::known(user, groups)), component, "default")
}
