//! exec, attach and port-forward through the URLs that CRI gives.

use futures::{SinkExt, StreamExt};
use skiff_cri::v1;
use skiff_streaming::spdy::{ControlFrame, FrameHeader, HeaderEncoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::Test;
use crate::harness::{Node, block_on};

pub(crate) const TESTS: &[Test] = &[
    ("exec_streams", || block_on(exec_streams())),
    ("exec_with_a_terminal", || block_on(exec_with_a_terminal())),
    ("attach_to_pipes", || block_on(attach_to_pipes())),
    ("attach_to_a_terminal", || block_on(attach_to_a_terminal())),
    ("port_forward", || block_on(port_forward())),
    ("tickets_are_good_once", || block_on(tickets_are_good_once())),
];

async fn upgrade(url: &str, headers: &str) -> (String, TcpStream) {
    let rest = url.strip_prefix("http://").expect("a URL");
    let (address, path) = rest.split_once('/').expect("a path");
    let mut io = TcpStream::connect(address).await.expect("connects");
    let request = format!("POST /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n");
    io.write_all(request.as_bytes()).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.expect("an answer"));
    }
    (String::from_utf8(head).expect("text"), io)
}

async fn websocket(url: &str) -> WebSocketStream<TcpStream> {
    let headers = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\
        Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
    let (head, io) = upgrade(url, headers).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

/// Reads until the end or until the output has the text; returns output, error output and status.
async fn read_until(socket: &mut WebSocketStream<TcpStream>, text: Option<&str>) -> [String; 3] {
    let mut channels = [Vec::new(), Vec::new(), Vec::new()];
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let seen = String::from_utf8_lossy(&channels[0]).into_owned();
        if text.is_some_and(|text| seen.contains(text)) {
            break;
        }
        match tokio::time::timeout_at(deadline, socket.next()).await {
            Ok(Some(Ok(Message::Binary(data)))) => {
                channels[usize::from(data[0]) - 1].extend_from_slice(&data[1..]);
            }
            Ok(Some(Ok(_))) => {}
            Ok(_) => break,
            Err(_) => panic!("{text:?} is not in {seen:?}"),
        }
    }
    channels.map(|bytes| String::from_utf8(bytes).expect("text"))
}

fn input(text: &str) -> Message {
    Message::Binary([b"\0", text.as_bytes()].concat().into())
}

async fn exec_url(node: &mut Node, id: &str, command: &[&str], stdin: bool, tty: bool) -> String {
    let request = v1::ExecRequest {
        container_id: id.into(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    node.cri.exec(request).await.expect("a URL").into_inner().url
}

async fn exec_streams() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["sleep", "600"], &|_| {}).await;
    let script = ["sh", "-c", "echo out;echo -e err;cat;exit 5"];
    let mut socket = websocket(&exec_url(&mut node, &id, &script, true, false).await).await;
    socket.send(input("typed\n")).await.expect("sent");
    socket.send(Message::Binary(vec![255, 0].into())).await.expect("sent");
    let [out, err, status] = read_until(&mut socket, None).await;
    assert_eq!((out.as_str(), err.as_str()), ("out\ntyped\n", "err\n"));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "5");

    let mut socket = websocket(&exec_url(&mut node, &id, &["nope"], false, false).await).await;
    let [_, _, status] = read_until(&mut socket, None).await;
    assert!(status.contains("executable file not found in $PATH"), "{status}");

    // A megabyte each way.
    let mut socket = websocket(&exec_url(&mut node, &id, &["flood", "100000"], false, false).await).await;
    let [out, _, status] = read_until(&mut socket, None).await;
    assert!(out.ends_with("line 99999\n") && status.contains("Success"), "{status}");

    // A client that leaves takes the process with it.
    let mut socket = websocket(&exec_url(&mut node, &id, &["trap", "ignore"], false, false).await).await;
    read_until(&mut socket, Some("ready")).await;
    let processes = |out: String| out.split(' ').filter(|name| name.parse::<u32>().is_ok()).count();
    assert_eq!(processes(node.exec(&id, &["ls", "/proc"]).await.1), 3);
    drop(socket);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while processes(node.exec(&id, &["ls", "/proc"]).await.1) != 2 {
        assert!(std::time::Instant::now() < deadline, "the process is still there");
    }
    node.finish().await;
}

async fn exec_with_a_terminal() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["sleep", "600"], &|_| {}).await;
    let script = ["sh", "-c", "tty;env;cat;exit 0"];
    let mut socket = websocket(&exec_url(&mut node, &id, &script, true, true).await).await;
    socket.send(Message::Binary(b"\x04{\"Width\":100,\"Height\":30}".to_vec().into())).await.expect("sent");
    let [out, ..] = read_until(&mut socket, Some("TERM=xterm")).await;
    assert!(out.starts_with("true\r\n"), "{out}");
    socket.send(input("typed\n")).await.expect("sent");
    // Once as echo, once from the program.
    read_until(&mut socket, Some("typed\r\ntyped\r\n")).await;
    socket.send(input("\x04")).await.expect("sent");
    let [_, _, status] = read_until(&mut socket, None).await;
    assert!(status.contains("Success"), "{status}");
    node.finish().await;
}

async fn attach(node: &mut Node, id: &str, tty: bool) -> WebSocketStream<TcpStream> {
    let request = v1::AttachRequest { container_id: id.into(), stdin: true, tty, stdout: true, stderr: !tty };
    let url = node.cri.attach(request).await.expect("a URL").into_inner().url;
    websocket(&url).await
}

async fn attach_to_pipes() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node
        .run(&pod, "main", &["sh", "-c", "cat;echo bye;exit 2"], &|c| {
            c.stdin = true;
            c.stdin_once = true;
        })
        .await;
    let mut first = attach(&mut node, &id, false).await;
    first.send(input("one\n")).await.expect("sent");
    read_until(&mut first, Some("one\n")).await;
    let mut second = attach(&mut node, &id, false).await;
    second.send(input("two\n")).await.expect("sent");
    // Both see everything.
    read_until(&mut first, Some("two\n")).await;
    read_until(&mut second, Some("two\n")).await;
    // The end of one's input is the end of the container's, as it was made so.
    first.send(Message::Binary(vec![255, 0].into())).await.expect("sent");
    let [out, ..] = read_until(&mut first, None).await;
    assert_eq!(out, "bye\n");
    assert_eq!(node.wait_exited(&id).await.exit_code, 2);
    let log: Vec<_> = node.log(&pod, "main").into_iter().map(|(_, text)| text).collect();
    assert_eq!(log, ["one", "two", "bye"]);
    node.finish().await;
}

async fn attach_to_a_terminal() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node
        .run(&pod, "main", &["sh", "-c", "tty;cat;exit 0"], &|c| {
            c.stdin = true;
            c.tty = true;
        })
        .await;
    let mut socket = attach(&mut node, &id, true).await;
    socket.send(Message::Binary(b"\x04{\"Width\":100,\"Height\":30}".to_vec().into())).await.expect("sent");
    socket.send(input("typed\n")).await.expect("sent");
    read_until(&mut socket, Some("typed\r\ntyped\r\n")).await;
    // Somebody who leaves does not end it.
    drop(socket);
    node.restart().await;
    let mut socket = attach(&mut node, &id, true).await;
    socket.send(input("again\n")).await.expect("sent");
    read_until(&mut socket, Some("again\r\nagain\r\n")).await;
    socket.send(input("\x04")).await.expect("sent");
    read_until(&mut socket, None).await;
    assert_eq!(node.wait_exited(&id).await.exit_code, 0);
    node.finish().await;
}

async fn port_forward() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    node.run(&pod, "main", &["serve", "8080", "hello"], &|_| {}).await;
    node.wait_log(&pod, "main", "serving").await;
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.0.clone(), port: vec![8080] };
    let url = node.cri.port_forward(request).await.expect("a URL").into_inner().url;
    let headers = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";
    let (head, mut io) = upgrade(&url, headers).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let mut encoder = HeaderEncoder::default();
    let mut stream = 1;
    for (id, port) in [("0", "8080"), ("1", "81")] {
        for kind in ["error", "data"] {
            let headers = [("streamtype", kind), ("port", port), ("requestid", id)];
            let headers = encoder.encode(&headers).expect("encodes");
            let frame = ControlFrame::SynStream { stream, fin: false, headers };
            io.write_all(&frame.to_bytes()).await.expect("sent");
            stream += 2;
        }
    }
    io.write_all(&[0, 0, 0, 3, 0, 0, 0, 4]).await.expect("sent");
    io.write_all(b"you\n").await.expect("sent");
    let mut got: std::collections::BTreeMap<u32, Vec<u8>> = Default::default();
    let mut ended = 0;
    while ended < 4 {
        let mut head = [0; 8];
        io.read_exact(&mut head).await.expect("a frame");
        match FrameHeader::parse(head).expect("a frame") {
            FrameHeader::Data { stream, fin, length } => {
                let mut data = vec![0; length as usize];
                io.read_exact(&mut data).await.expect("whole");
                got.entry(stream).or_default().extend(data);
                ended += u32::from(fin);
            }
            FrameHeader::Control { length, .. } => {
                io.read_exact(&mut vec![0; length as usize]).await.expect("whole");
            }
        }
    }
    assert_eq!(got[&3], b"hello you\n");
    let error = String::from_utf8_lossy(&got[&5]).into_owned();
    assert!(error.contains("error forwarding port 81") && error.contains("refused"), "{error}");
    node.finish().await;
}

async fn tickets_are_good_once() {
    let mut node = Node::new().await;
    let pod = node.run_pod().await;
    let id = node.run(&pod, "main", &["sleep", "600"], &|_| {}).await;
    let url = exec_url(&mut node, &id, &["echo", "x"], false, false).await;
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let mut socket = websocket(&url).await;
    read_until(&mut socket, None).await;
    let (head, _) = upgrade(&url, "Upgrade: SPDY/3.1\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    let guessed = format!("{}x", &url[..url.len() - 1]);
    assert!(upgrade(&guessed, "").await.0.starts_with("HTTP/1.1 404"));
    let request =
        v1::ExecRequest { container_id: id, cmd: vec!["x".into()], tty: true, stderr: true, ..Default::default() };
    let refused = node.cri.exec(request).await.expect_err("contradiction");
    assert_eq!(refused.message(), "tty and stderr cannot both be true");
    node.finish().await;
}
