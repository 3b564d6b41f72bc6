//! Which devices a container may make and open: ordered rules, compiled to an eBPF program for its cgroup.
//!
//! The last rule that speaks about an access decides, and what no rule speaks about is denied. The program walks the rules
//! backwards and keeps the set of accesses still undecided, so a request for reading and writing is answered bit by bit:
//!
//! ```text
//!   undecided = requested
//!   for each rule, last first, that matches kind and numbers:
//!       deny:   undecided & rule != 0  ->  refuse
//!       allow:  undecided &= !rule;  nothing left  ->  permit
//!   refuse
//! ```
//! Source: struct bpf_cgroup_dev_ctx of linux/bpf.h, and the eBPF instruction set (RFC 9669).

use crate::plan::DeviceKind;
use serde::{Deserialize, Serialize};

/// Accesses, as bits of BPF_DEVCG_ACC_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access(u32);

impl Access {
    /// Making the node.
    pub const MKNOD: Self = Self(1);
    /// Making, reading, writing.
    pub const ALL: Self = Self(7);

    /// Reads the specification's letters.
    pub fn from_letters(letters: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in letters.chars() {
            bits |= match letter {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                _ => return None,
            };
        }
        Some(Self(bits))
    }
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// About which kind of device; all when absent.
    pub kind: Option<DeviceKind>,
    /// About which major number; all when absent.
    pub major: Option<u32>,
    /// About which minor number; all when absent.
    pub minor: Option<u32>,
    /// About which accesses.
    pub access: Access,
}

/// BPF_DEVCG_DEV_* of linux/bpf.h.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

/// The compiled rules: eBPF instructions packed as the kernel lays them out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProgram {
    instructions: Vec<u64>,
}

// Registers. The context comes in r1; r0 is the answer.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// Operations: class, operation and source of RFC 9669.
const LOAD_32: u8 = 0x61;
const MOV_IMM: u8 = 0xb4;
const MOV_REG: u8 = 0xbc;
const AND_IMM: u8 = 0x54;
const SHIFT_RIGHT_IMM: u8 = 0x74;
const JUMP_EQ_IMM: u8 = 0x16;
const JUMP_NE_IMM: u8 = 0x56;
const EXIT: u8 = 0x95;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, value: u32) -> u64 {
    let registers = u64::from(destination | source << 4);
    u64::from(code) | registers << 8 | u64::from(offset.cast_unsigned()) << 16 | u64::from(value) << 32
}

impl DeviceProgram {
    /// Compiles rules in their order.
    pub fn compile(rules: &[DeviceRule]) -> Self {
        let mut code = vec![
            // access_type: the kind in the lower half, the accesses in the upper.
            instruction(LOAD_32, UNDECIDED, CONTEXT, 0, 0),
            instruction(MOV_REG, KIND, UNDECIDED, 0, 0),
            instruction(AND_IMM, KIND, 0, 0, 0xffff),
            instruction(SHIFT_RIGHT_IMM, UNDECIDED, 0, 0, 16),
            instruction(LOAD_32, MAJOR, CONTEXT, 4, 0),
            instruction(LOAD_32, MINOR, CONTEXT, 8, 0),
        ];
        for rule in rules.iter().rev() {
            code.extend(one(rule));
        }
        code.extend(answer(0));
        Self { instructions: code }
    }

    /// The program.
    pub fn instructions(&self) -> &[u64] {
        &self.instructions
    }
}

fn answer(value: u32) -> [u64; 2] {
    [instruction(MOV_IMM, ANSWER, 0, 0, value), instruction(EXIT, 0, 0, 0, 0)]
}

/// Tests that jump behind the rule when they fail, then what the rule says.
fn one(rule: &DeviceRule) -> Vec<u64> {
    let verdict = match rule.allow {
        true => {
            let decide = instruction(AND_IMM, UNDECIDED, 0, 0, !rule.access.0);
            let [set, exit] = answer(1);
            vec![decide, instruction(JUMP_NE_IMM, UNDECIDED, 0, 2, 0), set, exit]
        }
        false => {
            let copy = instruction(MOV_REG, SCRATCH, UNDECIDED, 0, 0);
            let common = instruction(AND_IMM, SCRATCH, 0, 0, rule.access.0);
            let [set, exit] = answer(0);
            vec![copy, common, instruction(JUMP_EQ_IMM, SCRATCH, 0, 2, 0), set, exit]
        }
    };
    let kind = rule.kind.map(|kind| match kind {
        DeviceKind::Block => BLOCK,
        DeviceKind::Character | DeviceKind::Fifo => CHARACTER,
    });
    let wanted = [(KIND, kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    let tests: Vec<(u8, u32)> = wanted.into_iter().filter_map(|(register, value)| Some((register, value?))).collect();
    let mut code = Vec::new();
    for (index, &(register, value)) in tests.iter().enumerate() {
        let behind = tests.len() - index - 1 + verdict.len();
        code.push(instruction(JUMP_NE_IMM, register, 0, behind as i16, value));
    }
    code.extend(verdict);
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs a program as the kernel would, for the instructions used here.
    fn run(program: &DeviceProgram, kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_u32; 11];
        let mut at = 0_usize;
        loop {
            let word = program.instructions()[at];
            let (code, destination, source) = (word as u8, (word >> 8) as usize & 0xf, (word >> 12) as usize & 0xf);
            let (offset, value) = ((word >> 16) as i16, (word >> 32) as u32);
            at += 1;
            match code {
                LOAD_32 => registers[destination] = context[offset as usize / 4],
                MOV_IMM => registers[destination] = value,
                MOV_REG => registers[destination] = registers[source],
                AND_IMM => registers[destination] &= value,
                SHIFT_RIGHT_IMM => registers[destination] >>= value,
                JUMP_EQ_IMM if registers[destination] == value => at += offset as usize,
                JUMP_NE_IMM if registers[destination] != value => at += offset as usize,
                JUMP_EQ_IMM | JUMP_NE_IMM => {}
                EXIT => return registers[usize::from(ANSWER)] == 1,
                other => panic!("instruction {other:#x} is not one of ours"),
            }
        }
    }

    /// What the rules mean, said directly: each access is decided by the last rule that speaks about it.
    fn meant(rules: &[DeviceRule], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        [1, 2, 4].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            let speaks = |rule: &&DeviceRule| {
                let of_kind = rule.kind.is_none_or(|wanted| (wanted == DeviceKind::Block) == (kind == BLOCK));
                let numbers = rule.major.is_none_or(|m| m == major) && rule.minor.is_none_or(|m| m == minor);
                of_kind && numbers && rule.access.0 & bit != 0
            };
            rules.iter().rev().find(speaks).is_some_and(|rule| rule.allow)
        })
    }

    fn any_rule() -> impl Strategy<Value = DeviceRule> {
        let kind = prop_oneof![Just(None), Just(Some(DeviceKind::Block)), Just(Some(DeviceKind::Character))];
        (any::<bool>(), kind, prop::option::of(0..3_u32), prop::option::of(0..3_u32), 0..8_u32).prop_map(
            |(allow, kind, major, minor, access)| DeviceRule { allow, kind, major, minor, access: Access(access) },
        )
    }

    proptest! {
        #[test]
        fn the_program_does_what_the_rules_mean(
            rules in prop::collection::vec(any_rule(), 0..12),
            kind in 1..3_u32, major in 0..3_u32, minor in 0..3_u32, access in 1..8_u32,
        ) {
            let program = DeviceProgram::compile(&rules);
            prop_assert_eq!(run(&program, kind, major, minor, access), meant(&rules, kind, major, minor, access));
        }
    }

    #[test]
    fn without_rules_nothing_is_allowed() {
        assert!(!run(&DeviceProgram::compile(&[]), CHARACTER, 1, 3, 2));
    }

    #[test]
    fn letters_are_accesses() {
        assert_eq!(Access::from_letters("rwm"), Some(Access::ALL));
        assert_eq!(Access::from_letters("m"), Some(Access::MKNOD));
        assert_eq!(Access::from_letters("x"), None);
    }
}
