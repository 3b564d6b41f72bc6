//! The shape of the program: architecture, then a binary search over numbers, then the rules of one call.

use super::assemble::{ARCHITECTURE_AT, Instruction, JUMP, JUMP_EQUAL, NUMBER_AT, answer, branch, load, rule, split};
use super::resolve::{Action, ENOSYS, Resolved, Rule, Table};

/// AUDIT_ARCH_* of linux/audit.h.
pub const X86_64: u32 = 0xc000_003e;
pub const I386: u32 = 0x4000_0003;
/// Set in the number of an x32 call, asm/unistd.h.
pub const X32_BIT: u32 = 0x4000_0000;

/// Numbers from `first` up to the next range share these rules; none means the action alone.
struct Range<'table> {
    first: u32,
    rules: &'table [Rule],
    otherwise: Action,
}

pub fn program(resolved: &Resolved) -> Vec<u64> {
    let long = split(X32_BIT, numbers(&resolved.x86_64, resolved.default), vec![answer(of_x32(resolved))]);
    let short = resolved.i386.as_ref().map(|table| numbers(table, resolved.default));
    let mut code = vec![load(ARCHITECTURE_AT)];
    code.extend(if_architecture(X86_64, long));
    if let Some(short) = short {
        code.extend(if_architecture(I386, short));
    }
    code.push(answer(Action::KILL_PROCESS));
    code.into_iter().map(Instruction::pack).collect()
}

fn of_x32(resolved: &Resolved) -> Action {
    if resolved.x32 { Action::errno(ENOSYS) } else { Action::KILL_PROCESS }
}

/// `code` for one architecture, which ends in an answer; for another, what comes behind it.
fn if_architecture(architecture: u32, code: Vec<Instruction>) -> Vec<Instruction> {
    let over = Instruction { code: JUMP, if_true: 0, if_false: 0, value: code.len() as u32 + 1 };
    let mut all = vec![branch(JUMP_EQUAL, architecture, 1, 0), over, load(NUMBER_AT)];
    all.extend(code);
    all
}

fn numbers(table: &Table, default: Action) -> Vec<Instruction> {
    search(&ranges(table, default))
}

/// The whole of 0..2^32 in ranges, neighbours with the same decision merged.
fn ranges(table: &Table, default: Action) -> Vec<Range<'_>> {
    let mut ranges = vec![Range { first: 0, rules: &[], otherwise: default }];
    for (number, rules) in &table.rules {
        add(&mut ranges, Range { first: *number, rules, otherwise: default });
        if let Some(next) = number.checked_add(1) {
            add(&mut ranges, Range { first: next, rules: &[], otherwise: default });
        }
    }
    if let Some(first) = table.unknown_from {
        add(&mut ranges, Range { first, rules: &[], otherwise: Action::errno(ENOSYS) });
    }
    ranges
}

fn add<'table>(ranges: &mut Vec<Range<'table>>, next: Range<'table>) {
    // A range that ends where it begins has no numbers in it.
    if ranges.last().is_some_and(|last| last.first == next.first) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.rules != next.rules || last.otherwise != next.otherwise) {
        ranges.push(next);
    }
}

fn search(ranges: &[Range<'_>]) -> Vec<Instruction> {
    match ranges {
        [] => Vec::new(),
        [one] => leaf(one),
        many => {
            let (below, above) = many.split_at(many.len() / 2);
            split(above[0].first, search(below), search(above))
        }
    }
}

/// The rules in their order, each of which returns or goes on with the next, and then the default.
fn leaf(range: &Range<'_>) -> Vec<Instruction> {
    let mut code: Vec<_> = range.rules.iter().flat_map(rule).collect();
    if !range.rules.last().is_some_and(|last| last.conditions.is_empty()) {
        code.push(answer(range.otherwise));
    }
    code
}
