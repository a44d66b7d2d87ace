//! A registry just large enough to pull from, on loopback.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use skiff_images::Digest;

use crate::support::Made;

#[derive(Default)]
struct Content {
    /// By `<repository>:<tag>` and `<repository>@<digest>`.
    manifests: HashMap<String, Vec<u8>>,
    /// By digest.
    blobs: HashMap<String, Vec<u8>>,
    authorization: Option<String>,
    corrupted: Mutex<Option<String>>,
    served: AtomicUsize,
}

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    content: Arc<Content>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Registry {
    pub(crate) fn blobs_served(&self) -> usize {
        self.content.served.load(Ordering::Relaxed)
    }

    /// Changes one byte of this blob whenever it is served.
    pub(crate) fn corrupt(&self, blob: &[u8]) {
        *self.content.corrupted.lock().expect("no panic") = Some(Digest::of(blob).to_string());
    }

    pub(crate) fn heal(&self) {
        *self.content.corrupted.lock().expect("no panic") = None;
    }
}

/// Serves these images (repository, tag, image), with basic authentication if asked for.
pub(crate) async fn serve(images: &[(&str, &str, &Made)], login: Option<(&str, &str)>) -> Registry {
    let mut content = Content::default();
    for (repository, tag, made) in images {
        let manifest = made.manifest();
        content.manifests.insert(format!("{repository}@{}", Digest::of(&manifest)), manifest.clone());
        content.manifests.insert(format!("{repository}:{tag}"), manifest);
        for blob in made.layers.iter().chain([&made.config]) {
            content.blobs.insert(Digest::of(blob).to_string(), blob.clone());
        }
    }
    content.authorization = login.map(|(user, password)| {
        use base64::Engine;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        format!("Basic {pair}")
    });
    let content = Arc::new(content);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let shared = content.clone();
    let task = tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let content = shared.clone();
            let service = hyper::service::service_fn(move |request| {
                let response = answer(&content, &request);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service));
        }
    });
    Registry { address, content, task }
}

fn answer(content: &Content, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let reply = |status: StatusCode, body: Vec<u8>| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response
    };
    let error = |status, code: &str| {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": code }] });
        reply(status, body.to_string().into_bytes())
    };
    let given = request.headers().get("authorization").and_then(|v| v.to_str().ok());
    if content.authorization.is_some() && content.authorization.as_deref() != given {
        let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        let challenge = "Basic realm=\"test\"".parse().expect("a header");
        response.headers_mut().insert("www-authenticate", challenge);
        return response;
    }
    let path = request.uri().path();
    let Some(path) = path.strip_prefix("/v2/").filter(|p| !p.is_empty()) else {
        return reply(StatusCode::OK, b"{}".to_vec());
    };
    if let Some((repository, name)) = path.split_once("/manifests/") {
        let separator = if name.starts_with("sha256:") { '@' } else { ':' };
        return match content.manifests.get(&format!("{repository}{separator}{name}")) {
            Some(manifest) => {
                let mut response = reply(StatusCode::OK, manifest.clone());
                let digest = Digest::of(manifest).to_string().parse().expect("a header");
                response.headers_mut().insert("docker-content-digest", digest);
                let kind = "application/vnd.oci.image.manifest.v1+json".parse().expect("a header");
                response.headers_mut().insert("content-type", kind);
                response
            }
            None => error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        };
    }
    if let Some((_, digest)) = path.split_once("/blobs/")
        && let Some(blob) = content.blobs.get(digest)
    {
        content.served.fetch_add(1, Ordering::Relaxed);
        let mut blob = blob.clone();
        if content.corrupted.lock().expect("no panic").as_deref() == Some(digest) {
            let last = blob.len() - 1;
            blob[last] ^= 1;
        }
        return reply(StatusCode::OK, blob);
    }
    error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN")
}
