use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{forward::CONNECT_PAUSE, *};

/// A host in a namespace of its own; the "node" is the test's namespace, where only loopback is used.
fn host() -> (NetNs, HostPorts) {
    let namespace = NetNs::create().unwrap();
    let host = namespace.run(HostNet::current).unwrap().unwrap();
    (namespace, HostPorts::new(host))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

async fn connect(namespace: &NetNs, address: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let stream = namespace.run(|| std::net::TcpStream::connect(address)).unwrap()?;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

/// Answers, once the client has ended its side, with what it got behind a greeting.
async fn echo(greeting: &'static str) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind(local(0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut text = greeting.to_owned();
                stream.read_to_string(&mut text).await.unwrap();
                stream.write_all(text.as_bytes()).await.unwrap();
            });
        }
    });
    address
}

async fn ask(namespace: &NetNs, address: SocketAddr) -> String {
    let mut stream = connect(namespace, address).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(5), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn tcp_ports_forward_with_half_close_and_change_their_target() {
    let (namespace, ports) = host();
    let forward = |target| Forward { protocol: Protocol::Tcp, listen: local(8080), target };
    let listen = ports.open(forward(echo("one ").await)).unwrap();
    assert_eq!(listen, local(8080));
    assert_eq!(ask(&namespace, listen).await, "one hello");
    ports.open(forward(echo("two ").await)).unwrap();
    assert_eq!(ask(&namespace, listen).await, "two hello");
    assert_eq!(ports.list().len(), 1);
    assert!(ports.close(Protocol::Tcp, listen));
    assert!(!ports.close(Protocol::Tcp, listen));
    // The socket closes when the runtime drops the task.
    timeout(Duration::from_secs(5), async {
        while connect(&namespace, listen).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn ports_of_ipv6() {
    let (namespace, ports) = host();
    let listen = SocketAddr::from((Ipv6Addr::LOCALHOST, 8080));
    ports.open(Forward { protocol: Protocol::Tcp, listen, target: echo("six ").await }).unwrap();
    assert_eq!(ask(&namespace, listen).await, "six hello");
    assert!(connect(&namespace, local(8080)).await.is_err(), "each family has its own");
}

#[tokio::test]
async fn a_dead_target_resets_the_client() {
    let (namespace, ports) = host();
    let unused = std::net::TcpListener::bind(local(0)).unwrap().local_addr().unwrap();
    let forward = Forward { protocol: Protocol::Tcp, listen: local(0), target: unused };
    let listen = ports.open(forward).unwrap();
    assert_ne!(listen.port(), 0);
    let mut stream = connect(&namespace, listen).await.unwrap();
    let read = timeout(Duration::from_secs(5), stream.read(&mut [0; 8])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// A pod is Ready before its server listens, and the client came just then.
#[tokio::test]
async fn a_target_that_is_just_starting_gets_its_clients() {
    let (namespace, ports) = host();
    let target = tokio::net::TcpSocket::new_v4().unwrap();
    target.bind(local(0)).unwrap();
    let forward = Forward { protocol: Protocol::Tcp, listen: local(0), target: target.local_addr().unwrap() };
    let listen = ports.open(forward).unwrap();
    let mut stream = connect(&namespace, listen).await.unwrap();
    assert!(timeout(CONNECT_PAUSE * 2, stream.read(&mut [0; 8])).await.is_err(), "the client is to be kept");
    let (mut served, _) = target.listen(1).unwrap().accept().await.unwrap();
    served.write_all(b"hello").await.unwrap();
    let mut greeting = [0; 5];
    timeout(Duration::from_secs(5), stream.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"hello");
}

#[tokio::test]
async fn udp_clients_get_their_own_answers() {
    let (namespace, ports) = host();
    let server = tokio::net::UdpSocket::bind(local(0)).await.unwrap();
    let target = server.local_addr().unwrap();
    let listen = ports.open(Forward { protocol: Protocol::Udp, listen: local(5353), target }).unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((len, from)) = server.recv_from(&mut buffer).await {
            let answer = [b"re: ", &buffer[..len]].concat();
            server.send_to(&answer, from).await.unwrap();
        }
    });
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let socket = namespace.run(|| std::net::UdpSocket::bind(local(0)).unwrap()).unwrap();
            socket.set_nonblocking(true).unwrap();
            tokio::net::UdpSocket::from_std(socket).unwrap()
        })
        .collect();
    for (n, client) in clients.iter().enumerate() {
        client.send_to(format!("{n}").as_bytes(), listen).await.unwrap();
    }
    for (n, client) in clients.iter().enumerate() {
        let mut buffer = [0; 64];
        let (len, from) = timeout(Duration::from_secs(5), client.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(from, listen);
        assert_eq!(&buffer[..len], format!("re: {n}").as_bytes());
    }
}

#[tokio::test]
async fn a_taken_port_names_its_holder() {
    let (namespace, ports) = host();
    let _holder = namespace.run(|| TcpListener::bind(local(80)).unwrap()).unwrap();
    let target = local(9);
    let error = ports.open(Forward { protocol: Protocol::Tcp, listen: local(80), target }).unwrap_err();
    let text = error.to_string();
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    let expected =
        format!("port 80 on 127.0.0.1 is already in use by {} (process {})", name.trim(), std::process::id());
    assert_eq!(text, expected);
    assert_eq!(ports.list(), []);
}
