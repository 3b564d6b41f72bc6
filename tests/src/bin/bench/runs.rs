//! Whole commands: `ctr run` with our runtime and with runc in turn, `kata-rs run`, and a container that stays.

use std::{process::Command, time::Instant};

use tests::{
    Containerd, command,
    containerd::{RUNC, RUNTIME},
    prefix,
};

use crate::figure::Figure;

const RUNS: usize = 15;

/// `ctr.run` and `cli.run`.
pub fn figures(containerd: &Containerd, image: &str) -> Vec<Figure> {
    let (mut ours, mut runc, mut cli) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each fills caches and does not count.
    for n in 0..=RUNS {
        let times = [ctr_run(containerd, RUNTIME, image), ctr_run(containerd, RUNC, image), cli_run()];
        if n > 0 {
            ours.push(times[0]);
            runc.push(times[1]);
            cli.push(times[2]);
        }
    }
    vec![Figure::beside("ctr.run", "s", &ours, "runc", &runc), Figure::beside("cli.run", "s", &cli, "runc", &runc)]
}

fn ctr_run(containerd: &Containerd, runtime: &str, image: &str) -> f64 {
    let words = containerd.container_arguments(runtime, &[], image, &containerd.fresh_id(), &["true"]);
    seconds(&mut containerd.ctr(words))
}

fn cli_run() -> f64 {
    seconds(Command::new(prefix::bin("kata-rs")).arg("run").arg(prefix::image("busybox")).arg("true"))
}

fn seconds(command: &mut Command) -> f64 {
    let start = Instant::now();
    let finished = command::run(command);
    let took = start.elapsed().as_secs_f64();
    assert_eq!(finished.code(), 0, "{finished:?}");
    took
}

/// A container that sleeps until dropped.
pub struct Background<'a> {
    containerd: &'a Containerd,
    id: String,
}

impl<'a> Background<'a> {
    pub fn start(containerd: &'a Containerd, image: &str) -> Self {
        let id = containerd.fresh_id();
        containerd.run(["run", "-d", "--runtime", RUNTIME, image, &id, "sleep", "1000000"]).success();
        Self { containerd, id }
    }

    /// Its processes on the host whose name starts so.
    pub fn pids(&self, name: &str) -> Vec<u32> {
        tests::pids_of(name, &self.id)
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        self.containerd.run(["task", "rm", "--force", &self.id]);
        self.containerd.run(["container", "rm", &self.id]);
    }
}
