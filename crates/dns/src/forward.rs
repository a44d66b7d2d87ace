//! Asking the resolvers outside.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

/// How long one resolver may take; clients usually wait five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions under way at once, as kubeadm configures CoreDNS.
const CONCURRENT: usize = 1000;
const LARGEST: usize = 65_535;

/// Why there is no answer from outside.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is nobody to ask, as in an isolated cluster.
    #[error("no upstream resolver is configured")]
    NoUpstream,
    #[error("too many questions under way")]
    TooMany,
    #[error("no upstream resolver answered")]
    NoAnswer(#[source] io::Error),
}

/// The resolvers outside.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    permits: Semaphore,
}

impl Forwarder {
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams, permits: Semaphore::new(CONCURRENT) }
    }

    /// The resolvers that a resolv.conf names; a missing file names none. Loopback addresses are left
    /// out: in a pod that would be this server.
    pub fn from_resolv_conf(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        Self::new(parse_resolv_conf(&text))
    }

    pub fn upstreams(&self) -> &[SocketAddr] {
        &self.upstreams
    }

    /// Passes a question on and returns the answer with the question's number. The resolvers are asked
    /// in order until one answers.
    pub async fn ask(&self, question: &[u8], over_tcp: bool) -> Result<Vec<u8>, ForwardError> {
        if self.upstreams.is_empty() {
            return Err(ForwardError::NoUpstream);
        }
        let _permit = self.permits.try_acquire().map_err(|_| ForwardError::TooMany)?;
        let mut failure = io::Error::from(io::ErrorKind::TimedOut);
        for upstream in &self.upstreams {
            let asked = async {
                match over_tcp {
                    true => ask_tcp(*upstream, question).await,
                    false => ask_udp(*upstream, question).await,
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = io::ErrorKind::TimedOut.into(),
            }
            tracing::debug!(%upstream, error = %failure, "upstream resolver");
        }
        Err(ForwardError::NoAnswer(failure))
    }
}

/// A socket and a number of its own for each question: both have to be guessed by who wants to answer in
/// the resolver's place.
async fn ask_udp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    let original = question.get(..2).ok_or(io::ErrorKind::InvalidInput)?;
    let number = random_number();
    let mut asked = question.to_vec();
    asked[..2].copy_from_slice(&number);
    socket.send(&asked).await?;
    let mut answer = vec![0; LARGEST];
    loop {
        let len = socket.recv(&mut answer).await?;
        if len >= 12 && answer[..2] == number && same_question(&asked, &answer[..len]) {
            answer.truncate(len);
            answer[..2].copy_from_slice(original);
            return Ok(answer);
        }
    }
}

/// Numbers from the hasher's random seed: unpredictable enough together with a random port.
fn random_number() -> [u8; 2] {
    use std::hash::{BuildHasher, Hasher};
    let number = std::collections::hash_map::RandomState::new().build_hasher().finish();
    [number.to_le_bytes()[0], number.to_le_bytes()[1]]
}

fn same_question(asked: &[u8], answer: &[u8]) -> bool {
    match (Message::from_vec(asked), Message::from_vec(answer)) {
        (Ok(asked), Ok(answer)) => answer.queries.is_empty() || asked.queries == answer.queries,
        _ => false,
    }
}

async fn ask_tcp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let len = u16::try_from(question.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&len.to_be_bytes(), question].concat()).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    servers
        .filter_map(|server| server.parse::<IpAddr>().ok())
        .filter(|address| !address.is_loopback())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# comment\nsearch x\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\nnameserver 127.0.0.53\nnameserver x\nnameservers 192.0.2.9\n";
        let expected: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text), expected);
    }
}
