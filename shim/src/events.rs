//! What containerd must hear of a pod, as values, and as the envelopes that carry them.

use std::time::SystemTime;

use containerd_shim_protos::{
    api::{ForwardRequest, Mount},
    events::task::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed,
        TaskStart,
    },
    shim::event::Envelope,
    topics,
};
use pod::{Exit, ProcessId};
use protobuf::{Message, well_known_types::any::Any};

use crate::{stdio::Paths, timestamp};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A container was made.
    Created {
        /// The container.
        container_id: String,
        /// Its bundle.
        bundle: String,
        /// The mounts of its root, as containerd named them.
        rootfs: Vec<Mount>,
        /// Where its stdio goes.
        stdio: Paths,
        /// The task's pid as containerd shows it.
        pid: u32,
    },
    /// A process runs.
    Started(ProcessId, u32),
    /// An exec was registered.
    ExecAdded(ProcessId),
    /// The guest's kernel killed for want of memory.
    OutOfMemory(String),
    /// A process ended.
    Exited(ProcessId, u32, Exit),
    /// A container was deleted.
    Deleted(String, u32, Exit),
    /// A container was frozen.
    Paused(String),
    /// A container was thawed.
    Resumed(String),
}

impl Event {
    /// The request that tells containerd, stamped with the moment it happened.
    pub fn to_request(&self, namespace: &str, at: SystemTime) -> ForwardRequest {
        let (topic, body) = self.topic_and_body();
        let event = Any { type_url: format!("containerd.events.{}", body.name), value: body.bytes, ..Any::default() };
        let envelope = Envelope {
            timestamp: Some(timestamp::proto(at)).into(),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event).into(),
            ..Envelope::default()
        };
        ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() }
    }

    fn topic_and_body(&self) -> (&'static str, Body) {
        match self {
            Self::Created { container_id, bundle, rootfs, stdio, pid } => {
                let io = TaskIO {
                    stdin: stdio.stdin.clone(),
                    stdout: stdio.stdout.clone(),
                    stderr: stdio.stderr.clone(),
                    terminal: stdio.terminal,
                    ..TaskIO::default()
                };
                let message = TaskCreate {
                    container_id: container_id.clone(),
                    bundle: bundle.clone(),
                    rootfs: rootfs.iter().map(event_mount).collect(),
                    io: Some(io).into(),
                    pid: *pid,
                    ..TaskCreate::default()
                };
                (topics::TASK_CREATE_EVENT_TOPIC, body(&message))
            }
            Self::Started(id, pid) if id.exec_id.is_empty() => {
                let message = TaskStart { container_id: id.container_id.clone(), pid: *pid, ..TaskStart::default() };
                (topics::TASK_START_EVENT_TOPIC, body(&message))
            }
            Self::Started(id, pid) => {
                let message = TaskExecStarted {
                    container_id: id.container_id.clone(),
                    exec_id: id.exec_id.clone(),
                    pid: *pid,
                    ..TaskExecStarted::default()
                };
                (topics::TASK_EXEC_STARTED_EVENT_TOPIC, body(&message))
            }
            Self::ExecAdded(id) => {
                let message = TaskExecAdded {
                    container_id: id.container_id.clone(),
                    exec_id: id.exec_id.clone(),
                    ..TaskExecAdded::default()
                };
                (topics::TASK_EXEC_ADDED_EVENT_TOPIC, body(&message))
            }
            Self::OutOfMemory(container_id) => {
                let message = TaskOOM { container_id: container_id.clone(), ..TaskOOM::default() };
                (topics::TASK_OOM_EVENT_TOPIC, body(&message))
            }
            Self::Exited(id, pid, exit) => {
                // The first process of a container is named by the container's id, never by an empty one.
                let name = if id.exec_id.is_empty() { &id.container_id } else { &id.exec_id };
                let message = TaskExit {
                    container_id: id.container_id.clone(),
                    id: name.clone(),
                    pid: *pid,
                    exit_status: exit.status,
                    exited_at: Some(timestamp::proto(exit.at)).into(),
                    ..TaskExit::default()
                };
                (topics::TASK_EXIT_EVENT_TOPIC, body(&message))
            }
            Self::Deleted(container_id, pid, exit) => {
                let message = TaskDelete {
                    container_id: container_id.clone(),
                    pid: *pid,
                    exit_status: exit.status,
                    exited_at: Some(timestamp::proto(exit.at)).into(),
                    ..TaskDelete::default()
                };
                (topics::TASK_DELETE_EVENT_TOPIC, body(&message))
            }
            Self::Paused(container_id) => {
                let message = TaskPaused { container_id: container_id.clone(), ..TaskPaused::default() };
                (topics::TASK_PAUSED_EVENT_TOPIC, body(&message))
            }
            Self::Resumed(container_id) => {
                let message = TaskResumed { container_id: container_id.clone(), ..TaskResumed::default() };
                (topics::TASK_RESUMED_EVENT_TOPIC, body(&message))
            }
        }
    }
}

struct Body {
    name: &'static str,
    bytes: Vec<u8>,
}

// The name is a constant; asking the message's descriptor would parse all of the package's descriptors first.
fn body<M: Message>(message: &M) -> Body {
    Body { name: M::NAME, bytes: message.write_to_bytes().unwrap_or_default() }
}

// The crate has the message twice, once for each package that imports it; on the wire they are one.
fn event_mount<M: Message>(mount: &Mount) -> M {
    mount.write_to_bytes().and_then(|bytes| M::parse_from_bytes(&bytes)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn process(exec_id: &str) -> ProcessId {
        ProcessId { container_id: "c".into(), exec_id: exec_id.into() }
    }

    fn envelope(event: &Event) -> Envelope {
        event.to_request("ns", UNIX_EPOCH).envelope.into_option().expect("envelope")
    }

    #[test]
    fn topics_and_types_are_the_ones_containerd_knows() {
        let exit = Exit { status: 1, at: UNIX_EPOCH, oom_killed: false };
        for (event, topic, kind) in [
            (Event::Started(process(""), 1), "/tasks/start", "containerd.events.TaskStart"),
            (Event::Started(process("e"), 1), "/tasks/exec-started", "containerd.events.TaskExecStarted"),
            (Event::ExecAdded(process("e")), "/tasks/exec-added", "containerd.events.TaskExecAdded"),
            (Event::OutOfMemory("c".into()), "/tasks/oom", "containerd.events.TaskOOM"),
            (Event::Exited(process(""), 1, exit), "/tasks/exit", "containerd.events.TaskExit"),
            (Event::Deleted("c".into(), 1, exit), "/tasks/delete", "containerd.events.TaskDelete"),
            (Event::Paused("c".into()), "/tasks/paused", "containerd.events.TaskPaused"),
            (Event::Resumed("c".into()), "/tasks/resumed", "containerd.events.TaskResumed"),
        ] {
            let envelope = envelope(&event);
            assert_eq!((envelope.topic.as_str(), envelope.event.type_url.as_str()), (topic, kind));
            assert_eq!(envelope.namespace, "ns");
        }
    }

    #[test]
    fn the_first_process_exits_under_its_containers_name_and_an_exec_under_its_own() {
        let exit = Exit { status: 9, at: UNIX_EPOCH, oom_killed: false };
        for (exec_id, name) in [("", "c"), ("e", "e")] {
            let envelope = envelope(&Event::Exited(process(exec_id), 1, exit));
            let message = TaskExit::parse_from_bytes(&envelope.event.value).expect("parsed");
            assert_eq!((message.container_id.as_str(), message.id.as_str(), message.exit_status), ("c", name, 9));
        }
    }

    #[test]
    fn a_created_container_keeps_its_mounts_and_stdio() {
        let mount = Mount { type_: "overlay".into(), source: "o".into(), ..Mount::default() };
        let stdio = Paths { stdout: "/out".into(), terminal: true, ..Paths::default() };
        let event =
            Event::Created { container_id: "c".into(), bundle: "/b".into(), rootfs: vec![mount], stdio, pid: 7 };
        let message = TaskCreate::parse_from_bytes(&envelope(&event).event.value).expect("parsed");
        assert_eq!(message.rootfs[0].type_, "overlay");
        assert!(message.io.terminal && message.io.stdout == "/out");
    }
}
