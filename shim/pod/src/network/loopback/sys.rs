//! bpf(2), as far as one program of one kind needs it.
#![allow(unsafe_code, reason = "bpf(2) has no safe form in the crates below; each use is wrapped here, whole")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::libc;

// Commands, kinds of maps, and the one kind of program, of linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROGRAM_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROGRAM_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// What a map holds; keys and values have four bytes each.
#[derive(Debug, Clone, Copy)]
pub(super) enum MapKind {
    /// Numbers: BPF_MAP_TYPE_HASH.
    Numbers = 1,
    /// Sockets, which go from it when they are closed: BPF_MAP_TYPE_SOCKMAP.
    Sockets = 15,
}

/// `union bpf_attr` for BPF_MAP_CREATE, as far as the fields used, as the ones below; the kernel takes the rest for zeros.
#[repr(C)]
struct NewMap {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

#[repr(C)]
struct MapEntry {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Program {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes of `attributes` as it is told, all of them there and initialised, as each of the structures above
    // has no hole; what its pointers name is read within the call and outlives it, as the functions below see to.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { libc::c_int::try_from(answer).map_err(io::Error::other) }
}

/// For the commands that answer with a descriptor; the kernel marks them O_CLOEXEC.
fn made<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the kernel has just made it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A descriptor as bpf(2) takes it.
pub(super) fn number(descriptor: impl AsFd) -> u32 {
    descriptor.as_fd().as_raw_fd().cast_unsigned()
}

/// Makes a map.
pub(super) fn make_map(kind: MapKind, entries: u32) -> io::Result<OwnedFd> {
    made(MAP_CREATE, &NewMap { kind: kind as u32, key_bytes: 4, value_bytes: 4, entries })
}

/// Puts a value into a map; that of a socket is its descriptor.
pub(super) fn put(map: BorrowedFd<'_>, key: u32, value: u32) -> io::Result<()> {
    let (key, value) = (std::ptr::from_ref(&key) as u64, std::ptr::from_ref(&value) as u64);
    bpf(MAP_UPDATE, &MapEntry { map: number(map), padding: 0, key, value, flags: 0 }).map(drop)
}

/// Loads a program that chooses listeners.
pub(super) fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let licence = c"Apache-2.0";
    made(
        PROGRAM_LOAD,
        &Program {
            kind: PROGRAM_SK_LOOKUP,
            instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: instructions.as_ptr() as u64,
            licence: licence.as_ptr() as u64,
            log_level: 0,
            log_bytes: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            // As bpftool shows it; a nought ends it.
            name: *b"kata_rs_forward\0",
            interface: 0,
            attach: ATTACH_SK_LOOKUP,
        },
    )
}

/// Lets a network namespace ask a program, for as long as the link is open.
pub(super) fn link(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (program, target) = (number(program), number(namespace));
    made(LINK_CREATE, &Link { program, target, attach: ATTACH_SK_LOOKUP, flags: 0 })
}
