//! The first phase: the pod's folder, its record, and both ends of everything that will connect it to its machine. Nothing runs yet.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    sync::Arc,
};

use agent_protocol::messages::Network;

use super::Common;
use crate::{
    PodError, PodSpec,
    console::{Tail, pipe_pair},
    ids::check_id,
    launcher::MachineEnds,
    moment::mark,
    record::{Carried, Entry, Record},
    state_dir::{SHARE_SOCKET, StateDir, VSOCK_SOCKET},
    teardown::Acquired,
};

/// Folder, record and sockets are there; nothing runs.
pub(super) struct Prepared {
    pub(super) common: Common,
    pub(super) carried: Carried,
    pub(super) sockets: Sockets,
}

/// Both ends of everything.
pub(super) struct Sockets {
    pub(super) control: UnixStream,
    pub(super) call: UnixStream,
    pub(super) theirs: MachineEnds,
    pub(super) server_listener: OwnedFd,
    pub(super) server_stderr: OwnedFd,
}

impl Prepared {
    /// Makes all of it, or leaves nothing.
    pub(super) fn make(pod: PodSpec) -> Result<Self, PodError> {
        check_id("pod", &pod.id)?;
        let asked = mark("launch asked");
        let state = Arc::new(StateDir::make(&pod.state_dir)?);
        let mut acquired = Acquired { state_dir: Some(pod.state_dir.clone()), ..Acquired::default() };
        let made = Self::fill(&state, &mut acquired);
        let (carried, sockets) = made.map_err(|error| {
            let left = crate::state_dir::remove(&pod.state_dir);
            PodError::host(format!("cannot prepare {}", pod.state_dir.display()), error)
                .with_tail("left behind", &left.join("\n"))
        })?;
        let mut common = Common { pod, acquired, state, network: Network::default(), watch: None, marks: vec![asked] };
        common.mark("state folder ready");
        Ok(Self { common, carried, sockets })
    }

    fn fill(state: &StateDir, acquired: &mut Acquired) -> io::Result<(Carried, Sockets)> {
        let record = Record::create(state.path())?;
        let token = new_token()?;
        record.write(&Entry::Token(token.clone()))?;
        let (console, console_end) = pipe_pair()?;
        let (vmm_words, stderr) = pipe_pair()?;
        let (server_words, server_stderr) = pipe_pair()?;
        acquired.console = Some(Tail::follow("console", log::Level::Debug, console)?);
        acquired.vmm_words = Some(Tail::follow("vmm", log::Level::Warn, vmm_words)?);
        acquired.server_words = Some(Tail::follow("file server", log::Level::Warn, server_words)?);
        let (control, control_end) = UnixStream::pair()?;
        let (call, call_end) = UnixStream::pair()?;
        let (server_listener, share) = server_connection(state)?;
        let theirs = MachineEnds {
            control: control_end.into(),
            call: call_end.into(),
            hybrid: hybrid_listener(state)?.into(),
            console: console_end,
            share: share.into(),
            networks: Vec::new(),
            network_places: 0,
            stderr,
        };
        Ok((
            Carried { record, token },
            Sockets { control, call, theirs, server_listener: server_listener.into(), server_stderr },
        ))
    }
}

/// The socket through which the host connects into the guest.
fn hybrid_listener(state: &StateDir) -> io::Result<UnixListener> {
    let path = state.short_path(VSOCK_SOCKET);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A listener with one connection waiting in it, and the other end of that connection; without a name that anybody else could use.
pub(crate) fn server_connection(state: &StateDir) -> io::Result<(UnixListener, UnixStream)> {
    let path = state.short_path(SHARE_SOCKET);
    let listener = UnixListener::bind(&path)?;
    let connected = UnixStream::connect(&path);
    std::fs::remove_file(&path)?;
    Ok((listener, connected?))
}

fn new_token() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
