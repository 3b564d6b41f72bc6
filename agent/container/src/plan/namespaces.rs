//! Which namespaces a container has of its own, which it joins, and which it shares with the guest.

use super::{Namespace, NamespacePlan, PlanError, Warning};
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};
use std::path::Path;

/// Sysctls of the IPC namespace, namespaces(7) and ipc_namespaces(7), as paths below /proc/sys.
#[rustfmt::skip]
const IPC_SYSCTLS: [&str; 8] = [
    "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax",
    "kernel/shmmni", "kernel/shm_rmid_forced",
];

/// Mount and cgroup namespaces are always new, whatever the list says; the network is the machine's.
///
/// A container that asks to share the host's pids gets pids of its own: the host's are out of reach, and the guest's are
/// the agent's.
pub(super) fn plan(linux: &Linux, warnings: &mut Vec<Warning>) -> Result<NamespacePlan, PlanError> {
    let mut plan = NamespacePlan { new: vec![Namespace::Mount], join: Vec::new() };
    for entry in linux.namespaces().as_deref().unwrap_or_default() {
        add(&mut plan, entry)?;
    }
    if !plan.has(Namespace::Pid) {
        warnings.push(Warning {
            field: "linux.namespaces".into(),
            sentence: "no pid namespace is asked for, but the host's cannot be seen from a machine; the container gets its own".into(),
        });
        plan.new.push(Namespace::Pid);
    }
    if !plan.new.contains(&Namespace::Cgroup) {
        plan.new.push(Namespace::Cgroup);
    }
    plan.new.sort();
    Ok(plan)
}

fn add(plan: &mut NamespacePlan, entry: &LinuxNamespace) -> Result<(), PlanError> {
    let refuse =
        |sentence| Err(PlanError::Unsupported { field: format!("linux.namespaces (type {})", entry.typ()), sentence });
    let kind = match entry.typ() {
        LinuxNamespaceType::Network => return Ok(()),
        LinuxNamespaceType::Mount if entry.path().is_none() => return Ok(()),
        LinuxNamespaceType::Mount => return refuse("a container's mounts are always its own; leave the path out"),
        LinuxNamespaceType::Cgroup if entry.path().is_none() => return Ok(()),
        LinuxNamespaceType::Cgroup => return refuse("a container's cgroup view is always its own; leave the path out"),
        LinuxNamespaceType::User => {
            return refuse(
                "user namespaces inside the machine are not supported; the machine is the boundary, leave it out",
            );
        }
        LinuxNamespaceType::Time => return refuse("time namespaces are not supported; leave it out"),
        LinuxNamespaceType::Pid => Namespace::Pid,
        LinuxNamespaceType::Ipc => Namespace::Ipc,
        LinuxNamespaceType::Uts => Namespace::Uts,
    };
    if plan.has(kind) {
        return refuse("is in the list twice; leave one");
    }
    match entry.path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => plan.join.push((kind, super::absolute("linux.namespaces.path", path)?)),
        None => plan.new.push(kind),
    }
    Ok(())
}

impl NamespacePlan {
    fn has(&self, kind: Namespace) -> bool {
        self.new.contains(&kind) || self.join.iter().any(|(joined, _)| *joined == kind)
    }
}

/// Lets a sysctl pass when a namespace holds it, the container's own or else the machine's, which is the pod's.
///
/// Everything else would change the whole kernel; other runtimes refuse it because that is the host's, and what runs here must run there.
pub(super) fn check_sysctl(name: &str, path: &str) -> Result<(), PlanError> {
    let refuse = |sentence| Err(PlanError::Unsupported { field: format!("linux.sysctl {name}"), sentence });
    if path.starts_with("net/") {
        return Ok(());
    }
    if IPC_SYSCTLS.contains(&path) || Path::new(path).starts_with("fs/mqueue") {
        return Ok(());
    }
    match path {
        "kernel/domainname" => Ok(()),
        "kernel/hostname" => refuse("is set by `hostname`; use that field"),
        _ => refuse("is not namespaced: it would change the whole machine; set it for the pod instead"),
    }
}
