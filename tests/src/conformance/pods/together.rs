//! Several containers in a pod: init containers, sidecars, many, and what they share.

use anyhow::ensure;
use cri::v1;

use super::{super::Case, Subject, node, pod, same};
use crate::node::{Container, Template};

const GROUP: &str = "Pods: containers together";
/// As many as FEATURES asks of a pod.
const MANY: usize = 32;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "init containers run one after the other before the others", init),
        Case::new(GROUP, "a sidecar runs before, beside and after the main container", sidecar),
        Case::new(GROUP, "two containers have files, processes and logs of their own", apart),
        Case::new(GROUP, "containers of a pod share a volume", shared_volume),
        Case::new(
            GROUP,
            "containers of a pod share its network, so 127.0.0.1 leads from one to the other",
            shared_network,
        ),
        Case::new(GROUP, "one container's end leaves the others alone", one_ends),
        Case::new(GROUP, "32 containers run in a pod", many),
        Case::new(GROUP, "a container is added after another has ended", added_later),
        Case::new(GROUP, "two containers that start at the same time both run", at_once),
    ]
}

fn init(subject: &Subject) -> anyhow::Result<()> {
    let node = node()?;
    let (pod, folder) = (pod(subject)?, node.fresh_folder());
    for name in ["first", "second"] {
        let template = Template::sh(&format!("echo {name} >> /work/order")).named(name).mount(&folder, "/work", false);
        let (status, _) = pod.run_to_end(template)?;
        same("reason", status.reason.as_str(), "Completed")?;
    }
    let (_, printed) = pod.run_to_end(Template::command(&["cat", "/work/order"]).mount(&folder, "/work", true))?;
    same("order", printed.as_str(), "first\nsecond\n")?;
    Ok(pod.remove()?)
}

fn sidecar(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let sidecar = pod.start(Template::pause().named("sidecar"))?;
    let (status, _) = pod.run_to_end(Template::sh("exit 0").named("init"))?;
    same("init", status.reason.as_str(), "Completed")?;
    let main = pod.start(Template::pause().named("main"))?;
    main.stop(30)?;
    same("sidecar", sidecar.status()?.state(), v1::ContainerState::ContainerRunning)?;
    sidecar.stop(30)?;
    same("sidecar's exit code", sidecar.status()?.exit_code, 0)?;
    Ok(pod.remove()?)
}

fn apart(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let one = pod.start(Template::sh("echo I am one; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"))?;
    let two = pod.start(Template::sh("echo I am two; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"))?;
    one.sh("touch /tmp/mine")?;
    same("files of the other", two.exec(&["test", "-e", "/tmp/mine"])?.exit_code, 1)?;
    same("processes", one.sh("echo $(ps -o args | grep -c '[I] am two')")?.trim(), "0")?;
    one.wait_for_output("I am one\n")?;
    two.wait_for_output("I am two\n")?;
    ensure!(!one.output()?.contains("two"), "{}", one.output()?);
    Ok(pod.remove()?)
}

fn shared_volume(subject: &Subject) -> anyhow::Result<()> {
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    let writer = pod.start(Template::pause().mount(&folder, "/out", false))?;
    let reader = pod.start(Template::pause().mount(&folder, "/in", true))?;
    writer.sh("echo news > /out/file")?;
    same("read", reader.sh("cat /in/file")?.as_str(), "news\n")?;
    writer.sh("echo more >> /out/file; mv /out/file /out/renamed")?;
    same("read", reader.sh("cat /in/renamed")?.as_str(), "news\nmore\n")?;
    Ok(pod.remove()?)
}

fn shared_network(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let serve = "import socket\ns = socket.create_server(('127.0.0.1', 8080))\nprint('ready', flush=True)\nwhile True: s.accept()[0].send(b'hello')";
    let server = pod.start(Template::python(serve))?;
    server.wait_for_output("ready")?;
    let ask = "import socket\nprint(socket.create_connection(('127.0.0.1', 8080)).recv(9).decode())";
    let (_, printed) = pod.run_to_end(Template::python(ask))?;
    same("answer", printed.as_str(), "hello\n")?;
    Ok(pod.remove()?)
}

fn one_ends(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let stays = pod.start(Template::pause())?;
    let (status, _) = pod.run_to_end(Template::sh("exit 9"))?;
    same("exit code", status.exit_code, 9)?;
    let killed = pod.start(Template::pause())?;
    killed.remove()?;
    same("state", stays.status()?.state(), v1::ContainerState::ContainerRunning)?;
    same("it answers", stays.sh("echo yes")?.as_str(), "yes\n")?;
    same("pod", pod.status()?.state(), v1::PodSandboxState::SandboxReady)?;
    Ok(pod.remove()?)
}

fn many(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let line = |n: usize| format!("echo {n}; trap 'exit {n}' TERM; while :; do sleep 1000 & wait; done");
    let all = (0..MANY).map(|n| pod.start(Template::sh(&line(n)))).collect::<cri::Answer<Vec<Container>>>()?;
    for (n, container) in all.iter().enumerate() {
        container.wait_for_output(&format!("{n}\n"))?;
        same("state", container.status()?.state(), v1::ContainerState::ContainerRunning)?;
    }
    let (first, last) = (&all[0], &all[MANY - 1]);
    last.stop(30)?;
    same("exit code of the last", last.status()?.exit_code, MANY as i32 - 1)?;
    same("the first answers", first.sh("echo yes")?.as_str(), "yes\n")?;
    Ok(pod.remove()?)
}

fn added_later(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    for n in 0..3 {
        let container = pod.start(Template::sh(&format!("echo {n}")))?;
        container.wait()?;
        same("output", container.whole_output()?, format!("{n}\n"))?;
        container.remove()?;
    }
    Ok(pod.remove()?)
}

fn at_once(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    std::thread::scope(|scope| {
        let starts: Vec<_> = (0..2).map(|_| scope.spawn(|| pod.start(Template::pause()).map(|one| one.id))).collect();
        starts.into_iter().map(|start| start.join().expect("no panic")).collect::<cri::Answer<Vec<_>>>()
    })?;
    Ok(pod.remove()?)
}
