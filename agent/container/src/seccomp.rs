//! System call filters: an OCI profile becomes a classic BPF program, without libseccomp.
//!
//! ```text
//!   profile --resolve--> per architecture: number -> rules --tree--> instructions
//! ```
//! What the program does, and every choice that fails closed:
//! - The architecture is checked first. One that the profile does not list ends the process. x86_64 is always listed.
//! - x32 calls end the process too; when the profile lists x32 they are answered ENOSYS, since the guest's kernel has none.
//! - A number is found by binary search over ranges that share one decision, so that a profile of 400 names costs ten jumps.
//! - Of several rules for one call, the strictest that matches decides, by the kernel's own order of actions (seccomp(2)).
//! - Conditions of one rule must all hold, except several on the same argument: there, as runc has it, each is a rule of its
//!   own.
//! - A name that no x86 kernel knows is left out when going without it is stricter; in a profile that allows by default a
//!   rule that denies an unknown name cannot be kept, and the profile is refused unless the name belongs to another machine.
//! - When the default is an error, calls newer than every call the profile names answer ENOSYS, so that a C library falls
//!   back to an older call rather than giving up.
//! - SCMP_ACT_NOTIFY needs somebody on the host to answer, who does not exist here; it is refused.

mod assemble;
mod resolve;
mod syscalls_i386;
mod syscalls_x86_64;
#[cfg(test)]
mod tests;
mod tree;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};
use serde::{Deserialize, Serialize};

/// BPF_MAXINSNS of linux/bpf_common.h: the kernel takes no longer program.
const MAX_INSTRUCTIONS: usize = 4096;

/// A filter ready to be installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Each instruction packed as code, jt, jf, k from the lowest bits up (struct sock_filter).
    pub instructions: Vec<u64>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u32,
}

/// A filter, and what of its profile is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The filter.
    pub program: Program,
    /// Names that no x86 kernel knows, left out.
    pub unknown: Vec<String>,
}

/// Why a profile cannot be turned into a filter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// Somebody else would have to answer.
    #[error(
        "SCMP_ACT_NOTIFY and listenerPath need an agent on the host, which cannot reach into a machine; use SCMP_ACT_ERRNO"
    )]
    Notify,
    /// A denied call is not known.
    #[error(
        "the profile denies {name:?} and allows by default, but no such system call is known; correct or remove the name"
    )]
    UnknownDenied {
        /// Its name.
        name: String,
    },
    /// A condition is about an argument that does not exist.
    #[error("a rule for {name:?} is about argument {index}; arguments are numbered from 0 to 5")]
    Argument {
        /// The call.
        name: String,
        /// The number given.
        index: usize,
    },
    /// A number does not fit the 16 bits an action can carry.
    #[error("{errno} cannot be returned by a filter; give a number up to 65535")]
    Errno {
        /// The number given.
        errno: u32,
    },
    /// The program is longer than the kernel takes.
    #[error("the filter has {length} instructions, and the kernel takes 4096; merge rules")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

/// Compiles a profile.
///
/// # Errors
/// What cannot be kept, see [`SeccompError`].
pub fn compile(profile: &LinuxSeccomp) -> Result<Compiled, SeccompError> {
    let resolved = resolve::resolve(profile)?;
    let instructions = tree::program(&resolved);
    if instructions.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong { length: instructions.len() });
    }
    Ok(Compiled { program: Program { instructions, flags: flags(profile) }, unknown: resolved.unknown })
}

/// TSYNC means nothing to a process with one thread, and the kernel would answer it in another way than success.
fn flags(profile: &LinuxSeccomp) -> u32 {
    let asked = profile.flags().as_deref().unwrap_or_default();
    asked.iter().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
                // The first is for threads, the last for listeners; there are neither.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync
                | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}
