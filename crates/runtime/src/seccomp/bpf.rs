//! Compiling a filter to classic BPF.
//!
//! Calls without conditions become ranges of numbers with one verdict, found by binary search; those
//! with conditions get a block each. Programs of another architecture and x32 numbers, which would
//! name other calls, never reach the rules: seccompiler, the library for this, lets x32 through under
//! a profile that allows by default, and has room for two verdicts only.

use std::collections::BTreeMap;

use super::{Action, Condition, Filter, Operator, syscalls};

/// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const THIS_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const THIS_ARCH: u32 = 0xc000_00b7;
/// Set in the numbers of x32 calls.
const X32: u32 = 0x4000_0000;
const ENOSYS: u32 = 38;
/// The kernel's limit.
const MAX_INSTRUCTIONS: usize = 4096;

const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;

/// One instruction, as struct sock_filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) k: u32,
}

impl Instruction {
    pub(super) fn to_bytes(self) -> [u8; 8] {
        let (code, k) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [code[0], code[1], self.jump_true, self.jump_false, k[0], k[1], k[2], k[3]]
    }

    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Instruction {
        let [c0, c1, jump_true, jump_false, k0, k1, k2, k3] = bytes;
        Instruction {
            code: u16::from_ne_bytes([c0, c1]),
            jump_true,
            jump_false,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        }
    }
}

const fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, jump_true: 0, jump_false: 0, k: offset }
}

const fn verdict(action: Action) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, k: action.0 }
}

const fn jump(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, k }
}

/// Compiles a filter. Fails only if it is too long for the kernel.
pub(super) fn compile(filter: &Filter) -> Result<Vec<Instruction>, &'static str> {
    let mut program = vec![
        load(ARCH),
        jump(JUMP_EQUAL, THIS_ARCH, 1, 0),
        verdict(Action::KILL_PROCESS),
        load(NUMBER),
        jump(JUMP_GREATER_EQUAL, X32, 0, 1),
        verdict(Action::errno(ENOSYS)),
    ];
    // Blocks of calls with conditions come first, each skipped by all other calls.
    let mut conditional: BTreeMap<u32, Vec<Instruction>> = BTreeMap::new();
    let mut plain: BTreeMap<u32, Action> = BTreeMap::new();
    for rule in &filter.rules {
        if plain.contains_key(&rule.number) {
            continue;
        }
        if rule.conditions.is_empty() {
            plain.insert(rule.number, rule.action);
        } else {
            conditional.entry(rule.number).or_default().extend(block(&rule.conditions, rule.action));
        }
    }
    for (number, mut body) in conditional {
        let rest = plain.get(&number).copied().unwrap_or(filter.default);
        body.push(verdict(rest));
        program.push(jump(JUMP_EQUAL, number, 1, 0));
        let length = u32::try_from(body.len()).map_err(|_| "too many conditions")?;
        program.push(jump(JUMP, length, 0, 0));
        program.extend(body);
    }
    // The verdict changes at these numbers: (first number, verdict from there on).
    let mut steps: Vec<(u32, Action)> = Vec::new();
    for number in 0..=syscalls::last() + 1 {
        let action = if number > syscalls::last() {
            filter.unknown
        } else {
            plain.get(&number).copied().unwrap_or(filter.default)
        };
        if steps.last().is_none_or(|(_, last)| *last != action) {
            steps.push((number, action));
        }
    }
    search(&steps, &mut program);
    if program.len() > MAX_INSTRUCTIONS {
        return Err("the seccomp profile is too long");
    }
    Ok(program)
}

/// Binary search for the step that the number in the accumulator is on.
fn search(steps: &[(u32, Action)], program: &mut Vec<Instruction>) {
    if let [(_, action)] = steps {
        program.push(verdict(*action));
        return;
    }
    let (low, high) = steps.split_at(steps.len() / 2);
    let mut lower = Vec::new();
    search(low, &mut lower);
    // Below the first number of the upper half: the lower half follows; else jump over it.
    program.push(jump(JUMP_GREATER_EQUAL, high[0].0, 0, 1));
    program.push(jump(JUMP, lower.len() as u32, 0, 0));
    program.extend(lower);
    search(high, program);
}

/// A block that returns the verdict if all conditions hold and falls through otherwise. Leaves anything
/// in the accumulator.
fn block(conditions: &[Condition], action: Action) -> Vec<Instruction> {
    // Built from the end: each test needs to know how far the end is.
    let mut out = vec![verdict(action)];
    for condition in conditions.iter().rev() {
        let mut test = test(condition, out.len() as u8);
        test.extend(out);
        out = test;
    }
    out
}

/// Falls through if the condition holds, else jumps over `skip` more instructions.
///
/// Arguments have 64 bits and the machine 32: the upper half is decided first.
fn test(condition: &Condition, skip: u8) -> Vec<Instruction> {
    let low_word = ARGUMENTS + condition.argument * 8;
    let high_word = low_word + 4;
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let equal = |mask: Option<u64>, negated: bool| {
        let mut out = vec![load(high_word)];
        let and = |half: u32| Instruction { code: AND, jump_true: 0, jump_false: 0, k: half };
        if let Some(mask) = mask {
            out.push(and((mask >> 32) as u32));
        }
        let second = if mask.is_some() { 3 } else { 2 };
        // A difference in the upper half decides alone.
        let unequal = if negated { second } else { second + skip };
        out.push(jump(JUMP_EQUAL, high, 0, unequal));
        out.push(load(low_word));
        if let Some(mask) = mask {
            out.push(and(mask as u32));
        }
        let (hit, miss) = if negated { (skip, 0) } else { (0, skip) };
        out.push(jump(JUMP_EQUAL, low, hit, miss));
        out
    };
    // For an order: upper half greater, smaller, or equal and then the lower half.
    let order = |code: u16, wanted: bool| {
        let (above, below) = if wanted { (3, 2 + skip) } else { (3 + skip, 2) };
        let last = if wanted { (0, skip) } else { (skip, 0) };
        vec![
            load(high_word),
            jump(JUMP_GREATER, high, above, 0),
            jump(JUMP_EQUAL, high, 0, below),
            load(low_word),
            jump(code, low, last.0, last.1),
        ]
    };
    match condition.operator {
        Operator::Equal => equal(None, false),
        Operator::NotEqual => equal(None, true),
        Operator::Masked(mask) => equal(Some(mask), false),
        Operator::Greater => order(JUMP_GREATER, true),
        Operator::GreaterOrEqual => order(JUMP_GREATER_EQUAL, true),
        Operator::LessOrEqual => order(JUMP_GREATER, false),
        Operator::Less => order(JUMP_GREATER_EQUAL, false),
    }
}
