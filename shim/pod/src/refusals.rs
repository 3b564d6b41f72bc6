//! What is asked of the host's kernel and cannot mean the same in a machine: one table, each row with what it says and what to do instead.
//!
//! Rows are refused before anything is made. What a container may ask of the guest's kernel and does not get is the agent's own table
//! (`unsupported.rs` of the crate `container`). `docs/limits.md` lists both for people; a test holds it to this table.

use crate::{ErrorKind, PodError};

/// One thing that is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// What people call it; `docs/limits.md` has it word for word.
    pub asked: &'static str,
    /// Why not, and what to do instead.
    pub sentence: &'static str,
}

/// A list of namespaces without this kind: the container would share the host's.
pub(crate) const HOST_NETWORK: Row = Row {
    asked: "hostNetwork",
    sentence: "a machine has a network of its own and cannot be in the host's; leave hostNetwork (--net-host, --network host) out, or run this pod with runc",
};
/// As [`HOST_NETWORK`].
pub(crate) const HOST_PID: Row = Row {
    asked: "hostPID",
    sentence: "the host's processes cannot be seen from a machine; leave hostPID (--pid host) out, or run this pod with runc",
};
/// As [`HOST_NETWORK`].
pub(crate) const HOST_IPC: Row = Row {
    asked: "hostIPC",
    sentence: "the host's shared memory, semaphores and queues are another kernel's; leave hostIPC (--ipc host) out, or run this pod with runc",
};
/// As [`HOST_NETWORK`].
pub(crate) const HOST_UTS: Row = Row {
    asked: "the host's host name",
    sentence: "a machine has a host name of its own; leave the host's (--uts host) out and name the container with its hostname",
};
/// A path of a namespace that somebody else on the host holds.
pub(crate) const FOREIGN_NAMESPACE: Row = Row {
    asked: "a namespace of another container",
    sentence: "it is in another kernel; put both containers into one pod, where they can share it",
};
/// A pid whose namespace is to be joined, of no living container of the pod.
pub(crate) const STRANGERS_PIDS: Row = Row {
    asked: "the processes of somebody outside the pod",
    sentence: "the process named is none of this pod's; name a running container of the same pod (it may have ended meanwhile)",
};
/// A mount namespace by path.
pub(crate) const FOREIGN_MOUNTS: Row = Row {
    asked: "a mount namespace by path",
    sentence: "a container's mounts are always its own; leave the path out and mount what both need into both",
};
/// A file system that only the host can mount.
pub(crate) const MOUNT_TYPE: Row = Row {
    asked: "a mount of a type that needs the host's kernel",
    sentence: "it has no way into the guest; mount it on the host and bind it",
};
/// A snapshot that is not a folder.
pub(crate) const ROOTFS_TYPE: Row = Row {
    asked: "a root filesystem on a block device",
    sentence: "only folders are shared with the machine; use the overlayfs or native snapshotter",
};
/// A socket, fifo or device as a volume.
pub(crate) const SPECIAL_FILE: Row = Row {
    asked: "a socket, fifo or device of the host as a volume",
    sentence: "it works in the host's kernel only; share a folder or a regular file",
};

/// Every row.
#[cfg(test)]
pub(crate) const ALL: [&Row; 10] = [
    &HOST_NETWORK,
    &HOST_PID,
    &HOST_IPC,
    &HOST_UTS,
    &FOREIGN_NAMESPACE,
    &STRANGERS_PIDS,
    &FOREIGN_MOUNTS,
    &MOUNT_TYPE,
    &ROOTFS_TYPE,
    &SPECIAL_FILE,
];

impl Row {
    /// The refusal, with the field or object it is about.
    pub(crate) fn of(&self, object: impl std::fmt::Display) -> PodError {
        PodError::new(ErrorKind::Unimplemented, format!("{object}: {} is refused: {}", self.asked, self.sentence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_field_the_thing_the_reason_and_the_way_out() {
        let error = HOST_NETWORK.of("linux.namespaces (no network)");
        assert_eq!(error.kind, ErrorKind::Unimplemented);
        for part in ["linux.namespaces", "hostNetwork is refused", "leave hostNetwork", "runc"] {
            assert!(error.message.contains(part), "{}", error.message);
        }
    }

    #[test]
    fn every_sentence_says_what_to_do_and_none_ends_the_message() {
        for row in ALL {
            assert!(row.sentence.contains(';') && !row.sentence.ends_with('.'), "{}", row.sentence);
        }
    }

    #[test]
    fn the_page_on_limits_has_every_row() {
        let page = include_str!("../../../docs/limits.md");
        for row in ALL {
            assert!(page.contains(row.asked), "docs/limits.md does not say {:?}", row.asked);
        }
    }
}
