//! Terminals of a container.

use container::{StdioFds, TerminalSize};
use serde_json::json;

use crate::support::{self, needs_root};

#[test]
fn needs_root_a_terminal_has_its_size_and_is_the_console() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["terminal"] = json!(true);
    let size = TerminalSize { columns: 101, rows: 37 };
    let ended = pod
        .shell("stty size; tty; test -t 0 && test -t 2 && echo all; stat -c %t /dev/console; echo c > /dev/console")
        .terminal(size)
        .run();
    assert_eq!(ended.stdout, "37 101\r\n/dev/pts/0\r\nall\r\n88\r\nc\r\n");
}

#[test]
fn needs_root_a_terminal_follows_when_it_is_resized_and_passes_ctrl_c() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["terminal"] = json!(true);
    let script = "trap 'stty size; exit 7' WINCH; echo ready; while true; do read line; done";
    let mut running =
        pod.shell(script).terminal(TerminalSize { columns: 80, rows: 24 }).create().start().expect("started");
    running.read_until("ready");
    running.resize(TerminalSize { columns: 55, rows: 44 });
    let ended = running.wait();
    assert!(ended.stdout.contains("44 55"), "{ended:?}");
    assert_eq!(ended.code, 7);
}

#[test]
fn needs_root_a_console_link_in_the_image_covers_nothing_else() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["terminal"] = json!(true);
    pod.spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/dev");
    pod.symlink("/etc/passwd".as_ref(), "dev/console");
    let error =
        pod.command(&["true"]).terminal(TerminalSize { columns: 80, rows: 24 }).try_create().expect_err("refused");
    assert!(error.to_string().contains("/dev/console is neither"), "{error}");
}

#[test]
fn needs_root_pipes_for_a_terminal_are_refused() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["process"]["terminal"] = json!(true);
    let error = pod.command(&["true"]).try_create().expect_err("refused");
    assert!(error.to_string().contains("wants a terminal"), "{error}");
    drop(StdioFds::Terminal { size: None });
}
