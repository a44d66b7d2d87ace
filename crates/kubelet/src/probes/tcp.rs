//! Probing by opening a TCP connection.

use std::time::Duration;

use tokio::net::TcpStream;

use super::run::Outcome;

/// Success is a connection.
pub(crate) async fn probe(host: &str, port: u16, timeout: Duration) -> Outcome {
    match connect(host, port, timeout).await {
        Ok(_) => Outcome::Success,
        Err(message) => Outcome::Failure(message),
    }
}

/// A connection, or what Go would say.
pub(super) async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {address}: {}", go_error(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// A system error as Go words it.
pub(super) fn go_error(error: &std::io::Error) -> String {
    let call = "connect: ";
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => format!("{call}connection refused"),
        Some(libc::EHOSTUNREACH) => format!("{call}no route to host"),
        Some(libc::ENETUNREACH) => format!("{call}network is unreachable"),
        Some(libc::ECONNRESET) => "read: connection reset by peer".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn open_and_closed_ports() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let second = Duration::from_secs(5);
        assert_eq!(probe("127.0.0.1", port, second).await, Outcome::Success);
        drop(listener);
        let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(probe("127.0.0.1", port, second).await, Outcome::Failure(refused));
    }
}
