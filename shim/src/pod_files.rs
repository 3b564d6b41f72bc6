//! What a pod shows all of its containers and a pause container would have had: `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf` and
//! `/dev/shm`.
//!
//! With a pause container containerd makes these itself and names them in each container's mounts. With its sandbox service it leaves them to
//! the runtime: they are files in the sandbox's bundle then, which containerd removes with the sandbox. A container that has something of its
//! own at one of the places keeps it (the kubelet's own `/etc/hosts`, for one).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Mount, Root, Spec};

/// The folder in the bundle that stands for the pod's shared memory; the guest has the memory itself.
const SHARED_MEMORY: (&str, &str) = ("shm", "/dev/shm");
/// Files in the bundle, and where containers see them.
const FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];
/// What a pod that is told no names of others knows: itself.
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
/// The node's own, for a pod that is told no servers, as containerd gives it to a pause container.
const NODES_RESOLV_CONF: &str = "/etc/resolv.conf";

/// The files of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFiles {
    bundle: PathBuf,
}

impl PodFiles {
    /// Writes them into the sandbox's bundle. An empty `resolv_conf` stands for the node's.
    ///
    /// # Errors
    /// The bundle cannot be written.
    pub fn write(bundle: &Path, hostname: &str, resolv_conf: &str) -> io::Result<Self> {
        let resolv_conf = match resolv_conf {
            "" => fs::read_to_string(NODES_RESOLV_CONF).unwrap_or_default(),
            told => told.to_owned(),
        };
        let texts = [format!("{hostname}\n"), HOSTS.to_owned(), resolv_conf];
        for ((name, _), text) in FILES.iter().zip(texts) {
            fs::write(bundle.join(name), text)?;
        }
        fs::create_dir_all(bundle.join(SHARED_MEMORY.0))?;
        Ok(Self { bundle: bundle.to_owned() })
    }

    /// Adds what a container does not have at these places.
    pub fn complete(&self, oci: &mut Spec) {
        let read_only = oci.root().as_ref().and_then(Root::readonly).unwrap_or(false);
        let mut mounts = oci.mounts().clone().unwrap_or_default();
        let memory = (SHARED_MEMORY, false);
        for ((name, place), read_only) in FILES.iter().map(|file| (*file, read_only)).chain([memory]) {
            if mounts.iter().all(|mount| mount.destination() != Path::new(place)) {
                mounts.push(self.mount(name, place, read_only));
            }
        }
        oci.set_mounts(Some(mounts));
    }

    fn mount(&self, name: &str, place: &str, read_only: bool) -> Mount {
        let mut mount = Mount::default();
        let access = if read_only { "ro" } else { "rw" };
        mount
            .set_destination(place.into())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(self.bundle.join(name)))
            .set_options(Some(["rbind", "rprivate", access].map(str::to_owned).into()));
        mount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(files: &PodFiles, oci: serde_json::Value) -> Vec<(String, Option<PathBuf>, bool)> {
        let mut oci: Spec = serde_json::from_value(oci).expect("a specification");
        files.complete(&mut oci);
        let mounts = oci.mounts().clone().unwrap_or_default();
        let read_only = |mount: &Mount| mount.options().as_ref().is_some_and(|all| all.iter().any(|word| word == "ro"));
        mounts
            .iter()
            .map(|mount| (mount.destination().display().to_string(), mount.source().clone(), read_only(mount)))
            .collect()
    }

    #[test]
    fn a_container_gets_what_it_lacks_and_keeps_what_it_has() {
        let bundle = tempfile::tempdir().expect("folder");
        let files = PodFiles::write(bundle.path(), "web-0", "nameserver 10.0.0.2\n").expect("written");
        let own = serde_json::json!({ "ociVersion": "1.0.2", "root": { "path": "r", "readonly": true }, "mounts": [
            { "destination": "/etc/hosts", "type": "bind", "source": "/var/lib/kubelet/hosts", "options": ["rbind", "rw"] },
        ] });
        let at = |name: &str| Some(bundle.path().join(name));
        assert_eq!(
            completed(&files, own),
            [
                ("/etc/hosts".to_owned(), Some("/var/lib/kubelet/hosts".into()), false),
                ("/etc/hostname".to_owned(), at("hostname"), true),
                ("/etc/resolv.conf".to_owned(), at("resolv.conf"), true),
                ("/dev/shm".to_owned(), at("shm"), false),
            ]
        );
        assert_eq!(fs::read_to_string(bundle.path().join("hostname")).expect("read"), "web-0\n");
        assert_eq!(fs::read_to_string(bundle.path().join("resolv.conf")).expect("read"), "nameserver 10.0.0.2\n");
    }

    #[test]
    fn a_pod_without_servers_has_the_nodes() {
        let bundle = tempfile::tempdir().expect("folder");
        PodFiles::write(bundle.path(), "h", "").expect("written");
        let nodes = fs::read_to_string(NODES_RESOLV_CONF).unwrap_or_default();
        assert_eq!(fs::read_to_string(bundle.path().join("resolv.conf")).expect("read"), nodes);
    }
}
