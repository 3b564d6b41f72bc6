//! A pod on a real machine: our VMM, our kernel, our agent, the file server. Needs root, /dev/kvm and a staged installation (`make build`), and says
//! so by name when one is missing.

mod life;
mod network;
mod stage;
