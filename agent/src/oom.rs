//! Whom the kernel has killed for want of memory, kept until the host asks.
//!
//! The kernel counts in memory.events of each container's cgroup (those of cgroups below included) and says when the file changes: poll(2) with
//! POLLPRI (Documentation/admin-guide/cgroup-v2.rst). A small task per container waits for that. It raises the count before it kills
//! (mm/oom_kill.c, `__oom_kill_process`), so a container that is over has its last kill counted, whether or not the news of it was fetched.
//!
//! The host asks once and is answered when there is news: nobody polls. Kills of one container that the host has not fetched yet are one news, so what is
//! kept is bounded by the number of containers.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    task::AbortHandle,
};

/// The key of memory.events that counts.
const KEY: &str = "oom_kill";

/// News of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kills {
    /// The container.
    pub container: String,
    /// Its processes killed so far.
    pub count: u64,
}

/// What is known; clones share it.
#[derive(Clone, Default)]
pub struct OomBoard(Arc<Shared>);

#[derive(Default)]
struct Shared {
    entries: Mutex<BTreeMap<String, Entry>>,
    news: Notify,
}

struct Entry {
    counted: u64,
    told: u64,
    watch: AbortHandle,
}

impl OomBoard {
    /// Watches a container's memory.events until it is [forgotten](Self::forget). Call inside the runtime.
    pub fn watch(&self, container: &str, events: File) {
        let (board, name) = (self.clone(), container.to_owned());
        let watch = tokio::spawn(async move {
            if let Err(error) = board.follow(&name, events).await {
                log::debug!("kills of container {name:?} are told at its end only: {error}");
            }
        });
        let entry = Entry { counted: 0, told: 0, watch: watch.abort_handle() };
        if let Some(before) = self.entries().insert(container.to_owned(), entry) {
            before.watch.abort();
        }
    }

    /// The container is gone.
    pub fn forget(&self, container: &str) {
        if let Some(entry) = self.entries().remove(container) {
            entry.watch.abort();
        }
    }

    /// Waits for news, and takes it.
    pub async fn next(&self) -> Kills {
        loop {
            // Registered before looking, so that what comes in between is not missed.
            let news = self.0.news.notified();
            if let Some(kills) = self.take() {
                return kills;
            }
            news.await;
        }
    }

    fn take(&self) -> Option<Kills> {
        let mut entries = self.entries();
        let (container, entry) = entries.iter_mut().find(|(_, entry)| entry.counted > entry.told)?;
        entry.told = entry.counted;
        Some(Kills { container: container.clone(), count: entry.counted })
    }

    async fn follow(&self, container: &str, events: File) -> io::Result<()> {
        #[allow(
            deprecated,
            reason = "the safe call; its hole is for types that close their descriptor early, and a file cannot"
        )]
        let mut events = AsyncFd::with_interest(events, Interest::PRIORITY)?;
        loop {
            let count = kills(events.get_mut())?;
            if let Some(entry) = self.entries().get_mut(container).filter(|entry| count > entry.counted) {
                entry.counted = count;
                self.0.news.notify_waiters();
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reading also tells the kernel what has been seen, so that it speaks of later changes only.
fn kills(events: &mut File) -> io::Result<u64> {
    let mut text = String::new();
    events.rewind()?;
    events.read_to_string(&mut text)?;
    let value = text.lines().find_map(|line| line.strip_prefix(KEY)?.strip_prefix(' '));
    Ok(value.and_then(|value| value.trim().parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board_with(entries: &[(&str, u64)]) -> OomBoard {
        let board = OomBoard::default();
        for (name, counted) in entries {
            let watch = tokio::spawn(std::future::pending::<()>()).abort_handle();
            board.entries().insert((*name).to_owned(), Entry { counted: *counted, told: 0, watch });
        }
        board
    }

    #[tokio::test]
    async fn each_news_is_told_once_and_several_kills_are_one() {
        let board = board_with(&[("a", 0), ("b", 3)]);
        assert_eq!(board.next().await, Kills { container: "b".into(), count: 3 });
        assert_eq!(board.take(), None);
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_a_forgotten_container_tells_nothing() {
        let board = board_with(&[("a", 0), ("b", 0)]);
        let waiting = tokio::spawn({
            let board = board.clone();
            async move { board.next().await }
        });
        tokio::task::yield_now().await;
        board.entries().get_mut("b").expect("there").counted = 1;
        board.forget("b");
        board.entries().get_mut("a").expect("there").counted = 1;
        board.0.news.notify_waiters();
        assert_eq!(waiting.await.expect("answered").container, "a");
    }

    #[test]
    fn the_count_is_that_of_kills_not_of_shortages() {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, b"low 0\nhigh 0\nmax 9\noom 4\noom_kill 2\noom_group_kill 7\n")
            .expect("written");
        assert_eq!(kills(&mut file).expect("read"), 2);
        assert_eq!(kills(&mut tempfile::tempfile().expect("a file")).expect("read"), 0);
    }
}
