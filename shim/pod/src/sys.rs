//! The only unsafe code of this crate: what a child does between fork and exec has no safe form in the crates below.
#![allow(unsafe_code)]

use std::{io, os::unix::process::CommandExt, process::Command};

use nix::libc;

/// First descriptor after the standard streams.
const FIRST_STRAY: libc::c_uint = 3;

/// Lets the program that `command` starts have its standard streams, the descriptors that are mapped into it *after* this call, and nothing else.
/// Who started us may have left anything open without O_CLOEXEC: a file server must not hold the host's sockets, nor keep them open for years.
pub fn inherit_nothing_else(command: &mut Command) {
    let mark = || {
        // SAFETY: close_range(2) takes two numbers and a flag, no pointer; with this flag it closes nothing, but marks.
        match unsafe { libc::syscall(libc::SYS_close_range, FIRST_STRAY, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) }
        {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only what is async-signal-safe may be done: this is one system call, and a read of errno.
    unsafe { command.pre_exec(mark) };
}
