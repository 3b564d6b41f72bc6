//! Whatever is in a specification: it is translated, or refused with a code that names the caller's mistake.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::translate;
use crate::{ContainerSpec, ErrorKind, HostMount, RootFs, StdioWanted, host_pids::Whose};

/// What a refusal of a specification may be.
const KINDS: [ErrorKind; 4] =
    [ErrorKind::InvalidArgument, ErrorKind::Unimplemented, ErrorKind::NotFound, ErrorKind::FailedPrecondition];

/// What of a container a refusal is about; each names its place, the mount, or the root filesystem.
const PARTS: [&str; 5] = ["linux.namespaces", "mount", "root", "process", "annotation"];

fn specification() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": { "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "pod1",
            "io.kubernetes.cri.container-name": "web",
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev/shm", "type": "bind", "source": "/run/x/shm", "options": ["rbind", "ro"] },
            { "destination": "/data", "type": "bind", "source": "/nowhere/data", "options": ["rbind", "rw"] },
        ],
        "linux": {
            "cgroupsPath": "kubepods-x.slice:cri-containerd:c1",
            "namespaces": [
                { "type": "pid" }, { "type": "ipc", "path": "/proc/1/ns/ipc" }, { "type": "network", "path": "/proc/1/ns/net" },
                { "type": "uts", "path": "/proc/1/ns/uts" }, { "type": "mount" },
            ],
        },
    })
}

/// Each place of the specification and a value that may stand there.
fn change() -> impl Strategy<Value = (String, Value)> {
    let pointers = [
        "/root",
        "/root/path",
        "/process",
        "/process/args",
        "/annotations",
        "/annotations/io.kubernetes.cri.container-type",
        "/annotations/io.kubernetes.cri.sandbox-id",
        "/mounts",
        "/mounts/0/type",
        "/mounts/0/destination",
        "/mounts/1/source",
        "/mounts/1/type",
        "/mounts/1/options",
        "/mounts/2/source",
        "/mounts/2/destination",
        "/mounts/2/options/0",
        "/linux",
        "/linux/cgroupsPath",
        "/linux/namespaces",
        "/linux/namespaces/0/type",
        "/linux/namespaces/1/path",
        "/linux/namespaces/2/path",
    ];
    let text = prop_oneof![
        Just(String::new()),
        Just("..".to_owned()),
        Just("/".to_owned()),
        Just("/proc/self/ns/net".to_owned()),
        Just("/proc/4000000000/ns/pid".to_owned()),
        Just("user".to_owned()),
        Just("mount".to_owned()),
        any::<String>(),
    ];
    let value = prop_oneof![
        Just(Value::Null),
        text.prop_map(Value::from),
        Just(json!([])),
        Just(json!([{ "type": "pid" }, { "type": "pid" }])),
        Just(json!(["rbind", "bind", "rslave", "idmap"])),
    ];
    (prop::sample::select(pointers.to_vec()).prop_map(str::to_owned), value)
}

/// What containerd's snapshotter names.
fn overlay() -> RootFs {
    let options = vec!["lowerdir=/a:/b".to_owned()];
    RootFs::Mounts(vec![HostMount { fs_type: "overlay".into(), source: "overlay".into(), options }])
}

fn rootfs() -> impl Strategy<Value = RootFs> {
    let word =
        || prop_oneof![Just("overlay".to_owned()), Just("bind".to_owned()), Just("erofs".to_owned()), any::<String>()];
    let mount = (word(), any::<String>(), prop::collection::vec(any::<String>(), 0..3))
        .prop_map(|(fs_type, source, options)| HostMount { fs_type, source, options });
    prop_oneof![
        Just(overlay()),
        prop::collection::vec(mount, 0..3).prop_map(RootFs::Mounts),
        any::<String>().prop_map(|path| RootFs::Folder(path.into())),
    ]
}

fn container(oci: Value, rootfs: RootFs) -> Option<ContainerSpec> {
    // What is no specification at all is refused where it is read.
    let oci = serde_json::from_value(oci).ok()?;
    Some(ContainerSpec { id: "c1".into(), oci, rootfs, stdio: StdioWanted::default() })
}

#[test]
fn without_a_change_the_specification_is_sound() {
    let container = container(specification(), overlay()).expect("a specification");
    translate(&container, |_| Whose::Pod).expect("translated");
}

proptest! {
    #[test]
    fn a_specification_is_translated_or_its_mistake_is_named(
        changes in prop::collection::vec(change(), 0..4),
        rootfs in rootfs(),
        whose in 0_u8..3,
    ) {
        let mut oci = specification();
        for (pointer, value) in changes {
            if let Some(place) = oci.pointer_mut(&pointer) {
                *place = value;
            }
        }
        let Some(container) = container(oci, rootfs) else { return Ok(()) };
        if let Err(error) = translate(&container, |_| whose_of(whose)) {
            prop_assert!(KINDS.contains(&error.kind), "{:?}: {}", error.kind, error.message);
            prop_assert!(PARTS.iter().any(|part| error.message.contains(part)), "{}", error.message);
        }
    }
}

fn whose_of(number: u8) -> Whose {
    match number {
        0 => Whose::Pod,
        1 => Whose::Container("web".to_owned()),
        _ => Whose::Stranger,
    }
}
