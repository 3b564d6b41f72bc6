//! Entry point of the guest's PID 1, and of the stages that it executes from its own binary.

use std::{process::ExitCode, sync::Arc, time::Duration};

use agent::{
    boot, call, home::Home, idle, journal, refusal::with_sources, runtime::Runtime, service::Service, stages::Stages,
};

/// Blocking threads: a create, a few execs, stats of several containers. Kills need none.
const BLOCKING_THREADS_MAX: usize = 8;
/// An idle blocking thread ends soon: its memory is the pod's.
const BLOCKING_THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);
const STACK_BYTES: usize = 256 << 10;

fn main() -> ExitCode {
    container::stage_main_if_asked();
    if !rustix::process::getpid().is_init() {
        eprintln!("kata-rs-agent is the first process of a kata-rs machine; it does nothing elsewhere");
        return ExitCode::FAILURE;
    }
    let outcome = run();
    if let Err(error) = &outcome {
        log::error!("the machine ends: {}", with_sources(error.as_ref()));
    }
    // Restart, not power off: the VMM ends the machine at a reset, and a reset needs no firmware.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    ExitCode::FAILURE
}

/// From power-on to the end of the call.
fn run() -> anyhow::Result<()> {
    let begun = since_power_on();
    let call = call::dial()?;
    let called = since_power_on();
    boot::set_up()?;
    journal::start(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    boot::set_up_rest()?;
    log::debug!("since power-on: agent {begun:?}, called {called:?}, mounted {:?}", since_power_on());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_KEEP_ALIVE)
        .thread_stack_size(STACK_BYTES)
        .build()?;
    let ended = runtime.block_on(serve(call));
    // Not waited for: a thread may be stuck in a file system whose server is gone.
    runtime.shutdown_background();
    ended
}

/// The kernel's monotonic clock starts with the machine; reading it is no system call.
fn since_power_on() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

async fn serve(call: call::Call) -> anyhow::Result<()> {
    let stages = Arc::new(Stages::new()?);
    let service = Service::start(Home::machine(), stages.clone())?;
    // While the host reads our hello.
    tokio::task::spawn_blocking(move || {
        stages.warm_up();
        idle::let_the_kernel_rest();
    });
    let accepting = service.streams().accept_from(call.streams);
    tokio::spawn(async move {
        if let Err(error) = accepting.await {
            log::error!("no process gets stdio any more, the stream listener broke: {error}");
        }
    });
    let served = call::serve(service.clone(), call.connection).await;
    service.end().await;
    Ok(served?)
}
