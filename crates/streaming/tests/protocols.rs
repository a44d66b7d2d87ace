//! Clients of all the protocols against the server, over memory.

use std::collections::HashMap;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use skiff_streaming::spdy::{ControlFrame, FrameHeader, HeaderDecoder, HeaderEncoder};
use skiff_streaming::{
    CommandHandler, CommandOptions, CommandStreams, Outcome, PortForwardHandler, serve_command, serve_port_forward,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Says hello on both outputs, sends back its input, tells the sizes it heard of, and ends with 3.
struct Echo;

impl CommandHandler for Echo {
    async fn run(self, mut streams: CommandStreams) -> Outcome {
        let mut stdout = streams.stdout.take().expect("an output");
        stdout.write_all(b"hello ").await.expect("somebody reads");
        if let Some(mut stderr) = streams.stderr.take() {
            stderr.write_all(b"oops").await.expect("somebody reads");
        }
        if let Some(mut stdin) = streams.stdin.take() {
            tokio::io::copy(&mut stdin, &mut stdout).await.expect("copies");
        }
        while let Ok(size) = streams.resize.try_recv() {
            let text = format!(" {}x{}", size.width, size.height);
            stdout.write_all(text.as_bytes()).await.expect("somebody reads");
        }
        Outcome::Exit { code: 3, command: vec!["echo".into(), "x".into()] }
    }
}

struct Ports;

impl PortForwardHandler for Ports {
    type Connection = DuplexStream;

    async fn connect(&self, port: u16) -> Result<DuplexStream, String> {
        if port != 80 {
            return Err("connection refused".into());
        }
        let (ours, theirs) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(ours);
            write.write_all(b"welcome ").await.expect("somebody reads");
            tokio::io::copy(&mut read, &mut write).await.expect("copies");
        });
        Ok(theirs)
    }
}

const ALL: CommandOptions = CommandOptions { stdin: true, stdout: true, stderr: true, tty: false };

/// Sends a request to a server of its own and returns the head of the answer and the connection.
async fn connect(path: &'static str, headers: &[(&str, &str)]) -> (String, DuplexStream) {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let response = match request.uri().path() {
                "/exec" => serve_command(request, ALL, Echo),
                "/tty" => serve_command(request, CommandOptions { tty: true, ..ALL }, Echo),
                "/none" => serve_command(request, CommandOptions::default(), Echo),
                _ => {
                    let ports = request.uri().query().into_iter().flat_map(|q| q.split(','));
                    let ports = ports.map(|port| port.parse().expect("a number")).collect();
                    serve_port_forward(request, ports, Ports)
                }
            };
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service)
            .with_upgrades()
            .await;
    });
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: x\r\n");
    headers.iter().for_each(|(name, value)| request.push_str(&format!("{name}: {value}\r\n")));
    request.push_str("\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.expect("an answer"));
    }
    (String::from_utf8(head).expect("text").to_ascii_lowercase(), client)
}

async fn websocket(path: &'static str, protocol: &str) -> WebSocketStream<DuplexStream> {
    let (head, io) = connect(
        path,
        &[
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", protocol),
        ],
    )
    .await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

fn exit_status() -> serde_json::Value {
    serde_json::json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": "command terminated with non-zero exit code: error executing command [echo x], exit code 3",
        "details": { "causes": [{ "reason": "ExitCode", "message": "3" }] },
    })
}

#[tokio::test]
async fn command_over_websocket() {
    let mut socket = websocket("/exec", "nope, v5.channel.k8s.io, v4.channel.k8s.io").await;
    let send = |bytes: &[u8]| Message::Binary(bytes.to_vec().into());
    socket.send(send(b"\x04{\"Width\":80,\"Height\":24}")).await.expect("sent");
    socket.send(send(b"\x00in")).await.expect("sent");
    socket.send(Message::Ping(vec![1].into())).await.expect("sent");
    socket.send(send(b"\x00put")).await.expect("sent");
    socket.send(send(&[255, 0])).await.expect("sent");
    let mut channels: HashMap<u8, Vec<u8>> = HashMap::new();
    let mut ponged = false;
    let mut closed = false;
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(data) => channels.entry(data[0]).or_default().extend_from_slice(&data[1..]),
            Message::Pong(_) => ponged = true,
            Message::Close(Some(frame)) => closed = u16::from(frame.code) == 1000,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(channels[&1], b"hello input 80x24");
    assert_eq!(channels[&2], b"oops");
    let status: serde_json::Value = serde_json::from_slice(&channels[&3]).expect("JSON");
    assert_eq!(status, exit_status());
    assert!(ponged && closed);
}

/// Libraries send what they are given as one message.
#[tokio::test]
async fn much_input_in_one_message() {
    let socket = websocket("/exec", "v5.channel.k8s.io").await;
    let much = vec![b'x'; 5_000_000];
    let message = [&[0], much.as_slice()].concat();
    let (mut sink, mut stream) = socket.split();
    let sending = async {
        sink.send(Message::Binary(message.into())).await.expect("sent");
        sink.send(Message::Binary(vec![255, 0].into())).await.expect("sent");
    };
    let receiving = async {
        let mut length = 0;
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(data) if data[0] == 1 => length += data.len() - 1,
                Message::Close(_) => break,
                _ => {}
            }
        }
        length
    };
    let ((), length) = tokio::join!(sending, receiving);
    assert_eq!(length, "hello ".len() + much.len());
}

#[tokio::test]
async fn command_over_base64_websocket() {
    let mut socket = websocket("/tty", "base64.channel.k8s.io").await;
    socket.send(Message::Text("0aW5wdXQ=".into())).await.expect("sent");
    socket.send(Message::Text("7".into())).await.expect("sent");
    let mut got = Vec::new();
    while got.len() < 3 {
        match socket.next().await.expect("more").expect("a message") {
            Message::Text(text) => got.push(text.to_string()),
            other => panic!("{other:?}"),
        }
    }
    // The empty first message, then the output; with a terminal there is no error output.
    assert_eq!(got, ["1", "1aGVsbG8g", "1aW5wdXQ="]);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_command() {
    struct Waits(tokio::sync::oneshot::Sender<()>);
    impl CommandHandler for Waits {
        async fn run(self, _: CommandStreams) -> Outcome {
            let _told_when_dropped = self.0;
            std::future::pending().await
        }
    }
    let (sender, dropped) = tokio::sync::oneshot::channel();
    let (client, server) = tokio::io::duplex(4096);
    let sender = std::sync::Mutex::new(Some(sender));
    tokio::spawn(async move {
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
            let sender = sender.lock().expect("no panic").take().expect("one request");
            let response = serve_command(request, ALL, Waits(sender));
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service)
            .with_upgrades()
            .await;
    });
    let request = "GET /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n";
    let mut client = client;
    client.write_all(request.as_bytes()).await.expect("sent");
    let mut head = [0; 16];
    client.read_exact(&mut head).await.expect("an answer");
    drop(client);
    let ended = tokio::time::timeout(Duration::from_secs(10), dropped).await;
    assert!(ended.expect("in time").is_err(), "the handler was dropped");
}

/// A SPDY client as small as can be.
struct Client<T> {
    io: T,
    encoder: HeaderEncoder,
    decoder: HeaderDecoder,
    next: u32,
}

#[derive(Debug)]
enum Seen {
    Data(u32, Vec<u8>, bool),
    Control,
    End,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    fn new(io: T) -> Self {
        Client { io, encoder: HeaderEncoder::default(), decoder: HeaderDecoder::default(), next: 1 }
    }

    async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let headers = self.encoder.encode(headers).expect("encodes");
        self.control(ControlFrame::SynStream { stream, fin: false, headers }).await;
        stream
    }

    async fn control(&mut self, frame: ControlFrame) {
        self.io.write_all(&frame.to_bytes()).await.expect("sent");
        self.io.flush().await.expect("sent");
    }

    async fn data(&mut self, stream: u32, data: &[u8], fin: bool) {
        let mut head = [0; 8];
        head[..4].copy_from_slice(&stream.to_be_bytes());
        head[4..].copy_from_slice(&(u32::from(fin) << 24 | data.len() as u32).to_be_bytes());
        self.io.write_all(&head).await.expect("sent");
        self.io.write_all(data).await.expect("sent");
        self.io.flush().await.expect("sent");
    }

    async fn see(&mut self) -> Seen {
        let mut head = [0; 8];
        if self.io.read_exact(&mut head).await.is_err() {
            return Seen::End;
        }
        match FrameHeader::parse(head).expect("a frame") {
            FrameHeader::Data { stream, fin, length } => {
                let mut data = vec![0; length as usize];
                self.io.read_exact(&mut data).await.expect("whole");
                Seen::Data(stream, data, fin)
            }
            FrameHeader::Control { kind, flags, length } => {
                let mut body = vec![0; length as usize];
                self.io.read_exact(&mut body).await.expect("whole");
                let frame = ControlFrame::parse(kind, flags, &body).expect("valid");
                if let ControlFrame::SynReply { headers, .. } = &frame {
                    self.decoder.decode(headers).expect("decodes");
                }
                Seen::Control
            }
        }
    }

    /// Everything that comes until the streams have ended.
    async fn collect(&mut self, streams: &[u32]) -> HashMap<u32, Vec<u8>> {
        let mut out: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut open = streams.to_vec();
        while !open.is_empty() {
            match self.see().await {
                Seen::Data(stream, data, fin) => {
                    out.entry(stream).or_default().extend(data);
                    open.retain(|s| *s != stream || !fin);
                }
                Seen::Control => {}
                Seen::End => panic!("ended with {open:?} open and {out:?}"),
            }
        }
        out
    }
}

async fn spdy(path: &'static str, protocols: &[&str]) -> (String, Client<DuplexStream>) {
    let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
    headers.extend(protocols.iter().map(|p| ("X-Stream-Protocol-Version", *p)));
    let (head, io) = connect(path, &headers).await;
    (head, Client::new(io))
}

#[tokio::test]
async fn command_over_spdy() {
    let (head, mut client) = spdy("/exec", &["v9.channel.k8s.io", "v4.channel.k8s.io"]).await;
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: spdy/3.1"), "{head}");
    assert!(head.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{head}");
    let error = client.open(&[("streamType", "error")]).await;
    let stdin = client.open(&[("streamType", "stdin")]).await;
    let stdout = client.open(&[("streamType", "stdout")]).await;
    let stderr = client.open(&[("streamType", "stderr")]).await;
    client.data(stdin, b"typed", false).await;
    client.data(stdin, b"!", true).await;
    client.control(ControlFrame::Ping(7)).await;
    let got = client.collect(&[error, stdout, stderr]).await;
    assert_eq!(got[&stdout], b"hello typed!");
    assert_eq!(got[&stderr], b"oops");
    let status: serde_json::Value = serde_json::from_slice(&got[&error]).expect("JSON");
    assert_eq!(status, exit_status());
}

#[tokio::test]
async fn terminal_over_spdy_and_large_output_within_the_window() {
    let (_, mut client) = spdy("/tty", &["v4.channel.k8s.io"]).await;
    // From now on the server must keep to what is granted.
    client.control(ControlFrame::Settings(vec![(7, 1000)])).await;
    let error = client.open(&[("streamtype", "error")]).await;
    let stdin = client.open(&[("streamtype", "stdin")]).await;
    let stdout = client.open(&[("streamtype", "stdout")]).await;
    let resize = client.open(&[("streamtype", "resize")]).await;
    client.data(resize, b"{\"Width\":1,\"Height\":2}{\"Width\":3,\"Height\":4}", false).await;
    let typed = vec![b'x'; 5000];
    client.data(stdin, &typed, true).await;
    let mut total = Vec::new();
    let mut granted = 1000;
    let mut ended = false;
    while !ended {
        let seen = tokio::time::timeout(Duration::from_secs(10), client.see()).await.expect("not stuck");
        match seen {
            Seen::Data(stream, data, fin) if stream == stdout => {
                total.extend(data);
                ended = fin;
                assert!(total.len() <= granted, "{} of {granted}", total.len());
                if total.len() == granted {
                    client.control(ControlFrame::WindowUpdate { stream: stdout, delta: 1000 }).await;
                    granted += 1000;
                }
            }
            Seen::End => panic!("ended early"),
            _ => {}
        }
    }
    let text = String::from_utf8(total).expect("text");
    assert!(text.starts_with("hello xxx") && text.ends_with("x 1x2 3x4"), "{}", &text[text.len() - 20..]);
    client.collect(&[error]).await;
}

#[tokio::test]
async fn old_spdy_clients_get_text() {
    let (head, mut client) = spdy("/exec", &[]).await;
    assert!(!head.contains("x-stream-protocol-version"), "{head}");
    let error = client.open(&[("streamtype", "error")]).await;
    let stdin = client.open(&[("streamtype", "stdin")]).await;
    let stdout = client.open(&[("streamtype", "stdout")]).await;
    let stderr = client.open(&[("streamtype", "stderr")]).await;
    client.data(stdin, b"", true).await;
    let got = client.collect(&[error, stdout, stderr]).await;
    assert!(got[&error].starts_with(b"command terminated with non-zero exit code"));
}

#[tokio::test]
async fn refusals() {
    for (path, headers, status, text) in [
        ("/exec", vec![], "400", "upgrade request required"),
        ("/none", vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")], "400", "at least 1 of"),
        (
            "/exec",
            vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", "v9")],
            "403",
            "x-accepted-stream-protocol-versions: v4.channel.k8s.io",
        ),
        (
            "/forward",
            vec![("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Protocol", "v9")],
            "400",
            "",
        ),
        (
            "/forward",
            vec![
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("Sec-WebSocket-Protocol", "v4.channel.k8s.io"),
            ],
            "400",
            "query parameter \"port\" is required",
        ),
    ] {
        let (head, mut io) = connect(path, &headers).await;
        let mut body = String::new();
        let _ = tokio::time::timeout(Duration::from_millis(200), io.read_to_string(&mut body)).await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{head}");
        assert!(head.contains(text) || head.contains("content-length"), "{head} {body}");
    }
}

/// Three connections at once, one of which is refused.
async fn forward<T: AsyncRead + AsyncWrite + Unpin>(mut client: Client<T>) {
    let mut opened = Vec::new();
    for (id, port) in [("0", "80"), ("1", "81"), ("2", "80")] {
        let error = client.open(&[("streamtype", "error"), ("port", port), ("requestid", id)]).await;
        client.data(error, b"", true).await;
        let data = client.open(&[("streamtype", "data"), ("port", port), ("requestid", id)]).await;
        opened.push((error, data));
    }
    client.data(opened[2].1, b"two", true).await;
    client.data(opened[0].1, &vec![b'0'; 300_000], true).await;
    let all: Vec<_> = opened.iter().flat_map(|(error, data)| [*error, *data]).collect();
    let got = client.collect(&all).await;
    assert_eq!(got[&opened[2].1], b"welcome two");
    assert_eq!(got[&opened[0].1].len(), 300_008);
    assert_eq!(got[&opened[1].0], b"error forwarding port 81: connection refused");
    assert!(got[&opened[0].0].is_empty() && got[&opened[1].1].is_empty());
}

#[tokio::test]
async fn port_forward_over_spdy() {
    let (head, client) = spdy("/forward", &["portforward.k8s.io"]).await;
    assert!(head.contains("x-stream-protocol-version: portforward.k8s.io"), "{head}");
    forward_concurrently(client.io).await;
}

#[tokio::test]
async fn port_forward_tunnelled_through_websocket() {
    let socket = websocket("/forward", "SPDY/3.1+portforward.k8s.io").await;
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let pump = tokio::spawn(async move {
        let (mut sink, mut stream) = socket.split();
        let (mut read, mut write) = tokio::io::split(theirs);
        let out = async {
            let mut buffer = vec![0; 10_000];
            while let Ok(n) = read.read(&mut buffer).await
                && n > 0
            {
                sink.send(Message::Binary(buffer[..n].to_vec().into())).await.expect("sent");
            }
        };
        let back = async {
            while let Some(Ok(message)) = stream.next().await {
                if let Message::Binary(data) = message {
                    write.write_all(&data).await.expect("somebody reads");
                }
            }
        };
        tokio::select! { () = out => {}, () = back => {} }
    });
    forward_concurrently(ours).await;
    pump.await.expect("no panic");
}

/// What came on each channel until the server closed the connection.
async fn channels(
    mut socket: WebSocketStream<DuplexStream>,
    enough: impl Fn(&HashMap<u8, Vec<u8>>) -> bool,
) -> HashMap<u8, Vec<u8>> {
    let mut channels: HashMap<u8, Vec<u8>> = HashMap::new();
    while !enough(&channels) {
        match socket.next().await {
            Some(Ok(Message::Binary(data))) => channels.entry(data[0]).or_default().extend_from_slice(&data[1..]),
            Some(Ok(Message::Close(Some(frame)))) => assert_eq!(u16::from(frame.code), 1000),
            None => break,
            other => panic!("{other:?}"),
        }
    }
    channels
}

#[tokio::test]
async fn port_forward_over_websocket_channels() {
    for protocol in ["v4.channel.k8s.io", "nope, v4.channel.k8s.io"] {
        let mut socket = websocket("/forward?80,81,80", protocol).await;
        let send = |bytes: &[u8]| Message::Binary(bytes.to_vec().into());
        socket.send(send(b"\x04two")).await.expect("sent");
        socket.send(send(&[&[0], vec![b'0'; 300_000].as_slice()].concat())).await.expect("sent");
        // Neither a port's data nor any port's.
        socket.send(send(b"\x01error")).await.expect("sent");
        socket.send(send(b"\x09none")).await.expect("sent");
        let complete = |got: &HashMap<u8, Vec<u8>>| {
            got.get(&0).is_some_and(|data| data.len() == 300_010)
                && got.get(&3).is_some_and(|data| data.len() > 2)
                && got.get(&4).is_some_and(|data| data.len() == 13)
        };
        let got = channels(socket, complete).await;
        assert_eq!(&got[&0][..10], b"\x50\0welcome ");
        assert_eq!(got[&1], b"\x50\0");
        assert_eq!(got[&2], b"\x51\0");
        assert_eq!(got[&3], b"\x51\0error forwarding port 81: connection refused");
        assert_eq!(got[&4], b"\x50\0welcome two");
    }
}

/// When all ports have ended so does the connection, as one that is complete.
#[tokio::test]
async fn port_forward_over_websocket_channels_ends() {
    let socket = websocket("/forward?81", "v4.channel.k8s.io").await;
    let got = channels(socket, |_| false).await;
    assert_eq!(got[&1], b"\x51\0error forwarding port 81: connection refused");
    let mut socket = websocket("/forward?80", "v4.base64.channel.k8s.io").await;
    let mut first = Vec::new();
    while first.len() < 3 {
        match socket.next().await.expect("more").expect("a message") {
            Message::Text(text) => first.push(text.to_string()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(first, ["0UAA=", "1UAA=", "0d2VsY29tZSA="]);
}

/// A client that writes and reads at once, like real ones, whatever the size of the buffers between.
async fn forward_concurrently(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let (ours, theirs) = tokio::io::duplex(4 << 20);
    let pump = tokio::spawn(async move {
        let (mut a, mut b) = (io, theirs);
        let _ = tokio::io::copy_bidirectional(&mut a, &mut b).await;
    });
    forward(Client::new(ours)).await;
    pump.abort();
}
