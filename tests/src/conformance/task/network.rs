//! A container for which nobody made a network has one of its own, at the task's pid: `ctr run --cni`, nerdctl and hooks of a runtime fill it there.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};

use crate::{
    NetworkNamespace,
    conformance::{Bundle, Case, Stdio, Subject, Task},
    node::poll_until,
};

const GROUP: &str = "Task: network";
/// How long the news of an interface may be on their way.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// The neighbour's address, and the container's.
const NEIGHBOUR: &str = "10.77.0.1";
const OWN: &str = "10.77.0.2";

pub fn cases() -> Vec<Case> {
    let case = |name, run| Case::new(GROUP, name, run);
    vec![
        case("the task's pid leads to a network namespace that is not the host's", own_namespace),
        case("what is put there before the start is there from the first instruction on", before_the_start),
        case("what is put there later comes, carries frames, changes and goes", later),
    ]
}

/// The network of a task, and a neighbour of it.
struct Wire {
    neighbour: NetworkNamespace,
    task: NetworkNamespace,
}

impl Wire {
    fn to(pid: u32) -> anyhow::Result<Self> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let (neighbour, task) = (NetworkNamespace::new()?, NetworkNamespace::open(&path)?);
        Ok(Self { neighbour, task })
    }

    /// What a plugin does: a pair of interfaces, the address, the route.
    fn plug(&self) -> anyhow::Result<()> {
        let there = self.task.path();
        self.neighbour.ip(&format!("link add far0 type veth peer name net0 netns {}", there.display()))?;
        self.neighbour.ip(&format!("address add {NEIGHBOUR}/24 dev far0"))?;
        self.neighbour.ip("link set far0 up")?;
        self.task.ip(&format!("address add {OWN}/24 dev net0"))?;
        self.task.ip("link set net0 up")?;
        self.task.ip(&format!("route add default via {NEIGHBOUR}")).map(drop)
    }
}

fn own_namespace(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let pid = task.state("")?.pid;
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    ensure!(namespace(&pid.to_string())? != namespace("self")?, "the task is in the host's network");
    let (_, interfaces) = task.output_of("e1", &["ls", "/sys/class/net"])?;
    ensure!(interfaces == "lo\n", "{interfaces:?}");
    task.end()
}

fn before_the_start(subject: &Subject) -> anyhow::Result<()> {
    let words = "(ip -o address show dev net0; ip route) > /draft 2>&1; mv /draft /first; sleep 1000";
    let task = Task::new(subject, Bundle::new(subject, &["sh", "-c", words])?)?;
    let pid = task.create(&Stdio::none())?.pid;
    let wire = Wire::to(pid)?;
    wire.plug()?;
    task.start("")?;
    let (code, first) = task.output_of("e1", &["sh", "-c", "until [ -e /first ]; do sleep 0.02; done; cat /first"])?;
    let has_all = first.contains(OWN) && first.contains(&format!("default via {NEIGHBOUR} dev net0"));
    ensure!(has_all, "exit {code}: {first:?}");
    task.end()
}

fn later(subject: &Subject) -> anyhow::Result<()> {
    let task = Task::running(subject, &["sleep", "1000"])?;
    let wire = Wire::to(task.state("")?.pid)?;
    let mut execs = 0;
    let mut becomes_so = |line: &str| {
        let tried = poll_until(ARRIVES_WITHIN, || {
            execs += 1;
            let (code, said) = task.output_of(&format!("e{execs}"), &["sh", "-c", line])?;
            Ok((code == 0).then_some(said))
        });
        tried?.with_context(|| format!("{line:?} does not succeed"))
    };
    for _ in 0..2 {
        wire.plug()?;
        becomes_so(&format!("ping -c 1 -W 1 {NEIGHBOUR}"))?;
        wire.task.ip("address add 10.78.0.2/24 dev net0")?;
        becomes_so("ip -o address show dev net0 | grep -q 10.78.0.2/24")?;
        wire.neighbour.ip("link delete far0")?;
        becomes_so("! [ -e /sys/class/net/net0 ]")?;
    }
    task.end()
}
