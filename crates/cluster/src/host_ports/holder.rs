//! Finding the process that has a port.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
};

use skiff_network::hostport::Protocol;

const TCP_LISTEN: &str = "0A";

/// `nginx (process 812)`: who listens on the address. The calling thread is in the network namespace in
/// question; `proc` is a /proc in which that process is visible.
pub(super) fn find(proc: &OwnedFd, address: SocketAddr, protocol: Protocol) -> Option<String> {
    // Through the descriptor, because the /proc of a node shows only its own processes.
    let proc = PathBuf::from(format!("/proc/self/fd/{}", proc.as_raw_fd()));
    let tables: &[&str] = match protocol {
        Protocol::Tcp => &["tcp", "tcp6"],
        Protocol::Udp => &["udp", "udp6"],
        Protocol::Sctp => &[],
    };
    let inode = tables.iter().find_map(|table| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok()?;
        socket_inode(&text, address, protocol)
    })?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir(&proc).ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        // Processes come and go while we look.
        let Ok(descriptors) = fs::read_dir(proc.join(pid).join("fd")) else {
            continue;
        };
        let has_it = descriptors
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.into_os_string() == OsString::from(&wanted)));
        if has_it {
            let mut command = Vec::new();
            File::open(proc.join(pid).join("comm")).ok()?.read_to_end(&mut command).ok()?;
            let command = OsString::from_vec(command).to_string_lossy().trim().to_owned();
            return Some(format!("{command} (process {pid})"));
        }
    }
    None
}

/// The inode of the socket that has the port, from the text of /proc/net/tcp and its like.
fn socket_inode(table: &str, address: SocketAddr, protocol: Protocol) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (local, port) = fields.nth(1)?.split_once(':')?;
        let state = fields.nth(1)?;
        let inode: u64 = fields.nth(5)?.parse().ok()?;
        if u16::from_str_radix(port, 16) != Ok(address.port()) {
            return None;
        }
        if protocol == Protocol::Tcp && state != TCP_LISTEN {
            return None;
        }
        let any = address.ip().is_unspecified() || local.bytes().all(|b| b == b'0');
        let same = match address.ip() {
            // The last eight digits: IPv6 sockets show IPv4 addresses in their mapped form.
            IpAddr::V4(ip) => word(local.get(local.len().checked_sub(8)?..)?).map(Ipv4Addr::from) == Some(ip),
            IpAddr::V6(ip) => (0..4).all(|i| {
                let digits = local.get(i * 8..i * 8 + 8);
                digits.and_then(word).is_some_and(|bytes| ip.octets()[i * 4..i * 4 + 4] == bytes)
            }),
        };
        (any || same).then_some(inode)
    })
}

/// Four bytes of an address, which stand there as one number of the machine's.
fn word(digits: &str) -> Option<[u8; 4]> {
    Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:0050 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 00000000:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
";
        let find = |text: &str| socket_inode(table, text.parse().unwrap(), Protocol::Tcp);
        assert_eq!(find("127.0.0.1:8080"), Some(4711));
        assert_eq!(find("0.0.0.0:8080"), Some(4711));
        assert_eq!(find("127.0.0.2:8080"), None);
        assert_eq!(find("127.0.0.1:80"), None, "a connection is not a listener");
        assert_eq!(find("127.0.0.1:81"), Some(4713));
    }

    #[test]
    fn the_table_of_ipv6_is_read() {
        let table = "  sl  local_address remote_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
";
        let find = |text: &str| socket_inode(table, text.parse().unwrap(), Protocol::Tcp);
        assert_eq!(find("[::1]:8080"), Some(4711));
        assert_eq!(find("[::2]:8080"), None);
        assert_eq!(find("127.0.0.1:80"), Some(4712));
    }
}
