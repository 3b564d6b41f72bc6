//! A network namespace of a test's own: bridges, addresses and packet filters in it are nobody else's, and go with it.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::Context;
use nix::sched::{CloneFlags, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// One namespace; it lives as long as this value, or a process in it.
#[derive(Debug)]
pub struct NetworkNamespace {
    file: OwnedFd,
}

impl NetworkNamespace {
    /// Makes one, with its loopback interface up.
    ///
    /// # Errors
    /// Not root, or no `ip` program.
    pub fn new() -> anyhow::Result<Self> {
        let made = thread::spawn(|| -> anyhow::Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        });
        let namespace = Self { file: made.join().expect("no panic")? };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The one at this path.
    ///
    /// # Errors
    /// There is none.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("no network namespace {}", path.display()))?;
        Ok(Self { file: file.into() })
    }

    /// Where other processes find it, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Does something inside, on a thread that then ends. What it opens or starts stays inside.
    pub fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter it");
            what()
        };
        thread::scope(|scope| scope.spawn(inside).join().expect("no panic"))
    }

    /// Runs `ip` with these words inside, and returns what it prints.
    ///
    /// # Errors
    /// It fails; the error has its words.
    pub fn ip(&self, words: &str) -> anyhow::Result<String> {
        let output = self.run(|| Command::new("ip").args(words.split(' ')).output()).context("ip (iproute2)")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        anyhow::ensure!(output.status.success(), "ip {words}: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    }
}
