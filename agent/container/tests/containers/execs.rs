//! Further processes of a container.

use container::TerminalSize;
use serde_json::json;

use crate::support::{self, needs_root};

#[test]
fn needs_root_an_exec_joins_every_namespace_and_the_cgroup() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["hostname"] = json!("joined");
    let links = "for n in mnt pid ipc uts cgroup; do readlink /proc/self/ns/$n; done";
    let mut first = pod.shell(&format!("{links}; echo ready; cat; true")).create().start().expect("started");
    first.read_until("ready");
    let exec = pod
        .exec(&first, &["sh", "-c", &format!("{links}; hostname; cat /proc/1/comm; grep ^0 /proc/self/cgroup")])
        .run();
    let firsts = first.close_and_wait().stdout;
    let firsts = firsts.strip_suffix("ready\n").expect("read so far");
    let ids = exec.stdout.strip_prefix(firsts).unwrap_or_else(|| panic!("{firsts} and {}", exec.stdout));
    assert!(ids.starts_with("joined\nsh\n"), "{ids}");
    assert!(ids.ends_with("0::/\n"), "{ids}");
}

#[test]
fn needs_root_an_exec_can_have_a_terminal_and_another_user() {
    let Some(mut pod) = needs_root!() else { return };
    let first = pod.command(&["cat"]).create().start().expect("started");
    pod.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    pod.spec["process"]["terminal"] = json!(true);
    let exec = pod.exec(&first, &["sh", "-c", "id -u; tty; stty size; stat -c %u /dev/pts/0"]);
    let ended = exec.terminal(TerminalSize { columns: 90, rows: 30 }).run();
    assert_eq!(ended.stdout, "1000\r\n/dev/pts/0\r\n30 90\r\n1000\r\n");
    assert_eq!(first.close_and_wait().code, 0);
}

#[test]
fn needs_root_an_exec_of_nothing_fails_alone() {
    let Some(pod) = needs_root!() else { return };
    let first = pod.command(&["cat"]).create().start().expect("started");
    let error = pod.exec(&first, &["nope"]).try_create().expect_err("no such program");
    assert_eq!(error.to_string(), r#"exec: "nope": executable file not found in $PATH"#);
    assert_eq!(first.close_and_wait().code, 0);
}

#[test]
fn needs_root_an_exec_in_an_ended_container_is_refused() {
    let Some(pod) = needs_root!() else { return };
    let first = pod.command(&["cat"]).create().start().expect("started");
    let handle = first.duplicate();
    first.close_and_wait();
    let error = pod.exec(&handle, &["true"]).try_create().expect_err("nothing to join");
    assert!(error.to_string().contains("could not join the container"), "{error}");
}

#[test]
fn needs_root_an_exec_follows_its_container_into_cgroups_made_inside() {
    let Some(mut pod) = needs_root!() else { return };
    for mount in pod.spec["mounts"].as_array_mut().expect("mounts") {
        if mount["destination"] == "/sys/fs/cgroup" {
            mount["options"] = json!(["rw"]);
        }
    }
    let script = "cd /sys/fs/cgroup; mkdir inner; echo 1 > inner/cgroup.procs; read first rest < cgroup.controllers; \
                  echo +$first > cgroup.subtree_control; echo ready; cat; true";
    let mut first = pod.shell(script).create().start().expect("started");
    first.read_until("ready");
    let ended = pod.exec(&first, &["grep", "^0", "/proc/self/cgroup"]).run();
    assert_eq!(ended.stdout, "0::/inner\n", "{ended:?}");
    assert_eq!(first.close_and_wait().code, 0);
}
