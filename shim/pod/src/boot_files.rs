//! Opens what a machine is booted from, and finds damage before a guest does.
//!
//! The VMM gets descriptors only. Here the files are opened read-only, and looked at just enough that a missing, empty, cut off or
//! swapped file is named in plain words instead of showing as a guest that hangs.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use vmm_control::Flavour;

use crate::{ErrorKind, Installation, PodError, installation::missing};

/// Offset of the EROFS superblock and its magic (Linux fs/erofs/erofs_fs.h).
const EROFS_SUPER_OFFSET: u64 = 1024;
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
/// Offset of "HdrS" in a bzImage (Linux Documentation/arch/x86/boot.rst).
const BZIMAGE_MAGIC_OFFSET: u64 = 0x202;
/// Most program headers looked at; a kernel has about five.
const ELF_SEGMENTS_MAX: u16 = 64;

/// The open files of one machine.
#[derive(Debug)]
pub(crate) struct BootFiles {
    /// /dev/kvm.
    pub kvm: File,
    /// One for each flavour that is installed.
    pub kernels: Vec<(Flavour, File)>,
    /// The guest image.
    pub image: File,
}

impl BootFiles {
    /// Opens and checks them all.
    pub(crate) fn open(installation: &Installation) -> Result<Self, PodError> {
        let kvm = open_kvm(Path::new("/dev/kvm"))?;
        let image = open_checked("guest image", &installation.guest_image, check_erofs)?;
        let wanted = [(Flavour::Hw, &installation.kernel_hw), (Flavour::Pvm, &installation.kernel_pvm)];
        let mut kernels = Vec::new();
        for (flavour, path) in wanted.into_iter().filter(|(_, path)| path.exists()) {
            kernels.push((flavour, open_checked("guest kernel", path, check_kernel)?));
        }
        if kernels.is_empty() {
            return Err(missing("guest kernel", &installation.kernel_hw, io::Error::from_raw_os_error(2)));
        }
        Ok(Self { kvm, kernels, image })
    }
}

fn open_kvm(path: &Path) -> Result<File, PodError> {
    let opened =
        File::options().read(true).write(true).custom_flags(rustix::fs::OFlags::CLOEXEC.bits() as i32).open(path);
    opened.map_err(|source| {
        let advice = match source.kind() {
            io::ErrorKind::NotFound => "this host has no KVM: load kvm_intel or kvm_amd, enable virtualisation in the firmware, or take a host that has it",
            io::ErrorKind::PermissionDenied => "run as root or as a member of the group kvm",
            _ => "run `kata-rs check`",
        };
        PodError {
            kind: ErrorKind::FailedPrecondition,
            message: format!("cannot open {}: {source}; {advice}", path.display()),
            source: Some(Box::new(source)),
        }
    })
}

/// What is wrong with a file, in words that complete "the guest image X ...".
type Damage = String;

fn open_checked(
    what: &str,
    path: &Path,
    check: fn(&File, u64) -> io::Result<Result<(), Damage>>,
) -> Result<File, PodError> {
    let file = File::open(path).map_err(|e| missing(what, path, e))?;
    let metadata = file.metadata().map_err(|e| missing(what, path, e))?;
    let damage = match (metadata.is_file(), metadata.len()) {
        (false, _) => Err("is not a regular file".to_owned()),
        (true, 0) => Err("is empty".to_owned()),
        (true, len) => check(&file, len).map_err(|e| missing(what, path, e))?,
    };
    damage.map(|()| file).map_err(|damage| {
        PodError::new(
            ErrorKind::FailedPrecondition,
            format!("the {what} {} {damage}: install it again (make build)", path.display()),
        )
    })
}

/// Reads up to `N` bytes; what lies behind the file's end is zero.
fn bytes_at<const N: usize>(file: &File, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64))? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(bytes)
}

fn check_erofs(file: &File, len: u64) -> io::Result<Result<(), Damage>> {
    let block: [u8; 40] = bytes_at(file, EROFS_SUPER_OFFSET)?;
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    if word(0) != EROFS_MAGIC {
        return Ok(Err("is not an EROFS file system".to_owned()));
    }
    let needed = u64::from(word(36)).checked_shl(u32::from(block[12])).unwrap_or(u64::MAX);
    Ok(if needed > len { Err(format!("is cut off: {len} of {needed} bytes are there")) } else { Ok(()) })
}

fn check_kernel(file: &File, len: u64) -> io::Result<Result<(), Damage>> {
    let head: [u8; 64] = bytes_at(file, 0)?;
    if head[..4] == *b"\x7fELF" {
        return check_elf(file, len, &head);
    }
    let bzimage: [u8; 4] = bytes_at(file, BZIMAGE_MAGIC_OFFSET)?;
    Ok(if bzimage == *b"HdrS" { Ok(()) } else { Err("is neither an ELF file nor a bzImage".to_owned()) })
}

/// Does every loadable segment lie inside the file? (ELF-64, gABI chapter 5)
fn check_elf(file: &File, len: u64, head: &[u8; 64]) -> io::Result<Result<(), Damage>> {
    if head[4] != 2 || u16::from_le_bytes([head[18], head[19]]) != 62 {
        return Ok(Err("is not an x86-64 ELF file".to_owned()));
    }
    let table = u64::from_le_bytes(head[32..40].try_into().expect("eight bytes"));
    let count = u16::from_le_bytes([head[56], head[57]]).min(ELF_SEGMENTS_MAX);
    for index in 0..u64::from(count) {
        let segment: [u8; 56] = bytes_at(file, table.saturating_add(index * 56))?;
        let number = |at: usize| u64::from_le_bytes(segment[at..at + 8].try_into().expect("eight bytes"));
        let end = number(8).saturating_add(number(32));
        if end > len {
            return Ok(Err(format!("is cut off: {len} of at least {end} bytes are there")));
        }
    }
    Ok(if count == 0 || table >= len { Err("has no program to load".to_owned()) } else { Ok(()) })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn verdict(bytes: &[u8], check: fn(&File, u64) -> io::Result<Result<(), Damage>>) -> Result<(), String> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(bytes).expect("written");
        open_checked("guest kernel", file.path(), check).map(drop).map_err(|e| e.message)
    }

    fn elf(segment_len: u64) -> Vec<u8> {
        let mut bytes = vec![0u8; 64 + 56];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[56] = 1;
        bytes[64] = 1;
        bytes[64 + 32..64 + 40].copy_from_slice(&segment_len.to_le_bytes());
        bytes
    }

    fn erofs(blocks: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; 4096];
        bytes[1024..1028].copy_from_slice(&EROFS_MAGIC.to_le_bytes());
        bytes[1024 + 12] = 12;
        bytes[1024 + 36..1024 + 40].copy_from_slice(&blocks.to_le_bytes());
        bytes
    }

    #[test]
    fn whole_files_pass() {
        assert_eq!(verdict(&elf(100), check_kernel), Ok(()));
        assert_eq!(verdict(&erofs(1), check_erofs), Ok(()));
    }

    #[test]
    fn damaged_files_are_named_with_their_damage() {
        for (bytes, check, words) in [
            (vec![], check_kernel as fn(&File, u64) -> _, "is empty"),
            (b"#!/bin/sh\n".to_vec(), check_kernel, "neither an ELF file nor a bzImage"),
            (elf(4096), check_kernel, "is cut off: 120 of at least 4096 bytes"),
            (elf(u64::MAX), check_kernel, "is cut off"),
            (elf(100)[..40].to_vec(), check_kernel, "no program to load"),
            (vec![7; 5000], check_erofs, "is not an EROFS file system"),
            (erofs(2), check_erofs, "is cut off: 4096 of 8192 bytes"),
        ] {
            let message = verdict(&bytes, check).expect_err(words);
            assert!(message.contains(words) && message.contains("install it again"), "{message}");
        }
    }

    #[test]
    fn a_folder_is_no_kernel() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = open_checked("guest kernel", folder.path(), check_kernel).expect_err("refused");
        assert!(error.message.contains("is not a regular file"), "{}", error.message);
    }

    #[test]
    fn a_host_without_kvm_is_told_so() {
        let error = open_kvm(Path::new("/dev/kvm-that-is-not-there")).expect_err("refused");
        assert!(error.message.contains("no KVM"), "{}", error.message);
    }
}
