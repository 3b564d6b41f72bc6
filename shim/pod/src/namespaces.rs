//! Which namespaces a container has in the guest, from the list that names the host's. Pure.
//!
//! A list that leaves a kind out means "the host's own", and a path means "that of somebody else on the host"; in a machine only this is left:
//!
//! | kind | a container by itself | the sandbox | a container of the pod |
//! |---|---|---|---|
//! | network | the machine's, with the interfaces of the path ([`crate::network`]) | the same | the machine's |
//! | ipc, uts | its own | the machine's, which are the pod's | the machine's |
//! | pid | its own | its own | its own; with a path the sandbox's, or that of the container whose number is in it |
//! | mount, cgroup | its own | its own | its own |
//!
//! `/proc/<pid>/ns/pid` is how the CRI plugin says both "shareProcessNamespace" and "the processes of that container" (WithPodNamespaces in its
//! spec_opts.go). The number tells them apart, as the machine's pid is the sandbox's and each container has one of its own ([`crate::host_pids`]).
//! A path of another form is taken for the pod's: CRI-O keeps namespaces of the pod below /run.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Kind, Spec};

use crate::{
    PodError,
    host_pids::Whose,
    membership::Membership,
    refusals::{self, Row},
};

/// Kinds that a list must have, and what their absence asks for.
const NEEDED: [(Kind, &Row); 4] = [
    (Kind::Network, &refusals::HOST_NETWORK),
    (Kind::Pid, &refusals::HOST_PID),
    (Kind::Ipc, &refusals::HOST_IPC),
    (Kind::Uts, &refusals::HOST_UTS),
];

/// What comes of a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// The guest's list, without paths.
    pub guest: Vec<LinuxNamespace>,
    /// The container whose processes this one joins.
    pub pids_of: Option<String>,
}

/// Refuses what no machine can give a container, before there is one for it.
///
/// # Errors
/// What cannot mean in a machine what it means on the host, by its row.
pub fn check_namespaces(container_id: &str, spec: &Spec) -> Result<(), PodError> {
    let asked = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
    // Whose processes are meant is known once there is a pod.
    plan(asked, &Membership::of(container_id, spec), |_| Whose::Pod).map(drop)
}

/// Plans them. No list at all says nothing, and the container has its own of each.
///
/// # Errors
/// What cannot mean in a machine what it means on the host, by its row.
pub(crate) fn plan(
    asked: Option<&[LinuxNamespace]>,
    membership: &Membership,
    whose: impl Fn(u32) -> Whose,
) -> Result<Namespaces, PodError> {
    let Some(asked) = asked else { return Ok(Namespaces::default()) };
    for (kind, row) in NEEDED {
        if !asked.iter().any(|namespace| namespace.typ() == kind) {
            return Err(row.of(format!("linux.namespaces (no {kind})")));
        }
    }
    let mut plan = Namespaces::default();
    for namespace in asked {
        let path = namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty());
        match (namespace.typ(), membership, path) {
            (Kind::Network, ..) => continue,
            (Kind::Mount, _, Some(path)) => return Err(refusals::FOREIGN_MOUNTS.of(object(Kind::Mount, path))),
            (kind @ (Kind::Pid | Kind::Ipc | Kind::Uts), Membership::Alone, Some(path)) => {
                return Err(refusals::FOREIGN_NAMESPACE.of(object(kind, path)));
            }
            (Kind::Ipc | Kind::Uts, Membership::Sandbox | Membership::Member { .. }, _) => continue,
            (Kind::Pid, Membership::Member { sandbox }, Some(path)) => {
                plan.pids_of = Some(joined(path, sandbox, &whose)?)
            }
            _ => {}
        }
        let mut own = namespace.clone();
        own.set_path(None);
        plan.guest.push(own);
    }
    Ok(plan)
}

fn joined(path: &Path, sandbox: &str, whose: impl Fn(u32) -> Whose) -> Result<String, PodError> {
    match number(path).map(whose) {
        None | Some(Whose::Pod) => Ok(sandbox.to_owned()),
        Some(Whose::Container(container)) => Ok(container),
        Some(Whose::Stranger) => Err(refusals::STRANGERS_PIDS.of(object(Kind::Pid, path))),
    }
}

/// N of `/proc/N/ns/pid`.
fn number(path: &Path) -> Option<u32> {
    path.to_str()?.strip_prefix("/proc/")?.strip_suffix("/ns/pid")?.parse().ok()
}

fn object(kind: Kind, path: &Path) -> String {
    format!("linux.namespaces ({kind} {})", path.display())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ErrorKind;

    const MACHINE: u32 = 100;

    fn whose(pid: u32) -> Whose {
        match pid {
            MACHINE => Whose::Pod,
            101 => Whose::Container("app".into()),
            _ => Whose::Stranger,
        }
    }

    fn member() -> Membership {
        Membership::Member { sandbox: "p".into() }
    }

    /// As containerd's CRI plugin writes it for a container of a pod, with this entry for pids.
    fn of_cri(pid: serde_json::Value) -> serde_json::Value {
        let path = |kind: &str| json!({"type": kind, "path": format!("/proc/{MACHINE}/ns/{kind}")});
        json!([pid, path("ipc"), path("uts"), {"type": "mount"}, path("network"), {"type": "cgroup"}])
    }

    fn try_plan(list: serde_json::Value, membership: &Membership) -> Result<Namespaces, PodError> {
        let list: Vec<LinuxNamespace> = serde_json::from_value(list).expect("a list");
        plan(Some(&list), membership, whose)
    }

    fn kinds(plan: &Namespaces) -> Vec<String> {
        assert!(plan.guest.iter().all(|namespace| namespace.path().is_none()), "no path of the host");
        plan.guest.iter().map(|namespace| namespace.typ().to_string()).collect()
    }

    #[test]
    fn containers_of_a_pod_share_ipc_and_host_name_and_have_their_own_processes() {
        let plan = try_plan(of_cri(json!({"type": "pid"})), &member()).expect("planned");
        assert_eq!(kinds(&plan), ["pid", "mnt", "cgroup"]);
        assert_eq!(plan.pids_of, None);
    }

    #[test]
    fn the_machines_number_is_the_pods_processes_and_another_ones_that_containers() {
        let joined = |path: &str| {
            try_plan(of_cri(json!({"type": "pid", "path": path})), &member()).map(|plan| plan.pids_of.expect("joined"))
        };
        assert_eq!(joined("/proc/100/ns/pid").expect("planned"), "p");
        assert_eq!(joined("/proc/101/ns/pid").expect("planned"), "app");
        assert_eq!(joined("/run/pidns/7").expect("planned"), "p");
        let refused = joined("/proc/1/ns/pid").expect_err("refused");
        assert!(refused.message.contains("/proc/1/ns/pid"), "{}", refused.message);
    }

    #[test]
    fn a_sandbox_gives_its_pod_the_machines_ipc_and_host_name() {
        let list = json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                          {"type": "network", "path": "/run/netns/x"}]);
        let plan = try_plan(list, &Membership::Sandbox).expect("planned");
        assert_eq!(kinds(&plan), ["pid", "mnt"]);
    }

    #[test]
    fn a_container_by_itself_has_its_own_of_each() {
        let list = json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]);
        let plan = try_plan(list, &Membership::Alone).expect("planned");
        assert_eq!(kinds(&plan), ["pid", "ipc", "uts", "mnt"]);
    }

    #[test]
    fn the_hosts_namespaces_are_refused_by_the_name_that_people_know() {
        for (absent, words) in
            [("network", "hostNetwork"), ("pid", "hostPID"), ("ipc", "hostIPC"), ("uts", "host name")]
        {
            let kinds = ["network", "pid", "ipc", "uts", "mount"].into_iter().filter(|kind| *kind != absent);
            let list: Vec<_> = kinds.map(|kind| json!({"type": kind})).collect();
            for membership in [Membership::Alone, Membership::Sandbox, member()] {
                let error = try_plan(json!(list), &membership).expect_err("refused");
                assert_eq!(error.kind, ErrorKind::Unimplemented);
                assert!(error.message.contains(words), "{}", error.message);
            }
        }
    }

    #[test]
    fn a_container_by_itself_cannot_join_anybody() {
        for kind in ["pid", "ipc", "uts"] {
            let list: Vec<_> =
                ["network", "pid", "ipc", "uts"]
                    .into_iter()
                    .map(|other| {
                        if other == kind {
                            json!({"type": kind, "path": "/proc/7/ns/x"})
                        } else {
                            json!({"type": other})
                        }
                    })
                    .collect();
            let error = try_plan(json!(list), &Membership::Alone).expect_err("refused");
            assert!(error.message.contains(kind) && error.message.contains("one pod"), "{}", error.message);
        }
    }

    #[test]
    fn a_whole_specification_is_checked_without_a_pod() {
        let check = |list: serde_json::Value| {
            let annotations =
                json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "p"});
            let spec = json!({"ociVersion": "1.0.2", "annotations": annotations, "linux": {"namespaces": list}});
            check_namespaces("c1", &serde_json::from_value(spec).expect("a spec"))
        };
        assert!(check(of_cri(json!({"type": "pid", "path": "/proc/1/ns/pid"}))).is_ok());
        assert!(check(json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}])).is_err());
    }

    #[test]
    fn no_list_asks_for_nothing() {
        assert_eq!(plan(None, &Membership::Alone, whose).expect("planned"), Namespaces::default());
    }
}
