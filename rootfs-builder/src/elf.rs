//! As much of an ELF file as an image builder has to know: which machine it is for, whether it asks for a dynamic
//! loader, and which libraries it names.
//!
//! Source: System V ABI, gABI chapters 4 and 5 (ELF header, program headers, dynamic section), `elf(5)`.
use thiserror::Error;

const MACHINE_X86_64: u16 = 62;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_DYNAMIC: u32 = 2;
const SEGMENT_INTERPRETER: u32 = 3;
const DYNAMIC_NEEDED: u64 = 1;
const DYNAMIC_STRING_TABLE: u64 = 5;

/// Why bytes are not an ELF file this crate can read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// No ELF magic.
    #[error("it is not an ELF file")]
    Magic,
    /// 32 bits, big endian, or another processor.
    #[error("it is an ELF file for another machine than x86_64")]
    Machine,
    /// An object file or a core.
    #[error("it is an ELF file, but not a program or library")]
    Type,
    /// An offset points outside of the file.
    #[error("it is a truncated or corrupt ELF file")]
    Truncated,
}

/// What one ELF file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// The dynamic loader's path, when it names one.
    pub interpreter: Option<String>,
    /// Library names (DT_NEEDED), in the file's order.
    pub needed: Vec<String>,
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Whether the bytes begin as an ELF file does.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

impl Elf {
    /// Reads the header, the program headers and the dynamic section.
    pub fn parse(bytes: &[u8]) -> Result<Self, ElfError> {
        if !is_elf(bytes) {
            return Err(ElfError::Magic);
        }
        if bytes.get(4..6) != Some(&[2, 1]) || u16_at(bytes, 18)? != MACHINE_X86_64 {
            return Err(ElfError::Machine);
        }
        if !matches!(u16_at(bytes, 16)?, TYPE_EXECUTABLE | TYPE_SHARED) {
            return Err(ElfError::Type);
        }
        let segments = segments(bytes)?;
        let interpreter = match segments.iter().find(|segment| segment.kind == SEGMENT_INTERPRETER) {
            Some(segment) => Some(string_at(bytes, segment.offset)?),
            None => None,
        };
        Ok(Self { interpreter, needed: needed(bytes, &segments)? })
    }
}

/// The bytes of the first section with this name, in a program or an object file (a kernel module is one).
pub fn section<'a>(bytes: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, ElfError> {
    if !is_elf(bytes) {
        return Err(ElfError::Magic);
    }
    let table = u64_at(bytes, 40)?;
    let header_size = u64::from(u16_at(bytes, 58)?);
    let header = |index: u16| table.checked_add(u64::from(index) * header_size).ok_or(ElfError::Truncated);
    let names = u64_at(bytes, header(u16_at(bytes, 62)?)? + 24)?;
    for index in 0..u16_at(bytes, 60)? {
        let at = header(index)?;
        if string_at(bytes, names.saturating_add(u64::from(u32_at(bytes, at)?)))? != name {
            continue;
        }
        let start = usize::try_from(u64_at(bytes, at + 24)?).map_err(|_| ElfError::Truncated)?;
        let size = usize::try_from(u64_at(bytes, at + 32)?).map_err(|_| ElfError::Truncated)?;
        let end = start.checked_add(size).ok_or(ElfError::Truncated)?;
        return bytes.get(start..end).map(Some).ok_or(ElfError::Truncated);
    }
    Ok(None)
}

fn segments(bytes: &[u8]) -> Result<Vec<Segment>, ElfError> {
    let table = u64_at(bytes, 32)?;
    let entry_size = u64::from(u16_at(bytes, 54)?);
    let count = u64::from(u16_at(bytes, 56)?);
    (0..count)
        .map(|index| {
            let at = table.checked_add(index * entry_size).ok_or(ElfError::Truncated)?;
            Ok(Segment {
                kind: u32_at(bytes, at)?,
                offset: u64_at(bytes, at + 8)?,
                address: u64_at(bytes, at + 16)?,
                size: u64_at(bytes, at + 32)?,
            })
        })
        .collect()
}

fn needed(bytes: &[u8], segments: &[Segment]) -> Result<Vec<String>, ElfError> {
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == SEGMENT_DYNAMIC) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    let mut strings = None;
    for index in 0..dynamic.size / 16 {
        let at = dynamic.offset + index * 16;
        let (tag, value) = (u64_at(bytes, at)?, u64_at(bytes, at + 8)?);
        match tag {
            0 => break,
            DYNAMIC_NEEDED => names.push(value),
            DYNAMIC_STRING_TABLE => strings = Some(file_offset(segments, value)?),
            _ => {}
        }
    }
    let strings = strings.unwrap_or(0);
    names.into_iter().map(|name| string_at(bytes, strings.saturating_add(name))).collect()
}

fn file_offset(segments: &[Segment], address: u64) -> Result<u64, ElfError> {
    segments
        .iter()
        .filter(|segment| segment.kind == SEGMENT_LOAD)
        .find_map(|segment| {
            let within = address.checked_sub(segment.address)?;
            (within < segment.size).then(|| segment.offset.checked_add(within)).flatten()
        })
        .ok_or(ElfError::Truncated)
}

fn array_at<const N: usize>(bytes: &[u8], at: u64) -> Result<[u8; N], ElfError> {
    let start = usize::try_from(at).map_err(|_| ElfError::Truncated)?;
    let end = start.checked_add(N).ok_or(ElfError::Truncated)?;
    bytes.get(start..end).and_then(|slice| slice.try_into().ok()).ok_or(ElfError::Truncated)
}

fn u16_at(bytes: &[u8], at: u64) -> Result<u16, ElfError> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: u64) -> Result<u32, ElfError> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: u64) -> Result<u64, ElfError> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn string_at(bytes: &[u8], at: u64) -> Result<String, ElfError> {
    let start = usize::try_from(at).map_err(|_| ElfError::Truncated)?;
    let rest = bytes.get(start..).ok_or(ElfError::Truncated)?;
    let end = rest.iter().position(|byte| *byte == 0).ok_or(ElfError::Truncated)?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest static program that parses: a header and no segments, for tests of what is built around one.
    pub(crate) fn static_program(body: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(64, 0);
        bytes[16] = 2;
        bytes[18] = 62;
        bytes[54] = 56;
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_dynamic_program_names_its_loader_and_libraries() {
        let elf = Elf::parse(&std::fs::read("/bin/ls").unwrap()).unwrap();
        assert_eq!(elf.interpreter.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert!(elf.needed.iter().any(|name| name == "libc.so.6"), "{:?}", elf.needed);
    }

    #[test]
    fn a_static_program_names_neither() {
        let elf = Elf::parse(&static_program(b"code")).unwrap();
        assert_eq!(elf, Elf { interpreter: None, needed: Vec::new() });
    }

    #[test]
    fn a_section_is_found_by_its_name() {
        let program = std::fs::read("/bin/ls").unwrap();
        assert_eq!(section(&program, ".interp").unwrap(), Some(b"/lib64/ld-linux-x86-64.so.2\0".as_slice()));
        assert_eq!(section(&program, ".no-such-section").unwrap(), None);
    }

    #[test]
    fn what_is_not_a_program_for_this_machine_is_refused() {
        let mut other = static_program(b"");
        other[18] = 183;
        let mut object = static_program(b"");
        object[16] = 1;
        assert_eq!(Elf::parse(b"#!/bin/sh\n"), Err(ElfError::Magic));
        assert_eq!(Elf::parse(&other), Err(ElfError::Machine));
        assert_eq!(Elf::parse(&object), Err(ElfError::Type));
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
        let whole = std::fs::read("/bin/ls").unwrap();
        for length in (0..4096).chain([whole.len() / 2]) {
            let _ = Elf::parse(&whole[..length]);
        }
        let mut wild = static_program(b"");
        wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        wild[56] = 9;
        assert_eq!(Elf::parse(&wild), Err(ElfError::Truncated));
    }
}
