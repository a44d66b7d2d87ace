use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

/// Runs a program as the kernel would.
fn run(program: &[Instruction], number: u32, arguments: [u64; 6]) -> u32 {
    run_on(program, 0xc000_003e, number, arguments)
}

fn run_on(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend([0; 8]);
    arguments.iter().for_each(|a| data.extend(a.to_le_bytes()));
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let i = program[at];
        at += 1;
        let jump = |hit: bool| usize::from(if hit { i.jump_true } else { i.jump_false });
        match i.code {
            0x20 => {
                let k = i.k as usize;
                accumulator = u32::from_le_bytes(data[k..k + 4].try_into().expect("four bytes"));
            }
            0x54 => accumulator &= i.k,
            0x05 => at += i.k as usize,
            0x15 => at += jump(accumulator == i.k),
            0x25 => at += jump(accumulator > i.k),
            0x35 => at += jump(accumulator >= i.k),
            0x06 => return i.k,
            code => panic!("unknown instruction {code:#x}"),
        }
    }
}

fn call(program: &[Instruction], name: &str, first: u64) -> u32 {
    run(program, syscalls::number(name).expect("a known call"), [first, 0, 0, 0, 0, 0])
}

#[test]
fn default_profile_decides_as_elsewhere() {
    let program = bpf::compile(&default::filter(caps_of(&[]))).expect("compiles");
    assert!(program.len() < 400, "{} instructions", program.len());
    for name in ["read", "execve", "openat2", "fchmodat2", "futex_waitv", "ptrace", "rseq"] {
        assert_eq!(call(&program, name, 0), ALLOW, "{name}");
    }
    for name in ["mount", "unshare", "setns", "bpf", "keyctl", "io_uring_setup", "reboot", "chroot"] {
        assert_eq!(call(&program, name, 0), EPERM, "{name}");
    }
    assert_eq!(call(&program, "clone", 0x11), ALLOW);
    assert_eq!(call(&program, "clone", 0x1000_0000), EPERM, "a user namespace");
    assert_eq!(call(&program, "clone", 0xffff_ffff_0000_0011), ALLOW, "only the flags count");
    assert_eq!(call(&program, "clone3", 0), ENOSYS);
    assert_eq!(call(&program, "socket", 2), ALLOW);
    assert_eq!(call(&program, "socket", 40), EPERM);
    assert_eq!(call(&program, "personality", 0xffff_ffff), ALLOW);
    assert_eq!(call(&program, "personality", 0x0400_0000), EPERM);
    assert_eq!(run(&program, 5000, [0; 6]), ENOSYS, "a call newer than the table");
    assert_eq!(run(&program, 0x4000_0000, [0; 6]), ENOSYS, "x32");
    assert_eq!(run_on(&program, 0x4000_0003, 0, [0; 6]), 0x8000_0000, "32 bits");

    let admin = bpf::compile(&default::filter(caps_of(&["SYS_ADMIN"]))).expect("compiles");
    for name in ["mount", "unshare", "bpf", "clone", "clone3"] {
        assert_eq!(call(&admin, name, 0x1000_0000), ALLOW, "{name}");
    }
    assert_eq!(call(&admin, "kexec_load", 0), EPERM);
}

fn caps_of(names: &[&str]) -> u64 {
    names.iter().filter_map(|name| crate::caps::bit(name)).sum()
}

#[test]
fn profiles_of_files_work() {
    let profile = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["chmod", "nosuchcall"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["mkdir"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]},
            {"names": ["chown"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_CHOWN"]}}
        ]}"#;
    let program = bpf::compile(&oci::parse(profile.as_bytes(), 0).expect("parses")).expect("fits");
    assert_eq!(call(&program, "chmod", 0), 0x0005_000d);
    assert_eq!(call(&program, "mkdir", 0), 0x8000_0000);
    assert_eq!(call(&program, "chown", 0), ALLOW);
    let kill = syscalls::number("kill").expect("known");
    assert_eq!(run(&program, kill, [5, 9, 0, 0, 0, 0]), EPERM);
    assert_eq!(run(&program, kill, [5, 8, 0, 0, 0, 0]), ALLOW);
    assert_eq!(run(&program, 0x4000_0000 + 90, [0; 6]), ENOSYS, "chmod by its x32 number");
    for bad in ["{}", "[]", r#"{"defaultAction":"SCMP_ACT_WHATEVER"}"#] {
        assert!(oci::parse(bad.as_bytes(), 0).is_err(), "{bad}");
    }
}

proptest::proptest! {
    /// Every operator decides as arithmetic does, in both halves of a word.
    #[test]
    fn conditions_compare_64_bits(
        value in proptest::prelude::any::<u64>(),
        mask in proptest::prelude::any::<u64>(),
        near in -2i64..3,
        far in proptest::prelude::any::<u64>(),
    ) {
        let cases = [
            Operator::Equal, Operator::NotEqual, Operator::Less, Operator::LessOrEqual,
            Operator::Greater, Operator::GreaterOrEqual, Operator::Masked(mask),
        ];
        for operator in cases {
            let wanted = if let Operator::Masked(mask) = operator { value & mask } else { value };
            let condition = Condition { argument: 3, operator, value: wanted };
            let other = Condition { argument: 1, operator: Operator::Equal, value: 7 };
            let filter = Filter {
                rules: vec![Rule { number: 1, conditions: vec![other, condition], action: Action::ALLOW }],
                default: Action::errno(1),
                unknown: Action::errno(1),
            };
            let program = bpf::compile(&filter).expect("compiles");
            for argument in [value.wrapping_add_signed(near), far, value ^ (1 << 40)] {
                let holds = match operator {
                    Operator::Equal => argument == wanted,
                    Operator::NotEqual => argument != wanted,
                    Operator::Less => argument < wanted,
                    Operator::LessOrEqual => argument <= wanted,
                    Operator::Greater => argument > wanted,
                    Operator::GreaterOrEqual => argument >= wanted,
                    Operator::Masked(mask) => argument & mask == wanted,
                };
                let verdict = run(&program, 1, [0, 7, 0, argument, 0, 0]);
                proptest::prop_assert_eq!(verdict, if holds { ALLOW } else { EPERM });
                proptest::prop_assert_eq!(run(&program, 1, [0, 8, 0, argument, 0, 0]), EPERM);
            }
        }
    }
}
