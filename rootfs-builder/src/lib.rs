//! Everything kata-rs boots or runs in a test that is not its own program: the guest image, OCI image archives, and
//! the emulated machine in which the hardware flavour is tested.
//!
//! ```text
//! agent binary ─────────────────► guest::tree ─► Tree ─► erofs::image ─► guest.erofs
//! Debian packages ─► deb ─► Tree ─► layer ─► oci::Image::archive ─► busybox.tar, python.tar, pause.tar
//! linux-image + programs ─► deb ─► Tree ─► cpio, erofs ─► emulated: initramfs, root disk ─► QEMU
//! ```
//!
//! One idea carries it: a [`tree::Tree`] is a file tree as a value, sorted, with no clock, user, inode number or directory
//! order in it, and the three writers (EROFS, tar, cpio) are pure functions of a tree. So the same input gives the
//! same bytes on any machine, by any user, at any time; nothing has to be normalised afterwards. What touches the
//! world (apt, dpkg-deb, QEMU) is kept to `deb` and `emulated`.
//!
//! Deliberately absent: compression inside the guest image (it is mapped, and pages are touched, not read), anything
//! in the guest image besides the agent (no shell, no setuid program, no library), and any download other than
//! through apt, which verifies signatures.
#![forbid(unsafe_code)]

pub mod cpio;
pub mod deb;
pub mod elf;
pub mod emulated;
pub mod erofs;
pub mod guest;
pub mod image;
pub mod layer;
pub mod ld_cache;
pub mod machine_image;
pub mod modules;
pub mod oci;
pub mod tree;
