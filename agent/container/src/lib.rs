//! Containers in the guest: an OCI `config.json` becomes a plan, the plan becomes a process.
//!
//! ```text
//!   config.json --plan()--> ContainerPlan --steps--> [ the stage: a re-executed, single-threaded child ]
//!        pure, total, tested by value       data       acts, one step after the other, reports the step that failed
//! ```
//!
//! Invariants:
//! - Everything is decided in [`plan`] and [`plan_exec`]; the child that acts has nothing left to decide.
//! - The multithreaded agent never forks itself into a container: [`Stage::prepare`] executes the agent's own binary again,
//!   and that process ([`stage_main_if_asked`]) makes the container. It can be prepared before it is needed.
//! - A container's first process and every exec are children of the caller of `Stage`, who reaps them by pid.
//! - No path is looked up in a container's root by name alone: all of it goes through `in_root`.
//! - There is no network here (the machine is the network namespace) and no hook of the host.
//!
//! Typical use, every call blocking (the agent calls them from `spawn_blocking`):
//! ```no_run
//! # fn f(spec: oci_spec::runtime::Spec, stdio: container::StdioFds) -> Result<(), Box<dyn std::error::Error>> {
//! let guest = container::GuestFacts::read()?;
//! let stage = container::Stage::prepare()?; // ahead of time
//! let plan = container::plan("c1", &spec, &guest)?;
//! let cgroup = container::Cgroup::create(&guest.cgroup_root, &plan.cgroup.path)?;
//! cgroup.apply(&plan.cgroup.limits)?;
//! cgroup.attach_devices(&plan.cgroup.devices, None)?;
//! let created = stage.create(&plan, &cgroup, stdio)?; // stopped at its gate
//! let running = created.start()?; // the program has been executed
//! # let _ = running; Ok(()) }
//! ```

pub mod cgroup;
mod child;
mod exit;
mod guest;
mod in_root;
pub mod plan;
mod procfs;
pub mod seccomp;
mod signals;
mod stage;
mod steps;
mod sys;
pub mod terminal;
mod unsupported;
mod wire;

pub use cgroup::{Cgroup, CgroupError, Limits, Stats};
pub use child::stage_main_if_asked;
pub use exit::exit_status;
pub use guest::GuestFacts;
pub use plan::{
    ContainerPlan, ExecPlan, PlanError, Warning, beyond, check_update, plan, plan_devices, plan_exec, plan_limits,
};
pub use stage::{ContainerHandle, Created, Gate, Running, Stage, StageError, StdioFds};
pub use steps::{Failure, FailureKind};
pub use terminal::TerminalSize;
