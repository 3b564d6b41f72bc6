//! A pure writer of initramfs archives ("newc" cpio): a [`Tree`] in, bytes out.
//!
//! Archives can be laid behind each other and the kernel unpacks them in turn, which is how a run adds its command
//! to an initramfs that was built before.
//!
//! Source: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.
use crate::tree::{Kind, Node, Tree};

const TRAILER: &str = "TRAILER!!!";

/// The tree as one cpio archive, padded to 512 bytes. Hard links become copies of their target: an initramfs has few.
pub fn archive(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, (path, node)) in tree.iter().filter(|(path, _)| !path.is_empty()).enumerate() {
        let (file_type, content) = match &resolved(tree, node).kind {
            Kind::Directory => (0o040_000, &b""[..]),
            Kind::File(content) => (0o100_000, content.as_slice()),
            Kind::Symlink(target) => (0o120_000, target.as_bytes()),
            Kind::HardLink(_) => continue,
        };
        push(&mut bytes, number + 1, file_type | u32::from(node.mode), (node.uid, node.gid), path, content);
    }
    push(&mut bytes, 0, 0, (0, 0), TRAILER, b"");
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn resolved<'a>(tree: &'a Tree, node: &'a Node) -> &'a Node {
    match &node.kind {
        Kind::HardLink(target) => tree.node(target).unwrap_or(node),
        _ => node,
    }
}

fn push(bytes: &mut Vec<u8>, inode: usize, mode: u32, owner: (u32, u32), path: &str, content: &[u8]) {
    let (uid, gid) = owner;
    let (size, name_size) = (content.len(), path.len() + 1);
    let header = format!(
        "070701{inode:08x}{mode:08x}{uid:08x}{gid:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
        1, 0, 0, 0, 0, 0, 0
    );
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_starts_with_its_magic_and_ends_with_its_trailer() {
        let mut tree = Tree::default();
        tree.insert("init", Node::file(0o755, "#!/bin/sh\n")).unwrap();
        let bytes = archive(&tree);
        assert!(bytes.starts_with(b"070701"));
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.find("init").unwrap() < text.find(TRAILER).unwrap());
    }

    #[test]
    fn a_hard_link_becomes_a_copy_of_its_target() {
        let mut tree = Tree::default();
        tree.insert("etc/one", Node::file(0o644, "first")).unwrap();
        tree.insert("etc/two", Node::hard_link("etc/one")).unwrap();
        let bytes = archive(&tree);
        // Header of 110 bytes, the name with its NUL, padding to 4, then the content.
        let at = bytes.windows(8).position(|window| window == b"etc/two\0").unwrap();
        assert_eq!(&bytes[at + 10..at + 15], b"first");
    }
}
