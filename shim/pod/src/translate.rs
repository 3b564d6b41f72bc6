//! The host's OCI spec, rewritten into the guest's. Pure.
//!
//! What changes: paths (root, mount sources, cgroup), what the machine is itself (namespaces, see [`crate::namespaces`]), and what
//! cannot work inside (hooks are programs of the host, which whoever made the pod runs there). Everything else is the agent's to apply.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Root, Spec};

use crate::{
    ContainerSpec, ErrorKind, PodError,
    host_pids::Whose,
    ids::check_id,
    membership::Membership,
    namespaces,
    storage::{StoragePlan, guest_rootfs_path},
};

/// Where containers' cgroups are in the guest, below /sys/fs/cgroup.
const GUEST_CGROUP_ROOT: &str = "/kata-rs";

/// Both halves of a container: what the host does, and what the guest is told.
#[derive(Debug)]
pub(crate) struct Translation {
    /// For the share tree.
    pub storage: StoragePlan,
    /// For the agent.
    pub guest: Spec,
    /// Where the container stands.
    pub membership: Membership,
    /// The container whose processes it joins.
    pub pids_of: Option<String>,
    /// What was left out, for the log.
    pub warnings: Vec<String>,
}

/// Translates a container; `whose` tells whom a pid of the host means.
pub(crate) fn translate(container: &ContainerSpec, whose: impl Fn(u32) -> Whose) -> Result<Translation, PodError> {
    check_id("container", &container.id)?;
    let membership = Membership::of(&container.id, &container.oci);
    let mut guest = container.oci.clone();
    let mut warnings = Vec::new();
    if guest.process().is_none() {
        return Err(PodError::new(ErrorKind::InvalidArgument, "config.json has no process: there is nothing to run"));
    }
    let pids_of = translate_namespaces(&mut guest, &membership, whose)?;
    let mut mounts = guest.mounts_mut().take().unwrap_or_default();
    let storage = StoragePlan::make(&container.id, &membership, container.rootfs.clone(), &mut mounts)?;
    guest.set_mounts(Some(mounts));
    set_root(&mut guest, &container.id);
    drop_hooks(&mut guest, &mut warnings);
    translate_linux(&mut guest, &container.id, &mut warnings);
    Ok(Translation { storage, guest, membership, pids_of, warnings })
}

fn set_root(guest: &mut Spec, id: &str) {
    let read_only = guest.root().as_ref().and_then(Root::readonly);
    let mut root = Root::default();
    root.set_path(guest_rootfs_path(id));
    root.set_readonly(read_only);
    guest.set_root(Some(root));
}

fn drop_hooks(guest: &mut Spec, warnings: &mut Vec<String>) {
    let Some(hooks) = guest.hooks_mut().take() else { return };
    for (name, inside) in [("createContainer", hooks.create_container()), ("startContainer", hooks.start_container())] {
        if inside.iter().flatten().next().is_some() {
            warnings.push(format!(
                "hooks.{name} are programs of the host that belong inside the container's namespaces, which are the guest's: they were left out"
            ));
        }
    }
}

fn translate_namespaces(
    guest: &mut Spec,
    membership: &Membership,
    whose: impl Fn(u32) -> Whose,
) -> Result<Option<String>, PodError> {
    let Some(linux) = guest.linux_mut() else { return Ok(None) };
    let planned = namespaces::plan(linux.namespaces().as_deref(), membership, whose)?;
    linux.set_namespaces(Some(planned.guest));
    Ok(planned.pids_of)
}

fn translate_linux(guest: &mut Spec, id: &str, warnings: &mut Vec<String>) {
    let Some(linux) = guest.linux_mut() else { return };
    linux.set_cgroups_path(Some(guest_cgroup(linux.cgroups_path().as_deref(), id)));
    if linux.intel_rdt().is_some() {
        linux.set_intel_rdt(None);
        warnings.push("linux.intelRdt is for the host's caches: it was left out".to_owned());
    }
    if linux.net_devices().is_some() {
        linux.set_net_devices(None);
        warnings.push("linux.netDevices are devices of the host: they were left out".to_owned());
    }
}

/// The container's cgroup in the guest. Host paths tell of the host, may climb, and may be systemd's `slice:prefix:name`: the id alone is kept.
fn guest_cgroup(host: Option<&Path>, id: &str) -> PathBuf {
    let last = host.and_then(|path| match path.components().next_back() {
        Some(Component::Normal(name)) => name.to_str(),
        _ => None,
    });
    if last.is_some_and(|name| name != id) {
        log::debug!("container {id}: cgroup {last:?} of the host becomes {GUEST_CGROUP_ROOT}/{id} in the guest");
    }
    Path::new(GUEST_CGROUP_ROOT).join(id)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxNamespaceType;
    use serde_json::json;

    use super::*;
    use crate::{RootFs, StdioWanted};

    fn translate(container: &ContainerSpec) -> Result<Translation, PodError> {
        super::translate(container, |_| Whose::Pod)
    }

    fn container(oci: serde_json::Value) -> ContainerSpec {
        ContainerSpec {
            id: "c1".into(),
            oci: serde_json::from_value(oci).expect("a spec"),
            rootfs: RootFs::Folder("/bundle/rootfs".into()),
            stdio: StdioWanted::default(),
        }
    }

    fn spec() -> serde_json::Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs", "readonly": true},
            "annotations": {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "p"},
            "hooks": {"prestart": [{"path": "/usr/bin/nvidia"}], "startContainer": [{"path": "/bin/in-there"}]},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind"]}],
            "linux": {
                "cgroupsPath": "/../../default/c1",
                "namespaces": [{"type": "network", "path": "/var/run/netns/x"}, {"type": "ipc", "path": "/proc/7/ns/ipc"},
                    {"type": "uts", "path": "/proc/7/ns/uts"}, {"type": "pid", "path": "/proc/7/ns/pid"}, {"type": "mount"}],
                "resources": {"memory": {"limit": 1048576}}
            }
        })
    }

    #[test]
    fn the_guest_sees_its_own_paths_only() {
        let translation = translate(&container(spec())).expect("translated");
        let text = serde_json::to_string(&translation.guest).expect("plain data");
        for leak in ["/bundle", "/srv", "/var/run", "/usr/bin/nvidia", "/proc/7", ".."] {
            assert!(!text.contains(leak), "{leak} is in {text}");
        }
        let root = translation.guest.root().as_ref().expect("kept");
        assert_eq!(root.path(), Path::new("/run/kata-rs/share/c1/rootfs"));
        assert_eq!(root.readonly(), Some(true));
        assert_eq!(translation.storage.binds.len(), 1);
    }

    #[test]
    fn the_machine_is_the_network_namespace_and_resources_stay() {
        let translation = translate(&container(spec())).expect("translated");
        let linux = translation.guest.linux().as_ref().expect("kept");
        let kinds: Vec<_> =
            linux.namespaces().as_ref().expect("kept").iter().map(|n| (n.typ(), n.path().is_some())).collect();
        assert_eq!(kinds, [(LinuxNamespaceType::Pid, false), (LinuxNamespaceType::Mount, false)]);
        assert_eq!(translation.pids_of.as_deref(), Some("p"));
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/kata-rs/c1")));
        assert_eq!(
            linux.resources().as_ref().and_then(|r| r.memory().as_ref()).and_then(|m| m.limit()),
            Some(1_048_576)
        );
    }

    #[test]
    fn the_guest_gets_no_hooks_and_there_is_a_word_for_those_that_nobody_runs() {
        let translation = translate(&container(spec())).expect("translated");
        assert!(translation.guest.hooks().is_none());
        let said: Vec<_> = translation.warnings.iter().filter(|warning| warning.contains("hooks.")).collect();
        assert!(matches!(&said[..], [one] if one.contains("hooks.startContainer")), "{said:?}");
    }

    #[test]
    fn a_spec_with_nothing_to_run_is_refused() {
        let mut without = spec();
        without.as_object_mut().expect("an object").remove("process");
        let error = translate(&container(without)).expect_err("refused");
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
    }
}
