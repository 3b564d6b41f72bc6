//! What a container sees of files: its root, mounts, devices, and what is hidden from it.

use serde_json::json;

use crate::support::{self, needs_root};

#[test]
fn needs_root_masked_files_and_directories_show_nothing() {
    let Some(mut pod) = needs_root!() else { return };
    pod.write_file("secret", "no");
    pod.write_file("dir/inside", "no");
    pod.spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/secret", "/dir", "/does/not/exist"]);
    let ended = pod
        .shell(
            "cat /proc/kcore /secret; ls /dir; touch /dir/x; echo over > /secret; cat /secret; stat -c %t:%T /secret",
        )
        .run();
    assert_eq!(ended.stdout, "1:3\n", "{ended:?}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
    assert_eq!(pod.read_file("secret"), "no");
}

#[test]
fn needs_root_readonly_paths_and_a_readonly_root_refuse_writing() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["root"]["readonly"] = json!(true);
    pod.spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    let ended =
        pod.shell("echo x > /file; echo y > /proc/sys/kernel/hostname; echo z > /dev/shm/f && cat /dev/shm/f").run();
    assert_eq!(ended.stderr.matches("Read-only file system").count(), 2, "{ended:?}");
    assert_eq!(ended.stdout, "z\n");
}

#[test]
fn needs_root_dev_has_its_devices_and_links() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["linux"]["devices"] =
        json!([{"path": "/dev/sub/loop", "type": "b", "major": 7, "minor": 1, "fileMode": 0o640, "uid": 5, "gid": 6}]);
    let script = "stat -c '%n %F %t:%T %a %u:%g' /dev/null /dev/full /dev/sub/loop; \
                  for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo gone > /dev/null";
    let ended = pod.shell(script).run();
    let wanted = "/dev/null character special file 1:3 666 0:0\n/dev/full character special file 1:7 666 0:0\n\
                  /dev/sub/loop block special file 7:1 640 5:6\n\
                  /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    assert_eq!(ended.stdout, wanted, "{ended:?}");
}

#[test]
fn needs_root_binds_show_files_and_their_options_hold() {
    let Some(mut pod) = needs_root!() else { return };
    let volume = tempfile::tempdir().expect("a directory");
    std::fs::write(volume.path().join("data"), "from outside").expect("written");
    let file = volume.path().join("data");
    pod.mount(json!({"destination": "/volume", "type": "bind", "source": volume.path(), "options": ["rbind", "rw", "rprivate"]}));
    pod.mount(json!({"destination": "/etc/one", "type": "bind", "source": file, "options": ["bind", "ro", "noexec", "nosuid"]}));
    let script = "cat /volume/data; echo; cat /etc/one; echo; echo back > /volume/back; echo no > /etc/one; grep /etc/one /proc/mounts";
    let ended = pod.shell(script).run();
    assert!(ended.stdout.starts_with("from outside\nfrom outside\n"), "{ended:?}");
    assert!(ended.stdout.contains("ro,nosuid,noexec"), "{ended:?}");
    assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(volume.path().join("back")).expect("written from inside"), "back\n");
}

#[test]
fn needs_root_recursive_readonly_holds_for_mounts_below() {
    let Some(mut pod) = needs_root!() else { return };
    let volume = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(volume.path().join("below")).expect("a directory");
    let below = support::Tmpfs::mount(&volume.path().join("below"));
    pod.mount(json!({"destination": "/volume", "type": "bind", "source": volume.path(), "options": ["rbind", "rro"]}));
    let ended = pod.shell("touch /volume/x; touch /volume/below/y").run();
    assert_eq!(ended.stderr.matches("Read-only file system").count(), 2, "{ended:?}");
    drop(below);
}

#[test]
fn needs_root_a_link_in_the_image_cannot_lead_a_mount_outside() {
    let Some(mut pod) = needs_root!() else { return };
    let outside = tempfile::tempdir().expect("a directory");
    pod.symlink(outside.path(), "volume");
    pod.mount(json!({"destination": "/volume", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}));
    let ended = pod.shell("touch /volume/here && ls /volume").run();
    assert_eq!(ended.stdout, "here\n", "{ended:?}");
    assert_eq!(std::fs::read_dir(outside.path()).expect("listed").count(), 0);
    assert!(pod.exists(outside.path().strip_prefix("/").expect("absolute")), "the target was made inside");
}

#[test]
fn needs_root_proc_behind_a_link_is_refused() {
    let Some(pod) = needs_root!() else { return };
    pod.remove_dir("proc");
    pod.symlink("tmp".as_ref(), "proc");
    let error = pod.command(&["true"]).try_create().expect_err("refused");
    assert!(error.to_string().contains("could not mount /proc"), "{error}");
}

#[test]
fn needs_root_a_mount_that_a_link_leads_into_proc_is_refused() {
    let Some(mut pod) = needs_root!() else { return };
    pod.symlink("/proc".as_ref(), "innocent");
    pod.mount(json!({"destination": "/innocent/sys", "type": "tmpfs", "source": "tmpfs"}));
    let error = pod.command(&["true"]).try_create().expect_err("refused");
    assert!(error.to_string().contains("a link leads into /proc"), "{error}");
}

#[test]
fn needs_root_the_guests_root_is_out_of_reach() {
    let Some(pod) = needs_root!() else { return };
    let ended = pod.shell("cd /; cd ../../..; pwd; cat /proc/mounts | wc -l; ls /work 2>&1").run();
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[0], "/");
    assert!(lines[1].parse::<u32>().expect("a number") < 15, "{ended:?}");
}

#[test]
fn needs_root_a_node_made_for_another_device_cannot_be_opened() {
    let Some(mut pod) = needs_root!() else { return };
    let some = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    pod.spec["process"]["capabilities"] = json!({"bounding": some, "effective": some, "permitted": some});
    pod.spec["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
    let script = "mknod /tmp/disk b 254 0; mknod /tmp/mem c 1 1; mknod /tmp/zero c 1 5; \
                  for d in disk mem zero; do head -c 1 /tmp/$d > /dev/null && echo $d; done";
    let ended = pod.shell(script).run();
    assert_eq!(ended.stdout, "zero\n", "{ended:?}");
    assert_eq!(ended.stderr.matches("Operation not permitted").count(), 2, "{ended:?}");
}

#[test]
fn needs_root_a_privileged_container_can_open_every_device() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["linux"]["resources"]["devices"] =
        json!([{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]);
    pod.spec["linux"]["devices"] = json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]);
    let ended = pod.shell("echo -n > /dev/kmsg && echo opened").run();
    assert_eq!(ended.stdout, "opened\n", "{ended:?}");
}

#[test]
fn needs_root_a_null_device_of_the_images_own_is_not_trusted() {
    let Some(mut pod) = needs_root!() else { return };
    pod.spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/dev");
    pod.write_file("dev/null", "catches everything");
    let error = pod.command(&["true"]).try_create().expect_err("refused");
    assert_eq!(error.to_string(), "could not make the device /dev/null: the image has something else there");
}

#[test]
fn needs_root_nothing_is_left_mounted_outside() {
    let Some(mut pod) = needs_root!() else { return };
    let volume = tempfile::tempdir().expect("a directory");
    pod.mount(
        json!({"destination": "/volume", "type": "bind", "source": volume.path(), "options": ["rbind", "rshared"]}),
    );
    assert_eq!(pod.shell("true").run().code, 0);
    pod.mount(json!({"destination": "/late", "type": "nosuchfs", "source": "none"}));
    let error = pod.shell("true").try_create().expect_err("no such file system");
    assert!(error.to_string().contains("could not mount /late"), "{error}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read");
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(pod.root().to_str().expect("text"))).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn needs_root_a_root_can_be_shared_or_slave_inside() {
    let Some(mut pod) = needs_root!() else { return };
    for (asked, shown) in [(json!("shared"), "shared:"), (json!("unbindable"), "unbindable"), (json!(null), " - ")] {
        pod.spec["linux"]["rootfsPropagation"] = asked;
        let ended = pod
            .shell(
                "grep ' / / ' /proc/self/mountinfo || grep -E '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo",
            )
            .run();
        assert!(ended.stdout.contains(shown), "{ended:?}");
    }
}
