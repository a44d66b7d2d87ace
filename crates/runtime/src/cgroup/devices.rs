//! Which devices a cgroup may use: rules, and for v2 the program that enforces them.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// What may be done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) mknod: bool,
}

impl Access {
    /// Everything.
    pub(crate) const ALL: Access = Access { read: true, write: true, mknod: true };

    /// Letters of `rwm`; anything else is refused.
    pub(crate) fn parse(letters: &str) -> Option<Access> {
        let known = letters.chars().all(|c| "rwm".contains(c));
        let has = |c| letters.contains(c);
        known.then(|| Access { read: has('r'), write: has('w'), mknod: has('m') })
    }
}

/// Allows access to a device or several.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceRule {
    /// `Some(true)` for block, `Some(false)` for character devices, `None` for both and all numbers.
    pub(crate) block: Option<bool>,
    pub(crate) major: Option<u32>,
    pub(crate) minor: Option<u32>,
    pub(crate) access: Access,
}

impl fmt::Display for DeviceRule {
    /// The notation of the v1 controller.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let Some(block) = self.block else { return f.write_str("a") };
        let kind = if block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let Access { read, write, mknod } = self.access;
        for (granted, letter) in [(read, "r"), (write, "w"), (mknod, "m")] {
            if granted {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl DeviceRule {
    /// What every container may use: making any node (useless without access), the harmless
    /// character devices, terminals.
    pub(crate) fn defaults() -> Vec<DeviceRule> {
        let rule = |block, major, minor, access| DeviceRule { block: Some(block), major, minor, access };
        let mknod = Access { read: false, write: false, mknod: true };
        let mut rules = vec![rule(false, None, None, mknod), rule(true, None, None, mknod)];
        // null, zero, full, random, urandom, tty, ptmx, pts/*.
        let usual = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
        rules.extend(usual.map(|(a, b)| rule(false, Some(a), Some(b), Access::ALL)));
        rules.push(rule(false, Some(136), None, Access::ALL));
        rules
    }

    /// For privileged containers.
    pub(crate) fn everything() -> Vec<DeviceRule> {
        vec![DeviceRule { block: None, major: None, minor: None, access: Access::ALL }]
    }
}

/// One eBPF instruction, as struct bpf_insn.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the lower four bits, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE_IMMEDIATE: u8 = 0xb7;
const MOVE: u8 = 0xbf;
const AND_IMMEDIATE: u8 = 0x57;
const SHIFT_RIGHT_IMMEDIATE: u8 = 0x77;
const JUMP_NOT_EQUAL_IMMEDIATE: u8 = 0x55;
const JUMP_NOT_EQUAL: u8 = 0x5d;
const EXIT: u8 = 0x95;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

/// The program of these rules: returns 1 if one of them allows the access, else 0.
///
/// Its argument is a struct bpf_cgroup_dev_ctx: access in the upper and kind in the lower half of the
/// first word, then major and minor.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut out = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND_IMMEDIATE, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT_IMMEDIATE, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut tests = Vec::new();
        if let Some(block) = rule.block {
            tests.push((2, if block { 1 } else { 2 }));
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                tests.push((register, number as i32));
            }
        }
        let Access { read, write, mknod } = rule.access;
        let bits = i32::from(mknod) | i32::from(read) << 1 | i32::from(write) << 2;
        let check_access = rule.block.is_some() && bits != 7;
        let access_length = if check_access { 3 } else { 0 };
        let mut left = tests.len() as i16 + access_length + 2;
        for (register, value) in tests {
            left -= 1;
            out.push(instruction(JUMP_NOT_EQUAL_IMMEDIATE, register, 0, left, value));
        }
        if check_access {
            // All bits asked for must be among those granted.
            out.push(instruction(MOVE, 1, 3, 0, 0));
            out.push(instruction(AND_IMMEDIATE, 1, 0, 0, bits));
            out.push(instruction(JUMP_NOT_EQUAL, 1, 3, 2, 0));
        }
        out.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, 1));
        out.push(instruction(EXIT, 0, 0, 0, 0));
        if rule.block.is_none() {
            // The kernel refuses programs with instructions that are never reached.
            return out;
        }
    }
    out.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, 0));
    out.push(instruction(EXIT, 0, 0, 0, 0));
    out
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The part of union bpf_attr for loading a program.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The part of union bpf_attr for attaching a program.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are a plain value of the size given, and outlive the call; the pointers
    // within lead to memory that the caller keeps.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *const T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Makes a v2 cgroup enforce these rules. What is not allowed is refused.
pub(super) fn attach(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let instructions = program(rules);
    let license = c"Apache-2.0";
    let load = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        length: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Default::default()
    };
    let failed = |e: io::Error| io::Error::new(e.kind(), format!("failed to set device rules: {e}"));
    let raw = bpf(BPF_PROG_LOAD, &load).map_err(failed)?;
    // SAFETY: the kernel just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(raw) };
    let cgroup = File::open(dir)?;
    let attach = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attach).map_err(failed)?;
    Ok(())
}
