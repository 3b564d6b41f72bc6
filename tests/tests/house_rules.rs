//! Rules of the house that a compiler does not check.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use tests::prefix::workspace;

/// Which of our own crates a crate may use. A crate that is not here may use none.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("vmm", &["vmm-virtio", "vmm-boot", "vmm-control"]),
    ("agent", &["agent-protocol", "container", "netlink"]),
    ("pod", &["vmm-control", "agent-protocol", "netlink"]),
    ("shim", &["pod", "agent-protocol"]),
    ("cli", &["pod", "vmm-control", "netlink"]),
    ("tests", &["pod", "vmm-control", "cri"]),
    ("container", &[]),
    ("netlink", &[]),
    ("rootfs-builder", &[]),
];

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["vmm", "agent", "shim", "cli", "rootfs-builder", "tests"] {
        walk(&workspace().join(folder), &mut found);
    }
    assert!(found.len() > 20, "the walk found too little to mean anything");
    found
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_modules_only() {
    let word = concat!("un", "safe ");
    for path in sources().into_iter().filter(|path| !path.ends_with("sys.rs")) {
        let text = fs::read_to_string(&path).expect("text");
        let used = text.lines().find(|line| {
            let code = line.split("//").next().unwrap_or_default();
            [format!("{word}{{"), format!("{word}fn"), format!("{word}impl")].iter().any(|form| code.contains(form))
        });
        assert!(used.is_none(), "{}: {used:?}: move it to a module named sys.rs", path.display());
    }
}

#[test]
fn crates_depend_in_one_direction() {
    let allowed: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    let ours: Vec<String> = manifests().iter().map(|(name, _)| name.clone()).collect();
    for (name, text) in manifests() {
        let runtime = text.split("[dev-dependencies]").next().unwrap_or_default();
        let dependencies = runtime.split("[dependencies]").nth(1).unwrap_or_default();
        for used in dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next()) {
            if ours.iter().any(|own| own == used) {
                let allowed = allowed.get(name.as_str()).is_some_and(|list| list.contains(&used));
                assert!(allowed, "{name} uses {used}: the arrows of the code map point the other way");
            }
        }
    }
}

/// Name and text of every member's Cargo.toml.
fn manifests() -> Vec<(String, String)> {
    let root = fs::read_to_string(workspace().join("Cargo.toml")).expect("there");
    let members = root.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).expect("members");
    let folder =
        |line: &str| Some(line.trim().trim_end_matches(',').trim_matches('"').to_owned()).filter(|l| !l.is_empty());
    let read = |folder: String| {
        let text = fs::read_to_string(workspace().join(folder).join("Cargo.toml")).expect("there");
        let name =
            text.lines().find_map(|line| line.strip_prefix("name = ")).expect("named").trim_matches('"').to_owned();
        (name, text)
    };
    members.lines().filter_map(folder).map(read).collect()
}

#[test]
fn one_version_each_of_what_touches_guest_memory() {
    let lock = fs::read_to_string(workspace().join("Cargo.lock")).expect("committed");
    for name in ["vm-memory", "virtio-queue", "kvm-bindings", "vmm-sys-util"] {
        let count = lock.matches(&format!("name = \"{name}\"\n")).count();
        assert_eq!(count, 1, "{count} versions of {name}: types of two versions do not fit together");
    }
}

#[test]
fn versions_are_in_one_place() {
    for (name, text) in manifests() {
        let pinned = text
            .lines()
            .find(|line| line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains("version = \""));
        assert!(pinned.is_none(), "{name}: {pinned:?}: put the version into the workspace's Cargo.toml");
    }
}

#[test]
fn the_readme_maps_every_top_level_folder_and_crate() {
    let readme = fs::read_to_string(workspace().join("README.md")).expect("there");
    for (name, _) in manifests() {
        assert!(readme.contains(&format!("`{name}`")), "README's map does not name the crate {name}");
    }
    for entry in fs::read_dir(workspace()).expect("readable").flatten().filter(|e| e.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        assert!(readme.contains(&format!("`{name}/")), "README's map does not name the folder {name}/");
    }
}

#[test]
fn names_that_say_nothing_are_not_used() {
    for path in sources() {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let empty = ["util", "utils", "common", "manager", "helper", "helpers", "misc"].contains(&stem.as_str());
        assert!(!empty, "{}: name the file for what it holds", path.display());
    }
}

#[test]
fn every_crate_opens_with_its_story() {
    for path in sources().into_iter().filter(|path| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs")) {
        let text = fs::read_to_string(&path).expect("text");
        assert!(text.starts_with("//!"), "{}: say what the crate is for", path.display());
    }
}
