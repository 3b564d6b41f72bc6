//! `-info`: what this runtime is and can do, as a protobuf `RuntimeInfo` with OCI's features in it (runtime-spec, features.md).
//!
//! containerd 2.x asks before it trusts a runtime with id-mapped or recursively read-only mounts. What is said here is what the guest
//! does; the tests ask the guest's own planner.

use std::io::{self, IsTerminal, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message, well_known_types::any::Any};
use serde_json::{Value, json};

use crate::bootstrap::read_input;

/// The runtime's name, from which containerd derives the shim's.
pub const RUNTIME: &str = "io.containerd.kata-rs.v2";
/// The name of the features' type, by which containerd's typeurl knows them.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// Versions of the runtime specification that are understood.
const OCI_VERSION_LEAST: &str = "1.0.0";
const OCI_VERSION_MOST: &str = "1.2.1";
/// Namespaces that a container has of its own, or shares with its pod. The network's is the machine.
const NAMESPACES: [&str; 6] = ["cgroup", "ipc", "mount", "network", "pid", "uts"];
/// Options of mounts that are more than data for the file system; with an `r` in front those of the second list hold for the mounts below too.
const MOUNT_OPTIONS: [&str; 10] =
    ["bind", "private", "rbind", "rprivate", "rshared", "rslave", "runbindable", "shared", "slave", "unbindable"];
const MOUNT_ATTRIBUTES: [&str; 18] = [
    "atime",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "relatime",
    "ro",
    "rw",
    "strictatime",
    "suid",
    "symfollow",
];
/// What a seccomp profile may say.
const SECCOMP_ACTIONS: [&str; 8] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
const SECCOMP_OPERATORS: [&str; 7] =
    ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];
const SECCOMP_ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];
const SECCOMP_FLAGS: [&str; 3] =
    ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
/// Capabilities of Linux, capabilities(7).
const CAPABILITIES: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// Answers `-info` on standard output. The runtime's options may be on standard input, and are given back.
///
/// # Errors
/// Standard output is gone.
pub fn print() -> io::Result<()> {
    let input = if io::stdin().is_terminal() { Vec::new() } else { read_input() };
    let bytes = info(&input).write_to_bytes().map_err(io::Error::other)?;
    io::stdout().lock().write_all(&bytes)
}

fn info(input: &[u8]) -> RuntimeInfo {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..RuntimeVersion::default() };
    let options = Any::parse_from_bytes(input).ok().filter(|options| !options.type_url.is_empty());
    let features =
        Any { type_url: FEATURES_TYPE.to_owned(), value: features().to_string().into_bytes(), ..Any::default() };
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(version).into(),
        options: options.into(),
        features: Some(features).into(),
        ..RuntimeInfo::default()
    }
}

fn features() -> Value {
    let recursive = MOUNT_ATTRIBUTES.iter().map(|word| format!("r{word}"));
    let mut mount_options: Vec<String> =
        MOUNT_OPTIONS.iter().chain(&MOUNT_ATTRIBUTES).map(|&word| word.to_owned()).chain(recursive).collect();
    mount_options.sort();
    let off = json!({ "enabled": false });
    json!({
        "ociVersionMin": OCI_VERSION_LEAST,
        "ociVersionMax": OCI_VERSION_MOST,
        "mountOptions": mount_options,
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": CAPABILITIES.as_slice(),
            // The guest's; the host's are the operator's business.
            "cgroup": { "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": SECCOMP_ACTIONS,
                "operators": SECCOMP_OPERATORS,
                "archs": SECCOMP_ARCHITECTURES,
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": off,
            "selinux": off,
            "intelRdt": off,
            "mountExtensions": { "idmap": off },
        },
    })
}

#[cfg(test)]
mod tests {
    use container::{ContainerPlan, GuestFacts, PlanError, plan};
    use oci_spec::runtime::Spec;

    use super::*;

    fn planned(change: impl FnOnce(&mut Value)) -> Result<ContainerPlan, PlanError> {
        let mut spec = json!({
            "ociVersion": OCI_VERSION_MOST,
            "root": { "path": "/rootfs" },
            "process": { "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "linux": { "namespaces": [{ "type": "pid" }] },
        });
        change(&mut spec);
        let spec: Spec = serde_json::from_value(spec).expect("a specification");
        let guest = GuestFacts {
            cpus: 1,
            memory_bytes: 1 << 30,
            cgroup_root: "/sys/fs/cgroup".into(),
            controllers: ["cpu", "memory", "pids"].map(str::to_owned).into(),
            last_capability: 40,
        };
        plan("c", &spec, &guest)
    }

    fn words<'all>(features: &'all Value, pointer: &str) -> Vec<&'all str> {
        let words = features.pointer(pointer).and_then(Value::as_array).expect("a list");
        words.iter().map(|word| word.as_str().expect("a word")).collect()
    }

    #[test]
    fn each_namespace_that_is_named_can_be_had_and_the_others_are_refused() {
        let named = words(&features(), "/linux/namespaces").into_iter().map(str::to_owned).collect::<Vec<_>>();
        for kind in ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"] {
            let outcome = planned(|spec| spec["linux"]["namespaces"] = json!([{ "type": kind }]));
            assert_eq!(outcome.is_ok(), named.iter().any(|name| name == kind), "{kind}");
        }
    }

    #[test]
    fn each_option_of_a_mount_is_understood_and_none_is_passed_to_the_file_system() {
        for option in words(&features(), "/mountOptions") {
            let mount = |spec: &mut Value| {
                spec["mounts"] =
                    json!([{ "destination": "/m", "type": "tmpfs", "source": "tmpfs", "options": [option] }]);
                if ["bind", "rbind"].contains(&option) {
                    spec["mounts"][0]["source"] = json!("/run/x");
                }
            };
            let plan = planned(mount).unwrap_or_else(|error| panic!("{option}: {error}"));
            let shown = format!("{:?}", plan.mounts);
            assert!(!shown.contains(&format!("\"{option}\"")), "{option} is data: {shown}");
        }
        assert!(
            planned(|spec| {
                spec["mounts"] =
                    json!([{ "destination": "/m", "type": "bind", "source": "/run/x", "options": ["bind", "idmap"] }]);
            })
            .is_err()
        );
    }

    #[test]
    fn each_capability_and_each_word_of_seccomp_is_understood() {
        let features = features();
        let all = words(&features, "/linux/capabilities");
        planned(|spec| spec["process"]["capabilities"] = json!({ "bounding": all, "permitted": all }))
            .expect("planned");
        for action in words(&features, "/linux/seccomp/actions") {
            for operator in words(&features, "/linux/seccomp/operators") {
                let profile = json!({
                    "defaultAction": action,
                    "architectures": words(&features, "/linux/seccomp/archs"),
                    "flags": words(&features, "/linux/seccomp/supportedFlags"),
                    "syscalls": [{ "names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [
                        { "index": 0, "value": 1, "valueTwo": 1, "op": operator },
                    ] }],
                });
                planned(|spec| spec["linux"]["seccomp"] = profile).unwrap_or_else(|error| panic!("{action}: {error}"));
            }
        }
    }

    #[test]
    fn options_are_given_back_and_noise_is_not() {
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![1], ..Any::default() };
        assert_eq!(info(&options.write_to_bytes().expect("bytes")).options.type_url, options.type_url);
        assert!(info(b"\xff\xff noise").options.is_none());
        let info = info(b"");
        assert!(info.options.is_none());
        assert_eq!((info.name.as_str(), info.features.type_url.as_str()), (RUNTIME, FEATURES_TYPE));
    }
}
