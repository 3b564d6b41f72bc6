//! The security context of pods and containers.

use std::fs;

use anyhow::{Context, ensure};
use cri::v1;
use v1::security_profile::ProfileType;

use super::{super::Case, Subject, node, pod, same, sh};
use crate::node::Template;

const GROUP: &str = "Pods: security context";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "runAsUser is the user, with the groups that the image gives it", run_as_user),
        Case::new(GROUP, "runAsUser needs no entry in the image", run_as_unknown_user),
        Case::new(GROUP, "runAsUserName is looked up in the image", run_as_user_name),
        Case::new(GROUP, "runAsGroup is the group", run_as_group),
        Case::new(GROUP, "supplemental groups are added", supplemental_groups),
        Case::new(GROUP, "an unknown user name is refused by name", unknown_user_name),
        Case::new(GROUP, "a container has the default capabilities", default_capabilities),
        Case::new(GROUP, "added capabilities are there, dropped ones are not", capabilities),
        Case::new(GROUP, "ALL drops every capability, and an added one stays", drop_all),
        Case::new(GROUP, "a user other than root has no effective capabilities", of_a_user),
        Case::new(GROUP, "noNewPrivileges is on when asked for, off otherwise", no_new_privileges),
        Case::new(GROUP, "seccomp RuntimeDefault filters, Unconfined does not", seccomp),
        Case::new(GROUP, "a Localhost seccomp profile decides", seccomp_localhost),
        Case::new(GROUP, "a Localhost seccomp profile that is not there is refused by its path", seccomp_missing),
        Case::new(GROUP, "an unprivileged container cannot mount or change the network", unprivileged),
        Case::new(GROUP, "a privileged container has all capabilities, no filter and writable cgroups", privileged),
        Case::new(GROUP, "a read-only root is not written, a volume on it is", readonly_root),
        Case::new(GROUP, "masked paths show nothing, read-only paths are not written", masked),
        Case::new(GROUP, "an empty list of masked paths masks nothing", unmasked),
        Case::new(GROUP, "oom_score_adj is the container's", oom_score),
        Case::new(GROUP, "ulimits are the same in container and exec", ulimits),
        Case::new(GROUP, "devices are the usual ones, and others cannot be made", devices),
    ]
}

fn value(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

/// What a shell line prints under a security context.
fn under(
    subject: &Subject,
    line: &str,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> anyhow::Result<String> {
    let pod = pod(subject)?;
    let (status, printed) = pod.run_to_end(Template::sh(line).security(change))?;
    ensure!(status.exit_code == 0, "exit {}: {printed}", status.exit_code);
    pod.remove()?;
    Ok(printed)
}

fn run_as_user(subject: &Subject) -> anyhow::Result<()> {
    let printed = under(subject, "id -u; id -g; id -G", |context| context.run_as_user = value(1000))?;
    // app is in audio, video and crew: see rootfs-builder's image.
    same("uid, gid, groups", printed.as_str(), "1000\n1000\n1000 29 44 2000\n")
}

fn run_as_unknown_user(subject: &Subject) -> anyhow::Result<()> {
    let printed = under(subject, "id -u; id -g", |context| context.run_as_user = value(54321))?;
    same("uid, gid", printed.as_str(), "54321\n0\n")
}

fn run_as_user_name(subject: &Subject) -> anyhow::Result<()> {
    let printed = under(subject, "id -u; id -g; id -G", |context| context.run_as_username = "app".to_owned())?;
    same("uid, gid, groups", printed.as_str(), "1000\n1000\n1000 29 44 2000\n")
}

fn run_as_group(subject: &Subject) -> anyhow::Result<()> {
    let printed = under(subject, "id -u; id -g; touch /tmp/x; stat -c %g /tmp/x", |context| {
        context.run_as_user = value(1000);
        context.run_as_group = value(4242);
    })?;
    same("uid, gid, group of a file", printed.as_str(), "1000\n4242\n4242\n")
}

fn supplemental_groups(subject: &Subject) -> anyhow::Result<()> {
    let printed = under(subject, "id -G", |context| {
        context.run_as_user = value(1000);
        context.supplemental_groups = vec![1234, 5678];
    })?;
    let groups: Vec<_> = printed.split_whitespace().collect();
    ensure!(["1000", "1234", "5678"].iter().all(|group| groups.contains(group)), "groups: {printed}");
    Ok(())
}

fn unknown_user_name(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = Template::pause().security(|context| context.run_as_username = "nobody-knows".to_owned());
    let error = pod.create(template).err().context("there is no such user")?;
    ensure!(error.message().contains("no users found"), "{error}");
    Ok(pod.remove()?)
}

fn default_capabilities(subject: &Subject) -> anyhow::Result<()> {
    let printed = sh(subject, "grep ^Cap /proc/self/status | tr -d '\\t'")?;
    let default = "00000000a80425fb";
    let expected = format!(
        "CapInh:0000000000000000\nCapPrm:{default}\nCapEff:{default}\nCapBnd:{default}\nCapAmb:0000000000000000\n"
    );
    same("capabilities", printed, expected)
}

fn effective(subject: &Subject, add: &[&str], drop: &[&str]) -> anyhow::Result<u64> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let capabilities =
        v1::Capability { add_capabilities: owned(add), drop_capabilities: owned(drop), ..Default::default() };
    let line = "sed -n 's/CapEff:\\t//p' /proc/self/status";
    let printed = under(subject, line, |context| context.capabilities = Some(capabilities))?;
    Ok(u64::from_str_radix(printed.trim(), 16)?)
}

/// Numbers of capabilities (linux/capability.h).
const CAP_CHOWN: u64 = 1;
const CAP_NET_RAW: u64 = 1 << 13;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const DEFAULT: u64 = 0xa804_25fb;

fn capabilities(subject: &Subject) -> anyhow::Result<()> {
    let found = effective(subject, &["NET_ADMIN"], &["NET_RAW", "CHOWN"])?;
    same("capabilities", found, (DEFAULT | CAP_NET_ADMIN) & !CAP_NET_RAW & !CAP_CHOWN)
}

fn drop_all(subject: &Subject) -> anyhow::Result<()> {
    same("nothing left", effective(subject, &[], &["ALL"])?, 0)?;
    same("the added one", effective(subject, &["NET_RAW"], &["ALL"])?, CAP_NET_RAW)
}

fn of_a_user(subject: &Subject) -> anyhow::Result<()> {
    let line = "sed -n 's/CapEff:\\t//p' /proc/self/status; chown 0 /tmp 2>/dev/null || echo refused";
    let printed = under(subject, line, |context| context.run_as_user = value(1000))?;
    same("capabilities", printed.as_str(), "0000000000000000\nrefused\n")
}

fn no_new_privileges(subject: &Subject) -> anyhow::Result<()> {
    for (wanted, expected) in [(true, "1"), (false, "0")] {
        let line = "sed -n 's/NoNewPrivs:\\t//p' /proc/self/status";
        let printed = under(subject, line, |context| context.no_new_privs = wanted)?;
        same("NoNewPrivs", printed.trim(), expected)?;
    }
    Ok(())
}

fn profile(profile_type: ProfileType, path: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile { profile_type: profile_type.into(), localhost_ref: path.to_owned() })
}

fn seccomp(subject: &Subject) -> anyhow::Result<()> {
    let line = "sed -n 's/Seccomp:\\t//p' /proc/self/status; unshare -U true 2>/dev/null && echo may || echo may not";
    let filtered = under(subject, line, |context| context.seccomp = profile(ProfileType::RuntimeDefault, ""))?;
    same("RuntimeDefault", filtered.as_str(), "2\nmay not\n")?;
    let free = under(subject, line, |context| context.seccomp = profile(ProfileType::Unconfined, ""))?;
    ensure!(free.starts_with("0\n"), "Unconfined: {free}");
    Ok(())
}

fn seccomp_localhost(subject: &Subject) -> anyhow::Result<()> {
    let file = node()?.fresh_folder().join("no-mkdir.json");
    let rule = r#"{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}"#;
    fs::write(&file, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#))?;
    let path = file.display().to_string();
    let line = "mkdir /tmp/x 2>&1 | grep -o 'Operation not permitted'; touch /tmp/y && echo touched";
    let printed = under(subject, line, |context| context.seccomp = profile(ProfileType::Localhost, &path))?;
    same("printed", printed.as_str(), "Operation not permitted\ntouched\n")
}

fn seccomp_missing(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = Template::pause().security(|c| c.seccomp = profile(ProfileType::Localhost, "/no/such/profile.json"));
    let error = pod.start(template).err().context("there is no such profile")?;
    ensure!(error.message().contains("/no/such/profile.json"), "{error}");
    Ok(pod.remove()?)
}

fn unprivileged(subject: &Subject) -> anyhow::Result<()> {
    let line = "mount -t tmpfs none /mnt 2>/dev/null && echo mounted; ip link add type veth 2>/dev/null && echo linked; echo end";
    same("printed", sh(subject, line)?.as_str(), "end\n")
}

fn privileged(subject: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let mut config = node.pod_config();
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = node.run_pod(subject.runtime(), config)?;
    let line = "sed -n 's/CapEff:\\t//p;s/Seccomp:\\t//p' /proc/self/status; mount -t tmpfs none /mnt && echo mounted; \
                grep ' /sys/fs/cgroup' /proc/mounts | grep -q ' rw,' && echo writable";
    let template = Template::sh(line).security(|context| {
        context.privileged = true;
        context.masked_paths.clear();
        context.readonly_paths.clear();
        context.seccomp = None;
    });
    let (status, printed) = pod.run_to_end(template)?;
    let (capabilities, rest) = printed.split_once('\n').context("lines")?;
    let capabilities = u64::from_str_radix(capabilities, 16)?;
    same("CAP_SYS_ADMIN", capabilities & CAP_SYS_ADMIN, CAP_SYS_ADMIN)?;
    same("the rest", (status.exit_code, rest), (0, "0\nmounted\nwritable\n"))?;
    Ok(pod.remove()?)
}

fn readonly_root(subject: &Subject) -> anyhow::Result<()> {
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    let line = "touch /x 2>/dev/null && echo root written; touch /tmp/x 2>/dev/null && echo tmp written; touch /vol/x && echo volume written";
    let template = Template::sh(line).security(|c| c.readonly_rootfs = true).mount(&folder, "/vol", false);
    let (_, printed) = pod.run_to_end(template)?;
    same("printed", printed.as_str(), "volume written\n")?;
    Ok(pod.remove()?)
}

fn masked(subject: &Subject) -> anyhow::Result<()> {
    let line = "for f in kcore keys latency_stats timer_list timer_stats sched_debug; do test -e /proc/$f && cat /proc/$f; done | wc -c; \
                ls -A /proc/scsi /proc/acpi /proc/asound 2>/dev/null | grep -v '^/proc\\|^$' | wc -l; \
                echo 1 2>/dev/null >/proc/sys/kernel/domainname || echo refused; (echo h >/proc/sysrq-trigger) 2>/dev/null || echo refused";
    same("printed", sh(subject, line)?.as_str(), "0\n0\nrefused\nrefused\n")
}

fn unmasked(subject: &Subject) -> anyhow::Result<()> {
    // timer_list wants CAP_SYS_ADMIN from whoever reads it, so a privileged look is needed to tell.
    let printed = under(subject, "mount | grep -c ' /proc/[a-z_]* '; true", |context| {
        context.masked_paths.clear();
        context.readonly_paths.clear();
    })?;
    same("mounts on /proc", printed.trim(), "0")
}

fn oom_score(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let template = Template::sh("cat /proc/self/oom_score_adj").resources(|limits| limits.oom_score_adj = 987);
    let (_, printed) = pod.run_to_end(template)?;
    same("oom_score_adj", printed.trim(), "987")?;
    let container = pod.start(Template::pause().resources(|limits| limits.oom_score_adj = 986))?;
    let printed = container.sh("cat /proc/1/oom_score_adj /proc/self/oom_score_adj")?;
    same("oom_score_adj of the container and of an exec", printed.as_str(), "986\n986\n")?;
    Ok(pod.remove()?)
}

fn ulimits(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let container =
        pod.start(Template::sh("ulimit -n; ulimit -c; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"))?;
    let first = container.wait_for_output("\n")?;
    let exec = container.sh("ulimit -n; ulimit -c")?;
    let files: u64 = exec.lines().next().unwrap_or_default().parse()?;
    ensure!(files >= 1024, "open files: {files}");
    ensure!(exec.starts_with(first.lines().next().unwrap_or("?")), "container: {first}, exec: {exec}");
    Ok(pod.remove()?)
}

fn devices(subject: &Subject) -> anyhow::Result<()> {
    let line = "for d in null zero full random urandom tty; do test -c /dev/$d || echo no $d; done; \
                test -e /dev/ptmx && test -d /dev/pts && test -d /dev/mqueue && echo there; \
                mknod /tmp/disk b 7 0 && dd if=/tmp/disk count=1 2>/dev/null | wc -c";
    same("printed", sh(subject, line)?.as_str(), "there\n0\n")
}
