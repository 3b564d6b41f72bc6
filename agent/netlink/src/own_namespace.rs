//! For tests: a network namespace of one's own.

use nix::sched::{CloneFlags, unshare};

/// Runs the story in a thread with a network namespace of its own, which ends with it.
pub(crate) fn within(test: &str, story: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs root, and in CI nothing is skipped");
        eprintln!("skipped: {test} needs root");
        return;
    }
    let told = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("as root");
        story();
    });
    told.join().expect("as told");
}
