//! `/etc/ld.so.cache`: where the dynamic loader finds libraries without trying folder after folder. Pure.
//!
//! Every image of a distribution has one, so test images without one would show a runtime that is slower than it is: each start of a
//! program tries some forty names that are not there, and each is a question to the host. ldconfig(8) writes it, but only for a tree that it
//! can change its root to; this writes the same from a tree that is not on disk. The format is glibc's (sysdeps/generic/dl-cache.h):
//!
//! ```text
//!  "glibc-ld.so.cache" "1.1" | libraries u32, bytes of names u32, byte order u8, 0.., extensions u32 = 0, 0 x 3
//!  per library, falling by name: flags i32, name u32, path u32, 0 u32, hardware capabilities u64 = 0
//!  names and paths, each ended by a zero; their offsets count from the start of the file
//! ```

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::tree::{Kind, Tree};

const MAGIC: &[u8; 20] = b"glibc-ld.so.cache1.1";
const HEADER_LEN: usize = 48;
const ENTRY_LEN: usize = 24;
const LITTLE_ENDIAN: u8 = 2;
/// An ELF library for a C library of version 6, for 64-bit x86 (FLAG_ELF_LIBC6 | FLAG_X8664_LIB64).
const FLAGS: u32 = 0x0303;
/// Where Debian's loader looks by itself.
const FOLDERS: [&str; 4] = ["lib/x86_64-linux-gnu/", "usr/lib/x86_64-linux-gnu/", "lib/", "usr/lib/"];

/// The cache for the libraries of an image's layers.
pub fn of<'a>(trees: impl Iterator<Item = &'a Tree> + Clone) -> Vec<u8> {
    let mut found = BTreeMap::new();
    for folder in FOLDERS {
        for (path, node) in trees.clone().flat_map(Tree::iter) {
            let is_file = matches!(node.kind, Kind::File(_) | Kind::Symlink(_) | Kind::HardLink(_));
            let Some(name) = path.strip_prefix(folder).filter(|name| is_file && is_library(name)) else { continue };
            found.entry(name.to_owned()).or_insert_with(|| format!("/{path}"));
        }
    }
    let mut libraries: Vec<_> = found.into_iter().collect();
    libraries.sort_by(|(a, _), (b, _)| compare(b.as_bytes(), a.as_bytes()));
    encode(&libraries)
}

fn is_library(name: &str) -> bool {
    !name.contains('/') && name.contains(".so") && (name.starts_with("lib") || name.starts_with("ld-"))
}

fn encode(libraries: &[(String, String)]) -> Vec<u8> {
    let offset = |len: usize| u32::try_from(len).expect("an image has few libraries").to_le_bytes();
    let first_name = HEADER_LEN + ENTRY_LEN * libraries.len();
    let (mut entries, mut names) = (Vec::new(), Vec::new());
    for (name, path) in libraries {
        entries.extend(FLAGS.to_le_bytes());
        for text in [name, path] {
            entries.extend(offset(first_name + names.len()));
            names.extend(text.bytes().chain([0]));
        }
        entries.extend([0; 12]);
    }
    let mut file = MAGIC.to_vec();
    file.extend(offset(libraries.len()));
    file.extend(offset(names.len()));
    file.push(LITTLE_ENDIAN);
    file.resize(HEADER_LEN, 0);
    file.extend(entries);
    file.extend(names);
    file
}

/// The loader's own order, in which it looks names up by halves: numbers count as numbers, and come after anything else.
fn compare(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        let order = match (a.first(), b.first()) {
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                take_number(&mut a).cmp(&take_number(&mut b))
            }
            (Some(x), Some(y)) if x == y => {
                (a, b) = (&a[1..], &b[1..]);
                Ordering::Equal
            }
            (Some(x), Some(y)) => (x.is_ascii_digit(), x).cmp(&(y.is_ascii_digit(), y)),
            (a, b) => return a.cmp(&b),
        };
        if order.is_ne() {
            return order;
        }
    }
}

fn take_number(text: &mut &[u8]) -> u64 {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at(digits);
    *text = rest;
    number.iter().fold(0, |value: u64, digit| value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Node;

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::default();
        paths.iter().for_each(|path| tree.insert(path, Node::file(0o644, *path)).expect("inserted"));
        tree
    }

    #[test]
    fn libraries_are_in_the_loaders_order() {
        for (low, high) in
            [("liba.so.2", "liba.so.10"), ("liba.so", "liba.so.1"), ("liba.so.1", "libb.so.1"), ("liba-x", "liba1")]
        {
            assert_eq!(compare(low.as_bytes(), high.as_bytes()), Ordering::Less, "{low} {high}");
            assert_eq!(compare(high.as_bytes(), low.as_bytes()), Ordering::Greater, "{low} {high}");
        }
        assert_eq!(compare(b"libc.so.06", b"libc.so.6"), Ordering::Equal);
    }

    #[test]
    fn ldconfig_reads_what_was_written() {
        let base = tree(&["lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/gconv/libX.so", "etc/lib.so"]);
        let more = tree(&["usr/lib/x86_64-linux-gnu/libz.so.1", "usr/lib/x86_64-linux-gnu/libz.so.1.2.13"]);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cache");
        std::fs::write(&path, of([&base, &more].into_iter())).expect("written");
        let shown =
            std::process::Command::new("/sbin/ldconfig").arg("-p").arg("-C").arg(&path).output().expect("of libc-bin");
        let text = String::from_utf8(shown.stdout).expect("text");
        assert!(text.starts_with("3 libs found"), "{text}");
        assert!(text.contains("libc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6"), "{text}");
        let at = |name| text.find(name).expect("listed");
        assert!(at("libz.so.1.2.13 ") < at("libz.so.1 ") && at("libz.so.1 ") < at("libc.so.6 "), "{text}");
    }
}
