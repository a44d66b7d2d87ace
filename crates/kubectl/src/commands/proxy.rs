//! `kubectl proxy`: the API server on a port of this machine, with the user's credentials.

use std::{convert::Infallible, rc::Rc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
    flags::Flag,
    out::say,
    rest::Rest,
};

pub(crate) const COMMAND: Command = Command {
    name: "proxy",
    about: "Run a proxy to the Kubernetes API server",
    usage: "[--port=PORT] [--api-prefix=prefix]",
    flags: &[FLAGS],
    subcommands: &[],
    run: Some(|cli| Box::pin(run(cli))),
};

const FLAGS: &[Flag] = &[
    Flag::text("address", "The IP address on which to serve on.").or("127.0.0.1"),
    Flag::text("api-prefix", "Prefix to serve the proxied API under.").or("/"),
    Flag::int("port", "The port on which to run the proxy. Set to 0 to pick a random port.").short('p').or("8001"),
];

/// Hosts that a browser may name: others could be a foreign page's.
const HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

async fn run(cli: &Cli) -> Result<()> {
    let flags = &cli.flags;
    let listener = listen(flags.text("address"), flags.int("port")?).await?;
    let prefix = format!("/{}", flags.text("api-prefix").trim_matches('/')).trim_end_matches('/').to_owned();
    say!("Starting to serve on {}", listener.local_addr()?);
    serve(listener, Proxy { rest: cli.rest()?, prefix, files: &[] }).await
}

/// A port of this machine.
pub(crate) async fn listen(address: &str, port: i64) -> Result<TcpListener> {
    TcpListener::bind(format!("{address}:{port}")).await.map_err(|error| {
        let what = match error.kind() {
            std::io::ErrorKind::AddrInUse => "bind: address already in use".to_owned(),
            _ => error.to_string(),
        };
        Error::text(format!("listen tcp {address}:{port}: {what}"))
    })
}

/// Answers whoever connects, for ever.
pub(crate) async fn serve(listener: TcpListener, proxy: Proxy) -> Result<()> {
    let proxy = Rc::new(proxy);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            loop {
                let (stream, _) = listener.accept().await?;
                let proxy = proxy.clone();
                tokio::task::spawn_local(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let proxy = proxy.clone();
                        async move { Ok::<_, Infallible>(proxy.answer(request).await) }
                    });
                    // A client that leaves ends its connection.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        })
        .await
}

/// What is served on the port.
pub(crate) struct Proxy {
    pub(crate) rest: Rc<Rest>,
    /// What paths begin with.
    pub(crate) prefix: String,
    /// Served beside the API, and not asked of it: path behind the prefix, type, content.
    pub(crate) files: &'static [(&'static str, &'static str, &'static str)],
}

impl Proxy {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.ends_with(']') { host } else { name });
        if !HOSTS.contains(&name) {
            return text(StatusCode::FORBIDDEN, "Forbidden");
        }
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let Some(path) = path.strip_prefix(&self.prefix).filter(|path| path.starts_with('/')) else {
            return text(StatusCode::NOT_FOUND, "404 page not found");
        };
        if let Some((_, kind, content)) = self.files.iter().find(|(name, ..)| *name == path) {
            return file(kind, content);
        }
        // Commands in pods are for kubectl itself, as upstream refuses them too.
        let plain = path.split('?').next().unwrap_or_default();
        if plain.contains("/pods/") && (plain.ends_with("/exec") || plain.ends_with("/attach")) {
            return text(StatusCode::FORBIDDEN, "Forbidden");
        }
        let path = path.to_owned();
        let (head, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        match self.rest.forward(head.method, &path, &passed_on(&head.headers), body).await {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                head.headers = passed_on(&head.headers);
                Response::from_parts(head, UnsyncBoxBody::new(body.map_err(Into::into)))
            }
            Err(error) => text(StatusCode::BAD_GATEWAY, &error.message()),
        }
    }
}

/// Headers that are not about the connection.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let own = [header::CONNECTION, header::HOST, header::TRANSFER_ENCODING, header::UPGRADE, header::CONTENT_LENGTH];
    let kept = headers.iter().filter(|(name, _)| !own.contains(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn file(kind: &'static str, content: &'static str) -> Response<Body> {
    let body = Full::new(Bytes::from_static(content.as_bytes())).map_err(|never| match never {});
    let mut response = Response::new(UnsyncBoxBody::new(body));
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn text(code: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {});
    let mut response = Response::new(UnsyncBoxBody::new(body));
    *response.status_mut() = code;
    response
}
