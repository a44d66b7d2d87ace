//! `healthCheckNodePort`: load balancers ask each node whether it has pods of a Service whose external traffic has to
//! stay on the node. 200 if it has, 503 if not, and how many.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use skiff_client::{Informers, ObjectKey};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};

use crate::run::service_of;

const PATIENCE: Duration = Duration::from_secs(5);
const LONGEST_REQUEST: usize = 8 << 10;
const BY_SERVICE: &str = "health-by-service";
/// A port that somebody else has is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// The port on which a Service's health is asked, if it has one.
fn port_of(service: &Service) -> Option<u16> {
    let spec = service.spec.as_ref()?;
    let wanted =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    spec.health_check_node_port.filter(|_| wanted).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

/// Ready endpoints on this node, each address once; of the family that has more of them.
fn locals(slices: &[Arc<EndpointSlice>], node: &str) -> usize {
    let of_type = |address_type: &str| locals_of(slices.iter().filter(|s| s.address_type == address_type), node);
    of_type("IPv4").max(of_type("IPv6"))
}

fn locals_of<'a>(slices: impl Iterator<Item = &'a Arc<EndpointSlice>>, node: &str) -> usize {
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    let here = endpoints.filter(|endpoint| {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        ready && endpoint.node_name.as_deref() == Some(node)
    });
    here.filter_map(|endpoint| endpoint.addresses.first()).collect::<std::collections::HashSet<_>>().len()
}

struct Served {
    port: u16,
    locals: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves the health of all Services that want it, until the informers end. Has to run in a task in the node's
/// network namespace. `on`: the address to listen on, one that stands for all of them.
pub async fn serve_health(node: String, on: IpAddr, informers: Informers) {
    let services = informers.informer::<Service>();
    let slices = informers.informer::<EndpointSlice>();
    slices.add_index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect());
    services.wait_synced().await;
    slices.wait_synced().await;
    let (mut of_services, mut of_slices) = (services.subscribe(), slices.subscribe());
    let mut served: HashMap<ObjectKey, Served> = HashMap::new();
    loop {
        let key = tokio::select! {
            change = of_services.recv() => match change {
                Some(change) => ObjectKey::of(change.object().as_ref()),
                None => return,
            },
            change = of_slices.recv() => match change {
                // A slice that changes hands is one of the old Service's that is deleted, in practice.
                Some(change) => match service_of(change.object()) {
                    Some(key) => key,
                    None => continue,
                },
                None => return,
            },
        };
        let Some(port) = services.get_key(&key).and_then(|service| port_of(&service)) else {
            served.remove(&key);
            continue;
        };
        let count = locals(&slices.by_index(BY_SERVICE, &key.to_string()), &node);
        if let Some(served) = served.get(&key).filter(|served| served.port == port) {
            served.locals.store(count, Ordering::Relaxed);
            continue;
        }
        served.remove(&key);
        let locals = Arc::new(AtomicUsize::new(count));
        let task = tokio::spawn(listen(SocketAddr::new(on, port), key.clone(), locals.clone())).abort_handle();
        served.insert(key, Served { port, locals, task });
    }
}

async fn listen(address: SocketAddr, key: ObjectKey, locals: Arc<AtomicUsize>) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(service = %key, port = address.port(), %error, "cannot serve the health of a Service; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let text = answer(&key, locals.load(Ordering::Relaxed));
                tokio::spawn(async move {
                    // Who does not want the answer any more is no concern of ours.
                    let _ = timeout(PATIENCE, reply(stream, text)).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn answer(key: &ObjectKey, locals: usize) -> String {
    let content = serde_json::json!({
        "service": {"namespace": &*key.namespace, "name": &*key.name},
        "localEndpoints": locals,
        "serviceProxyHealthy": true,
    });
    let content = content.to_string();
    let status = if locals > 0 { "200 OK" } else { "503 Service Unavailable" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {locals}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{content}",
        content.len()
    )
}

async fn reply(mut stream: TcpStream, text: String) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 1024];
        let len = stream.read(&mut buffer).await?;
        if len == 0 || request.len() > LONGEST_REQUEST {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..len]);
    }
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use kube::{
        Api,
        api::{Patch, PatchParams, PostParams},
    };
    use serde_json::json;
    use skiff_client::fake::FakeApi;

    use super::*;

    async fn ask(port: u16, wanted: &str) -> String {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let mut answer = String::new();
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await {
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
                stream.read_to_string(&mut answer).await.unwrap();
            }
            if answer.contains(wanted) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{answer:?} instead of {wanted}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn load_balancers_are_told_where_pods_are() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let client = FakeApi::new().client();
        let task = tokio::spawn(serve_health(
            "one".to_owned(),
            std::net::Ipv4Addr::UNSPECIFIED.into(),
            Informers::new(client.clone()),
        ));
        let service = json!({"metadata": {"name": "web"}, "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port}});
        let services = Api::<Service>::namespaced(client.clone(), "default");
        services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
        let answer = ask(port, "503 Service Unavailable").await;
        assert!(answer.contains(r#"{"localEndpoints":0"#) || answer.contains(r#""localEndpoints":0"#), "{answer}");
        let slice = json!({
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1"], "nodeName": "one"}, {"addresses": ["10.0.0.2"], "nodeName": "two"}]});
        let slices = Api::<EndpointSlice>::namespaced(client, "default");
        slices.create(&PostParams::default(), &serde_json::from_value(slice).unwrap()).await.unwrap();
        assert!(ask(port, "200 OK").await.contains(r#""localEndpoints":1"#));
        let patch = Patch::Merge(json!({"spec": {"externalTrafficPolicy": "Cluster"}}));
        services.patch("web", &PatchParams::default(), &patch).await.unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            assert!(tokio::time::Instant::now() < deadline, "the port stays open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        task.abort();
    }
}
