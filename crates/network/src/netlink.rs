//! Netlink messages and a synchronous socket.
//!
//! The kernel handles a request while it is being sent, so that every answer is queued when the send
//! returns: requests are pipelined into one send and the answers are read without ever waiting.

use std::{fmt, io, os::fd::BorrowedFd};

use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use crate::netns;

const HEADER_LEN: usize = 16;
/// Larger than any datagram that the kernel builds for a dump.
const RECEIVE_BUFFER: usize = 64 << 10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A refusal by the kernel: the error number and, where the kernel gives one, its explanation.
#[derive(Debug, Clone)]
pub struct NetlinkError {
    pub errno: i32,
    pub detail: Option<String>,
}

impl NetlinkError {
    pub fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for NetlinkError {}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(libc::EIO), detail: None }
    }
}

type Result<T> = std::result::Result<T, NetlinkError>;

/// A message under construction: the netlink header, the family's header, then attributes.
#[derive(Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `flags` without NLM_F_REQUEST, which every message carries.
    pub fn new(kind: u16, flags: i32, family_header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(family_header);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    /// Attributes only, to be put into a message later with [`raw`](Self::raw).
    pub(crate) fn fragment() -> Self {
        Self { bytes: Vec::new() }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len() + 4).expect("callers keep attributes below 64 KiB");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A 32-bit value in network order, as netfilter wants all its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its terminating NUL.
    pub fn str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        let nested = kind | u16::try_from(libc::NLA_F_NESTED).expect("a 16-bit flag");
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&nested.to_ne_bytes());
        fill(self);
        let len = u16::try_from(self.bytes.len() - start).expect("callers keep attributes below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// Raw bytes, for a header inside an attribute.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    pub(crate) fn add_flags(&mut self, flags: i32) {
        let old = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        let new = old | u16::try_from(flags).unwrap_or_default();
        self.bytes[6..8].copy_from_slice(&new.to_ne_bytes());
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn seal(&mut self, sequence: u32) -> &[u8] {
        let len = u32::try_from(self.bytes.len()).expect("a message is far below 4 GiB");
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// A received message without its netlink header.
#[derive(Debug)]
pub struct Reply {
    pub kind: u16,
    pub payload: Vec<u8>,
}

impl Reply {
    /// The attributes behind a family header of `header_len` bytes.
    pub fn attributes(&self, header_len: usize) -> Attributes<'_> {
        Attributes(self.payload.get(header_len.next_multiple_of(4)..).unwrap_or_default())
    }
}

/// Attributes of a received message, in order. Damaged input ends the iteration.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    pub fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes([*self.0.first()?, *self.0.get(1)?]));
        let kind = u16::from_ne_bytes([*self.0.get(2)?, *self.0.get(3)?]) & 0x3fff;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Reads a native-endian u32 from an attribute's value.
pub fn ne32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// Reads a string attribute, with or without its NUL.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A synchronous netlink socket. It stays in the network namespace in which it was opened.
pub struct Socket {
    raw: RawSocket,
    sequence: u32,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

impl Socket {
    /// A socket of a protocol (libc::NETLINK_ROUTE, libc::NETLINK_NETFILTER) in the caller's namespace.
    pub fn open(protocol: i32) -> io::Result<Self> {
        let mut raw = RawSocket::new(isize::try_from(protocol).unwrap_or(-1))?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        // Explanations with errors, and no copy of the request, which may be 64 KiB long.
        raw.set_ext_ack(true)?;
        raw.set_cap_ack(true)?;
        Ok(Self { raw, sequence: 0 })
    }

    /// A socket in another network namespace, opened by a short-lived thread inside it.
    pub fn open_in(namespace: BorrowedFd<'_>, protocol: i32) -> io::Result<Self> {
        netns::run_in(namespace, || Self::open(protocol))?
    }

    /// Makes room for a batch of `bytes` in one send, and for as many answers.
    pub(crate) fn grow_buffers(&self, bytes: usize) {
        // Best effort: without CAP_NET_ADMIN in the first user namespace only the limited form works.
        // The kernel accounts overhead per message, hence the doubling.
        let wanted = bytes * 2 + (256 << 10);
        if setsockopt(&self.raw, sockopt::SndBufForce, &wanted).is_err() {
            let _ = setsockopt(&self.raw, sockopt::SndBuf, &wanted);
        }
        if setsockopt(&self.raw, sockopt::RcvBufForce, &wanted).is_err() {
            let _ = setsockopt(&self.raw, sockopt::RcvBuf, &wanted);
        }
    }

    /// One request that is answered by success or an error.
    pub fn request(&mut self, message: Message) -> Result<()> {
        let mut results = self.requests(vec![message])?;
        results.pop().unwrap_or(Ok(()))
    }

    /// Several requests in one send; the result of each, in order. The outer error is of the transport.
    pub fn requests(&mut self, mut messages: Vec<Message>) -> Result<Vec<Result<()>>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        self.drain();
        let first = self.sequence.wrapping_add(1);
        for message in &mut messages {
            message.add_flags(libc::NLM_F_ACK);
        }
        self.send(&mut messages)?;
        let mut results: Vec<Option<Result<()>>> = vec![None; messages.len()];
        self.receive(|header, payload| {
            if i32::from(header.kind) == libc::NLMSG_ERROR {
                let index = usize::try_from(header.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if let Some(slot) = results.get_mut(index) {
                    *slot = Some(parse_ack(header.flags, payload));
                }
            }
            false
        })?;
        Ok(results
            .into_iter()
            .map(|result| {
                result.unwrap_or_else(|| {
                    Err(NetlinkError {
                        errno: libc::EPROTO,
                        detail: Some("the kernel did not acknowledge the request".to_owned()),
                    })
                })
            })
            .collect())
    }

    /// One request that is answered by one message.
    pub fn get(&mut self, message: Message) -> Result<Reply> {
        self.collect(message)?.into_iter().next().ok_or(NetlinkError { errno: libc::ENOENT, detail: None })
    }

    /// A dump: every message of the answer. A dump that the kernel marks as interrupted by a change
    /// is taken again.
    pub fn dump(&mut self, mut message: Message) -> Result<Vec<Reply>> {
        message.add_flags(libc::NLM_F_DUMP);
        for _ in 0..10 {
            match self.collect(message.clone()) {
                Err(error) if error.is(libc::EINTR) => {}
                result => return result,
            }
        }
        Err(NetlinkError { errno: libc::EINTR, detail: Some("the dump kept being interrupted by changes".to_owned()) })
    }

    fn collect(&mut self, message: Message) -> Result<Vec<Reply>> {
        self.drain();
        let dump = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) & 0x300 == 0x300;
        self.send(&mut [message])?;
        let mut replies = Vec::new();
        let mut failure = None;
        let mut interrupted = false;
        let mut finished = false;
        // A dump is produced piece by piece as it is read, so it ends with its own marker.
        while !finished {
            let before = replies.len();
            self.receive(|header, payload| {
                interrupted |= i32::from(header.flags) & libc::NLM_F_DUMP_INTR != 0;
                match i32::from(header.kind) {
                    libc::NLMSG_ERROR => {
                        failure = parse_ack(header.flags, payload).err();
                        finished = true;
                    }
                    libc::NLMSG_DONE => finished = true,
                    _ => replies.push(Reply { kind: header.kind, payload: payload.to_vec() }),
                }
                finished
            })?;
            if !dump || replies.len() == before {
                break;
            }
        }
        match failure {
            Some(error) => Err(error),
            None if interrupted => Err(NetlinkError { errno: libc::EINTR, detail: None }),
            None => Ok(replies),
        }
    }

    /// Sends messages in one datagram. Gives each the next sequence number.
    fn send(&mut self, messages: &mut [Message]) -> Result<()> {
        let mut datagram = Vec::with_capacity(messages.iter().map(Message::len).sum());
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            datagram.extend_from_slice(message.seal(self.sequence));
        }
        self.raw.send(&datagram, 0)?;
        Ok(())
    }

    /// Sends an nftables batch (its begin and end included) and returns the first error.
    pub(crate) fn transact(&mut self, mut messages: Vec<Message>) -> Result<()> {
        self.drain();
        self.grow_buffers(messages.iter().map(Message::len).sum());
        let last = messages.len().saturating_sub(2);
        if let Some(message) = messages.get_mut(last) {
            message.add_flags(libc::NLM_F_ACK);
        }
        let expected = self.sequence.wrapping_add(u32::try_from(last + 1).unwrap_or(u32::MAX));
        self.send(&mut messages)?;
        let mut failure = None;
        let mut acknowledged = false;
        self.receive(|header, payload| {
            if i32::from(header.kind) == libc::NLMSG_ERROR {
                match parse_ack(header.flags, payload) {
                    Err(error) => {
                        failure.get_or_insert(error);
                    }
                    Ok(()) => acknowledged |= header.sequence == expected,
                }
            }
            false
        })?;
        match failure {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(NetlinkError {
                errno: libc::EPROTO,
                detail: Some("the kernel did not acknowledge the batch".to_owned()),
            }),
        }
    }

    /// Forgets answers left over from a request that ended early.
    fn drain(&mut self) {
        let mut buffer = [0u8; 64];
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        while self.raw.recv(&mut &mut buffer[..], flags).is_ok() {}
    }

    /// Hands out queued messages until none is left or `handle` returns true.
    fn receive(&mut self, mut handle: impl FnMut(&Header, &[u8]) -> bool) -> Result<()> {
        let mut buffer = vec![0u8; RECEIVE_BUFFER];
        loop {
            let len = match self.raw.recv(&mut &mut buffer[..], libc::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let mut rest = &buffer[..len];
            while let Some((header, payload, next)) = split(rest) {
                if handle(&header, payload) {
                    return Ok(());
                }
                rest = next;
            }
        }
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn split(datagram: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let len = usize::try_from(ne32(datagram)?).ok()?;
    let payload = datagram.get(HEADER_LEN..len)?;
    let header = Header {
        kind: u16::from_ne_bytes([datagram[4], datagram[5]]),
        flags: u16::from_ne_bytes([datagram[6], datagram[7]]),
        sequence: ne32(&datagram[8..])?,
    };
    Some((header, payload, datagram.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

fn parse_ack(flags: u16, payload: &[u8]) -> Result<()> {
    let errno = ne32(payload).map_or(libc::EPROTO, |code| code.cast_signed().wrapping_neg());
    if errno == 0 {
        return Ok(());
    }
    let mut detail = None;
    if flags & NLM_F_ACK_TLVS != 0 {
        let echoed = if flags & NLM_F_CAPPED != 0 {
            HEADER_LEN
        } else {
            payload.get(4..).and_then(ne32).map_or(HEADER_LEN, |len| len as usize)
        };
        let attributes = Attributes(payload.get(4 + echoed.next_multiple_of(4)..).unwrap_or_default());
        detail = attributes.get(NLMSGERR_ATTR_MSG).map(text);
    }
    Err(NetlinkError { errno, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_encoding() {
        let mut message = Message::new(1, 0, &[0; 4]);
        message.u32(1, 7).str(2, "eth0").nest(3, |inner| {
            inner.u8(1, 9);
        });
        let reply = Reply { kind: 1, payload: message.bytes[HEADER_LEN..].to_vec() };
        let attributes = reply.attributes(4);
        assert_eq!(attributes.get(1).and_then(ne32), Some(7));
        assert_eq!(attributes.get(2).map(text).as_deref(), Some("eth0"));
        assert_eq!(attributes.nested(3).get(1), Some(&[9u8][..]));
        assert_eq!(attributes.get(4), None);
    }

    #[test]
    fn damaged_attributes_end_the_iteration() {
        assert_eq!(Attributes(&[1, 0]).count(), 0);
        assert_eq!(Attributes(&[40, 0, 1, 0, 1]).count(), 0);
        assert_eq!(Attributes(&[2, 0, 1, 0]).count(), 0);
    }
}
