//! A pure EROFS writer: a [`Tree`] in, the bytes of an uncompressed image out.
//!
//! ```text
//! block 0     1024 bytes of nothing, superblock, inodes with short directories and links behind them
//! block 1..   more inodes where block 0 is full
//! then        each file's data, starting at a block, in path order
//! ```
//!
//! Written here instead of calling mkfs.erofs, because that tool takes inode numbers from the order in which the
//! host's file system lists a directory. The format used is the oldest one (flat inodes, no compression, no extended
//! attributes), which every kernel with EROFS reads, and in which a file is one run of blocks that can be mapped.
//! Inodes lie together at the front, so that a boot touches one metadata block and the pages of the agent it runs.
//!
//! Source: Linux `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`.
use std::collections::BTreeMap;

use thiserror::Error;

use crate::tree::{Kind, Node, Tree};

const BLOCK: usize = 4096;
const BLOCK_BITS: u8 = 12;
const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_LENGTH: usize = 128;
const INODE_LENGTH: usize = 32;
const ENTRY_LENGTH: usize = 12;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible feature: the superblock carries a CRC32C of its block.
const FEATURE_CHECKSUM: u32 = 1;
/// Inode layouts, shifted into `i_format`: data in blocks of its own, or right behind the inode.
const LAYOUT_PLAIN: u16 = 0 << 1;
const LAYOUT_INLINE: u16 = 2 << 1;

/// Why a tree cannot become an image.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ErofsError {
    /// A hard link to nothing or to something else than a file.
    #[error("{path} is a hard link to {target}, which is not a file of the same tree")]
    DanglingLink {
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// Compact inodes hold 16-bit owners and link counts and 32-bit sizes.
    #[error("{path}: owner, size or number of links does not fit in an EROFS compact inode")]
    Field {
        /// Inside the tree.
        path: String,
    },
    /// File names are at most 255 bytes (`NAME_MAX`), directories fit in 32 bits.
    #[error("{path}: name is longer than 255 bytes")]
    Name {
        /// Inside the tree.
        path: String,
    },
}

/// What identifies an image besides its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Printed by `blkid`; fixed, since a random one would differ per build.
    pub uuid: [u8; 16],
    /// Every file's time, in seconds since 1970.
    pub time_s: u64,
}

/// One inode being placed.
struct Inode<'a> {
    path: &'a str,
    node: &'a Node,
    links: u16,
    /// Bytes of a directory or link that go right behind the inode; empty for files.
    inline_length: usize,
    /// Where the inode lies, in bytes.
    at: usize,
    /// Where its data lies when not inline, in bytes.
    data_at: usize,
}

/// Writes the whole image. The result's length is a multiple of the block size, 4096.
pub fn image(tree: &Tree, identity: Identity) -> Result<Vec<u8>, ErofsError> {
    let layout = Layout::plan(tree)?;
    let mut bytes = vec![0_u8; layout.length];
    for number in 0..layout.inodes.len() {
        layout.write_inode(&mut bytes, number)?;
    }
    write_superblock(&mut bytes, &layout, identity);
    Ok(bytes)
}

/// Where everything goes; pure arithmetic, done before the first byte is written.
struct Layout<'a> {
    tree: &'a Tree,
    inodes: Vec<Inode<'a>>,
    /// Inode number of each path; a hard link has its target's.
    numbers: BTreeMap<&'a str, usize>,
    children: BTreeMap<&'a str, Vec<&'a str>>,
    length: usize,
}

impl<'a> Layout<'a> {
    fn plan(tree: &'a Tree) -> Result<Self, ErofsError> {
        let mut layout = Self {
            tree,
            inodes: Vec::new(),
            numbers: BTreeMap::new(),
            children: BTreeMap::new(),
            length: SUPERBLOCK_AT + SUPERBLOCK_LENGTH,
        };
        layout.number_inodes()?;
        layout.place_inodes();
        layout.place_data();
        Ok(layout)
    }

    /// Gives each path an inode, and each directory its list of children.
    fn number_inodes(&mut self) -> Result<(), ErofsError> {
        for (path, node) in self.tree.iter() {
            if name_of(path).len() > 255 {
                return Err(ErofsError::Name { path: path.to_owned() });
            }
            if !path.is_empty() {
                self.children.entry(parent_of(path)).or_default().push(path);
            }
            if matches!(node.kind, Kind::HardLink(_)) {
                continue;
            }
            let links = if node.kind == Kind::Directory { 2 } else { 1 };
            self.numbers.insert(path, self.inodes.len());
            self.inodes.push(Inode { path, node, links, inline_length: 0, at: 0, data_at: 0 });
        }
        self.count_links()
    }

    fn count_links(&mut self) -> Result<(), ErofsError> {
        for (path, node) in self.tree.iter() {
            let counted = match &node.kind {
                Kind::HardLink(target) => {
                    let number = self.link_target(path, target)?;
                    self.numbers.insert(path, number);
                    Some(number)
                }
                Kind::Directory if !path.is_empty() => self.numbers.get(parent_of(path)).copied(),
                _ => None,
            };
            if let Some(number) = counted {
                let inode = &mut self.inodes[number];
                inode.links =
                    inode.links.checked_add(1).ok_or_else(|| ErofsError::Field { path: inode.path.to_owned() })?;
            }
        }
        Ok(())
    }

    fn link_target(&self, path: &str, target: &str) -> Result<usize, ErofsError> {
        self.numbers
            .get(target)
            .copied()
            .filter(|number| matches!(self.inodes[*number].node.kind, Kind::File(_)))
            .ok_or_else(|| ErofsError::DanglingLink { path: path.to_owned(), target: target.to_owned() })
    }

    /// Inodes first, one after the other; what is inline must lie in the block of its inode's end.
    fn place_inodes(&mut self) {
        let mut at = SUPERBLOCK_AT + SUPERBLOCK_LENGTH;
        for number in 0..self.inodes.len() {
            let inline_length = self.inline_length(number);
            at = at.next_multiple_of(INODE_LENGTH);
            if at % BLOCK + INODE_LENGTH + inline_length > BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            self.inodes[number].at = at;
            self.inodes[number].inline_length = inline_length;
            at += INODE_LENGTH + inline_length;
        }
        self.length = at.next_multiple_of(BLOCK);
    }

    fn place_data(&mut self) {
        for number in 0..self.inodes.len() {
            if self.inodes[number].inline_length == 0 {
                self.inodes[number].data_at = self.length;
                self.length += self.data_length(number).next_multiple_of(BLOCK);
            }
        }
    }

    /// How many bytes go behind the inode: all of a short directory or link, nothing of a file.
    fn inline_length(&self, number: usize) -> usize {
        let inode = &self.inodes[number];
        let length = self.data_length(number);
        let short = length + INODE_LENGTH <= BLOCK;
        if short && !matches!(inode.node.kind, Kind::File(_)) { length } else { 0 }
    }

    fn data_length(&self, number: usize) -> usize {
        let inode = &self.inodes[number];
        match &inode.node.kind {
            Kind::Directory => directory_length(&self.entry_names(inode.path)),
            Kind::File(content) => content.len(),
            Kind::Symlink(target) => target.len(),
            Kind::HardLink(_) => 0,
        }
    }

    /// Names in a directory in byte order, the order in which the kernel searches.
    fn entry_names(&self, path: &str) -> Vec<&'a str> {
        let mut names = vec![".", ".."];
        names.extend(self.children.get(path).into_iter().flatten().map(|child| name_of(child)));
        names.sort_unstable();
        names
    }

    fn write_inode(&self, bytes: &mut [u8], number: usize) -> Result<(), ErofsError> {
        let inode = &self.inodes[number];
        let field = || ErofsError::Field { path: inode.path.to_owned() };
        let data = self.data(number);
        let inline = inode.inline_length > 0;
        let format = if inline { LAYOUT_INLINE } else { LAYOUT_PLAIN };
        let block = if inline || data.is_empty() { 0 } else { inode.data_at / BLOCK };
        let at = inode.at;
        put(bytes, at, &format.to_le_bytes());
        put(bytes, at + 4, &(file_type(inode.node) | inode.node.mode).to_le_bytes());
        put(bytes, at + 6, &inode.links.to_le_bytes());
        put(bytes, at + 8, &u32::try_from(data.len()).map_err(|_| field())?.to_le_bytes());
        put(bytes, at + 16, &u32::try_from(block).map_err(|_| field())?.to_le_bytes());
        put(bytes, at + 20, &u32::try_from(number + 1).map_err(|_| field())?.to_le_bytes());
        put(bytes, at + 24, &u16::try_from(inode.node.uid).map_err(|_| field())?.to_le_bytes());
        put(bytes, at + 26, &u16::try_from(inode.node.gid).map_err(|_| field())?.to_le_bytes());
        put(bytes, if inline { at + INODE_LENGTH } else { inode.data_at }, &data);
        Ok(())
    }

    fn data(&self, number: usize) -> std::borrow::Cow<'a, [u8]> {
        let inode = &self.inodes[number];
        match &inode.node.kind {
            Kind::Directory => self.directory(inode.path).into(),
            Kind::File(content) => content.as_slice().into(),
            Kind::Symlink(target) => target.as_bytes().into(),
            Kind::HardLink(_) => Vec::new().into(),
        }
    }

    /// A directory's bytes: in each block first the entries, then their names; the first entry's name offset tells
    /// how many entries the block has.
    fn directory(&self, path: &str) -> Vec<u8> {
        let names = self.entry_names(path);
        let mut bytes = Vec::new();
        for block in directory_blocks(&names) {
            let start = bytes.len().next_multiple_of(BLOCK);
            bytes.resize(start, 0);
            let mut name_at = block.len() * ENTRY_LENGTH;
            for name in block {
                let (node_id, kind) = self.entry_target(path, name);
                bytes.extend_from_slice(&node_id.to_le_bytes());
                bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
                bytes.extend_from_slice(&[kind, 0]);
                name_at += name.len();
            }
            block.iter().for_each(|name| bytes.extend_from_slice(name.as_bytes()));
        }
        bytes
    }

    fn entry_target(&self, directory: &str, name: &str) -> (u64, u8) {
        let path = match name {
            "." => directory.to_owned(),
            ".." => parent_of(directory).to_owned(),
            _ if directory.is_empty() => name.to_owned(),
            _ => format!("{directory}/{name}"),
        };
        let inode = &self.inodes[self.numbers[path.as_str()]];
        let kind = match inode.node.kind {
            Kind::Directory => 2,
            Kind::Symlink(_) => 7,
            Kind::File(_) | Kind::HardLink(_) => 1,
        };
        ((inode.at / INODE_LENGTH) as u64, kind)
    }
}

fn write_superblock(bytes: &mut [u8], layout: &Layout<'_>, identity: Identity) {
    let at = SUPERBLOCK_AT;
    // The root's inode comes first, so its number always fits the superblock's 16 bits.
    let root = (layout.inodes[0].at / INODE_LENGTH) as u16;
    let blocks = (layout.length / BLOCK) as u32;
    put(bytes, at, &MAGIC.to_le_bytes());
    put(bytes, at + 8, &FEATURE_CHECKSUM.to_le_bytes());
    put(bytes, at + 12, &[BLOCK_BITS]);
    put(bytes, at + 14, &root.to_le_bytes());
    put(bytes, at + 16, &(layout.inodes.len() as u64).to_le_bytes());
    put(bytes, at + 24, &identity.time_s.to_le_bytes());
    put(bytes, at + 36, &blocks.to_le_bytes());
    put(bytes, at + 48, &identity.uuid);
    let checksum = crc32c(&bytes[SUPERBLOCK_AT..BLOCK]);
    put(bytes, at + 4, &checksum.to_le_bytes());
}

/// CRC32C as the kernel's `crc32c(~0, ...)`: reflected Castagnoli polynomial, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// Splits names into the runs that fit one block each.
fn directory_blocks<'n, 'a>(names: &'n [&'a str]) -> Vec<&'n [&'a str]> {
    let mut blocks = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (index, name) in names.iter().enumerate() {
        let size = ENTRY_LENGTH + name.len();
        if used + size > BLOCK {
            blocks.push(&names[start..index]);
            (start, used) = (index, 0);
        }
        used += size;
    }
    blocks.push(&names[start..]);
    blocks
}

fn directory_length(names: &[&str]) -> usize {
    let blocks = directory_blocks(names);
    let last: usize =
        blocks.last().into_iter().flat_map(|block| block.iter()).map(|name| ENTRY_LENGTH + name.len()).sum();
    (blocks.len() - 1) * BLOCK + last
}

fn file_type(node: &Node) -> u16 {
    match node.kind {
        Kind::Directory => 0o040_000,
        Kind::File(_) | Kind::HardLink(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
    }
}

fn parent_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn name_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity { uuid: [7; 16], time_s: 1 };

    fn le32(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    /// Reads a file back by walking directories from the root, as a kernel does.
    fn read<'a>(image: &'a [u8], path: &str) -> Option<&'a [u8]> {
        let root = u16::from_le_bytes(image[1038..1040].try_into().unwrap());
        let mut inode = usize::from(root);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            inode = lookup(content(image, inode), name)?;
        }
        Some(content(image, inode))
    }

    fn content(image: &[u8], node_id: usize) -> &[u8] {
        let at = node_id * INODE_LENGTH;
        let size = le32(image, at + 8) as usize;
        let start = match u16::from_le_bytes(image[at..at + 2].try_into().unwrap()) {
            LAYOUT_INLINE => at + INODE_LENGTH,
            _ => le32(image, at + 16) as usize * BLOCK,
        };
        &image[start..start + size]
    }

    fn lookup(directory: &[u8], wanted: &str) -> Option<usize> {
        directory.chunks(BLOCK).find_map(|block| {
            let offset = |entry: usize| u16::from_le_bytes(block[entry * 12 + 8..entry * 12 + 10].try_into().unwrap());
            let count = usize::from(offset(0)) / ENTRY_LENGTH;
            (0..count).find_map(|entry| {
                let end = if entry + 1 < count { usize::from(offset(entry + 1)) } else { block.len() };
                let name = &block[usize::from(offset(entry))..end];
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                let node_id = u64::from_le_bytes(block[entry * 12..entry * 12 + 8].try_into().unwrap());
                (name == wanted.as_bytes()).then_some(node_id as usize)
            })
        })
    }

    #[test]
    fn files_links_and_large_directories_read_back() {
        let mut tree = Tree::default();
        tree.insert("sbin/init", Node::file(0o755, vec![1; 10_000])).unwrap();
        tree.insert("empty", Node::file(0o644, "")).unwrap();
        tree.insert("link", Node::symlink("sbin/init")).unwrap();
        tree.insert("sbin/other", Node::hard_link("sbin/init")).unwrap();
        for index in 0..700 {
            tree.insert(&format!("many/a-rather-long-file-name-{index}"), Node::file(0o644, index.to_string()))
                .unwrap();
        }
        let image = image(&tree, IDENTITY).unwrap();
        assert_eq!(image.len() % BLOCK, 0);
        assert_eq!(read(&image, "sbin/init"), Some([1; 10_000].as_slice()));
        assert_eq!(read(&image, "sbin/other"), Some([1; 10_000].as_slice()));
        assert_eq!(read(&image, "empty"), Some([].as_slice()));
        assert_eq!(read(&image, "link"), Some(b"sbin/init".as_slice()));
        for index in 0..700 {
            let text = index.to_string();
            assert_eq!(read(&image, &format!("many/a-rather-long-file-name-{index}")), Some(text.as_bytes()));
        }
        assert_eq!(read(&image, "many/none"), None);
    }

    #[test]
    fn the_superblock_checksum_is_the_kernels() {
        // CRC32C of "123456789" is 0xe3069283 with the final inversion that the kernel's helper leaves out.
        assert_eq!(crc32c(b"123456789"), !0xe306_9283);
    }

    #[test]
    fn a_small_tree_keeps_all_its_metadata_in_the_first_block() {
        let mut tree = Tree::default();
        tree.insert("sbin/init", Node::file(0o755, vec![1; 100])).unwrap();
        tree.insert("dev", Node::directory(0o755)).unwrap();
        assert_eq!(image(&tree, IDENTITY).unwrap().len(), 2 * BLOCK);
    }

    #[test]
    fn a_hard_link_to_nothing_is_an_error() {
        let mut tree = Tree::default();
        tree.insert("a", Node::hard_link("b")).unwrap();
        let error = image(&tree, IDENTITY).unwrap_err();
        assert_eq!(error, ErofsError::DanglingLink { path: "a".to_owned(), target: "b".to_owned() });
    }

    #[test]
    fn an_owner_that_does_not_fit_is_an_error() {
        let mut tree = Tree::default();
        tree.insert("a", Node::file(0o644, "").owned_by(70_000, 0)).unwrap();
        assert!(image(&tree, IDENTITY).is_err());
    }
}
