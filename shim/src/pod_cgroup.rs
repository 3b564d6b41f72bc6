//! Where `start` puts the pod's processes on the host, and how that is undone: [`pod::host_cgroup`] with containerd's words.
//!
//! The cgroup is the operator's (ShimCgroup of the runtime's options) or the first container's `linux.cgroupsPath`. Its record lies beside the
//! daemon's socket from before the first folder is made until the last is gone: the pod's own folder does not exist yet at that moment.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pod::host_cgroup::{HostCgroup, below_root};

use crate::{bundle, group::Group};

/// Bounds of oom_score_adj (proc(5)).
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;

/// The cgroup that is asked for, as a path below the root, and whether it is the pod's alone. Pure.
///
/// # Errors
/// The sentence for the log: the path cannot be one.
fn wanted(shim_cgroup: Option<&str>, cgroups_path: Option<&str>) -> Result<Option<(PathBuf, bool)>, String> {
    let (asked, own) = match (shim_cgroup, cgroups_path) {
        (Some(asked), _) if !asked.is_empty() => (asked, false),
        (_, Some(asked)) if !asked.is_empty() => (asked, true),
        _ => return Ok(None),
    };
    below_root(asked).map(|path| Some((path, own))).map_err(|error| error.to_string())
}

/// Moves this process into the pod's cgroup, so that all it starts is born there. Call while it is alone. What does not work is in the record, for
/// the daemon's log: nobody reads what a `start` says that goes well.
///
/// # Errors
/// The record cannot be written; then nothing was made.
pub fn enter(group: &Group, bundle: &Path, shim_cgroup: Option<&str>) -> io::Result<Option<HostCgroup>> {
    let demands = bundle::demands(bundle);
    adjust_oom_score(demands.oom_score_adj);
    let path = wanted(shim_cgroup, demands.cgroups_path.as_deref());
    let Ok(Some((path, own))) = path else { return Ok(None) };
    let mut cgroup = HostCgroup::at(&path, own)?;
    cgroup.write_record(&group.cgroup_record())?;
    cgroup.enter();
    if !cgroup.problems().is_empty() {
        cgroup.write_record(&group.cgroup_record())?;
    }
    Ok(Some(cgroup))
}

/// Moves this daemon into a cgroup of the pod's own below `parent`, before it starts anything: a sandbox says where it belongs when the daemon
/// runs already.
pub fn enter_late(group: &Group, parent: &str) {
    let entered = below_root(&below(parent, &group.id)).map_err(|error| error.to_string()).and_then(|path| {
        let mut cgroup = HostCgroup::at(&path, true).map_err(|error| error.to_string())?;
        cgroup.write_record(&group.cgroup_record()).map_err(|error| error.to_string())?;
        cgroup.enter();
        Ok(cgroup)
    });
    match entered {
        Ok(cgroup) => cgroup.problems().iter().for_each(|problem| log::warn!("{problem}")),
        Err(error) => log::warn!("{error}; the pod's cost is counted where containerd runs"),
    }
}

/// The path that containerd itself would give a container of a pod in `parent`: of a slice it is systemd's form. Pure.
fn below(parent: &str, id: &str) -> String {
    let parent = parent.trim_end_matches('/');
    match parent.rsplit('/').next().filter(|name| name.ends_with(".slice")) {
        Some(slice) => format!("{slice}:cri-containerd:{id}"),
        None => format!("{parent}/{id}"),
    }
}

/// The cgroup that this daemon is in, if it is one of ours.
pub fn current(group: &Group) -> Option<HostCgroup> {
    HostCgroup::read_record(&group.cgroup_record())
}

/// The cgroup that this daemon was born in. Its log says what the `start` could not.
pub fn inherited(group: &Group, bundle: &Path) -> Option<HostCgroup> {
    let cgroup = HostCgroup::read_record(&group.cgroup_record());
    match &cgroup {
        Some(cgroup) => cgroup.problems().iter().for_each(|problem| log::warn!("{problem}")),
        None => match wanted(None, bundle::demands(bundle).cgroups_path.as_deref()) {
            Err(sentence) => log::warn!("{sentence}; the pod's cost is counted where containerd runs"),
            Ok(_) => log::debug!("no cgroup is asked for: the pod's cost is counted where containerd runs"),
        },
    }
    cgroup
}

/// Leaves the cgroup and removes it. For those who were inside: the daemon at its end, and a start that failed. A pod of the same name may
/// have been made meanwhile; then cgroup and record are its own. What is still inside is on its way out: a machine's memory and threads take a busy
/// host a while after the machine was reaped. Hold the group's lock.
pub fn leave(group: &Group, cgroup: &HostCgroup) {
    cgroup.leave();
    if HostCgroup::read_record(&group.cgroup_record()).as_ref() == Some(cgroup) {
        forget(group, &cgroup.end());
    }
}

/// Ends whatever is left inside and removes the cgroup. For those who come after a crash.
///
/// # Errors
/// What is left, as sentences.
pub fn clean_up(group: &Group) -> Result<(), String> {
    let Some(cgroup) = HostCgroup::read_record(&group.cgroup_record()) else { return Ok(()) };
    let _lock = group.lock();
    let problems = cgroup.end();
    forget(group, &problems);
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems.join("; ")),
    }
}

// As long as something is left, the record is needed for the next try.
fn forget(group: &Group, problems: &[String]) {
    problems.iter().for_each(|problem| log::warn!("{problem}"));
    if problems.is_empty() {
        let _ = fs::remove_file(group.cgroup_record());
    }
}

// The pod is as dear to the host as its first container is said to be; VMM and file server inherit it. Less than now takes CAP_SYS_RESOURCE.
fn adjust_oom_score(wanted: Option<i32>) {
    let Some(wanted) = wanted.filter(|wanted| OOM_SCORE_ADJ.contains(wanted)) else { return };
    if let Err(error) = fs::write("/proc/self/oom_score_adj", wanted.to_string()) {
        log::debug!("oom_score_adj {wanted} cannot be had: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operators_cgroup_comes_first_and_is_not_the_pods_alone() {
        let asked = |operator, spec| wanted(operator, spec).expect("a path");
        assert_eq!(asked(Some("/shims"), Some("/default/c1")), Some(("shims".into(), false)));
        assert_eq!(asked(Some(""), Some("/default/c1")), Some(("default/c1".into(), true)));
        assert_eq!(asked(None, Some("")), None);
        assert_eq!(asked(None, None), None);
    }

    #[test]
    fn a_sandbox_is_placed_as_containerd_places_its_containers() {
        assert_eq!(below("/kubepods/besteffort/pod7", "s"), "/kubepods/besteffort/pod7/s");
        let slice = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod7.slice";
        assert_eq!(below(slice, "s"), "kubepods-besteffort-pod7.slice:cri-containerd:s");
        assert_eq!(below("", "s"), "/s");
    }

    #[test]
    fn a_path_that_cannot_be_is_a_sentence() {
        assert!(wanted(None, Some("/")).expect_err("the root").contains("no cgroup"));
    }
}
