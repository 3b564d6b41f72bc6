//! Names, memory and processes that containers of a pod share, or do not.

use std::fs;

use anyhow::{Context, ensure};
use cri::v1;

use super::{super::Case, Subject, node, pod, same, sh};
use crate::node::{Pod, Template};

const GROUP: &str = "Pods: namespaces";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "the hostname is the pod's, in every container and in $HOSTNAME", hostname),
        Case::new(GROUP, "/etc/hosts is the kubelet's file", hosts),
        Case::new(GROUP, "resolv.conf has the pod's servers, domains and options", resolv_conf),
        Case::new(GROUP, "/dev/shm is shared between containers of a pod", shared_memory),
        Case::new(GROUP, "System V shared memory is shared between containers of a pod", system_v),
        Case::new(GROUP, "/dev/shm of two pods is apart", memory_apart),
        Case::new(GROUP, "pids start at 1 in each container", own_pids),
        Case::new(
            GROUP,
            "with shareProcessNamespace containers see each other, and the pod's first process reaps",
            shared_pids,
        ),
        Case::new(GROUP, "with shareProcessNamespace a signal reaches another container's process", signal_across),
        Case::new(GROUP, "an ephemeral container sees the processes of its target alone", ephemeral),
        Case::new(GROUP, "sysctls of the pod are set, and no other pod's", sysctls),
        Case::new(GROUP, "a sysctl that is not there is refused by name", unknown_sysctl),
        Case::new(GROUP, "/dev/shm has 64 MiB unless told", shm_size),
    ]
}

fn hostname(subject: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let mut config = node.pod_config();
    config.hostname = "a-pod-of-tests".to_owned();
    let pod = node.run_pod(subject.runtime(), config)?;
    for _ in 0..2 {
        let (_, printed) = pod.run_to_end(Template::sh("hostname; cat /etc/hostname; echo $HOSTNAME"))?;
        same("names", printed.as_str(), "a-pod-of-tests\na-pod-of-tests\na-pod-of-tests\n")?;
    }
    Ok(pod.remove()?)
}

fn hosts(subject: &Subject) -> anyhow::Result<()> {
    let (pod, file) = (pod(subject)?, node()?.fresh_folder().join("etc-hosts"));
    fs::write(&file, "127.0.0.1\tlocalhost\n10.1.2.3\tsomewhere\n")?;
    let template = Template::sh("cat /etc/hosts; echo 10.9.9.9 added >> /etc/hosts").mount(&file, "/etc/hosts", false);
    let (_, printed) = pod.run_to_end(template)?;
    same("hosts", printed.as_str(), "127.0.0.1\tlocalhost\n10.1.2.3\tsomewhere\n")?;
    ensure!(fs::read_to_string(&file)?.ends_with("10.9.9.9 added\n"), "the write did not reach the kubelet's file");
    Ok(pod.remove()?)
}

fn resolv_conf(subject: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let mut config = node.pod_config();
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    config.dns_config = Some(v1::DnsConfig {
        servers: owned(&["10.96.0.10", "10.96.0.11"]),
        searches: owned(&["tests.svc.cluster.local", "cluster.local"]),
        options: owned(&["ndots:5"]),
    });
    let pod = node.run_pod(subject.runtime(), config)?;
    let (_, printed) = pod.run_to_end(Template::sh("cat /etc/resolv.conf"))?;
    let expected =
        "search tests.svc.cluster.local cluster.local\nnameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5\n";
    same("resolv.conf", printed.as_str(), expected)?;
    Ok(pod.remove()?)
}

fn shared_memory(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let (one, two) = (pod.start(Template::pause())?, pod.start(Template::pause())?);
    one.sh("echo shared > /dev/shm/note")?;
    same("read", two.sh("cat /dev/shm/note")?.as_str(), "shared\n")?;
    Ok(pod.remove()?)
}

fn system_v(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let (one, two) = (pod.start(Template::pause())?, pod.start(Template::pause())?);
    let namespace = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts";
    same("ipc and uts namespaces", one.sh(namespace)?, two.sh(namespace)?)?;
    Ok(pod.remove()?)
}

fn memory_apart(subject: &Subject) -> anyhow::Result<()> {
    let (first, second) = (pod(subject)?, pod(subject)?);
    let (one, two) = (first.start(Template::pause())?, second.start(Template::pause())?);
    one.sh("echo mine > /dev/shm/note")?;
    same("read", two.exec(&["test", "-e", "/dev/shm/note"])?.exit_code, 1)?;
    first.remove()?;
    Ok(second.remove()?)
}

fn own_pids(subject: &Subject) -> anyhow::Result<()> {
    same("pid", sh(subject, "echo $$; set -- /proc/[0-9]*; echo $#")?.as_str(), "1\n1\n")
}

fn with_pids(subject: &Subject, mode: v1::NamespaceMode) -> anyhow::Result<Pod<'static>> {
    let node = node()?;
    let mut config = node.pod_config();
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default().pid = mode.into();
    Ok(node.run_pod(subject.runtime(), config)?)
}

fn of_the_pod(template: Template) -> Template {
    template.security(|context| context.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Pod.into())
}

fn shared_pids(subject: &Subject) -> anyhow::Result<()> {
    let pod = with_pids(subject, v1::NamespaceMode::Pod)?;
    let _other = pod.start(of_the_pod(Template::command(&["sleep", "4321"])))?;
    let one = pod.start(of_the_pod(Template::pause()))?;
    let printed = one.sh("tr '\\0' ' ' </proc/1/cmdline; echo; ps | grep -c '[s]leep 4321'")?;
    let (first, others) = printed.split_once('\n').context("two lines")?;
    ensure!(!first.starts_with("sh "), "the first process is {first}");
    same("the other's processes", others.trim(), "1")?;
    // An orphan goes to the first process of the namespace, which reaps it.
    one.sh("sh -c 'sleep 0.05 & exit 0'")?;
    let zombies =
        || Ok(Some(()).filter(|()| one.sh("ps -o stat | grep -c '^Z' || true").is_ok_and(|n| n.trim() == "0")));
    let gone = crate::node::poll_until(std::time::Duration::from_secs(20), zombies)?;
    ensure!(gone.is_some(), "zombies stay");
    Ok(pod.remove()?)
}

fn signal_across(subject: &Subject) -> anyhow::Result<()> {
    let pod = with_pids(subject, v1::NamespaceMode::Pod)?;
    let other = pod.start(of_the_pod(Template::command(&["sleep", "4321"])))?;
    let one = pod.start(of_the_pod(Template::pause()))?;
    one.sh(
        "kill -TERM $(pidof sleep | tr ' ' '\\n' | while read p; do grep -q 4321 /proc/$p/cmdline && echo $p; done)",
    )?;
    same("exit code", other.wait()?.exit_code, 128 + 15)?;
    same("the first goes on", one.status()?.state(), v1::ContainerState::ContainerRunning)?;
    Ok(pod.remove()?)
}

fn ephemeral(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let target = pod.start(Template::sh("sleep 4321; true"))?;
    let _other = pod.start(Template::command(&["sleep", "1234"]))?;
    let id = target.id.clone();
    let debug = pod.start(Template::pause().named("debug").security(|context| {
        let namespaces = context.namespace_options.get_or_insert_default();
        namespaces.pid = v1::NamespaceMode::Target.into();
        namespaces.target_id = id;
    }))?;
    let printed = debug.sh("tr '\\0' ' ' </proc/1/cmdline; echo; ps | grep -c '[s]leep 1234'; cat /proc/1/root/etc/hostname >/dev/null; true")?;
    same("processes", printed.as_str(), "sh -c sleep 4321; true \n0\n")?;
    debug.stop(10)?;
    same("the target goes on", target.status()?.state(), v1::ContainerState::ContainerRunning)?;
    Ok(pod.remove()?)
}

fn sysctls(subject: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let mut config = node.pod_config();
    let wanted =
        [("net.ipv4.ip_unprivileged_port_start", "80"), ("kernel.shm_rmid_forced", "1"), ("kernel.msgmax", "65536")];
    let owned = wanted.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    config.linux.get_or_insert_default().sysctls = owned;
    let pod = node.run_pod(subject.runtime(), config)?;
    let line =
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/msgmax";
    let (_, printed) = pod.run_to_end(Template::sh(line))?;
    same("set", printed.as_str(), "80\n1\n65536\n")?;
    let other = sh(subject, "cat /proc/sys/kernel/msgmax")?;
    same("another pod's", other.trim(), "8192")?;
    Ok(pod.remove()?)
}

fn unknown_sysctl(subject: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let mut config = node.pod_config();
    config.linux.get_or_insert_default().sysctls = [("net.ipv4.no_such_thing".to_owned(), "1".to_owned())].into();
    let error = node.run_pod(subject.runtime(), config).err().context("there is no such sysctl")?;
    ensure!(error.message().contains("no_such_thing"), "{error}");
    Ok(())
}

fn shm_size(subject: &Subject) -> anyhow::Result<()> {
    same("KiB", sh(subject, "df -k /dev/shm | tail -1 | awk '{print $2}'")?.trim(), "65536")
}
