//! How large the memory is that a pod's containers share at /dev/shm: as large as what the runtime made for it on the host.

use std::path::{Path, PathBuf};

use rustix::fs::statfs;

/// TMPFS_MAGIC of linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// What containerd and CRI-O give a pod that asks for no size (`defaultShmSize` in the CRI plugin).
const DEFAULT_BYTES: u64 = 64 << 20;

/// The size of the tmpfs at `folder`, and the usual one where there is none.
pub(crate) async fn size_of(folder: PathBuf) -> u64 {
    // A folder of a dead network file system would hold the caller.
    let looked = tokio::task::spawn_blocking(move || tmpfs_bytes(&folder)).await;
    looked.ok().flatten().unwrap_or(DEFAULT_BYTES)
}

fn tmpfs_bytes(folder: &Path) -> Option<u64> {
    let facts = statfs(folder).ok().filter(|facts| facts.f_type == TMPFS_MAGIC)?;
    let block = u64::try_from(facts.f_bsize).ok()?;
    // A tmpfs without a limit has no blocks to count.
    facts.f_blocks.checked_mul(block).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_tmpfs_has_the_usual_size() {
        assert_eq!(size_of("/proc".into()).await, DEFAULT_BYTES);
        assert_eq!(size_of("/nowhere".into()).await, DEFAULT_BYTES);
    }
}
