//! An OCI layer: a [`Tree`] as a tar stream, compressed, with both digests.
//!
//! The stream is a function of the tree alone: sorted, one fixed time, numeric owners, no user names.
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use crate::tree::{Kind, Tree};

/// Every entry's time, in seconds since 1970: the first second of 2026 UTC.
pub const TIME_S: u64 = 1_767_225_600;

/// One layer, ready for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// `sha256:...` of the uncompressed tar stream: what the image configuration lists.
    pub diff_id: String,
    /// The gzip bytes, as stored.
    pub compressed: Vec<u8>,
}

impl Layer {
    /// Writes and compresses the tree's tar stream. Fails only when memory does, or on a name tar cannot hold.
    pub fn of(tree: &Tree) -> io::Result<Self> {
        let stream = tar_stream(tree)?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&stream)?;
        Ok(Self { diff_id: digest(&stream), compressed: encoder.finish()? })
    }
}

/// `sha256:` and the hexadecimal digest, as OCI writes it.
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The tree as a tar archive. Hard links come after all files, so a link never precedes its target.
pub fn tar_stream(tree: &Tree) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let is_link = |kind: &Kind| matches!(kind, Kind::HardLink(_));
    let first = tree.iter().filter(|(path, node)| !path.is_empty() && !is_link(&node.kind));
    let then = tree.iter().filter(|(_, node)| is_link(&node.kind));
    for (path, node) in first.chain(then) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(u32::from(node.mode));
        header.set_uid(u64::from(node.uid));
        header.set_gid(u64::from(node.gid));
        header.set_mtime(TIME_S);
        header.set_size(0);
        match &node.kind {
            Kind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Kind::File(content) => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, content.as_slice())?;
            }
            Kind::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, path, target)?;
            }
            Kind::HardLink(target) => {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, path, target)?;
            }
        }
    }
    builder.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Node;

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.insert("bin/sh", Node::hard_link("bin/tool")).unwrap();
        tree.insert("bin/tool", Node::file(0o755, "elf")).unwrap();
        tree.insert("home/app", Node::directory(0o750).owned_by(1000, 1000)).unwrap();
        tree.insert("lib", Node::symlink("usr/lib")).unwrap();
        tree.insert(&format!("long/{}", "x".repeat(180)), Node::file(0o600, "y")).unwrap();
        tree
    }

    #[test]
    fn a_tree_survives_the_tar_stream() {
        let mut back = Tree::default();
        back.add_tar(tar_stream(&sample()).unwrap().as_slice(), |path| Some(path.to_owned())).unwrap();
        assert_eq!(back, sample());
    }

    #[test]
    fn a_hard_link_comes_after_its_target_whatever_their_names() {
        let stream = tar_stream(&sample()).unwrap();
        let mut archive = tar::Archive::new(stream.as_slice());
        let kinds: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().header().entry_type()).collect();
        assert_eq!(kinds.last(), Some(&tar::EntryType::Link));
    }

    #[test]
    fn the_same_tree_gives_the_same_layer() {
        assert_eq!(Layer::of(&sample()).unwrap(), Layer::of(&sample()).unwrap());
    }

    #[test]
    fn the_diff_id_is_of_the_uncompressed_stream() {
        let layer = Layer::of(&sample()).unwrap();
        let mut plain = Vec::new();
        io::copy(&mut flate2::read::GzDecoder::new(layer.compressed.as_slice()), &mut plain).unwrap();
        assert_eq!(digest(&plain), layer.diff_id);
        assert_ne!(digest(&layer.compressed), layer.diff_id);
    }
}
