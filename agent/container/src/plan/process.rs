//! The `process` object: who runs what, with which limits.

use super::{CapabilitySets, ExecPlan, PlanError, RlimitPlan, UserPlan, Warning};
use crate::guest::GuestFacts;
use crate::seccomp;
use crate::terminal::TerminalSize;
use crate::unsupported;
use oci_spec::runtime::{LinuxSeccomp, PosixRlimit, PosixRlimitType, Process};
use std::path::Path;

/// Bounds of oom_score_adj, proc(5).
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;

pub(super) fn plan(
    process: &Process,
    profile: Option<&LinuxSeccomp>,
    guest: &GuestFacts,
    warnings: &mut Vec<Warning>,
) -> Result<ExecPlan, PlanError> {
    warnings.extend(unsupported::check_process(process)?);
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(PlanError::Missing { field: "process.args" });
    }
    let env = process.env().clone().unwrap_or_default();
    check_strings("process.args", &args)?;
    check_strings("process.env", &env)?;
    Ok(ExecPlan {
        args,
        env,
        cwd: super::absolute("process.cwd", process.cwd())?,
        user: user(process),
        capabilities: CapabilitySets::read(process.capabilities().as_ref(), guest.last_capability, warnings),
        rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp: profile.map(|profile| compile(profile, warnings)).transpose()?,
        oom_score_adj: oom_score_adj(process)?,
        terminal: process.terminal().unwrap_or(false),
        console_size: process.console_size().as_ref().map(|size| TerminalSize {
            columns: u16::try_from(size.width()).unwrap_or(u16::MAX),
            rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
        }),
    })
}

fn compile(profile: &LinuxSeccomp, warnings: &mut Vec<Warning>) -> Result<seccomp::Program, PlanError> {
    let compiled = seccomp::compile(profile).map_err(PlanError::Seccomp)?;
    if !compiled.unknown.is_empty() {
        warnings.push(Warning {
            field: "linux.seccomp".into(),
            sentence: format!("no such system calls on x86: {}", compiled.unknown.join(", ")),
        });
    }
    Ok(compiled.program)
}

fn user(process: &Process) -> UserPlan {
    let user = process.user();
    UserPlan {
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().map(|mask| mask & 0o777),
    }
}

/// execve takes strings that end at the first zero byte, so one inside would cut the rest off unseen.
fn check_strings(field: &str, strings: &[String]) -> Result<(), PlanError> {
    match strings.iter().find(|string| string.contains('\0')) {
        None => Ok(()),
        Some(bad) => Err(PlanError::Invalid {
            field: field.to_owned(),
            value: bad.clone(),
            hint: "a zero byte cannot be passed to a program; take it out",
        }),
    }
}

fn oom_score_adj(process: &Process) -> Result<Option<i32>, PlanError> {
    match process.oom_score_adj() {
        Some(score) if !OOM_SCORE_ADJ.contains(&score) => Err(PlanError::Invalid {
            field: "process.oomScoreAdj".into(),
            value: score.to_string(),
            hint: "give a number from -1000 to 1000",
        }),
        score => Ok(score),
    }
}

fn rlimits(asked: &[PosixRlimit]) -> Result<Vec<RlimitPlan>, PlanError> {
    let mut limits: Vec<RlimitPlan> = Vec::new();
    for limit in asked {
        let resource = resource(limit.typ());
        let refuse = |hint| PlanError::Invalid {
            field: "process.rlimits".into(),
            value: format!("{} soft {} hard {}", limit.typ(), limit.soft(), limit.hard()),
            hint,
        };
        if limits.iter().any(|other| other.resource == resource) {
            return Err(refuse("give each limit once"));
        }
        if limit.soft() > limit.hard() {
            return Err(refuse("the soft limit must not be above the hard one"));
        }
        limits.push(RlimitPlan { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(limits)
}

/// RLIMIT_* of asm-generic/resource.h.
fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

/// Whether `path` lies where a process may start: used by the child after it has entered the directory.
pub(crate) fn is_inside_root(path: &Path) -> bool {
    path.is_absolute() && !path.starts_with("/(unreachable)") && !path.to_string_lossy().starts_with("(unreachable)")
}
