//! The few system calls that no safe binding offers.
#![allow(unsafe_code)] // clone3, seccomp, bpf, mount_setattr, execve and friends have no safe wrapper; each is wrapped here, whole

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// struct clone_args of linux/sched.h, as far as CLONE_ARGS_SIZE_VER2.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of [`clone_sibling`] is running.
pub enum Sibling {
    /// The caller: pid of the new process as the caller's namespace counts, and a descriptor for it.
    Caller(u32, OwnedFd),
    /// The new process.
    Newborn,
}

/// Makes a process that is a child of the caller's parent, born in `cgroup` and in new namespaces (`CLONE_NEW*`).
///
/// Only for a single-threaded caller: the newborn is a copy of this thread and nothing else, as after fork(2).
pub fn clone_sibling(new_namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Sibling> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = new_namespaces | (libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let args = CloneArgs {
        flags,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        // With CLONE_PARENT the signal is the caller's own, and must be zero here.
        exit_signal: 0,
        ..CloneArgs::default()
    };
    // SAFETY: args lives over the call and has the size that is passed; the only pointer in it is to `pidfd`, which the
    // kernel fills. Without CLONE_VM the newborn has its own copy of all memory, and the caller has no other thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Sibling::Newborn),
        pid => {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Sibling::Caller(pid as u32, pidfd))
        }
    }
}

/// linux/sched.h; wider than the int of the libc crate's constants.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Leaves the current cgroup namespace for a new one, rooted at the current cgroup.
pub fn unshare_cgroup_namespace() -> io::Result<()> {
    // SAFETY: no pointers; CLONE_NEWCGROUP changes only what this process sees of the cgroup tree.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }).map(drop)
}

/// struct mount_attr of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2) on the mount that `mount` refers to, and with `recursive` on all mounts below it.
pub fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    let attr = MountAttr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant C string and attr lives over the call and has the size that is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Closes every descriptor from 3 on.
pub fn close_all_but_stdio() -> io::Result<()> {
    // SAFETY: called before this process has made any descriptor of its own, so no OwnedFd is invalidated.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) }).map(drop)
}

/// Marks every descriptor from 3 on to be closed by execve.
pub fn close_all_but_stdio_on_exec() -> io::Result<()> {
    // SAFETY: no pointers; only sets a flag on this process's descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Gives the signals of a mask (the lowest bit for signal 1) their default action and blocks none.
///
/// Past the C library, which hides the two signals it uses itself and leaves them ignored in what posix_spawn starts.
pub fn reset_signals(mask: u64) {
    /// struct sigaction of the kernel for x86_64: handler, flags, restorer, mask. All zero is SIG_DFL.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_SIZE: usize = size_of::<u64>();
    for signal in (1..=64).filter(|signal| mask >> (signal - 1) & 1 == 1) {
        // SAFETY: the kernel reads 32 bytes of DEFAULT and writes nothing; SIG_DFL runs no code of ours. SIGKILL and SIGSTOP
        // are refused, which is as it should be.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), std::ptr::null_mut::<u64>(), MASK_SIZE);
        }
    }
    let none = 0_u64;
    // SAFETY: the kernel reads eight bytes of `none` and writes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            MASK_SIZE,
        );
    }
}

/// Lets the kernel reap every child of this process, now and later.
pub fn ignore_ends_of_children() {
    /// As in [`reset_signals`]: SIG_IGN and nothing else.
    const IGNORE: [u64; 4] = [1, 0, 0, 0];
    // SAFETY: the kernel reads 32 bytes of IGNORE and writes nothing; SIG_IGN runs no code of ours.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            libc::SIGCHLD,
            IGNORE.as_ptr(),
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        );
    }
}

/// Does nothing for ever, and has nothing open that anybody could wait for.
pub fn sleep_until_killed() -> ! {
    // SAFETY: this process uses no descriptor any more, and never returns to whoever owns one.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
    loop {
        // SAFETY: pause touches no memory.
        unsafe { libc::pause() };
    }
}

/// setrlimit(2) by number, for kinds that bindings may not name.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: limit lives over the call; the old limit is not asked for.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, std::ptr::null_mut::<libc::rlimit64>())
    })
    .map(drop)
}

/// Leaves the session keyring of the parent for a new, empty one. Kernels without keyrings have nothing to leave.
pub fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is touched.
    match check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Installs a classic BPF filter; each instruction is packed as code, jt, jf, k from the lowest bits up (struct sock_filter).
pub fn install_seccomp(filter: &[u64], flags: u32) -> io::Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: a u64 packed this way has the size, alignment (8 >= 4) and little-endian layout of struct sock_filter; the
    // slice outlives the call, has `len` elements, and the kernel only reads it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) }).map(drop)
}

/// Makes `terminal` the controlling terminal of this session.
pub fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number, not a pointer.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// A program ready to be executed: nothing is allocated between a system call filter and execve.
pub struct Program {
    path: CString,
    // Kept alive for the pointers below.
    _strings: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

impl Program {
    /// Prepares execve(path, args, env).
    pub fn new(path: CString, args: Vec<CString>, env: Vec<CString>) -> Self {
        let pointers = |strings: &[CString]| {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let (argv, envp) = (pointers(&args), pointers(&env));
        // Moving a CString moves its handle; the bytes that the pointers name stay where they are.
        let strings = args.into_iter().chain(env).collect();
        Self { path, _strings: strings, argv, envp }
    }

    /// Becomes the program; returns only on failure.
    pub fn execute(&self) -> io::Error {
        // SAFETY: path and every element are C strings owned by self, and both arrays end with a null pointer.
        unsafe { libc::execve(self.path.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// Ends this process at once, running no destructor and flushing nothing.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no memory and does not return.
    unsafe { libc::_exit(code) }
}

/// union bpf_attr of linux/bpf.h for BPF_PROG_LOAD, as far as the fields used.
#[repr(C)]
#[derive(Default)]
struct BpfLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// union bpf_attr of linux/bpf.h for BPF_PROG_ATTACH.
#[repr(C)]
#[derive(Default)]
struct BpfAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// Loads an eBPF program of type cgroup_device and attaches it to a cgroup, in the place of `replaced` or else beside any program already there.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    instructions: &[u64],
    replaced: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    const BPF_F_REPLACE: u32 = 4;
    let load = BpfLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..BpfLoad::default()
    };
    // SAFETY: load lives over the call and has the size that is passed; its pointers are to the slice and to a constant C
    // string, which the kernel only reads.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<BpfLoad>()) })?;
    // SAFETY: the kernel has just made this descriptor for us. The attachment keeps the program after it is closed.
    let program = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    let attach = BpfAttach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI | if replaced.is_some() { BPF_F_REPLACE } else { 0 },
        replace_bpf_fd: replaced.map_or(0, |program| program.as_raw_fd() as u32),
    };
    // SAFETY: attach lives over the call and has the size that is passed; it holds no pointers.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<BpfAttach>()) })?;
    Ok(program)
}

fn check<T: Into<i64>>(outcome: T) -> io::Result<i64> {
    match outcome.into() {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}
