//! `shim start`: finds the group's daemon or makes it, and prints its address.
//!
//! The listener is bound *here*, under the group's lock, and inherited by the daemon as its standard input: whoever reads the address can
//! connect at once, and of two starts of one group one binds and the other finds. The daemon says `ready` through a pipe on its
//! standard output; its end without that word is a failed start. Nothing sleeps, nothing polls.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use pod::host_cgroup::HostCgroup;

use crate::{
    arguments::{ArgumentError, Arguments},
    bootstrap::{Bootstrap, read_input},
    group::Group,
    pod_cgroup,
};

/// What the daemon says when it serves.
pub const READY: &[u8] = b"ready\n";
/// Longest complaint of a daemon that is passed on.
const COMPLAINT_LEN_MAX: u64 = 4096;

/// Why a pod's daemon could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The working directory is not there.
    #[error("cannot find the bundle: the working directory is gone")]
    Bundle(#[source] io::Error),
    /// A bad name.
    #[error("cannot name the pod")]
    Name(#[from] ArgumentError),
    /// The lock or the folder of the sockets.
    #[error("cannot use the folder of the sockets beside {0}: it must be writable for root")]
    SocketFolder(String, #[source] io::Error),
    /// A container that belongs into a pod which is not there.
    #[error("the pod {0} has no running shim: its machine is gone, so make the pod again")]
    PodGone(String),
    /// The socket itself.
    #[error("cannot bind the shim's socket {0}")]
    Bind(String, #[source] io::Error),
    /// The record of the pod's cgroup.
    #[error("cannot write {0}, which says how to undo the pod's cgroup")]
    CgroupRecord(String, #[source] io::Error),
    /// The daemon's process.
    #[error("cannot start the shim's daemon from {0}")]
    Spawn(String, #[source] io::Error),
    /// The daemon ended before it served.
    #[error("the shim's daemon ended before it was ready: {0}")]
    NotReady(String),
    /// The file by which containerd finds the daemon after its own restart.
    #[error("cannot write {0}")]
    AddressFile(String, #[source] io::Error),
    /// Standard output.
    #[error("cannot tell containerd the address")]
    Answer(#[source] io::Error),
}

/// Does `start`.
///
/// # Errors
/// See [`StartError`]; nothing is left behind then.
pub fn run(arguments: &Arguments) -> Result<(), StartError> {
    let max_version = std::env::var("MAX_SHIM_VERSION").ok();
    let bootstrap = Bootstrap::new(arguments.clone(), &read_input(), max_version.as_deref());
    bootstrap.arguments.check_names()?;
    let bundle = bootstrap.arguments.bundle_dir().map_err(StartError::Bundle)?;
    let mut group = Group::of(&bootstrap.arguments, &bundle)?;
    if let Some(socket) = &bootstrap.arguments.socket {
        group.socket.clone_from(socket);
    }
    // Held until containerd knows: a `start` that is killed before leaves the lock, and by it all that nobody was told of is found.
    let socket = || group.socket.display().to_string();
    let _lock = group.lock().map_err(|error| StartError::SocketFolder(socket(), error))?;
    let spawned = find_or_spawn(&group, &bootstrap, &bundle)?;
    tell(&group, &bootstrap, &bundle).inspect_err(|_| spawned.into_iter().for_each(|daemon| take_back(daemon, &group)))
}

fn tell(group: &Group, bootstrap: &Bootstrap, bundle: &Path) -> Result<(), StartError> {
    let file = bundle.join("address");
    write_address(&file, &group.address())
        .map_err(|error| StartError::AddressFile(file.display().to_string(), error))?;
    let mut out = io::stdout().lock();
    out.write_all(&bootstrap.answer(&group.address())).and_then(|()| out.flush()).map_err(StartError::Answer)
}

// A daemon that containerd was not told of would be nobody's, and so would the machine that it boots.
fn take_back(mut daemon: Child, group: &Group) {
    let _ = daemon.kill();
    let _ = daemon.wait();
    let _ = fs::remove_file(&group.socket);
    if let Err(error) = pod::clean_up(&group.state_dir) {
        eprintln!("{error}");
    }
    if let Some(cgroup) = HostCgroup::read_record(&group.cgroup_record()) {
        pod_cgroup::leave(group, &cgroup);
    }
}

/// The daemon, if it was not there before. The caller holds the lock.
fn find_or_spawn(group: &Group, bootstrap: &Bootstrap, bundle: &Path) -> Result<Option<Child>, StartError> {
    let socket = group.socket.display().to_string();
    match UnixStream::connect(&group.socket) {
        Ok(_) => return Ok(None),
        // A socket nobody listens to is what a killed daemon left.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(&group.socket).map_err(|error| StartError::Bind(socket.clone(), error))?;
        }
        Err(_) => {}
    }
    if group.id != bootstrap.arguments.id {
        return Err(StartError::PodGone(group.id.clone()));
    }
    let listener = bind(&group.socket).map_err(|error| StartError::Bind(socket, error))?;
    born_in_its_cgroup(group, bootstrap, bundle, listener).map(Some).inspect_err(|_| {
        let _ = fs::remove_file(&group.socket);
    })
}

// From here on this process is inside too; it ends soon, or leaves when the daemon does not come to be.
fn born_in_its_cgroup(
    group: &Group,
    bootstrap: &Bootstrap,
    bundle: &Path,
    listener: UnixListener,
) -> Result<Child, StartError> {
    let record = || group.cgroup_record().display().to_string();
    let cgroup = pod_cgroup::enter(group, bundle, bootstrap.shim_cgroup.as_deref())
        .map_err(|error| StartError::CgroupRecord(record(), error))?;
    spawn(bootstrap, bundle, listener)
        .inspect_err(|_| cgroup.iter().for_each(|cgroup| pod_cgroup::leave(group, cgroup)))
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn spawn(bootstrap: &Bootstrap, bundle: &Path, listener: UnixListener) -> Result<Child, StartError> {
    let myself = "/proc/self/exe";
    let failed = |error| StartError::Spawn(myself.to_owned(), error);
    let (mut ready, said) = io::pipe().map_err(failed)?;
    let arguments = &bootstrap.arguments;
    let program = fs::read_link(myself).map_err(failed)?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &arguments.namespace, "-id", &arguments.id, "-address", &arguments.address])
        .args(arguments.debug.then_some("-debug"))
        .arg("-bundle")
        .arg(bundle)
        .current_dir(bundle)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .stdout(said)
        .stderr(Stdio::null());
    if let Some(address) = &bootstrap.ttrpc_address {
        command.env("TTRPC_ADDRESS", address);
    }
    pod::inherit_nothing_else(&mut command);
    let mut daemon = command.spawn().map_err(failed)?;
    // Our own copy of the pipe's other end must go, or its end would never be seen.
    drop(command);
    let mut words = Vec::new();
    let read = ready.by_ref().take(COMPLAINT_LEN_MAX).read_to_end(&mut words);
    if words == READY {
        return Ok(daemon);
    }
    let _ = daemon.kill();
    let _ = daemon.wait();
    match read {
        Ok(_) => Err(StartError::NotReady(String::from_utf8_lossy(&words).trim().to_owned())),
        Err(error) => Err(StartError::Spawn(myself.to_owned(), error)),
    }
}

// containerd may read the file at any moment: it appears whole or not at all.
fn write_address(file: &Path, address: &str) -> io::Result<()> {
    let draft = file.with_file_name(".address");
    fs::write(&draft, address)?;
    fs::rename(&draft, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("s");
        let _listener = bind(&path).expect("bound");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_address_file_replaces_an_old_one_and_leaves_no_draft() {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("address");
        fs::write(&file, "old and longer").expect("written");
        write_address(&file, "unix:///s").expect("written");
        assert_eq!(fs::read_to_string(&file).expect("read"), "unix:///s");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }
}
