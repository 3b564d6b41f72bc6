//! `make run`: a container in its own kernel, through real containerd, with what a sceptic would want to see.

use std::time::Instant;

use anyhow::{Context, ensure};
use tests::{Containerd, Finished, Residue, containerd::RUNTIME, prefix};

fn main() -> anyhow::Result<()> {
    if let Some(missing) = tests::requirement::Requirement::Kvm.missing() {
        println!("This machine has no usable /dev/kvm: {missing}.");
        println!("The same container runs inside an emulated machine: `make run-emulated`.");
        std::process::exit(1);
    }
    let before = Residue::now();
    show()?;
    before.assert_nothing_new();
    println!("\nNothing is left: no process, mount, socket, cgroup or file of the run.");
    Ok(())
}

fn show() -> anyhow::Result<()> {
    step("a private containerd");
    let containerd = Containerd::start();
    println!("{}", containerd.run(["--version"]).stdout.trim());
    step("a real image");
    let image = containerd.import("busybox");
    println!("{image}, from {}", prefix::image("busybox").display());

    step("a container with its own kernel");
    let outside = rustix::system::uname();
    println!("$ ctr run --rm --runtime {RUNTIME} {image} ID uname -a");
    let inside = timed(|| containerd.run_container(&[], &image, &["uname", "-a"]))?;
    println!("inside:  {}", inside.trim());
    println!("outside: {} {}", outside.sysname().to_string_lossy(), outside.release().to_string_lossy());
    ensure!(!inside.contains(&*outside.release().to_string_lossy()), "the kernels should differ");

    step("what it sees, with a limit of 0.5 CPUs and 64 MiB");
    let look = "nproc; grep MemTotal /proc/meminfo; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; ps";
    let cgroup = "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro";
    let limits = ["--cpus", "0.5", "--memory-limit", "67108864", "--mount", cgroup];
    println!("{}", timed(|| containerd.run_container(&limits, &image, &["sh", "-c", look]))?.trim());

    step("the limit holds");
    let hog = containerd.run_container(&limits, &image, &["sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=200"]);
    let hog_code = hog.code();
    let big = containerd.run_container(&limits, &image, &["sh", "-c", "x=x; while :; do x=$x$x; done"]);
    println!(
        "filling /dev/shm with 200 MiB: exit {hog_code}; a shell that doubles a string for ever: exit {}",
        big.code()
    );
    ensure!(big.code() == 137, "the kernel's OOM killer should have ended it");

    step("a task in the background, and an exec in it");
    let id = containerd.fresh_id();
    containerd.run(["run", "-d", "--runtime", RUNTIME, &image, &id, "sleep", "1000"]).success();
    println!("{}", containerd.run(["task", "ls"]).success().trim());
    let exec =
        timed(|| containerd.run(["task", "exec", "--exec-id", "e1", &id, "sh", "-c", "echo hello from pid $$"]))?;
    println!("{}", exec.trim());
    containerd.run(["task", "rm", "--force", &id]);
    containerd.run(["container", "rm", &id]).success();

    step("the exit code comes through");
    let code = containerd.run_container(&[], &image, &["sh", "-c", "exit 42"]).code();
    println!("exit 42 is {code}");
    ensure!(code == 42, "the exit code should be 42");

    step("the time of each phase, without containerd");
    let run = tests::run(
        std::process::Command::new(prefix::bin("kata-rs"))
            .args(["run", "--timing"])
            .arg(prefix::image("busybox"))
            .arg("true"),
    );
    ensure!(run.code() == 0, "kata-rs run: {}", run.stderr);
    println!("{}", run.stderr.trim_end());
    Ok(())
}

fn step(what: &str) {
    println!("\n== {what}");
}

fn timed(what: impl FnOnce() -> Finished) -> anyhow::Result<String> {
    let start = Instant::now();
    let finished = what();
    let took = start.elapsed();
    ensure!(finished.code() == 0, "exit {}: {}", finished.code(), finished.stderr);
    Some(finished.stdout).context("no output").inspect(|_| println!("({:.0} ms)", took.as_secs_f64() * 1000.0))
}
