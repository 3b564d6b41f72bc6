//! From `linux.cgroupsPath` to a path below each hierarchy's root. Pure.
//!
//! | form | from | becomes |
//! |---|---|---|
//! | `/kubepods/besteffort/podU/ID` | a kubelet with the cgroupfs driver, `ctr` | the same |
//! | `kubepods-besteffort-podU.slice:cri-containerd:ID` | a kubelet with the systemd driver | `kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU.slice/cri-containerd-ID.scope` |
//!
//! The second is how systemd lays its units out (systemd.slice(5): a dash in a slice's name is a level of the tree).

use std::path::{Component, Path, PathBuf};

/// Most levels; a kubelet's paths have five.
const LEVELS_MAX: usize = 32;
/// Longest name of a level (NAME_MAX of Linux).
const NAME_LEN_MAX: usize = 255;
/// Where systemd puts what names no slice.
const DEFAULT_SLICE: &str = "system.slice";

/// Why a path names no cgroup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CgroupPathError {
    /// It is the root, or nothing.
    #[error("the cgroup path {0:?} names no cgroup of the pod's own: give it one below the root")]
    Root(String),
    /// A slice that systemd would not take.
    #[error("the cgroup path {0:?} does not begin with a slice as systemd names them, such as kubepods-podU.slice")]
    Slice(String),
    /// A level that cannot be a folder of the tree.
    #[error("the cgroup path {0:?} has a level that no cgroup can be named: use letters, digits, dots, dashes")]
    Name(String),
    /// Deeper than anybody needs.
    #[error("the cgroup path {0:?} has more than {LEVELS_MAX} levels")]
    Deep(String),
}

/// Where `cgroups_path` is below a hierarchy's root; relative, never climbing.
///
/// # Errors
/// It names the root, a slice that cannot be, or a level that no folder of a cgroup tree can be named.
pub fn below_root(cgroups_path: &str) -> Result<PathBuf, CgroupPathError> {
    let path = match systemd_parts(cgroups_path) {
        Some([slice, prefix, name]) => {
            let slices = expand_slice(if slice.is_empty() { DEFAULT_SLICE } else { slice })
                .ok_or_else(|| CgroupPathError::Slice(cgroups_path.to_owned()))?;
            // The unit is a single level, whatever it is made of.
            slices.join(unit(prefix, name).replace('/', "_"))
        }
        None => clean(Path::new(cgroups_path)),
    };
    check(&path, cgroups_path)?;
    Ok(path)
}

fn systemd_parts(path: &str) -> Option<[&str; 3]> {
    let parts: Vec<_> = path.split(':').collect();
    let parts: [&str; 3] = parts.try_into().ok()?;
    (parts[0].is_empty() || parts[0].ends_with(".slice")).then_some(parts)
}

/// `a-b.slice` is `a.slice/a-b.slice`; `-.slice` is the root.
fn expand_slice(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|name| !name.is_empty() && !name.contains('/'))?;
    if name == "-" {
        return Some(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Some(path)
}

fn unit(prefix: &str, name: &str) -> String {
    match prefix {
        _ if name.ends_with(".slice") => name.to_owned(),
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    }
}

/// Without `.` and `..`, which end at the root as everywhere in a file system.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

fn check(path: &Path, asked: &str) -> Result<(), CgroupPathError> {
    let names: Vec<_> = path.iter().map(|name| name.to_string_lossy()).collect();
    if names.is_empty() {
        return Err(CgroupPathError::Root(asked.to_owned()));
    }
    if names.len() > LEVELS_MAX {
        return Err(CgroupPathError::Deep(asked.to_owned()));
    }
    // The kernel's own files are named after controllers and "cgroup"; no folder may be mistaken for one.
    let fits =
        |name: &str| name.len() <= NAME_LEN_MAX && !name.chars().any(char::is_control) && !name.starts_with("cgroup.");
    match names.iter().all(|name| fits(name)) {
        true => Ok(()),
        false => Err(CgroupPathError::Name(asked.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> String {
        below_root(text).map_or_else(|error| error.to_string(), |path| path.display().to_string())
    }

    #[test]
    fn a_path_of_the_cgroupfs_driver_is_taken_as_it_is() {
        assert_eq!(path("/kubepods/besteffort/pod7/abc"), "kubepods/besteffort/pod7/abc");
        assert_eq!(path("/default/c1"), "default/c1");
        assert_eq!(path("default//c1/."), "default/c1");
    }

    #[test]
    fn a_slice_is_nested_as_systemd_nests_it() {
        assert_eq!(
            path("kubepods-besteffort-pod7.slice:cri-containerd:abc"),
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod7.slice/cri-containerd-abc.scope"
        );
        assert_eq!(path("kubepods.slice:cri-containerd:abc"), "kubepods.slice/cri-containerd-abc.scope");
        assert_eq!(path(":docker:abc"), "system.slice/docker-abc.scope");
        assert_eq!(path("-.slice::abc"), "abc.scope");
        assert_eq!(path("user.slice:x:own.slice"), "user.slice/own.slice");
    }

    #[test]
    fn nothing_climbs_out_of_the_tree() {
        assert_eq!(path("/../../default/c1"), "default/c1");
        assert_eq!(path("kubepods.slice:a/../..:b"), "kubepods.slice/a_.._..-b.scope");
    }

    #[test]
    fn what_cannot_be_a_cgroup_is_refused_by_name() {
        for root in ["", "/", "/..", "."] {
            assert_eq!(below_root(root), Err(CgroupPathError::Root(root.into())));
        }
        for slice in [".slice:a:b", "a--b.slice:a:b", "-a.slice:a:b", "a/b.slice:a:b"] {
            assert_eq!(below_root(slice), Err(CgroupPathError::Slice(slice.into())), "{slice}");
        }
        for name in ["/a\nb", "/cgroup.procs", &format!("/{}", "x".repeat(256))] {
            assert_eq!(below_root(name), Err(CgroupPathError::Name(name.into())), "{name}");
        }
        assert!(matches!(below_root(&"/a".repeat(33)), Err(CgroupPathError::Deep(_))));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_is_below_the_root(text in "[a-z:./-]{0,40}") {
            if let Ok(path) = below_root(&text) {
                let below = path.components().all(|component| matches!(component, Component::Normal(_)));
                prop_assert!(below && path.components().count() > 0, "{}", path.display());
            }
        }
    }
}
