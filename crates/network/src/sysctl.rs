//! Network sysctls of the calling thread's namespace.

use std::fs;

use crate::{Error, Result};

/// Writes a sysctl named with slashes, like `net/ipv4/ip_forward`, unless it already has the value:
/// where /proc/sys is read-only, a value that is right is no error.
pub fn set(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{name}");
    if fs::read_to_string(&path).is_ok_and(|current| current.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(Error::io(format!("set {name} to {value}")))
}

/// True if a sysctl exists and is not zero.
pub fn is_on(name: &str) -> bool {
    fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|value| value.trim() != "0")
}
