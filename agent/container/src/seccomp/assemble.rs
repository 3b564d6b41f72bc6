//! Classic BPF: the few instructions a system call filter is made of, and conditions on 64-bit arguments made of them.
//!
//! The machine has one 32-bit register and jumps forward only, by at most 255 unless unconditional (linux/filter.h). A 64-bit
//! argument is two loads, the lower half first in memory (struct seccomp_data of linux/seccomp.h).

use super::resolve::{Action, Condition, Operator, Rule};

/// One instruction: code, and where it goes on when true and when false, counted from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub value: u32,
}

impl Instruction {
    /// As struct sock_filter lies in memory.
    pub fn pack(self) -> u64 {
        u64::from(self.code)
            | u64::from(self.if_true) << 16
            | u64::from(self.if_false) << 24
            | u64::from(self.value) << 32
    }
}

pub const LOAD: u16 = 0x20;
pub const AND: u16 = 0x54;
pub const JUMP: u16 = 0x05;
pub const JUMP_EQUAL: u16 = 0x15;
pub const JUMP_GREATER: u16 = 0x25;
pub const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
pub const RETURN: u16 = 0x06;

/// Offsets in struct seccomp_data.
pub const NUMBER_AT: u32 = 0;
pub const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

pub fn load(at: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, value: at }
}

pub fn answer(action: Action) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, value: action.0 }
}

pub fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

/// Goes on with `then` if the register is at least `value`, else with `otherwise`, whatever their lengths.
pub fn split(value: u32, otherwise: Vec<Instruction>, then: Vec<Instruction>) -> Vec<Instruction> {
    let mut code = match u8::try_from(otherwise.len()) {
        Ok(over) => vec![branch(JUMP_GREATER_OR_EQUAL, value, over, 0)],
        Err(_) => vec![
            branch(JUMP_GREATER_OR_EQUAL, value, 0, 1),
            Instruction { code: JUMP, if_true: 0, if_false: 0, value: otherwise.len() as u32 },
        ],
    };
    code.extend(otherwise);
    code.extend(then);
    code
}

/// Where a test goes on.
#[derive(Clone, Copy)]
enum Go {
    On,
    Holds,
    Fails,
}

/// A test before its jumps are counted.
enum Draft {
    Plain(Instruction),
    Test { code: u16, value: u32, if_true: Go, if_false: Go },
}

/// Returns the rule's action if all its conditions hold, else goes on behind itself.
pub fn rule(rule: &Rule) -> Vec<Instruction> {
    let blocks: Vec<Vec<Draft>> = rule.conditions.iter().map(condition).collect();
    let total: usize = blocks.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(total + 1);
    for block in blocks {
        let holds = code.len() + block.len();
        for draft in block {
            // Six conditions of seven instructions at most: every distance fits eight bits.
            let over = |target: usize| (target - code.len() - 1) as u8;
            let distance = |go| match go {
                Go::On => 0,
                Go::Holds => over(holds),
                Go::Fails => over(total + 1),
            };
            let next = match draft {
                Draft::Plain(instruction) => instruction,
                Draft::Test { code, value, if_true, if_false } => {
                    branch(code, value, distance(if_true), distance(if_false))
                }
            };
            code.push(next);
        }
    }
    code.push(answer(rule.action));
    code
}

fn condition(condition: &Condition) -> Vec<Draft> {
    let at = ARGUMENTS_AT + 8 * condition.argument as u32;
    let (low, high) = halves(condition.value);
    let test = |code, value, if_true, if_false| Draft::Test { code, value, if_true, if_false };
    let two = |upper: Vec<Draft>, lower: Vec<Draft>| {
        let mut drafts = vec![Draft::Plain(load(at + 4))];
        drafts.extend(upper);
        drafts.push(Draft::Plain(load(at)));
        drafts.extend(lower);
        drafts
    };
    // For an order, the upper halves decide unless they are equal.
    let ordered = |code, holds: Go, fails: Go| {
        two(
            vec![test(JUMP_GREATER, high, holds, Go::On), test(JUMP_EQUAL, high, Go::On, fails)],
            vec![test(code, low, holds, fails)],
        )
    };
    match condition.operator {
        Operator::Equal => {
            two(vec![test(JUMP_EQUAL, high, Go::On, Go::Fails)], vec![test(JUMP_EQUAL, low, Go::Holds, Go::Fails)])
        }
        Operator::NotEqual => {
            two(vec![test(JUMP_EQUAL, high, Go::On, Go::Holds)], vec![test(JUMP_EQUAL, low, Go::Fails, Go::Holds)])
        }
        Operator::Greater => ordered(JUMP_GREATER, Go::Holds, Go::Fails),
        Operator::GreaterOrEqual => ordered(JUMP_GREATER_OR_EQUAL, Go::Holds, Go::Fails),
        Operator::LessOrEqual => ordered(JUMP_GREATER, Go::Fails, Go::Holds),
        Operator::Less => ordered(JUMP_GREATER_OR_EQUAL, Go::Fails, Go::Holds),
        Operator::MaskedEqual(mask) => {
            let (mask_low, mask_high) = halves(mask);
            let masked = |mask| Draft::Plain(Instruction { code: AND, if_true: 0, if_false: 0, value: mask });
            two(
                vec![masked(mask_high), test(JUMP_EQUAL, high, Go::On, Go::Fails)],
                vec![masked(mask_low), test(JUMP_EQUAL, low, Go::Holds, Go::Fails)],
            )
        }
    }
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
