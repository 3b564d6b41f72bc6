//! Files and folders of the host in a container.

use std::fs;

use anyhow::ensure;
use cri::v1;

use super::{super::Case, Subject, node, pod, same};
use crate::node::Template;

const GROUP: &str = "Pods: volumes";

/// Why the numbers of devices differ.
const ITS_OWN_MOUNT: &str = "each mount of a volume is a file system of its own in the machine: it has another device number, and a file \
                             that grows at one place has its new size at the other a moment later";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(GROUP, "a folder of the host is read and written", folder),
        Case::new(GROUP, "a read-only folder is read and not written", readonly),
        Case::new(GROUP, "a file of the host is read and written", file),
        Case::new(GROUP, "a host path that is not there is made as a folder", missing),
        Case::new(GROUP, "a host path that is a symlink leads where it points", symlink),
        Case::new(GROUP, "a change on the host shows in the container", change_shows),
        Case::new(GROUP, "a volume below another is seen", nested),
        Case::new(GROUP, "owners and modes are the host's, and the container's user has to respect them", owners),
        Case::new(GROUP, "the termination message is written to the kubelet's file", termination_message),
        Case::new(GROUP, "the same volume at two places is the same, also to `cp`", two_places)
            .unlike_in_a_vm(ITS_OWN_MOUNT, two_places_in_a_vm),
        Case::new(GROUP, "thirty volumes are all there", thirty),
    ]
}

fn folder(subject: &Subject) -> anyhow::Result<()> {
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    fs::write(folder.join("in"), "from the host\n")?;
    let template = Template::sh("cat /vol/in; mkdir /vol/new; echo back > /vol/new/out").mount(&folder, "/vol", false);
    let (status, printed) = pod.run_to_end(template)?;
    same("end", (status.exit_code, printed.as_str()), (0, "from the host\n"))?;
    same("written", fs::read_to_string(folder.join("new/out"))?.as_str(), "back\n")?;
    Ok(pod.remove()?)
}

fn readonly(subject: &Subject) -> anyhow::Result<()> {
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    fs::write(folder.join("in"), "from the host\n")?;
    let line = "cat /vol/in; touch /vol/x 2>&1 | grep -o 'Read-only file system'; rm /vol/in 2>/dev/null || echo kept";
    let (_, printed) = pod.run_to_end(Template::sh(line).mount(&folder, "/vol", true))?;
    same("printed", printed.as_str(), "from the host\nRead-only file system\nkept\n")?;
    Ok(pod.remove()?)
}

fn file(subject: &Subject) -> anyhow::Result<()> {
    let (pod, file) = (pod(subject)?, node()?.fresh_folder().join("config"));
    fs::write(&file, "one\n")?;
    let template =
        Template::sh("cat /etc/app/config; echo two >> /etc/app/config").mount(&file, "/etc/app/config", false);
    let (_, printed) = pod.run_to_end(template)?;
    same("printed", printed.as_str(), "one\n")?;
    same("written", fs::read_to_string(&file)?.as_str(), "one\ntwo\n")?;
    Ok(pod.remove()?)
}

fn missing(subject: &Subject) -> anyhow::Result<()> {
    let (pod, path) = (pod(subject)?, node()?.fresh_folder().join("made"));
    let (status, _) = pod.run_to_end(Template::sh("touch /vol/x").mount(&path, "/vol", false))?;
    same("exit code", status.exit_code, 0)?;
    ensure!(path.join("x").is_file(), "no folder was made");
    Ok(pod.remove()?)
}

fn symlink(subject: &Subject) -> anyhow::Result<()> {
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    fs::create_dir(folder.join("target"))?;
    fs::write(folder.join("target/note"), "found\n")?;
    std::os::unix::fs::symlink(folder.join("target"), folder.join("link"))?;
    let (_, printed) = pod.run_to_end(Template::sh("cat /vol/note").mount(&folder.join("link"), "/vol", false))?;
    same("printed", printed.as_str(), "found\n")?;
    Ok(pod.remove()?)
}

fn change_shows(subject: &Subject) -> anyhow::Result<()> {
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    // As the kubelet updates a ConfigMap: a new folder, and a symlink renamed onto the old one.
    fs::create_dir(folder.join("..1"))?;
    fs::write(folder.join("..1/key"), "old\n")?;
    std::os::unix::fs::symlink("..1", folder.join("..data"))?;
    std::os::unix::fs::symlink("..data/key", folder.join("key"))?;
    let container = pod.start(Template::pause().mount(&folder, "/config", true))?;
    same("before", container.sh("cat /config/key")?.as_str(), "old\n")?;
    fs::create_dir(folder.join("..2"))?;
    fs::write(folder.join("..2/key"), "new\n")?;
    std::os::unix::fs::symlink("..2", folder.join("..data_tmp"))?;
    fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
    let shows = || Ok(Some(()).filter(|()| container.sh("cat /config/key").is_ok_and(|text| text == "new\n")));
    ensure!(crate::node::poll_until(std::time::Duration::from_secs(10), shows)?.is_some(), "the change does not show");
    Ok(pod.remove()?)
}

fn nested(subject: &Subject) -> anyhow::Result<()> {
    let (pod, outer, inner) = (pod(subject)?, node()?.fresh_folder(), node()?.fresh_folder());
    fs::create_dir(outer.join("below"))?;
    fs::write(inner.join("note"), "inner\n")?;
    let template = Template::sh("cat /vol/below/note").mount(&outer, "/vol", false).mount(&inner, "/vol/below", true);
    let (_, printed) = pod.run_to_end(template)?;
    same("printed", printed.as_str(), "inner\n")?;
    Ok(pod.remove()?)
}

fn owners(subject: &Subject) -> anyhow::Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    fs::write(folder.join("theirs"), "x")?;
    fs::set_permissions(folder.join("theirs"), fs::Permissions::from_mode(0o600))?;
    fs::write(folder.join("mine"), "x")?;
    chown(folder.join("mine"), Some(1000), Some(2000))?;
    let line = "stat -c '%u %g %a' /vol/theirs; cat /vol/theirs 2>/dev/null || echo refused; stat -c '%u %g' /vol/mine; echo y > /vol/mine && echo written";
    let template = Template::sh(line)
        .security(|context| context.run_as_user = Some(v1::Int64Value { value: 1000 }))
        .mount(&folder, "/vol", false);
    let (_, printed) = pod.run_to_end(template)?;
    same("printed", printed.as_str(), "0 0 600\nrefused\n1000 2000\nwritten\n")?;
    Ok(pod.remove()?)
}

fn termination_message(subject: &Subject) -> anyhow::Result<()> {
    let (pod, file) = (pod(subject)?, node()?.fresh_folder().join("termination"));
    fs::write(&file, "")?;
    let template =
        Template::sh("echo it was me > /dev/termination-log; exit 3").mount(&file, "/dev/termination-log", false);
    let (status, _) = pod.run_to_end(template)?;
    same("exit code", status.exit_code, 3)?;
    same("message", fs::read_to_string(&file)?.as_str(), "it was me\n")?;
    Ok(pod.remove()?)
}

fn two_places_in_a_vm(subject: &Subject) -> anyhow::Result<()> {
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    let template = Template::pause().mount(&folder, "/one", false).mount(&folder, "/two", false);
    let container = pod.start(template)?;
    same("a new file", container.sh("echo same > /one/file; cat /two/file")?.as_str(), "same\n")?;
    container.sh("echo more >> /two/file")?;
    let shows = || Ok(container.sh("cat /one/file").ok().filter(|text| text == "same\nmore\n"));
    ensure!(crate::node::poll_until(std::time::Duration::from_secs(10), shows)?.is_some(), "a change never shows");
    Ok(pod.remove()?)
}

fn two_places(subject: &Subject) -> anyhow::Result<()> {
    let (pod, folder) = (pod(subject)?, node()?.fresh_folder());
    let line = "echo same > /one/file; cat /two/file; test /one/file -ef /two/file && echo one inode";
    let template = Template::sh(line).mount(&folder, "/one", false).mount(&folder, "/two", false);
    let (_, printed) = pod.run_to_end(template)?;
    same("printed", printed.as_str(), "same\none inode\n")?;
    Ok(pod.remove()?)
}

fn thirty(subject: &Subject) -> anyhow::Result<()> {
    let pod = pod(subject)?;
    let mut template = Template::sh("cat /vol/*/n | sort -n | tr '\\n' ' '");
    for n in 0..30 {
        let folder = node()?.fresh_folder();
        fs::write(folder.join("n"), format!("{n}\n"))?;
        template = template.mount(&folder, &format!("/vol/{n}"), true);
    }
    let (_, printed) = pod.run_to_end(template)?;
    let expected: String = (0..30).map(|n| format!("{n} ")).collect();
    same("printed", printed.trim(), expected.trim())?;
    Ok(pod.remove()?)
}
