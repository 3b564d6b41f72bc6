//! The compiled program against the profile's own meaning, both run by interpreters of the tests' own.

use super::assemble::{AND, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_OR_EQUAL, LOAD, RETURN};
use super::resolve::{Action, Condition, ENOSYS, Operator, Resolved, Rule, Table};
use super::tree::{I386, X32_BIT, X86_64, program};
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// One call as the kernel shows it to a filter: struct seccomp_data.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u32,
    architecture: u32,
    args: [u64; 6],
}

impl Call {
    fn of(number: u32) -> Self {
        Self { number, architecture: X86_64, args: [0; 6] }
    }

    fn word(&self, at: u32) -> u32 {
        let mut bytes = [0; 64];
        bytes[0..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.architecture.to_le_bytes());
        for (index, arg) in self.args.iter().enumerate() {
            bytes[16 + 8 * index..24 + 8 * index].copy_from_slice(&arg.to_le_bytes());
        }
        let at = at as usize;
        assert!(at.is_multiple_of(4), "the kernel takes aligned loads only");
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }
}

/// Runs classic BPF, for the instructions the compiler emits; a jump out of the program or a fall off its end panics.
fn run(instructions: &[u64], call: &Call) -> (Action, usize) {
    let (mut at, mut register, mut steps) = (0_usize, 0_u32, 0_usize);
    loop {
        let word = instructions[at];
        let (code, if_true, if_false) = (word as u16, (word >> 16) as u8, (word >> 24) as u8);
        let value = (word >> 32) as u32;
        at += 1;
        steps += 1;
        let holds = match code {
            LOAD => {
                register = call.word(value);
                continue;
            }
            AND => {
                register &= value;
                continue;
            }
            JUMP => {
                at += value as usize;
                continue;
            }
            RETURN => return (Action(value), steps),
            JUMP_EQUAL => register == value,
            JUMP_GREATER => register > value,
            JUMP_GREATER_OR_EQUAL => register >= value,
            other => panic!("instruction {other:#x} is not one of ours"),
        };
        at += usize::from(if holds { if_true } else { if_false });
    }
}

fn holds(condition: &Condition, call: &Call) -> bool {
    let arg = call.args[condition.argument];
    match condition.operator {
        Operator::NotEqual => arg != condition.value,
        Operator::Less => arg < condition.value,
        Operator::LessOrEqual => arg <= condition.value,
        Operator::Equal => arg == condition.value,
        Operator::GreaterOrEqual => arg >= condition.value,
        Operator::Greater => arg > condition.value,
        Operator::MaskedEqual(mask) => arg & mask == condition.value,
    }
}

/// What a profile means, said directly: the strictest rule that matches, else the default.
fn meant(resolved: &Resolved, call: &Call) -> Action {
    let table = match call.architecture {
        X86_64 if call.number >= X32_BIT => {
            return if resolved.x32 { Action::errno(ENOSYS) } else { Action::KILL_PROCESS };
        }
        X86_64 => Some(&resolved.x86_64),
        I386 => resolved.i386.as_ref(),
        _ => None,
    };
    let Some(table) = table else { return Action::KILL_PROCESS };
    if table.unknown_from.is_some_and(|first| call.number >= first) {
        return Action::errno(ENOSYS);
    }
    let rules = table.rules.get(&call.number).map_or(&[][..], Vec::as_slice);
    let matching = rules.iter().filter(|rule| rule.conditions.iter().all(|condition| holds(condition, call)));
    matching.map(|rule| rule.action).min_by_key(|action| action.rank()).unwrap_or(resolved.default)
}

/// Values near one another and near the seam of the two halves, so that comparisons meet their edges.
fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, (u64::from(u32::MAX) - 1)..(u64::from(u32::MAX) + 3), Just(u64::MAX), any::<u64>()]
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let operator = prop_oneof![
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessOrEqual),
        Just(Operator::Equal),
        Just(Operator::GreaterOrEqual),
        Just(Operator::Greater),
        any_value().prop_map(Operator::MaskedEqual),
    ];
    (0..6_usize, operator, any_value()).prop_map(|(argument, operator, value)| Condition { argument, operator, value })
}

fn any_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::KILL_PROCESS),
        Just(Action::KILL_THREAD),
        Just(Action::TRAP),
        Just(Action::LOG),
        Just(Action::ALLOW),
        (1..200_u32).prop_map(Action::errno),
        (1..9_u32).prop_map(Action::trace),
    ]
}

fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (prop::collection::vec(any_condition(), 0..4), any_action())
        .prop_map(|(conditions, action)| Rule { conditions, action });
    prop::collection::vec(rule, 1..4).prop_map(|mut rules| {
        rules.sort_by_key(|rule| rule.action.rank());
        rules
    })
}

fn any_table() -> impl Strategy<Value = Table> {
    (prop::collection::btree_map(0..24_u32, any_rules(), 0..16), prop::option::of(24..30_u32))
        .prop_map(|(rules, unknown_from)| Table { rules, unknown_from })
}

fn any_resolved() -> impl Strategy<Value = Resolved> {
    (any_action(), any_table(), prop::option::of(any_table()), any::<bool>())
        .prop_map(|(default, x86_64, i386, x32)| Resolved { default, x86_64, i386, x32, unknown: Vec::new() })
}

fn any_call() -> impl Strategy<Value = Call> {
    let number = prop_oneof![0..32_u32, X32_BIT - 1..X32_BIT + 4, Just(u32::MAX)];
    let architecture = prop_oneof![4 => Just(X86_64), 3 => Just(I386), 1 => any::<u32>()];
    (number, architecture, prop::array::uniform6(any_value())).prop_map(|(number, architecture, args)| Call {
        number,
        architecture,
        args,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn the_program_does_what_the_profile_means(resolved in any_resolved(), calls in prop::collection::vec(any_call(), 1..20)) {
        let instructions = program(&resolved);
        for call in calls {
            prop_assert_eq!(run(&instructions, &call).0, meant(&resolved, &call), "{:?}", call);
        }
    }
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).expect("the test's own profile")
}

fn decide(json: &str, call: Call) -> Action {
    run(&compile(&profile(json)).expect("compiled").program.instructions, &call).0
}

#[test]
fn a_foreign_architecture_and_x32_end_the_process() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#;
    assert_eq!(decide(json, Call::of(0)), Action::ALLOW);
    assert_eq!(decide(json, Call { architecture: I386, ..Call::of(0) }), Action::KILL_PROCESS);
    assert_eq!(decide(json, Call::of(X32_BIT)), Action::KILL_PROCESS);
    let listed =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"]}"#;
    assert_eq!(decide(listed, Call { architecture: I386, ..Call::of(0) }), Action::ALLOW);
    assert_eq!(decide(listed, Call::of(X32_BIT | 1)), Action::errno(ENOSYS));
}

#[test]
fn the_same_name_has_its_own_number_on_each_architecture() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],
        "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
    assert_eq!(decide(json, Call::of(83)), Action::errno(13));
    assert_eq!(decide(json, Call { architecture: I386, ..Call::of(39) }), Action::errno(13));
    assert_eq!(decide(json, Call { architecture: I386, ..Call::of(83) }), Action::ALLOW);
}

#[test]
fn calls_newer_than_the_profile_answer_enosys_only_when_the_default_is_an_error() {
    let allow_old = |default: &str| {
        format!(
            r#"{{"defaultAction":"{default}","defaultErrnoRet":1,"syscalls":[{{"names":["read","openat"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        )
    };
    let newest = 10_000;
    assert_eq!(decide(&allow_old("SCMP_ACT_ERRNO"), Call::of(newest)), Action::errno(ENOSYS));
    assert_eq!(decide(&allow_old("SCMP_ACT_ERRNO"), Call::of(83)), Action::errno(1));
    assert_eq!(decide(&allow_old("SCMP_ACT_KILL_PROCESS"), Call::of(newest)), Action::KILL_PROCESS);
}

#[test]
fn of_two_rules_the_stricter_decides_whatever_their_order() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["socket"],"action":"SCMP_ACT_ALLOW"},
        {"names":["socket"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":0,"value":38,"op":"SCMP_CMP_EQ"}]}]}"#;
    let socket = |family| Call { args: [family, 0, 0, 0, 0, 0], ..Call::of(41) };
    assert_eq!(decide(json, socket(2)), Action::ALLOW);
    assert_eq!(decide(json, socket(38)), Action::KILL_PROCESS);
}

#[test]
fn several_conditions_on_one_argument_are_alternatives() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[
        {"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#;
    let personality = |value| Call { args: [value, 0, 0, 0, 0, 0], ..Call::of(135) };
    assert_eq!(decide(json, personality(0)), Action::ALLOW);
    assert_eq!(decide(json, personality(8)), Action::ALLOW);
    assert_eq!(decide(json, personality(4)), Action::errno(1));
}

#[test]
fn a_masked_comparison_takes_its_mask_first() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
    let clone = |flags| Call { args: [flags, 0, 0, 0, 0, 0], ..Call::of(56) };
    assert_eq!(decide(json, clone(0x11)), Action::ALLOW);
    assert_eq!(decide(json, clone(0x1000_0000)), Action::errno(1), "a new user namespace");
}

#[test]
fn a_denied_socket_cannot_be_had_through_socketcall() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":[
        {"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":38,"op":"SCMP_CMP_EQ"}]}]}"#;
    let socketcall = |which| Call { architecture: I386, args: [which, 0, 0, 0, 0, 0], ..Call::of(102) };
    assert_eq!(decide(json, socketcall(1)), Action::errno(1));
    assert_eq!(decide(json, socketcall(2)), Action::ALLOW);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let refused = |json: &str| compile(&profile(json)).expect_err("refused");
    let deny = |name: &str| {
        format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["{name}"],"action":"SCMP_ACT_ERRNO"}}]}}"#)
    };
    assert_eq!(refused(&deny("frobnicate")), SeccompError::UnknownDenied { name: "frobnicate".into() });
    assert!(compile(&profile(&deny("s390_runtime_instr"))).is_ok());
    assert_eq!(refused(r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#), SeccompError::Notify);
    let argument = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO",
        "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#;
    assert_eq!(refused(argument), SeccompError::Argument { name: "read".into(), index: 6 });
    assert_eq!(
        refused(r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#),
        SeccompError::Errno { errno: 70000 }
    );
}

#[test]
fn an_unknown_name_that_would_be_allowed_is_left_out_and_named() {
    let json =
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read","frobnicate"],"action":"SCMP_ACT_ALLOW"}]}"#;
    assert_eq!(compile(&profile(json)).expect("compiled").unknown, ["frobnicate"]);
}

/// As containerd's default profile: nearly everything allowed by name, on three architectures, some with arguments.
#[test]
fn a_profile_of_hundreds_of_names_is_short_and_quick() {
    let denied =
        ["mount", "umount2", "reboot", "kexec_load", "init_module", "ptrace", "keyctl", "bpf", "add_key", "setns"];
    let names: Vec<&str> =
        syscalls_x86_64::TABLE.iter().map(|(name, _)| *name).filter(|name| !denied.contains(name)).collect();
    assert!(names.len() > 300);
    let json = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
        ]
    });
    let compiled = compile(&serde_json::from_value(json).expect("a profile")).expect("compiled");
    assert_eq!(compiled.program.flags, 2);
    let instructions = &compiled.program.instructions;
    assert!(instructions.len() < 500, "{} instructions", instructions.len());
    let numbers: BTreeMap<&str, u32> = syscalls_x86_64::TABLE.into_iter().collect();
    for (name, number) in numbers {
        let (action, steps) = run(instructions, &Call::of(number));
        let wanted = match name {
            "clone3" => Action::errno(38),
            name if denied.contains(&name) => Action::errno(1),
            _ => Action::ALLOW,
        };
        assert_eq!(action, wanted, "{name}");
        assert!(steps < 20, "{name} takes {steps} instructions");
    }
}
