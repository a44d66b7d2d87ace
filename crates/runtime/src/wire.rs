//! Frames between daemon and supervisor: one JSON document per packet of a `SOCK_SEQPACKET` unix
//! socket, with file descriptors beside it.
//!
//! A document too long for a packet travels as a file in memory, whose descriptor is the last one; the
//! packet itself is then empty but for one byte.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest document sent in a packet; well below the smallest default buffer.
const MAX_PACKET: usize = 32 * 1024;
/// Longest document at all.
const MAX_DOCUMENT: u64 = 16 * 1024 * 1024;
/// Marks a packet whose document is in a file.
const IN_FILE: &[u8] = b"@";

/// A frame that is ready to be sent.
pub(crate) struct Frame {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Frame {
    pub(crate) fn new(message: &impl Serialize, mut fds: Vec<OwnedFd>) -> io::Result<Frame> {
        let mut bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_PACKET {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let mut file = std::fs::File::from(rustix::fs::memfd_create("skiff-frame", flags)?);
            file.write_all(&bytes)?;
            file.rewind()?;
            fds.push(file.into());
            bytes = IN_FILE.to_vec();
        }
        Ok(Frame { bytes, fds })
    }

    /// Sends it whole or, with `WouldBlock`, not at all.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let raw: Vec<RawFd> = self.fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[_] = if raw.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&self.bytes)], control, flags, None)?;
        Ok(())
    }
}

/// Receives one frame. `None` at the end of the connection.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut control = cmsg_space!([RawFd; 16]);
    let mut fds = Vec::new();
    let (length, truncated) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                for fd in raw {
                    // SAFETY: the kernel just made this descriptor for us; nobody else knows it.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let lost = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
        (message.bytes, message.flags.intersects(lost))
    };
    if length == 0 {
        return Ok(None);
    }
    if truncated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame did not fit"));
    }
    bytes.truncate(length);
    if bytes == IN_FILE {
        let file = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
        bytes.clear();
        std::fs::File::from(file).take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
    }
    Ok(Some((serde_json::from_slice(&bytes)?, fds)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn frames_carry_long_documents_and_descriptors() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
        for length in [1, MAX_PACKET, 1_000_000] {
            let text = "x".repeat(length);
            let file = std::fs::File::open("/proc/self/comm").expect("there");
            let frame = Frame::new(&text, vec![file.into()]).expect("encodes");
            frame.send(a.as_fd()).expect("sends");
            let (got, fds) = receive::<String>(b.as_fd()).expect("receives").expect("a frame");
            assert_eq!((got.len(), fds.len()), (length, 1));
            let mut comm = String::new();
            let fd = fds.into_iter().next().expect("one");
            std::fs::File::from(fd).read_to_string(&mut comm).expect("readable");
            assert!(!comm.is_empty());
        }
        drop(a);
        assert!(receive::<String>(b.as_fd()).expect("ends").is_none());
    }
}
