//! News of the OOM killers: that of the machine, container by container, and that of the host, which takes the whole machine.

use std::sync::Arc;

use pod::Exit;

use super::{
    Containers,
    process::{KILLED_STATUS, first},
};
use crate::{lifecycle::Lifecycle, pod_cgroup};

/// News that are taken from one machine, those of unknown containers included: a guest that told more would have this process do nothing else.
const NEWS_MAX: u32 = 65_536;

impl Containers {
    /// The exit as it is to be told: a machine that the host's OOM killer ended takes its containers along for want of memory, too.
    pub(super) fn blame_host(&self, exit: Exit) -> Exit {
        let killed = || self.host.get().and_then(pod_cgroup::current).is_some_and(|cgroup| cgroup.oom_kills() > 0);
        Exit { oom_killed: exit.oom_killed || (exit.status == KILLED_STATUS && killed()), ..exit }
    }

    /// Tells containerd of each kill while its container goes on, until the machine is gone. A kill that ends a container is told with its exit at the
    /// latest, whichever news comes first.
    pub async fn watch_memory(self: Arc<Self>) {
        let pod = self.machine.up().await;
        for _ in 0..NEWS_MAX {
            let container_id = match pod.next_oom().await {
                Ok(container_id) => container_id,
                Err(error) => return log::debug!("no more news of kills: {error}"),
            };
            match self.table.find(&first(&container_id)) {
                Ok(process) => self.announce(&process, Lifecycle::out_of_memory),
                Err(_) => log::debug!("the guest tells of a kill in a container that there is not"),
            }
        }
        log::warn!("the guest has told of {NEWS_MAX} kills for want of memory; others are told with the exit only");
    }
}
