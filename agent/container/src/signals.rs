//! What a new program expects of its signals: every one with its default action, none blocked.
//!
//! An execve leaves ignored what was ignored, and the standard library ignores SIGPIPE, so somebody has to undo that. There are 64 signals
//! and each system call of a guest on software KVM costs as much as a trap, so the kernel is asked first which ones need it.

use crate::sys;

/// Gives every signal its default action and blocks none.
pub fn reset() {
    // Without an answer, all of them.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    sys::reset_signals(not_default(&status).unwrap_or(u64::MAX));
}

/// The signals that are ignored or caught, the lowest bit for signal 1 (proc_pid_status(5): SigIgn, SigCgt).
fn not_default(status: &str) -> Option<u64> {
    let mask = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        u64::from_str_radix(value.trim(), 16).ok()
    };
    Some(mask("SigIgn")? | mask("SigCgt")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_which_signals_are_not_as_a_program_expects() {
        let status = "Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\nSigCgt:\t0000000100000440\n";
        assert_eq!(not_default(status), Some(0x1_0000_1440));
        assert_eq!(not_default("SigIgn:\t0000000000001000\n"), None, "then all are reset");
        assert_eq!(not_default(""), None);
    }
}
