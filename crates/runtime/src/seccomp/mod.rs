//! Seccomp: which system calls a container may make.
//!
//! A profile is compiled to a classic BPF program, which is kept in a file named by the digest of what
//! it was made from: it is the supervisor that loads it, many times, and never parses a profile.

mod bpf;
mod default;
mod oci;
mod syscalls;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use bpf::Instruction;

/// What to do with a call; the values of the kernel's `SECCOMP_RET_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Action(u32);

impl Action {
    const KILL_PROCESS: Action = Action(0x8000_0000);
    const KILL_THREAD: Action = Action(0);
    const TRAP: Action = Action(0x0003_0000);
    const LOG: Action = Action(0x7ffc_0000);
    const ALLOW: Action = Action(0x7fff_0000);

    /// Fails the call with this error number.
    const fn errno(number: u32) -> Action {
        Action(0x0005_0000 | (number & 0xffff))
    }

    /// Asks a tracer.
    const fn trace(number: u32) -> Action {
        Action(0x7ff0_0000 | (number & 0xffff))
    }
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equal after masking with this.
    Masked(u64),
}

/// A condition on an argument of a call.
#[derive(Clone, Copy, Debug)]
struct Condition {
    argument: u32,
    operator: Operator,
    value: u64,
}

/// One rule: a call whose arguments meet all conditions.
#[derive(Clone, Debug)]
struct Rule {
    number: u32,
    conditions: Vec<Condition>,
    action: Action,
}

/// A whole filter: the first rule that matches decides, else the default.
#[derive(Clone, Debug)]
struct Filter {
    rules: Vec<Rule>,
    default: Action,
    /// For calls that the table does not know.
    unknown: Action,
}

/// The filter of `RuntimeDefault` for a process with these capabilities, as a file below `cache`.
pub(crate) fn runtime_default(cache: &Path, capabilities: u64) -> io::Result<PathBuf> {
    // The file's name says which rules it holds: the binary's version may change them.
    let filter = default::filter(capabilities);
    store(cache, &bpf::compile(&filter).map_err(io::Error::other)?)
}

/// The filter of an OCI profile, as a file below `cache`.
pub(crate) fn localhost(cache: &Path, profile: &Path, capabilities: u64) -> io::Result<PathBuf> {
    let text = std::fs::read(profile)?;
    let filter = oci::parse(&text, capabilities).map_err(io::Error::other)?;
    store(cache, &bpf::compile(&filter).map_err(io::Error::other)?)
}

fn store(cache: &Path, program: &[Instruction]) -> io::Result<PathBuf> {
    let bytes: Vec<u8> = program.iter().flat_map(|i| i.to_bytes()).collect();
    let digest = skiff_images::Digest::of(&bytes);
    let path = cache.join(format!("{}.bpf", digest.hex()));
    if !path.exists() {
        std::fs::create_dir_all(cache)?;
        let staged = cache.join(format!("{}.{}", digest.hex(), uuid::Uuid::new_v4()));
        std::fs::write(&staged, &bytes)?;
        std::fs::rename(&staged, &path)?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
