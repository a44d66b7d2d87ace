//! The daemon's control socket: what `skiff cluster` and `skiff image` ask of a running node.
//!
//! A Unix socket in the node's `/run`, which is a directory of the host for whoever may read it (root).
//! One request per connection: a line of JSON, followed for `loadImages` by as many bytes as it says.
//! The answer is a line of JSON.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
    pin::Pin,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use skiff_network::hostport::Protocol;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::{host_ports::Forward, load_balancer::PortManager, node_config::Component};

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "do")]
pub enum Request {
    /// An image archive of this many bytes follows.
    LoadImages {
        bytes: u64,
    },
    /// Which host ports are open.
    ListPorts,
    OpenPort {
        forward: Forward,
    },
    ClosePort {
        protocol: Protocol,
        listen: SocketAddr,
    },
    /// Which components run in the node's daemon.
    ListComponents,
    /// Has a component stop or start while the others go on; a restarted daemon starts all of them.
    SetComponent {
        component: Component,
        run: bool,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Names of the images that were loaded.
    Images(Vec<String>),
    Ports(Vec<PortStatus>),
    Port(SocketAddr),
    /// Whether each one runs.
    Components(Vec<(Component, bool)>),
    Done,
    Error(String),
}

/// A host port, open or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    pub forward: Forward,
    /// `extraPortMappings`, `service default/web`, `added by hand`.
    pub reason: String,
    /// Why it is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What the daemon does with requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. `body` holds what follows the request's line.
    fn handle<'a>(
        &'a self,
        request: Request,
        body: Pin<Box<dyn AsyncRead + Send + 'a>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;
}

/// Loads image archives; implemented over the node's image store.
pub trait ImageLoader: Send + Sync + 'static {
    /// Reads an archive to its end and returns the names of its images, or a message for the user.
    fn load<'a>(
        &'a self,
        archive: Pin<Box<dyn AsyncRead + Send + 'a>>,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + Send + 'a>>;
}

/// Stops and starts components; implemented by the daemon.
pub trait ComponentSwitch: Send + Sync + 'static {
    /// All components that there are here, and whether each one runs.
    fn list(&self) -> Vec<(Component, bool)>;
    /// Stops or starts one, or says why not.
    fn set(&self, component: Component, run: bool) -> Result<(), String>;
}

/// The usual handler: a node's ports, images and components.
pub struct NodeControl<Images, Components> {
    pub ports: PortManager,
    pub images: Images,
    pub components: Components,
}

impl<Images: ImageLoader, Components: ComponentSwitch> Handler for NodeControl<Images, Components> {
    fn handle<'a>(
        &'a self,
        request: Request,
        body: Pin<Box<dyn AsyncRead + Send + 'a>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>> {
        Box::pin(async move {
            match request {
                Request::LoadImages { .. } => self.images.load(body).await.map_or_else(Answer::Error, Answer::Images),
                Request::ListComponents => Answer::Components(self.components.list()),
                Request::SetComponent { component, run } => match self.components.set(component, run) {
                    Ok(()) => Answer::Done,
                    Err(message) => Answer::Error(message),
                },
                Request::ListPorts => Answer::Ports(self.ports.list()),
                Request::OpenPort { forward } => self.ports.open(forward).map_or_else(Answer::Error, Answer::Port),
                Request::ClosePort { protocol, listen } => match self.ports.close(protocol, listen) {
                    true => Answer::Done,
                    false => Answer::Error(format!("port {listen}/{protocol} was not opened by hand")),
                },
            }
        })
    }
}

/// Longest request line; everything longer is not ours.
const LONGEST_LINE: u64 = 64 << 10;

/// Serves the socket until the task is dropped. A socket file from a previous run is replaced.
pub async fn serve(path: &Path, handler: Arc<dyn Handler>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            if let Err(error) = answer(stream, handler.as_ref()).await {
                tracing::debug!(%error, "control request failed");
            }
        });
    }
}

async fn answer(stream: tokio::net::UnixStream, handler: &dyn Handler) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut reading = tokio::io::BufReader::new(reading);
    let mut line = Vec::new();
    (&mut reading).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
    let answer = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => {
            let bytes = match request {
                Request::LoadImages { bytes } => bytes,
                _ => 0,
            };
            handler.handle(request, Box::pin((&mut reading).take(bytes))).await
        }
        Err(error) => Answer::Error(format!("unknown request: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    writing.write_all(&text).await?;
    writing.shutdown().await
}

/// Sends a request with its body and waits for the answer. `path` may be longer than a socket's address.
pub fn ask(path: &Path, request: &Request, body: &mut dyn Read) -> io::Result<Answer> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // A socket's address has 108 bytes; through a descriptor of its directory any path fits.
    let directory = File::open(directory)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    let mut stream = UnixStream::connect(short)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    // The daemon may refuse before it has read everything: its answer says more than our broken pipe.
    let sent = io::copy(body, &mut stream);
    let mut text = String::new();
    BufReader::new(&stream).read_line(&mut text)?;
    match serde_json::from_str(&text) {
        Ok(answer) => Ok(answer),
        Err(error) => Err(sent.err().unwrap_or_else(|| error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter;

    impl Handler for Counter {
        fn handle<'a>(
            &'a self,
            request: Request,
            mut body: Pin<Box<dyn AsyncRead + Send + 'a>>,
        ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'a>> {
            Box::pin(async move {
                let mut content = Vec::new();
                if let Err(error) = body.read_to_end(&mut content).await {
                    return Answer::Error(error.to_string());
                }
                match request {
                    Request::LoadImages { bytes } if bytes == content.len() as u64 => {
                        Answer::Images(vec![format!("{bytes} bytes")])
                    }
                    other => Answer::Error(format!("{other:?}")),
                }
            })
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn requests_are_answered_over_long_paths() {
        let directory =
            std::env::temp_dir().join(format!("skiff-control-{}", std::process::id())).join("x".repeat(120));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("control.sock");
        // The daemon's own path is short; here the test has to change to the directory's descriptor.
        let handle = File::open(&directory).unwrap();
        let short = Path::new("/proc/self/fd").join(handle.as_raw_fd().to_string()).join("control.sock");
        let server = tokio::spawn(async move { serve(&short, Arc::new(Counter)).await });
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !path.exists() && std::time::Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        let answers = tokio::task::spawn_blocking(move || {
            let content = vec![7; 300_000];
            let request = Request::LoadImages { bytes: content.len() as u64 };
            let loaded = ask(&path, &request, &mut content.as_slice()).unwrap();
            let listed = ask(&path, &Request::ListPorts, &mut io::empty()).unwrap();
            (loaded, listed)
        })
        .await
        .unwrap();
        assert_eq!(answers.0, Answer::Images(vec!["300000 bytes".to_owned()]));
        assert_eq!(answers.1, Answer::Error("ListPorts".to_owned()));
        server.abort();
        std::fs::remove_dir_all(directory.parent().unwrap()).unwrap();
    }
}
