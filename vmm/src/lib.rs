//! The virtual machine monitor: one process, one machine.
//!
//! # Life of the process
//! ```text
//! launcher ──spawn, inherited descriptors──> main ─> harden ─> control: Boot(spec)
//!                                                                  │
//!            boot: Claimed ─> KvmReady ─> Planned ─> Loaded ─> Assembled ─> Machine
//!                                                                  │ Booting, or Failed and exit 1
//!            main loop  <── Event ── launcher │ vCPU ended │ agent called
//!                                                                  │ Ended
//!                                                                 exit 0
//! ```
//! Each arrow of `boot` consumes the value before it; whatever fails, dropping what exists undoes it, and the process ends with
//! one [`BootFailure`](vmm_control::BootFailure) that names the step, the object and the next thing to try.
//!
//! # Threads
//! | thread | owns | talks by |
//! |---|---|---|
//! | `main` | the control socket, the list of marks' readers | [`event::Event`], a closed enum: the list of all that can wake it |
//! | `vcpu0`, ... | one vCPU | exits are answered in place: ports by [`ports`], device registers by [`bus`] |
//! | `memory-ahead` | nothing; on software KVM, in the first milliseconds | nobody waits for it |
//! | one a device | its queues, from DRIVER_OK until stop | eventfds that KVM signals and awaits itself |
//!
//! There is no lock that a running device and a vCPU share: a queue notification is an ioeventfd, an interrupt an irqfd. The lock of a
//! [`bus`] slot guards what the guest has written into the device's registers, at set-up and reset. What it reads there is memory, which the device's thread
//! changes, too, word by word (`vmm_virtio::mmio::Window`).
//!
//! # Invariants
//! - After start nothing is opened by path. Everything the machine consists of is an inherited descriptor that the spec names; every other
//!   inherited descriptor is closed before the first byte of the guest's kernel is read. The exceptions: `kata-rs-vmm probe`, a
//!   command of its own that opens /dev/kvm, and the C library's own start-up.
//! - A machine never outlives its launcher: the control socket's end is an event, and the kernel kills us when the parent is gone.
//! - Nothing the guest does panics: guest-chosen addresses, sizes and orders meet a table or a checked range.
//! - Guest memory is one sealed memfd, shared and never copied; it is never borrowed as a Rust reference.
//! - `unsafe` is in [`sys`] and in the `sys` modules of [`tap`] and [`vhost`] alone.
//! - No tokio, no allocation of the guest's choosing, and nothing on the start path that touches memory the guest does not need.
//!
//! # Not here
//! What a container is (the agent and the shim know), how devices work (`vmm-virtio`), where things lie in memory (`vmm-boot`).

mod boot;
mod bus;
mod control;
mod cpuid;
mod devices;
mod diary;
mod early_memory;
mod event;
mod exits;
mod harden;
mod kvm;
mod machine;
mod marks;
mod memory;
mod network;
mod places;
mod ports;
mod probe;
mod sys;
mod tap;
mod vcpu;
mod vhost;
mod wiring;

pub mod process;
