//! The file server: upstream's virtiofsd, sandboxed, one per pod. It sees the share tree and nothing else.

use std::{
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Resource, getrlimit};

use crate::{
    PodError,
    installation::missing,
    process::{Spawned, start_ticks},
    record::{Carried, Entry, Record, TOKEN_VARIABLE},
    sys::inherit_nothing_else,
};

/// Number of the listening socket in the server.
const LISTENER_FD: i32 = 3;
/// Most descriptors of the server: each file that the guest knows costs one.
const OPEN_FILES_MAX: u64 = 262_144;

/// Arguments of the server. None of them comes from a pod's author.
///
/// - `sandbox=namespace`, `seccomp=kill`: own mount (pivoted to the share), pid and network namespace; a system call it does not need kills it.
/// - `inode-file-handles=never`: without CAP_DAC_READ_SEARCH, with which a handle could name any file of a file system.
/// - `xattr`: images carry file capabilities, which are extended attributes.
/// - `cache=auto`: volumes change under us, so names are believed for a second; no writeback, so a written byte is the host's at once.
/// - submounts are announced (the default), so that files of two mounts with one inode number stay two files.
/// - `thread-pool-size=0`: requests are served by the queue's own thread; a pool costs memory and a wake-up for each request.
fn arguments(share: &Path, open_files: u64) -> Vec<String> {
    let fixed = [
        "--sandbox=namespace",
        "--seccomp=kill",
        "--inode-file-handles=never",
        "--cache=auto",
        "--xattr",
        "--thread-pool-size=0",
        "--log-level=error",
    ];
    let variable = [
        format!("--fd={LISTENER_FD}"),
        format!("--shared-dir={}", share.display()),
        format!("--rlimit-nofile={open_files}"),
    ];
    fixed.into_iter().map(str::to_owned).chain(variable).collect()
}

/// Starts the server in the mount namespace of the calling thread. It serves the one connection that waits at `listener`, and ends with it.
pub(crate) fn spawn(
    program: &Path,
    share: &Path,
    listener: OwnedFd,
    stderr: OwnedFd,
    carried: &Carried,
) -> Result<Spawned, PodError> {
    let open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES_MAX).min(OPEN_FILES_MAX);
    let mut command = Command::new(program);
    command.args(arguments(share, open_files)).env_clear().env(TOKEN_VARIABLE, &carried.token).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    inherit_nothing_else(&mut command);
    command
        .fd_mappings(vec![FdMapping { parent_fd: listener, child_fd: LISTENER_FD }])
        .expect("one mapping cannot collide");
    hold("file server", program, command, &carried.record)
}

/// Spawns, takes hold, and records.
pub(crate) fn hold(
    what: &'static str,
    program: &Path,
    mut command: Command,
    record: &Record,
) -> Result<Spawned, PodError> {
    let child = command.spawn().map_err(|e| missing(what, program, e))?;
    let spawned = Spawned::hold(what, child).map_err(|e| PodError::host(format!("cannot hold the {what}"), e))?;
    let entry = start_ticks(spawned.pid()).map(|start_ticks| Entry::Process {
        what: what.to_owned(),
        pid: spawned.pid(),
        start_ticks,
    });
    entry.and_then(|entry| record.write(&entry)).map_err(|e| PodError::host(format!("cannot record the {what}"), e))?;
    Ok(spawned)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::net::UnixListener};

    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

    use super::*;

    #[test]
    fn what_others_left_open_stays_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let stray = File::create(folder.path().join("stray")).expect("made");
        // A number that no mapping takes.
        let stray = fcntl_dupfd_cloexec(&stray, 99).expect("a descriptor");
        fcntl_setfd(&stray, FdFlags::empty()).expect("a descriptor");
        let listener = UnixListener::bind(folder.path().join("socket")).expect("bound");
        let program = folder.path().join("server");
        // By another process: a test beside this one may fork while the file is open for writing here, and its child would keep it busy (ETXTBSY).
        let write = "printf '#!/bin/sh\\nexec sleep 1000\\n' > \"$0\" && chmod 755 \"$0\"";
        assert!(Command::new("sh").args(["-c", write]).arg(&program).status().expect("sh runs").success());
        let carried = Carried { record: Record::create(folder.path()).expect("begun"), token: "a token".to_owned() };
        let errors = File::create(folder.path().join("errors")).expect("made");
        let server = spawn(&program, folder.path(), listener.into(), errors.into(), &carried).expect("spawned");
        let open: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", server.pid()))
            .expect("it runs")
            .filter_map(|entry| std::fs::read_link(entry.expect("listed").path()).ok())
            .collect();
        assert!(open.iter().any(|file| file.to_string_lossy().starts_with("socket:")), "its own is there: {open:?}");
        assert!(!open.contains(&folder.path().join("stray")), "{open:?}");
    }

    #[test]
    fn the_server_is_never_started_without_its_sandbox() {
        let arguments = arguments(Path::new("/run/kata-rs/default/p/share"), 1024);
        for needed in [
            "--sandbox=namespace",
            "--seccomp=kill",
            "--inode-file-handles=never",
            "--shared-dir=/run/kata-rs/default/p/share",
        ] {
            assert!(arguments.iter().any(|a| a == needed), "{needed} is not in {arguments:?}");
        }
    }
}
