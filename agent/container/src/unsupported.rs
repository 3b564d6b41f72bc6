//! What a specification may ask for that a container in a machine does not get: one table, each row with its sentence.
//!
//! A row refuses when going without would weaken or change what was asked for in a way its author must know; it ignores,
//! with a warning, what the machine already provides or what orchestrators always send.

use crate::plan::{PlanError, Warning};
use oci_spec::runtime::{Hook, Process, Spec};

enum Verdict {
    Refuse,
    Ignore,
}
use Verdict::{Ignore, Refuse};

struct Row<T> {
    field: &'static str,
    asked: fn(&T) -> bool,
    verdict: Verdict,
    sentence: &'static str,
}

const HOOKS: &str = "hooks are programs of the host and cannot be run in the machine; they are not run";

const SPEC: &[Row<Spec>] = &[
    Row { field: "hooks.prestart", asked: |spec| hooks(spec, 0), verdict: Ignore, sentence: HOOKS },
    Row { field: "hooks.createRuntime", asked: |spec| hooks(spec, 1), verdict: Ignore, sentence: HOOKS },
    Row { field: "hooks.createContainer", asked: |spec| hooks(spec, 2), verdict: Ignore, sentence: HOOKS },
    Row { field: "hooks.startContainer", asked: |spec| hooks(spec, 3), verdict: Ignore, sentence: HOOKS },
    Row { field: "hooks.poststart", asked: |spec| hooks(spec, 4), verdict: Ignore, sentence: HOOKS },
    Row { field: "hooks.poststop", asked: |spec| hooks(spec, 5), verdict: Ignore, sentence: HOOKS },
    Row {
        field: "linux",
        asked: |spec| spec.linux().is_none() && (spec.windows().is_some() || spec.solaris().is_some()),
        verdict: Refuse,
        sentence: "the guest runs Linux; use an image and a specification for linux",
    },
    Row {
        field: "vm",
        asked: |spec| spec.vm().is_some(),
        verdict: Ignore,
        sentence: "the machine is chosen by the runtime's configuration, not by the container",
    },
    Row {
        field: "linux.uidMappings",
        asked: |spec| linux(spec, |linux| linux.uid_mappings().as_ref().is_some_and(|maps| !maps.is_empty())),
        verdict: Refuse,
        sentence: "user namespaces inside the machine are not supported; the machine is the boundary, leave them out",
    },
    Row {
        field: "linux.gidMappings",
        asked: |spec| linux(spec, |linux| linux.gid_mappings().as_ref().is_some_and(|maps| !maps.is_empty())),
        verdict: Refuse,
        sentence: "user namespaces inside the machine are not supported; the machine is the boundary, leave them out",
    },
    Row {
        field: "linux.intelRdt",
        asked: |spec| linux(spec, |linux| linux.intel_rdt().is_some()),
        verdict: Ignore,
        sentence: "cache and bandwidth allocation belongs to the host's kernel; the guest's has no such hardware",
    },
    Row {
        field: "linux.personality",
        asked: |spec| linux(spec, |linux| linux.personality().is_some()),
        verdict: Refuse,
        sentence: "execution domains are not supported; leave it out",
    },
    Row {
        field: "linux.memoryPolicy",
        asked: |spec| linux(spec, |linux| linux.memory_policy().is_some()),
        verdict: Ignore,
        sentence: "the machine has one memory node, so every policy means the same",
    },
    Row {
        field: "linux.timeOffsets",
        asked: |spec| linux(spec, |linux| linux.time_offsets().as_ref().is_some_and(|all| !all.is_empty())),
        verdict: Refuse,
        sentence: "time namespaces are not supported; leave it out",
    },
    Row {
        field: "linux.netDevices",
        asked: |spec| linux(spec, |linux| linux.net_devices().as_ref().is_some_and(|all| !all.is_empty())),
        verdict: Refuse,
        sentence: "network devices are given to the pod's machine, not to one container; attach it to the pod's network",
    },
    Row {
        field: "linux.mountLabel",
        asked: |spec| linux(spec, |linux| linux.mount_label().as_deref().is_some_and(|label| !label.is_empty())),
        verdict: Ignore,
        sentence: "the guest's kernel has no SELinux; the host's labels hold for the machine",
    },
    Row {
        field: "linux.resources.network",
        asked: |spec| resources(spec, |all| all.network().is_some()),
        verdict: Ignore,
        sentence: "traffic classes have no equivalent in cgroup v2",
    },
    Row {
        field: "linux.resources.rdma",
        asked: |spec| resources(spec, |all| all.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty())),
        verdict: Ignore,
        sentence: "the guest has no RDMA devices",
    },
    Row {
        field: "linux.resources.cpu.realtimeRuntime",
        asked: |spec| {
            resources(spec, |all| {
                all.cpu().as_ref().is_some_and(|cpu| cpu.realtime_runtime().is_some_and(|runtime| runtime != 0))
            })
        },
        verdict: Refuse,
        sentence: "cgroup v2 has no real-time CPU budget; leave it out",
    },
];

const PROCESS: &[Row<Process>] = &[
    Row {
        field: "process.apparmorProfile",
        asked: |process| process.apparmor_profile().as_deref().is_some_and(|name| !matches!(name, "" | "unconfined")),
        verdict: Ignore,
        sentence: "the guest's kernel has no AppArmor; the machine confines the container",
    },
    Row {
        field: "process.selinuxLabel",
        asked: |process| process.selinux_label().as_deref().is_some_and(|label| !label.is_empty()),
        verdict: Ignore,
        sentence: "the guest's kernel has no SELinux; the host's labels hold for the machine",
    },
    Row {
        field: "process.ioPriority",
        asked: |process| process.io_priority().is_some(),
        verdict: Ignore,
        sentence: "the order of disk requests is the host's to decide",
    },
    Row {
        field: "process.scheduler",
        asked: |process| process.scheduler().is_some(),
        verdict: Refuse,
        sentence: "choosing a scheduling policy is not supported; leave it out, or set it from inside",
    },
    Row {
        field: "process.execCPUAffinity",
        asked: |process| process.exec_cpu_affinity().is_some(),
        verdict: Ignore,
        sentence: "CPU numbers are those of the host and name nothing in the machine",
    },
];

/// Refuses or warns about what is asked for in the whole specification.
pub(crate) fn check(spec: &Spec) -> Result<Vec<Warning>, PlanError> {
    judge(SPEC, spec)
}

/// Refuses or warns about what is asked for in one process.
pub(crate) fn check_process(process: &Process) -> Result<Vec<Warning>, PlanError> {
    judge(PROCESS, process)
}

fn judge<T>(rows: &[Row<T>], subject: &T) -> Result<Vec<Warning>, PlanError> {
    let mut warnings = Vec::new();
    for row in rows.iter().filter(|row| (row.asked)(subject)) {
        match row.verdict {
            Refuse => return Err(PlanError::Unsupported { field: row.field.into(), sentence: row.sentence }),
            Ignore => warnings.push(Warning { field: row.field.into(), sentence: row.sentence.into() }),
        }
    }
    Ok(warnings)
}

fn linux(spec: &Spec, asked: fn(&oci_spec::runtime::Linux) -> bool) -> bool {
    spec.linux().as_ref().is_some_and(asked)
}

fn resources(spec: &Spec, asked: fn(&oci_spec::runtime::LinuxResources) -> bool) -> bool {
    spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).is_some_and(asked)
}

#[allow(deprecated)] // prestart is deprecated in the specification and still sent
fn hooks(spec: &Spec, which: usize) -> bool {
    let Some(hooks) = spec.hooks() else { return false };
    let lists: [&Option<Vec<Hook>>; 6] = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    lists[which].as_ref().is_some_and(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.2.0",{json}}}"#);
        serde_json::from_str(&text).expect("the test's own specification")
    }

    #[test]
    fn hooks_of_the_host_are_left_out_with_a_warning() {
        let warnings = check(&spec(r#""hooks":{"createRuntime":[{"path":"/bin/true"}]}"#)).expect("not refused");
        assert_eq!(warnings.len(), 1);
        assert_eq!(warnings[0].field, "hooks.createRuntime");
    }

    #[test]
    fn user_namespaces_and_personalities_are_refused_by_name() {
        let maps = r#""linux":{"uidMappings":[{"hostID":0,"containerID":0,"size":1}]}"#;
        assert!(check(&spec(maps)).expect_err("refused").to_string().contains("linux.uidMappings"));
        let personality = r#""linux":{"personality":{"domain":"LINUX32"}}"#;
        if let Ok(spec) = serde_json::from_str::<Spec>(&format!(r#"{{"ociVersion":"1.2.0",{personality}}}"#)) {
            assert!(check(&spec).expect_err("refused").to_string().contains("linux.personality"));
        }
    }

    #[test]
    fn security_modules_the_guest_lacks_are_warned_about_but_unconfined_is_not() {
        let process = |profile: &str| -> Process {
            let text = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/","apparmorProfile":"{profile}"}}"#);
            serde_json::from_str(&text).expect("the test's own process")
        };
        assert_eq!(check_process(&process("docker-default")).expect("not refused").len(), 1);
        assert!(check_process(&process("unconfined")).expect("not refused").is_empty());
    }

    #[test]
    fn the_page_on_limits_has_every_field() {
        let page = include_str!("../../../docs/limits.md");
        for field in SPEC.iter().map(|row| row.field).chain(PROCESS.iter().map(|row| row.field)) {
            // A specification without a Linux part is a specification for another system.
            assert!(field == "linux" || page.contains(&format!("`{field}`")), "docs/limits.md does not say {field}");
        }
    }

    #[test]
    fn every_row_says_what_to_do_in_a_sentence_without_a_full_stop() {
        let sentences = SPEC.iter().map(|row| row.sentence).chain(PROCESS.iter().map(|row| row.sentence));
        for sentence in sentences {
            assert!(sentence.len() > 20 && !sentence.ends_with('.'), "{sentence}");
        }
    }
}
