//! The disks and the kernel of the emulated machine: a Debian kernel with KVM for SVM, and a root with containerd,
//! runc and the CNI plugins.
//!
//! ```text
//! base.erofs      Debian's programs and the kernel's modules      cached by package versions
//! payload.erofs   what is under test: staged prefix, images, ...  written at each build
//! initramfs.cpio  busybox, the modules of the disks, stage 1      cached with the base
//! ```
//! Both disks are read-only layers of one overlay whose upper layer is in memory, so any number of machines can run
//! from them at once and none leaves a trace. No package is installed and nothing here needs root.
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::deb::{self, DebError, Layout, Package};
use crate::erofs::{self, ErofsError, Identity};
use crate::image::{self, ImageError};
use crate::modules::{self, Catalog, ModulesError};
use crate::tree::{Kind, Node, Tree, TreeError};
use crate::{cpio, layer};

/// Part of the cache key: raise it when this file changes what the base holds.
const RECIPE_VERSION: u32 = 2;

const PACKAGES: [&str; 22] = [
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "iproute2",
    "iptables",
    "libbpf1",
    "libbsd0",
    "libc6",
    "libcap2",
    "libelf1",
    "libgcc-s1",
    "libip4tc2",
    "libip6tc2",
    "libmd0",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftnl11",
    "libseccomp2",
    "libxtables12",
    "runc",
    "zlib1g",
];
/// Modules needed to find the disks and the ports; they are in the initramfs. `crc32c_generic` is asked for by name
/// at run time, so no dependency shows it.
const BOOT_MODULES: [&str; 6] = ["crc32c_generic", "virtio_pci", "virtio_blk", "virtio_console", "erofs", "overlay"];
/// Modules loaded by stage 2 at every start.
const START_MODULES: [&str; 8] = ["kvm_amd", "9p", "9pnet_virtio", "tun", "vhost_net", "fuse", "loop", "virtio_rng"];
/// Modules that are there when the kernel asks for them.
const SPARE_MODULES: [&str; 32] = [
    "veth",
    "bridge",
    "br_netfilter",
    "virtio_net",
    "dummy",
    "macvlan",
    "macvtap",
    "ipvlan",
    "ext4",
    "squashfs",
    "virtiofs",
    "vsock",
    "nf_tables",
    "nft_compat",
    "nft_chain_nat",
    "nf_nat",
    "nf_conntrack",
    "xt_MASQUERADE",
    "xt_comment",
    "xt_conntrack",
    "xt_addrtype",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_tcpudp",
    "xt_statistic",
    "sch_ingress",
    "cls_u32",
    "cls_matchall",
    "act_gact",
    "act_mirred",
    "vhost_vsock",
];
/// Not needed in the machine, and large.
const LEFT_OUT: [&str; 8] = [
    "usr/share/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/bin/containerd-shim-runc-v1",
    "usr/bin/ss",
    "usr/sbin/arpd",
    "usr/lib/x86_64-linux-gnu/tc/",
    "usr/lib/systemd/",
    "usr/lib/debug/",
];

const STAGE_1: &str = include_str!("machine/stage-1.sh");
const STAGE_2: &str = include_str!("machine/stage-2.sh");
const IDENTITY: Identity = Identity { uuid: *b"kata-rs machine\0", time_s: layer::TIME_S };

/// File names inside a machine's folder.
pub const KERNEL: &str = "vmlinuz";
/// The first initramfs, to which a run adds its own.
pub const INITRAMFS: &str = "initramfs.cpio";
/// Debian's programs.
pub const BASE_DISK: &str = "base.erofs";
/// What is under test.
pub const PAYLOAD_DISK: &str = "payload.erofs";

/// Why no machine was built.
#[derive(Debug, Error)]
pub enum MachineImageError {
    /// Packages could not be had.
    #[error("cannot get the packages of the emulated machine")]
    Packages(#[from] DebError),
    /// Something could not be laid out.
    #[error("cannot lay out the emulated machine's disks")]
    Tree(#[from] TreeError),
    /// The kernel package is not as expected.
    #[error("cannot use the modules of {package}")]
    Modules {
        /// The package file.
        package: String,
        /// What is wrong.
        #[source]
        source: ModulesError,
    },
    /// The kernel package has no kernel.
    #[error("the package {package} has no boot/vmlinuz; adapt rootfs-builder/src/machine_image.rs")]
    Kernel {
        /// The package file.
        package: String,
    },
    /// A disk could not be written.
    #[error("cannot write a disk of the emulated machine")]
    Disk(#[from] ErofsError),
    /// busybox or a library is not as expected.
    #[error("cannot complete the emulated machine's root")]
    Root(#[from] ImageError),
    /// A folder cannot be used.
    #[error("cannot write {path}; check that the folder is writable")]
    Write {
        /// The file or link.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// One host file or folder and its place in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    /// On the host.
    pub host: PathBuf,
    /// In the machine.
    pub place: String,
}

/// Makes `folder` a machine that holds the additions. The base comes from the cache when its packages are the same.
pub fn build(folder: &Path, additions: &[Addition]) -> Result<(), MachineImageError> {
    let base = cached_base()?;
    let mut payload = Tree::default();
    for addition in additions {
        payload.add_host(&addition.host, &addition.place)?;
    }
    write(&folder.join(PAYLOAD_DISK), &erofs::image(&payload, IDENTITY)?)?;
    for name in [KERNEL, INITRAMFS, BASE_DISK] {
        link(&base.join(name), &folder.join(name))?;
    }
    Ok(())
}

/// The folder in the cache with kernel, initramfs and base disk, made now when it is not there.
fn cached_base() -> Result<PathBuf, MachineImageError> {
    // The meta package names the kernel of the day.
    let kernel = deb::dependencies("linux-image-amd64", "linux-image-")?;
    let names: Vec<&str> = PACKAGES.into_iter().chain(kernel.iter().map(String::as_str)).collect();
    let packages = deb::resolve(&names)?;
    let folder = deb::user_cache().join("machine").join(key(&packages));
    if !folder.join(BASE_DISK).exists() {
        deb::fetch(&packages, &deb::cache_dir())?;
        let base = Base::of(&packages)?;
        write(&folder.join(KERNEL), &base.kernel)?;
        write(&folder.join(INITRAMFS), &base.initramfs)?;
        // Last, since its presence says that the others are there.
        write(&folder.join(BASE_DISK), &base.disk)?;
    }
    Ok(folder)
}

fn key(packages: &[Package]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{RECIPE_VERSION} {}\n{STAGE_1}\n{STAGE_2}\n", env!("CARGO_PKG_VERSION")));
    hash.update(format!("{BOOT_MODULES:?} {START_MODULES:?} {SPARE_MODULES:?} {LEFT_OUT:?}\n"));
    for package in packages {
        hash.update(format!("{} {}\n", package.file_name, package.sha256));
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

struct Base {
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
    disk: Vec<u8>,
}

impl Base {
    fn of(packages: &[Package]) -> Result<Self, MachineImageError> {
        let mut root = Tree::default();
        for (link, target) in Layout::MergedUsr.links() {
            root.insert(link, Node::symlink(target))?;
        }
        let (kernels, programs): (Vec<_>, Vec<_>) =
            packages.iter().partition(|package| package.name().starts_with("linux-image-"));
        for package in programs {
            deb::add_files(&mut root, package, &deb::cache_dir(), Layout::MergedUsr, kept)?;
        }
        let mut kernel = Vec::new();
        let mut boot = Vec::new();
        for package in kernels {
            (kernel, boot) = add_kernel(&mut root, package)?;
        }
        finish_root(&mut root)?;
        image::check_libraries([&root].into_iter())?;
        let initramfs = cpio::archive(&initramfs(&root, &boot)?);
        Ok(Self { kernel, initramfs, disk: erofs::image(&root, IDENTITY)? })
    }
}

/// Adds the wanted modules and their index files; returns the kernel and the boot modules' contents in load order.
fn add_kernel(root: &mut Tree, package: &Package) -> Result<(Vec<u8>, Vec<Vec<u8>>), MachineImageError> {
    let failed = |source| MachineImageError::Modules { package: package.file_name.clone(), source };
    let mut unpacked = Tree::default();
    let wanted = |path: &str| path.starts_with("boot/vmlinuz") || path.ends_with(".ko");
    deb::add_files(&mut unpacked, package, &deb::cache_dir(), Layout::MergedUsr, wanted)?;
    let catalog = Catalog::of(&unpacked).map_err(failed)?;
    let all: Vec<&str> = BOOT_MODULES.into_iter().chain(START_MODULES).chain(SPARE_MODULES).collect();
    let modules = catalog.load_order(&all).map_err(failed)?;
    for module in &modules {
        root.insert(&module.path, Node::file(0o644, file(&unpacked, &module.path)))?;
    }
    let base = modules.first().and_then(|module| module.path.split_once("/kernel/")).map_or("", |(base, _)| base);
    let index = catalog.dependency_index(&modules, base).map_err(failed)?;
    root.insert(&format!("{base}/modules.dep"), Node::file(0o644, index))?;
    root.insert(&format!("{base}/modules.alias"), Node::file(0o644, modules::alias_index(&modules)))?;
    let boot = catalog.load_order(&BOOT_MODULES).map_err(failed)?;
    let boot = boot.iter().map(|module| file(&unpacked, &module.path)).collect();
    let kernel = unpacked.iter().find(|(path, _)| path.starts_with("boot/vmlinuz"));
    match kernel {
        Some((_, Node { kind: Kind::File(kernel), .. })) => Ok((kernel.clone(), boot)),
        _ => Err(MachineImageError::Kernel { package: package.file_name.clone() }),
    }
}

fn finish_root(root: &mut Tree) -> Result<(), MachineImageError> {
    for applet in image::applets(root, "usr/bin/busybox")? {
        let place = Layout::MergedUsr.place(&applet);
        if root.node(&place).is_none() {
            root.insert(&place, Node::symlink("/usr/bin/busybox"))?;
        }
    }
    // Debian makes these by its alternatives system when the package is installed.
    for name in ["iptables", "ip6tables", "iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"] {
        root.insert(&format!("usr/sbin/{name}"), Node::symlink("xtables-nft-multi"))?;
    }
    image::add_base_files(root)?;
    for directory in ["share", "out", "opt", "run", "sys", "var/lib/containerd"] {
        if root.node(directory).is_none() {
            root.insert(directory, Node::directory(0o755))?;
        }
    }
    root.insert("etc/kata-rs-emulated", Node::file(0o644, "everything takes seconds here\n"))?;
    root.insert("usr/sbin/stage-2", Node::file(0o755, STAGE_2))?;
    Ok(())
}

fn initramfs(root: &Tree, boot: &[Vec<u8>]) -> Result<Tree, TreeError> {
    let mut tree = Tree::default();
    tree.insert("init", Node::file(0o755, STAGE_1))?;
    tree.insert("bin/busybox", Node::file(0o755, file(root, "usr/bin/busybox")))?;
    tree.insert("bin/sh", Node::symlink("busybox"))?;
    for directory in ["dev", "proc", "base", "payload", "memory", "root"] {
        tree.insert(directory, Node::directory(0o755))?;
    }
    for (number, module) in boot.iter().enumerate() {
        tree.insert(&format!("modules/{number:02}.ko"), Node::file(0o644, module.as_slice()))?;
    }
    Ok(tree)
}

fn kept(path: &str) -> bool {
    !LEFT_OUT.iter().any(|prefix| path.starts_with(prefix) || format!("{path}/") == *prefix)
}

fn file(tree: &Tree, path: &str) -> Vec<u8> {
    match tree.node(path) {
        Some(Node { kind: Kind::File(content), .. }) => content.clone(),
        _ => Vec::new(),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), MachineImageError> {
    image::store(path, bytes).map_err(|source| MachineImageError::Write { path: path.to_owned(), source })
}

fn link(target: &Path, path: &Path) -> Result<(), MachineImageError> {
    if std::fs::read_link(path).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let _ = std::fs::remove_file(path);
    std::os::unix::fs::symlink(target, path)
        .map_err(|source| MachineImageError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_character_sets_stay_outside() {
        assert!(!kept("usr/share/doc/runc/copyright"));
        assert!(!kept("usr/lib/x86_64-linux-gnu/gconv/IBM850.so"));
        assert!(kept("usr/bin/containerd"));
        assert!(kept("usr/sbin/runc"));
    }

    #[test]
    fn another_kernel_is_another_cache_entry() {
        let package = |name: &str| Package { file_name: name.to_owned(), sha256: "0".repeat(64) };
        assert_ne!(key(&[package("linux-image-1_1_amd64.deb")]), key(&[package("linux-image-2_1_amd64.deb")]));
    }

    #[test]
    fn the_initramfs_loads_modules_in_the_order_of_their_names() {
        let tree = initramfs(&Tree::default(), &[b"first".to_vec(), b"second".to_vec()]).unwrap();
        let modules: Vec<_> = tree.iter().filter(|(path, _)| path.starts_with("modules/")).collect();
        assert_eq!(modules[0].0, "modules/00.ko");
        assert_eq!(modules[0].1.kind, Kind::File(b"first".to_vec()));
        assert_eq!(modules[1].1.kind, Kind::File(b"second".to_vec()));
    }
}
