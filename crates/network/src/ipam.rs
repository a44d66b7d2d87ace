//! Addresses of the pods of one node, kept as files.
//!
//! A node has a range of each family, and a pod has the same place in all of them: so only its address in the
//! first range, the primary one, is recorded.
//!
//! One file per address in use, named `ADDRESS@CONTAINER@INTERFACE`, with `@ports` appended when the pod
//! has host ports; its content is a [`Record`]. A directory listing therefore tells who has which
//! address, and a file appears complete or not at all (it is renamed into place). A lock file makes the
//! CNI plugin's processes and the daemon take turns. Nothing is synced to disk: what a power cut loses
//! belongs to pods that it ended too, and addresses that it leaves behind are freed by [`Ipam::retain`].

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, Subnet, hostport::HostPort};

const LOCK: &str = "lock";
const LAST: &str = "last";
const PORTS_MARK: &str = "ports";

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    pub container_id: String,
    pub interface: String,
}

/// What is kept with an address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// An address in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// In the primary range.
    pub address: IpAddr,
    pub attachment: Attachment,
    has_ports: bool,
}

impl Allocation {
    fn file_name(&self) -> String {
        let Attachment { container_id, interface } = &self.attachment;
        let mark = if self.has_ports { "@ports" } else { "" };
        format!("{}@{container_id}@{interface}{mark}", self.address)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('@');
        let address = parts.next()?.parse().ok()?;
        let attachment = Attachment { container_id: parts.next()?.to_owned(), interface: parts.next()?.to_owned() };
        Some(Self { address, attachment, has_ports: parts.next() == Some(PORTS_MARK) })
    }
}

/// The addresses of a node, locked against every other user until it is dropped.
#[derive(Debug)]
pub struct Ipam {
    directory: PathBuf,
    /// The primary range first.
    ranges: Vec<Subnet>,
    allocations: Vec<Allocation>,
    _lock: File,
}

impl Ipam {
    /// Takes the lock, waiting for it if need be, and reads what is in use. `ranges`: one of each family, the
    /// primary one first.
    pub fn lock(directory: &Path, ranges: &[Subnet]) -> Result<Self> {
        let action = || Error::io(format!("read the pod addresses in {}", directory.display()));
        let lock = match open_lock(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(directory).map_err(action())?;
                open_lock(directory)
            }
            result => result,
        }
        .map_err(action())?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => lock.lock().map_err(action())?,
            Err(TryLockError::Error(error)) => return Err(action()(error)),
        }
        let mut allocations = Vec::new();
        for entry in fs::read_dir(directory).map_err(action())? {
            let entry = entry.map_err(action())?;
            allocations.extend(entry.file_name().to_str().and_then(Allocation::parse));
        }
        Ok(Self { directory: directory.to_owned(), ranges: ranges.to_vec(), allocations, _lock: lock })
    }

    /// The addresses in use.
    pub fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    /// The address of an attachment.
    pub fn find(&self, attachment: &Attachment) -> Option<&Allocation> {
        self.allocations.iter().find(|a| a.attachment == *attachment)
    }

    /// All addresses that belong to the recorded one, itself first. Of a pod that is older than the ranges only that
    /// one is known.
    pub fn addresses_of(&self, primary: IpAddr) -> Vec<IpAddr> {
        let index = self.ranges.first().and_then(|range| range.index_of(primary));
        let others = self.ranges.iter().skip(1).filter_map(|range| range.nth(index?));
        std::iter::once(primary).chain(others).collect()
    }

    /// The pods with host ports, and their ports.
    pub fn host_ports(&self) -> Result<Vec<(Allocation, Vec<HostPort>)>> {
        let with_ports = self.allocations.iter().filter(|a| a.has_ports);
        with_ports
            .map(|allocation| {
                let path = self.directory.join(allocation.file_name());
                let action = || Error::io(format!("read {}", path.display()));
                let content = fs::read(&path).map_err(action())?;
                let record: Record = serde_json::from_slice(&content).map_err(|e| action()(e.into()))?;
                Ok((allocation.clone(), record.host_ports))
            })
            .collect()
    }

    /// Gives an attachment an address. One that already has an address keeps it, with the new record:
    /// that is how a setup that was cut short is repeated.
    ///
    /// Addresses are handed out in turn, so that a freed one rests as long as possible. The range's
    /// first address is the network's, the second the gateway's, the last for broadcast. Of an IPv6 range the first
    /// 65,536 addresses are handed out.
    pub fn allocate(&mut self, attachment: &Attachment, record: &Record) -> Result<IpAddr> {
        check_name(&attachment.container_id)?;
        check_name(&attachment.interface)?;
        let existing = self.find(attachment).cloned();
        let address = match &existing {
            Some(allocation) => allocation.address,
            None => self.next_free()?,
        };
        let allocation =
            Allocation { address, attachment: attachment.clone(), has_ports: !record.host_ports.is_empty() };
        if let Some(old) = existing.filter(|old| *old != allocation) {
            self.remove(&old)?;
        }
        let path = self.directory.join(allocation.file_name());
        let content = serde_json::to_vec(record).map_err(|e| Error::io("encode a pod address")(e.into()))?;
        let write = || {
            if record.host_ports.is_empty() {
                // An empty file is complete the moment it is there.
                return File::create(&path).map(drop);
            }
            let draft = self.directory.join(".draft");
            fs::write(&draft, &content)?;
            fs::rename(&draft, &path)
        };
        write().map_err(Error::io(format!("record a pod address in {}", path.display())))?;
        // Only a hint for the order, so a failure costs nothing.
        let _ = fs::write(self.directory.join(LAST), address.to_string());
        self.allocations.retain(|a| a.attachment != *attachment);
        self.allocations.push(allocation);
        Ok(address)
    }

    /// Frees the address of an attachment; true if it had one.
    pub fn release(&mut self, attachment: &Attachment) -> Result<bool> {
        let Some(allocation) = self.find(attachment).cloned() else {
            return Ok(false);
        };
        self.remove(&allocation)?;
        Ok(true)
    }

    /// Frees every address whose attachment is not wanted any more, and returns those.
    pub fn retain(&mut self, wanted: impl Fn(&Attachment) -> bool) -> Result<Vec<Allocation>> {
        let unwanted = |a: &&Allocation| !wanted(&a.attachment);
        let gone: Vec<_> = self.allocations.iter().filter(unwanted).cloned().collect();
        for allocation in &gone {
            self.remove(allocation)?;
        }
        Ok(gone)
    }

    fn remove(&mut self, allocation: &Allocation) -> Result<()> {
        let path = self.directory.join(allocation.file_name());
        fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))?;
        self.allocations.retain(|a| a != allocation);
        Ok(())
    }

    fn next_free(&self) -> Result<IpAddr> {
        const MOST: u32 = 1 << 16;
        let range = self.ranges.first().ok_or_else(|| Error::Invalid("there is no range of addresses".to_owned()))?;
        let exhausted = || Error::AddressesExhausted { range: range.to_string() };
        let first = 2;
        let last = range.index_of(range.last()).filter(|_| range.is_ipv4()).unwrap_or(MOST).saturating_sub(1);
        let count = last.checked_sub(first).ok_or_else(exhausted)? + 1;
        let used: BTreeSet<u32> = self.allocations.iter().filter_map(|a| range.index_of(a.address)).collect();
        let previous = fs::read_to_string(self.directory.join(LAST)).ok();
        let previous = previous.and_then(|text| text.trim().parse::<IpAddr>().ok());
        let start = previous
            .and_then(|address| range.index_of(address))
            .filter(|index| (first..=last).contains(index))
            .map_or(0, |index| index - first + 1);
        (0..count)
            .map(|n| first + (start + n) % count)
            .find(|index| !used.contains(index))
            .and_then(|index| range.nth(index))
            .ok_or_else(exhausted)
    }
}

fn open_lock(directory: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(directory.join(LOCK))
}

/// Container and interface names become parts of a file name.
fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.len() > 100 || !name.chars().all(fits) {
        return Err(Error::Invalid(format!("{name:?} is not a valid container or interface name")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostport::Protocol;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("skiff-ipam-{name}-{}", std::process::id())))
        }

        fn lock(&self) -> Ipam {
            Ipam::lock(&self.0, &["10.244.0.0/29".parse().unwrap(), "fd00:10:244::/64".parse().unwrap()]).unwrap()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pod(name: &str) -> Attachment {
        Attachment { container_id: name.to_owned(), interface: "eth0".to_owned() }
    }

    #[test]
    fn addresses_go_round_and_survive_reopening() {
        let dir = Dir::new("round");
        let record = Record::default();
        let allocate = |name: &str| dir.lock().allocate(&pod(name), &record).map(|a| crate::subnet::octets(a)[3]);
        assert_eq!(allocate("a").unwrap(), 2);
        assert_eq!(allocate("b").unwrap(), 3);
        assert_eq!(allocate("a").unwrap(), 2, "a repeated setup keeps its address");
        assert!(dir.lock().release(&pod("b")).unwrap());
        assert!(!dir.lock().release(&pod("b")).unwrap());
        assert_eq!(allocate("c").unwrap(), 3, "the turn follows the last one handed out");
        for name in ["d", "e", "f"] {
            allocate(name).unwrap();
        }
        let error = allocate("g").unwrap_err();
        assert_eq!(error.to_string(), "no free address left in 10.244.0.0/29");
        let gone = dir.lock().retain(|a| a.container_id != "d").unwrap();
        assert_eq!(gone.len(), 1);
        assert_eq!(allocate("g").unwrap(), 4);
        assert!(matches!(allocate("../x"), Err(Error::Invalid(_))));
    }

    #[test]
    fn host_ports_are_kept_with_the_address() {
        let dir = Dir::new("ports");
        let port = HostPort { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp };
        let record = Record { host_ports: vec![port.clone()] };
        dir.lock().allocate(&pod("a"), &record).unwrap();
        dir.lock().allocate(&pod("b"), &Record::default()).unwrap();
        let with_ports = dir.lock().host_ports().unwrap();
        assert_eq!(with_ports.len(), 1);
        assert_eq!(with_ports[0].0.attachment, pod("a"));
        assert_eq!(with_ports[0].1, [port]);
        dir.lock().allocate(&pod("a"), &Record::default()).unwrap();
        assert_eq!(dir.lock().host_ports().unwrap().len(), 0);
        assert_eq!(dir.lock().allocations().len(), 2);
    }

    #[test]
    fn a_pod_has_the_same_place_in_every_range() {
        let dir = Dir::new("ranges");
        let address = dir.lock().allocate(&pod("a"), &Record::default()).unwrap();
        let both = dir.lock().addresses_of(address).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(both, ["10.244.0.2", "fd00:10:244::2"]);
        let foreign = "192.0.2.1".parse().unwrap();
        assert_eq!(dir.lock().addresses_of(foreign), [foreign]);
        let six = Dir::new("six");
        let lock = || Ipam::lock(&six.0, &["fd00:10:244:1::/64".parse().unwrap()]).unwrap();
        for (name, expected) in [("a", "fd00:10:244:1::2"), ("b", "fd00:10:244:1::3")] {
            assert_eq!(lock().allocate(&pod(name), &Record::default()).unwrap().to_string(), expected);
        }
        assert_eq!(lock().allocations().len(), 2, "addresses are read back from file names");
    }
}
