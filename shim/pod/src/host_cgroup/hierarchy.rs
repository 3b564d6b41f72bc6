//! The cgroup hierarchies of this host, from /proc/self/mountinfo and /proc/self/cgroup. Pure but for [`Hierarchies::read`].
//!
//! | host | what counts |
//! |---|---|
//! | version 2 | the one tree |
//! | version 1 | each mounted controller, and named ones such as systemd's |
//! | both (hybrid) | those of version 1; the version 2 tree too when it counts anything |

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::share::unescape;

/// Most hierarchies that a host can have: one per controller (14 in Linux 6.18) and a few named ones.
const HIERARCHIES_MAX: usize = 64;

/// Controllers that count what the kubelet asks for.
const COUNTING: [&str; 4] = ["cpu", "memory", "io", "pids"];

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Version 2.
    pub unified: bool,
    /// Controllers of a version 1 hierarchy, or its name.
    pub controllers: Vec<String>,
    /// Where this process was below `point` when it looked.
    pub from: PathBuf,
}

/// All that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchies(pub Vec<Hierarchy>);

impl Hierarchies {
    /// Looks at this host.
    pub(crate) fn read() -> io::Result<Self> {
        let (mounts, own) = (fs::read("/proc/self/mountinfo")?, fs::read_to_string("/proc/self/cgroup")?);
        Ok(Self::of(&mounts, &own, counts_anything))
    }

    /// From the two texts; `has_controllers` looks into a version 2 tree.
    fn of(mountinfo: &[u8], own: &str, has_controllers: impl Fn(&Path) -> bool) -> Self {
        let mut seen = BTreeSet::new();
        let mounts = mountinfo.split(|byte| *byte == b'\n').filter_map(Mount::parse);
        let mut all: Vec<_> = mounts
            .filter(|mount| seen.insert(mount.device.clone()))
            .map(|mount| mount.hierarchy(own))
            .take(HIERARCHIES_MAX)
            .collect();
        let version_1 = all.iter().any(|hierarchy| !hierarchy.unified);
        all.retain(|hierarchy| !(hierarchy.unified && version_1) || has_controllers(&hierarchy.point));
        Self(all)
    }
}

/// Whether a version 2 tree beside version 1 has a controller that counts what a pod costs. What is left over there of others (hugetlb, rdma)
/// is not worth the move, which holds up every fork of the host for some milliseconds.
fn counts_anything(point: &Path) -> bool {
    let names = fs::read_to_string(point.join("cgroup.controllers")).unwrap_or_default();
    names.split_whitespace().any(|name| COUNTING.contains(&name))
}

/// A line of mountinfo that mounts a hierarchy (proc(5)).
struct Mount {
    device: String,
    root: PathBuf,
    point: PathBuf,
    unified: bool,
    options: Vec<String>,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
        let end = fields.iter().position(|field| *field == b"-")?;
        let kind = *fields.get(end + 1)?;
        if kind != b"cgroup" && kind != b"cgroup2" {
            return None;
        }
        let options = String::from_utf8_lossy(fields.get(end + 3)?).into_owned();
        Some(Self {
            device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
            root: unescape(fields.get(3)?),
            point: unescape(fields.get(4)?),
            unified: kind == b"cgroup2",
            options: options.split(',').map(str::to_owned).collect(),
        })
    }

    fn hierarchy(self, own: &str) -> Hierarchy {
        let lines = own.lines().filter_map(|line| line.splitn(3, ':').collect::<Vec<_>>().try_into().ok());
        let mine = |[number, names, _]: &[&str; 3]| match self.unified {
            true => *number == "0",
            false => names.split(',').next().is_some_and(|name| self.options.iter().any(|option| option == name)),
        };
        let line: Option<[&str; 3]> = lines.into_iter().find(mine);
        let controllers = match line {
            Some([_, names, _]) if !self.unified => names.split(',').map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        // A mount may show a part of the tree only, as in a container with the host's cgroup namespace.
        let from = line.map_or(Path::new("/"), |[_, _, path]| Path::new(path));
        let from = from.strip_prefix(&self.root).unwrap_or(Path::new("")).to_owned();
        Hierarchy { point: self.point, unified: self.unified, controllers, from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_1: &str = "\
30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,memory
34 24 0:29 / /elsewhere rw - cgroup cgroup rw,memory
35 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
    const OWN: &str =
        "4:memory:/system.slice/containerd.service\n3:cpu,cpuacct:/\n1:name=systemd:/init.scope\n0::/init.scope\n";

    #[test]
    fn each_hierarchy_of_version_1_counts_once_and_an_empty_version_2_does_not() {
        let Hierarchies(all) = Hierarchies::of(VERSION_1.as_bytes(), OWN, |_| false);
        let points: Vec<_> = all.iter().map(|h| h.point.display().to_string()).collect();
        assert_eq!(
            points,
            ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/with space"],
            "each once, at its first place"
        );
        assert_eq!(all[1].controllers, ["cpu", "cpuacct"]);
        assert_eq!(all[2].from, Path::new("system.slice/containerd.service"));
    }

    #[test]
    fn a_version_2_tree_with_controllers_counts_beside_version_1() {
        let Hierarchies(all) = Hierarchies::of(VERSION_1.as_bytes(), OWN, |_| true);
        assert!(all.last().is_some_and(|last| last.unified && last.from == Path::new("init.scope")));
    }

    #[test]
    fn on_a_version_2_host_there_is_one() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let Hierarchies(all) = Hierarchies::of(mounts.as_bytes(), "0::/a/b\n", |_| false);
        assert_eq!(all.len(), 1);
        assert!(all[0].unified && all[0].from == Path::new("a/b"));
    }

    #[test]
    fn the_way_back_is_below_what_the_mount_shows() {
        let mounts = "30 24 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let Hierarchies(all) = Hierarchies::of(mounts.as_bytes(), "0::/docker/x/init\n", |_| false);
        assert_eq!(all[0].from, Path::new("init"));
    }

    #[test]
    fn this_host_has_some() {
        let Hierarchies(all) = Hierarchies::read().expect("read");
        assert!(all.iter().all(|hierarchy| hierarchy.point.is_dir()));
    }
}
