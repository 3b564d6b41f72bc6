//! What joining leaves at the pod's interfaces, and how it is taken away again: from what is recorded alone, whoever does it, any number of times.

use std::{path::PathBuf, sync::Arc};

use netlink::{NetlinkError, Socket, packet::RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::{
    namespace::{Identity, Namespace},
    picture::{self, Ingress},
    plan::Trace,
    redirect,
};
use crate::{ErrorKind, PodError};

/// What was joined, as the record has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// Where the namespace was.
    pub namespace: PathBuf,
    /// Which one it was: another may have its path now.
    pub identity: Identity,
    /// At which of its interfaces something is left.
    pub traces: Vec<Trace>,
}

/// What was joined while the pod ran, with the namespace still open: nobody but the machine may have had its path.
#[derive(Debug, Default)]
pub(crate) struct Late {
    /// The namespace.
    pub namespace: Option<Arc<Namespace>>,
    /// What was joined in it.
    pub joined: Vec<Joined>,
}

impl Late {
    /// Takes away what is left, all of it that can be.
    pub(crate) fn undo(&self) -> Result<(), String> {
        let Some(namespace) = self.namespace.as_ref().filter(|_| !self.joined.is_empty()) else { return Ok(()) };
        let undone = namespace.within(|| {
            let mut socket = Socket::open().map_err(cannot)?;
            Ok(self.joined.iter().map(|joined| joined.undo_here(&mut socket)).collect::<Vec<_>>())
        });
        let undone = undone.map_err(|error| error.to_string())?;
        let left: Vec<String> = undone.into_iter().filter_map(Result::err).map(|error| cannot(error).message).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }
}

impl Joined {
    /// At these interfaces of the namespace.
    pub(super) fn of(namespace: &Namespace, traces: Vec<Trace>) -> Self {
        Self { namespace: namespace.path().to_owned(), identity: namespace.identity(), traces }
    }

    /// Takes away what is left. A namespace or an interface that is gone has nothing left.
    pub(crate) fn undo(&self) -> Result<(), String> {
        let namespace = match Namespace::open(&self.namespace) {
            Ok(namespace) if namespace.identity() == self.identity => namespace,
            _ => return Ok(()),
        };
        let undone = namespace.within(|| {
            let mut socket = Socket::open().map_err(cannot)?;
            self.undo_here(&mut socket).map_err(cannot)
        });
        undone.map_err(|error| {
            let names: Vec<&str> = self.traces.iter().map(|trace| trace.name.as_str()).collect();
            format!("the interfaces {} of {}: {error}", names.join(", "), self.namespace.display())
        })
    }

    /// The same, by a conversation with the namespace.
    pub(crate) fn undo_here(&self, socket: &mut Socket) -> netlink::Result<()> {
        let found = picture::ingress(socket)?;
        for trace in &self.traces {
            match found.get(&trace.index) {
                Some(Ingress::Ours) => {
                    fine_if_gone(socket.change(RouteNetlinkMessage::DelTrafficFilter(redirect::ours(trace.index)), 0))?
                }
                Some(Ingress::Others) => {}
                None => continue,
            }
            // Who found our discipline and put a filter there still needs it.
            if trace.own_ingress && socket.dump(redirect::filters(trace.index))?.is_empty() {
                let ingress = redirect::ingress(trace.index);
                fine_if_gone(socket.change(RouteNetlinkMessage::DelQueueDiscipline(ingress), 0))?;
            }
        }
        Ok(())
    }
}

fn fine_if_gone(removed: netlink::Result<()>) -> netlink::Result<()> {
    match removed {
        Err(error) if error.is_nothing_there() => Ok(()),
        removed => removed,
    }
}

fn cannot(error: NetlinkError) -> PodError {
    PodError::new(ErrorKind::Internal, format!("what sends their frames to the machine cannot be removed: {error}"))
}
