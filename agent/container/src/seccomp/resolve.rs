//! A profile's names and words become numbers: per architecture, which rules hold for which call.

use super::{SeccompError, syscalls_i386, syscalls_x86_64};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};
use std::collections::BTreeMap;

/// What is returned when a rule gives no number: EPERM, as the specification says.
const DEFAULT_ERRNO: u32 = 1;
/// Largest number an action can carry, SECCOMP_RET_DATA.
const MAX_DATA: u32 = 0xffff;
/// Arguments of a system call.
const ARGUMENTS: usize = 6;
/// ENOSYS of asm-generic/errno.h.
pub const ENOSYS: u32 = 38;

/// Calls of other machines that profiles written for all of them name. Denying one on x86 takes nothing away.
#[rustfmt::skip]
const FOREIGN: [&str; 24] = [
    "arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "usr26", "usr32", "get_tls",
    "sync_file_range2", "s390_guarded_storage", "s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr",
    "s390_sthyi", "riscv_flush_icache", "riscv_hwprobe", "swapcontext", "rtas", "spu_create", "spu_run",
    "subpage_prot", "switch_endian", "multiplexer", "sysmips",
];

/// SECCOMP_RET_* of linux/seccomp.h with its data: a smaller action is stricter, once read as signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Action(pub u32);

impl Action {
    pub const KILL_PROCESS: Self = Self(0x8000_0000);
    pub const KILL_THREAD: Self = Self(0);
    pub const TRAP: Self = Self(0x0003_0000);
    pub const LOG: Self = Self(0x7ffc_0000);
    pub const ALLOW: Self = Self(0x7fff_0000);

    pub const fn errno(number: u32) -> Self {
        Self(0x0005_0000 | number)
    }

    pub const fn trace(number: u32) -> Self {
        Self(0x7ff0_0000 | number)
    }

    /// Smaller is stricter: the kernel's own comparison, data left out.
    pub fn rank(self) -> i32 {
        (self.0 & 0xffff_0000).cast_signed()
    }

    fn is_errno(self) -> bool {
        self.0 & 0xffff_0000 == 0x0005_0000
    }
}

/// One comparison of a 64-bit argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    pub argument: usize,
    pub operator: Operator,
    pub value: u64,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// The argument's bits under this mask equal the value.
    MaskedEqual(u64),
}

/// An action for when all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub conditions: Vec<Condition>,
    pub action: Action,
}

/// Rules of one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// By number, strictest first. A call that is not here has the default.
    pub rules: BTreeMap<u32, Vec<Rule>>,
    /// Calls from this number on are newer than the profile and answer ENOSYS.
    pub unknown_from: Option<u32>,
}

/// A profile without names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub default: Action,
    pub x86_64: Table,
    /// None when 32-bit programs may not run at all.
    pub i386: Option<Table>,
    /// Whether x32 was listed.
    pub x32: bool,
    pub unknown: Vec<String>,
}

pub fn resolve(profile: &LinuxSeccomp) -> Result<Resolved, SeccompError> {
    if profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty()) {
        return Err(SeccompError::Notify);
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let listed = |arch| profile.architectures().iter().flatten().any(|listed| *listed == arch);
    let mut resolved = Resolved {
        default,
        x86_64: Table::default(),
        i386: listed(Arch::ScmpArchX86).then(Table::default),
        x32: listed(Arch::ScmpArchX32),
        unknown: Vec::new(),
    };
    for entry in profile.syscalls().iter().flatten() {
        resolved.add(entry)?;
    }
    resolved.x86_64.finish(default);
    if let Some(table) = &mut resolved.i386 {
        table.finish(default);
    }
    Ok(resolved)
}

impl Resolved {
    fn add(&mut self, entry: &LinuxSyscall) -> Result<(), SeccompError> {
        let action = action(entry.action(), entry.errno_ret())?;
        for name in entry.names() {
            let rules = rules(name, entry.args().as_deref().unwrap_or_default(), action)?;
            let (long, short) = (number(&syscalls_x86_64::TABLE, name), number(&syscalls_i386::TABLE, name));
            if long.is_none() && short.is_none() && multiplexed(name).is_none() {
                self.leave_out(name, action)?;
            }
            if action == self.default {
                // Says nothing new, but tells how far the profile's author knew the list of calls.
                self.x86_64.touch(long);
                self.i386.iter_mut().for_each(|table| table.touch(short));
                continue;
            }
            self.x86_64.extend(long, &rules);
            if let Some(table) = &mut self.i386 {
                table.extend(short, &rules);
                table.extend_multiplexed(name, &rules, self.default);
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, name: &str, action: Action) -> Result<(), SeccompError> {
        if action.rank() < self.default.rank() && !FOREIGN.contains(&name) {
            return Err(SeccompError::UnknownDenied { name: name.to_owned() });
        }
        if !FOREIGN.contains(&name) {
            self.unknown.push(name.to_owned());
        }
        Ok(())
    }
}

impl Table {
    fn touch(&mut self, number: Option<u32>) {
        if let Some(number) = number {
            self.unknown_from = self.unknown_from.max(Some(number + 1));
        }
    }

    fn extend(&mut self, number: Option<u32>, rules: &[Rule]) {
        self.touch(number);
        if let Some(number) = number {
            self.rules.entry(number).or_default().extend_from_slice(rules);
        }
    }

    /// On 32-bit x86 sockets and System V IPC can also be reached through one call that takes their number.
    ///
    /// Conditions on the real arguments cannot be checked there, since those lie behind a pointer: a rule that denies is
    /// widened to all calls of its kind, one that allows is not carried over.
    fn extend_multiplexed(&mut self, name: &str, rules: &[Rule], default: Action) {
        let Some((call, value)) = multiplexed(name) else { return };
        for rule in rules.iter().filter(|rule| rule.conditions.is_empty() || rule.action.rank() < default.rank()) {
            let which = Condition { argument: 0, operator: Operator::Equal, value };
            let rule = Rule { conditions: vec![which], action: rule.action };
            self.rules.entry(number(&syscalls_i386::TABLE, call).unwrap_or(u32::MAX)).or_default().push(rule);
        }
    }

    /// Strictest first, nothing after a rule without conditions, and the end of the known calls.
    fn finish(&mut self, default: Action) {
        for rules in self.rules.values_mut() {
            rules.sort_by_key(|rule| rule.action.rank());
            if let Some(last) = rules.iter().position(|rule| rule.conditions.is_empty()) {
                rules.truncate(last + 1);
            }
        }
        if !default.is_errno() {
            self.unknown_from = None;
        }
    }
}

/// socketcall(2) and ipc(2): numbers of linux/net.h and linux/ipc.h.
fn multiplexed(name: &str) -> Option<(&'static str, u64)> {
    #[rustfmt::skip]
    const SOCKETS: [&str; 20] = [
        "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
        "sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg",
        "sendmmsg",
    ];
    #[rustfmt::skip]
    const IPC: [(&str, u64); 12] = [
        ("semop", 1), ("semget", 2), ("semctl", 3), ("semtimedop", 4), ("msgsnd", 11), ("msgrcv", 12), ("msgget", 13),
        ("msgctl", 14), ("shmat", 21), ("shmdt", 22), ("shmget", 23), ("shmctl", 24),
    ];
    let socket = SOCKETS.iter().position(|known| *known == name).map(|index| ("socketcall", index as u64 + 1));
    socket.or_else(|| IPC.iter().find(|(known, _)| *known == name).map(|&(_, value)| ("ipc", value)))
}

fn number(table: &[(&str, u32)], name: &str) -> Option<u32> {
    table.binary_search_by(|(known, _)| (*known).cmp(name)).ok().map(|index| table[index].1)
}

fn rules(name: &str, args: &[LinuxSeccompArg], action: Action) -> Result<Vec<Rule>, SeccompError> {
    let conditions = args.iter().map(|arg| condition(name, arg)).collect::<Result<Vec<_>, _>>()?;
    let count = |argument| conditions.iter().filter(|condition| condition.argument == argument).count();
    if (0..ARGUMENTS).any(|argument| count(argument) > 1) {
        return Ok(conditions.into_iter().map(|one| Rule { conditions: vec![one], action }).collect());
    }
    Ok(vec![Rule { conditions, action }])
}

fn condition(name: &str, arg: &LinuxSeccompArg) -> Result<Condition, SeccompError> {
    if arg.index() >= ARGUMENTS {
        return Err(SeccompError::Argument { name: name.to_owned(), index: arg.index() });
    }
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Operator::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Operator::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Operator::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Operator::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Operator::GreaterOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Operator::Greater, arg.value()),
        // `value` is the mask here, and what it is compared with comes second.
        LinuxSeccompOperator::ScmpCmpMaskedEq => (Operator::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0)),
    };
    Ok(Condition { argument: arg.index(), operator, value })
}

fn action(action: LinuxSeccompAction, data: Option<u32>) -> Result<Action, SeccompError> {
    let data = data.unwrap_or(DEFAULT_ERRNO);
    if data > MAX_DATA {
        return Err(SeccompError::Errno { errno: data });
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => Action::KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => Action::KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => Action::TRAP,
        LinuxSeccompAction::ScmpActErrno => Action::errno(data),
        LinuxSeccompAction::ScmpActTrace => Action::trace(data),
        LinuxSeccompAction::ScmpActLog => Action::LOG,
        LinuxSeccompAction::ScmpActAllow => Action::ALLOW,
        LinuxSeccompAction::ScmpActNotify => return Err(SeccompError::Notify),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_are_sorted_for_the_search() {
        assert!(syscalls_x86_64::TABLE.is_sorted_by(|a, b| a.0 < b.0));
        assert!(syscalls_i386::TABLE.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn numbers_are_those_of_the_c_library() {
        let of = |name| number(&syscalls_x86_64::TABLE, name).map(i64::from);
        assert_eq!(of("read"), Some(libc::SYS_read));
        assert_eq!(of("execveat"), Some(libc::SYS_execveat));
        assert_eq!(of("clone3"), Some(libc::SYS_clone3));
        assert_eq!(of("mount_setattr"), Some(libc::SYS_mount_setattr));
        assert_eq!(of("keyctl"), Some(libc::SYS_keyctl));
        assert_eq!(of("fchmodat2"), Some(libc::SYS_fchmodat2));
        assert_eq!(number(&syscalls_i386::TABLE, "socketcall"), Some(102));
        assert_eq!(number(&syscalls_i386::TABLE, "waitpid"), Some(7));
        assert_eq!(of("waitpid"), None);
    }

    #[test]
    fn stricter_actions_rank_lower() {
        let order = [
            Action::KILL_PROCESS,
            Action::KILL_THREAD,
            Action::TRAP,
            Action::errno(1),
            Action::trace(1),
            Action::LOG,
            Action::ALLOW,
        ];
        assert!(order.is_sorted_by_key(|action| action.rank()));
    }
}
