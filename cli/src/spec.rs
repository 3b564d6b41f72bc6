//! From an image's configuration and the command's flags to an OCI runtime spec. Pure.

use std::path::PathBuf;

use oci_spec::{image::ImageConfiguration, runtime::Spec};
use serde_json::{Value, json};

use crate::user::User;

/// What the user asked for, over what the image says.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Words after the image; empty takes the image's own.
    pub command: Vec<String>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<String>,
    /// `KEY=value`, or `KEY` to pass the caller's value.
    pub env: Vec<String>,
    /// Replaces the image's working folder.
    pub workdir: Option<String>,
    /// A terminal.
    pub terminal: bool,
    /// CPUs the container may use, in thousandths of one.
    pub cpu_millis: Option<u64>,
    /// Bytes the container may use.
    pub memory_bytes: Option<u64>,
    /// Folders and files of the host.
    pub volumes: Vec<Volume>,
    /// Root filesystem is read-only.
    pub read_only: bool,
    /// Host name in the container.
    pub hostname: String,
}

/// `--volume HOST:CONTAINER[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Path on the host, absolute.
    pub source: PathBuf,
    /// Path in the container, absolute.
    pub destination: PathBuf,
    /// No writes.
    pub read_only: bool,
}

/// Why there is no spec.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Nothing to run.
    #[error("the image names no command: give one after the image")]
    NoCommand,
    /// `--volume` is off.
    #[error("volume {0:?} is not HOST:CONTAINER or HOST:CONTAINER:ro with absolute paths")]
    Volume(String),
}

/// What Docker and containerd give a container that asks for nothing.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// System calls that a container without privileges has no business with: they change the guest kernel as a whole, or open
/// parts of it that ordinary programs never use. The machine is the boundary; this keeps the pod's own guest whole.
const REFUSED_SYSCALLS: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "reboot",
    "request_key",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
];

const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Period of the CPU limit, microseconds; the kernel's own default.
pub const CPU_PERIOD_USEC: u64 = 100_000;

/// The whole spec.
pub fn spec(image: &ImageConfiguration, user: &User, wishes: &Wishes) -> Result<Spec, SpecError> {
    let value = json!({
        "ociVersion": "1.1.0",
        "hostname": wishes.hostname,
        "root": { "path": "rootfs", "readonly": wishes.read_only },
        "process": process(image, user, wishes)?,
        "mounts": mounts(wishes),
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "network"}],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "resources": resources(wishes),
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{ "names": REFUSED_SYSCALLS, "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
            },
        },
    });
    Ok(serde_json::from_value(value).expect("the words above are the spec's own"))
}

fn process(image: &ImageConfiguration, user: &User, wishes: &Wishes) -> Result<Value, SpecError> {
    let config = image.config().clone().unwrap_or_default();
    let workdir = wishes.workdir.clone().or(config.working_dir().clone()).filter(|w| !w.is_empty());
    Ok(json!({
        "terminal": wishes.terminal,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids },
        "args": arguments(image, wishes)?,
        "env": environment(config.env().as_deref().unwrap_or_default(), wishes),
        "cwd": workdir.unwrap_or_else(|| "/".to_owned()),
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": if user.uid == 0 { &CAPABILITIES[..] } else { &[] },
            "permitted": if user.uid == 0 { &CAPABILITIES[..] } else { &[] },
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 65536, "hard": 65536 }],
        "noNewPrivileges": false,
    }))
}

fn arguments(image: &ImageConfiguration, wishes: &Wishes) -> Result<Vec<String>, SpecError> {
    let config = image.config().clone().unwrap_or_default();
    let from_image = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let (mut words, own) = match &wishes.entrypoint {
        Some(entrypoint) => (vec![entrypoint.clone()], Vec::new()),
        None => (from_image(config.entrypoint()), from_image(config.cmd())),
    };
    words.extend(if wishes.command.is_empty() { own } else { wishes.command.clone() });
    if words.is_empty() { Err(SpecError::NoCommand) } else { Ok(words) }
}

fn environment(from_image: &[String], wishes: &Wishes) -> Vec<String> {
    let mut environment = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", wishes.hostname)];
    if wishes.terminal {
        environment.push("TERM=xterm".to_owned());
    }
    for entry in from_image.iter().chain(&wishes.env) {
        set(&mut environment, entry);
    }
    environment
}

/// A later value takes the place of an earlier one; a bare name takes the caller's value, and is dropped when there is none.
fn set(environment: &mut Vec<String>, entry: &str) {
    let (key, value) = match entry.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (entry, std::env::var(entry).ok()),
    };
    environment.retain(|old| old.split_once('=').is_none_or(|(name, _)| name != key));
    if let Some(value) = value {
        environment.push(format!("{key}={value}"));
    }
}

fn resources(wishes: &Wishes) -> Value {
    let mut resources = json!({
        "devices": [
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "access": "m" },
            { "allow": true, "type": "b", "access": "m" },
        ],
    });
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1)] {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if minor >= 0 {
            rule["minor"] = minor.into();
        }
        resources["devices"].as_array_mut().expect("made above").push(rule);
    }
    if let Some(bytes) = wishes.memory_bytes {
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(millis) = wishes.cpu_millis {
        resources["cpu"] = json!({ "quota": millis * CPU_PERIOD_USEC / 1000, "period": CPU_PERIOD_USEC });
    }
    resources
}

fn mounts(wishes: &Wishes) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]),
    ];
    mounts.extend(wishes.volumes.iter().map(|volume| {
        json!({
            "destination": volume.destination,
            "type": "bind",
            "source": volume.source,
            "options": ["rbind", if volume.read_only { "ro" } else { "rw" }],
        })
    }));
    mounts
}

impl Volume {
    /// Reads `HOST:CONTAINER[:ro|:rw]`.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let wrong = || SpecError::Volume(text.to_owned());
        let mut parts = text.split(':');
        let (source, destination) = (parts.next().ok_or_else(wrong)?, parts.next().ok_or_else(wrong)?);
        let read_only = match (parts.next(), parts.next()) {
            (None, None) | (Some("rw"), None) => false,
            (Some("ro"), None) => true,
            _ => return Err(wrong()),
        };
        if !source.starts_with('/') || !destination.starts_with('/') || destination == "/" {
            return Err(wrong());
        }
        Ok(Self { source: source.into(), destination: destination.into(), read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(json: &str) -> ImageConfiguration {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{json}}}"#
        );
        ImageConfiguration::from_reader(text.as_bytes()).expect("valid")
    }

    fn arguments_of(image_config: &str, wishes: &Wishes) -> Vec<String> {
        let spec = spec(&image(image_config), &User::default(), wishes).expect("a spec");
        spec.process().clone().expect("set").args().clone().expect("set")
    }

    #[test]
    fn words_after_the_image_replace_its_command_but_not_its_entrypoint() {
        let config = r#"{"Entrypoint":["/entry"],"Cmd":["a","b"]}"#;
        assert_eq!(arguments_of(config, &Wishes::default()), ["/entry", "a", "b"]);
        let wishes = Wishes { command: vec!["c".into()], ..Wishes::default() };
        assert_eq!(arguments_of(config, &wishes), ["/entry", "c"]);
        let wishes = Wishes { entrypoint: Some("/other".into()), ..Wishes::default() };
        assert_eq!(arguments_of(config, &wishes), ["/other"]);
    }

    #[test]
    fn an_image_without_a_command_needs_one() {
        assert_eq!(spec(&image("{}"), &User::default(), &Wishes::default()).err(), Some(SpecError::NoCommand));
    }

    #[test]
    fn a_later_environment_value_wins() {
        let wishes = Wishes {
            command: vec!["x".into()],
            env: vec!["A=2".into(), "NO_SUCH_NAME_HERE".into()],
            ..Wishes::default()
        };
        let spec = spec(&image(r#"{"Env":["A=1","PATH=/image"]}"#), &User::default(), &wishes).expect("a spec");
        let env = spec.process().clone().expect("set").env().clone().expect("set");
        assert_eq!(env.iter().filter(|e| e.starts_with("A=")).collect::<Vec<_>>(), ["A=2"]);
        assert!(env.contains(&"PATH=/image".to_owned()));
        assert!(!env.iter().any(|e| e.contains("NO_SUCH_NAME_HERE")));
    }

    #[test]
    fn limits_become_cgroup_numbers() {
        let wishes = Wishes {
            command: vec!["x".into()],
            cpu_millis: Some(1500),
            memory_bytes: Some(64 << 20),
            ..Wishes::default()
        };
        let spec = spec(&image("{}"), &User::default(), &wishes).expect("a spec");
        let resources = spec.linux().clone().expect("set").resources().clone().expect("set");
        assert_eq!(resources.memory().expect("set").limit(), Some(64 << 20));
        assert_eq!(resources.cpu().clone().expect("set").quota(), Some(150_000));
    }

    #[test]
    fn a_container_without_root_has_no_effective_capability() {
        let wishes = Wishes { command: vec!["x".into()], ..Wishes::default() };
        let user = User { uid: 1000, gid: 1000, additional_gids: vec![20] };
        let process = spec(&image("{}"), &user, &wishes).expect("a spec").process().clone().expect("set");
        let capabilities = process.capabilities().clone().expect("set");
        assert!(capabilities.effective().clone().unwrap_or_default().is_empty());
        assert_eq!(process.user().additional_gids().clone(), Some(vec![20]));
    }

    #[test]
    fn volumes_are_absolute_pairs() {
        let volume = Volume::parse("/data:/srv:ro").expect("valid");
        assert_eq!(volume, Volume { source: "/data".into(), destination: "/srv".into(), read_only: true });
        for wrong in ["", "/a", "a:/b", "/a:b", "/a:/", "/a:/b:x", "/a:/b:ro:z"] {
            assert_eq!(Volume::parse(wrong), Err(SpecError::Volume(wrong.to_owned())), "{wrong}");
        }
    }
}
