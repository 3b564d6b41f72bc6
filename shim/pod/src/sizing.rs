//! How large a machine is. Pure.
//!
//! ```text
//! a pod of Kubernetes      what its containers may use in sum, which the kubelet tells by annotations of the sandbox
//! a container by itself    its own limits
//! neither says anything    the operator's defaults
//!         then             an annotation that the operator allows; the operator's bounds hold always
//! ```
//! A memory limit is what containers may use, so the machine has that much and what guest kernel and agent need themselves.
//! Memory is backed by the host only when the guest touches it, so a generous machine costs the guest kernel's book-keeping only
//! (one 64-byte `struct page` for each 4 KiB: 1.6 %).
//!
//! A limit is the most that something may take, so one above the operator's bounds is capped, with a word in the log; a wish of the
//! pod's author is for exactly that, so one out of bounds is refused ([`crate::annotations`]). The same holds for a container that
//! comes into the pod later with a limit above the machine: it starts, and the machine is its limit.

use std::{collections::HashMap, fmt};

use oci_spec::runtime::{LinuxResources, Spec};

use crate::{
    ErrorKind, PodError,
    annotations::{Annotation, Wishes},
    configuration::{Configuration, LogLevel, log_word},
    setting::{Setting, Source},
};

/// Memory of a pod whose containers have no limit.
pub const MEMORY_DEFAULT_MIB: u32 = 512;
/// What guest kernel, agent and the file server's buffers in the guest take beside the containers.
pub const MEMORY_OVERHEAD_MIB: u32 = 64;
/// Least memory that we give: below it a guest has nothing left to cache files with.
pub const MEMORY_LEAST_MIB: u32 = 128;
/// vCPUs of a pod whose containers have no quota.
pub const VCPUS_DEFAULT: u8 = 1;
/// The kernel's own CFS period when a quota comes without one, in microseconds.
const CPU_PERIOD_DEFAULT_MICROS: u64 = 100_000;
/// CPU shares that stand for a whole CPU that is requested (Kubernetes, and the default weight of a cgroup).
const SHARES_OF_A_CPU: u64 = 1024;
/// The guest kernel's book-keeping is a part of this size of the memory it keeps.
const BOOK_KEEPING_PART: u64 = 64;

/// Whether a container is the pod's sandbox or one in it; containerd's CRI sets it (pkg/cri/annotations).
pub const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The same from CRI-O, which has no annotations of sizes: its pods get the defaults.
pub const CONTAINER_TYPE_CRIO: &str = "io.kubernetes.cri-o.ContainerType";
/// The value of [`CONTAINER_TYPE`] for a sandbox.
pub const CONTAINER_TYPE_SANDBOX: &str = "sandbox";
/// Sum of the containers' CPU quotas, in microseconds a period; 0 for none.
pub const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
/// The period of that quota, in microseconds.
pub const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// Sum of the containers' CPU requests, as CPU shares.
pub const SANDBOX_CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
/// Sum of the containers' memory limits, in bytes; 0 for none.
pub const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// What a pod's containers may use in sum.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Whole CPUs, rounded up.
    cpus: Option<Setting<u64>>,
    /// Memory in bytes.
    memory_bytes: Option<Setting<u64>>,
}

impl Limits {
    /// Those of the pod whose first container this is: the sandbox's annotations, or the container's own.
    ///
    /// # Errors
    /// A sizing annotation is malformed: an invalid argument that names it.
    pub fn of_pod(annotations: &HashMap<String, String>, resources: Option<&LinuxResources>) -> Result<Self, PodError> {
        let types = [CONTAINER_TYPE, CONTAINER_TYPE_CRIO].map(|name| annotations.get(name).map(String::as_str));
        match types.contains(&Some(CONTAINER_TYPE_SANDBOX)) {
            true => Self::of_sandbox(annotations),
            false => Ok(resources.map(Self::of_container).unwrap_or_default()),
        }
    }

    /// Those of one container by itself. Shares are its weight among others, and it is alone.
    pub fn of_container(resources: &LinuxResources) -> Self {
        let cpu = resources.cpu().as_ref();
        let (quota, period) = (cpu.and_then(|c| c.quota()), cpu.and_then(|c| c.period()));
        let memory = resources.memory().as_ref().and_then(|m| m.limit());
        Self::stated(
            quota.map(|quota| (quota, period, Source::Limit("linux.resources.cpu.quota"))),
            memory.map(|bytes| (bytes, Source::Limit("linux.resources.memory.limit"))),
        )
    }

    /// Those of a command: a quota in microseconds with its period, and bytes; nothing or a number below 1 is no limit.
    pub fn stated(quota: Option<(i64, Option<u64>, Source)>, memory: Option<(i64, Source)>) -> Self {
        Self {
            cpus: quota.and_then(|(quota, period, source)| Some(Setting::new(cpus(quota, period)?, source))),
            memory_bytes: memory.and_then(|(bytes, source)| Some(Setting::new(positive(bytes)?, source))),
        }
    }

    fn of_sandbox(annotations: &HashMap<String, String>) -> Result<Self, PodError> {
        let number = |name, least| annotation_number(annotations, name, least);
        let period = number(SANDBOX_CPU_PERIOD, 0)?.and_then(positive);
        // Both mean "no limit" where the kernel reads them: -1 in cgroup v1, nothing in Kubernetes' objects.
        let quota = number(SANDBOX_CPU_QUOTA, -1)?.map(|quota| (quota, period, Source::Annotation(SANDBOX_CPU_QUOTA)));
        let memory = number(SANDBOX_MEMORY, -1)?.map(|bytes| (bytes, Source::Annotation(SANDBOX_MEMORY)));
        let shares = number(SANDBOX_CPU_SHARES, 0)?.and_then(positive);
        let mut limits = Self::stated(quota, memory);
        // A container without a limit adds nothing to the sum of the limits, but its request counts.
        let requested = shares.map(|shares| shares.div_ceil(SHARES_OF_A_CPU));
        if let Some(requested) = requested.filter(|cpus| *cpus > limits.cpus.as_ref().map_or(0, |limit| limit.value)) {
            limits.cpus = Some(Setting::new(requested, Source::Annotation(SANDBOX_CPU_SHARES)));
        }
        Ok(limits)
    }
}

fn annotation_number(
    annotations: &HashMap<String, String>,
    name: &'static str,
    least: i64,
) -> Result<Option<i64>, PodError> {
    let Some(text) = annotations.get(name) else { return Ok(None) };
    text.parse::<i64>().ok().filter(|number| *number >= least).map(Some).ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        PodError::new(
            ErrorKind::InvalidArgument,
            format!("the annotation {name} takes a whole number from {least} to {}, not {shown:?}", i64::MAX),
        )
    })
}

fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

fn cpus(quota: i64, period: Option<u64>) -> Option<u64> {
    let period = period.filter(|period| *period > 0).unwrap_or(CPU_PERIOD_DEFAULT_MICROS);
    positive(quota).map(|quota| quota.div_ceil(period))
}

/// The size of a machine, and what its console says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSize {
    /// Virtual CPUs.
    pub vcpus: Setting<u8>,
    /// Memory in MiB.
    pub memory_mib: Setting<u32>,
    /// Level of the kernel's console; nothing for the kernel's own.
    pub console_level: Option<u8>,
    /// Level of the agent's log; nothing for the agent's own.
    pub agent_log_level: Option<LogLevel>,
    /// What was asked for and not given, in sentences for the log.
    pub warnings: Vec<String>,
}

impl fmt::Display for MachineSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (vcpus, memory) = (&self.vcpus, &self.memory_mib);
        write!(f, "{} vCPUs ({}), {} MiB ({})", vcpus.value, vcpus.source, memory.value, memory.source)
    }
}

impl MachineSize {
    /// The machine of the pod whose first container has these annotations and resources.
    ///
    /// # Errors
    /// An annotation is unknown, not allowed here or malformed: an invalid argument that names it.
    pub fn of_pod(
        annotations: Option<&HashMap<String, String>>,
        resources: Option<&LinuxResources>,
        configuration: &Configuration,
    ) -> Result<Self, PodError> {
        let none = HashMap::new();
        let annotations = annotations.unwrap_or(&none);
        let limits = Limits::of_pod(annotations, resources)?;
        Ok(Self::plan(&limits, &Wishes::read(annotations, configuration)?, configuration))
    }

    /// The machine for these limits and wishes, within the operator's bounds.
    pub fn plan(limits: &Limits, wishes: &Wishes, configuration: &Configuration) -> Self {
        let mut warnings = Vec::new();
        let vcpus = match wishes.vcpus {
            Some(vcpus) => Setting::new(vcpus, Source::Annotation(Annotation::Vcpus.name())),
            None => vcpus(limits, configuration, &mut warnings),
        };
        let memory_mib = match wishes.memory_mib {
            Some(mib) => Setting::new(mib, Source::Annotation(Annotation::Memory.name())),
            None => memory_mib(limits, configuration, &mut warnings),
        };
        Self {
            vcpus,
            memory_mib,
            console_level: wishes.console_level.or(configuration.console_level.value),
            agent_log_level: wishes.agent_log_level.or(configuration.agent_log_level.value),
            warnings,
        }
    }

    /// The words that these levels are on the guest's command line. Made of numbers and fixed words only.
    pub fn command_line(&self) -> String {
        let console = self.console_level.map(|level| format!("loglevel={level}"));
        let agent = self.agent_log_level.map(|level| format!("kata_rs.log={}", log_word(level)));
        console.into_iter().chain(agent).collect::<Vec<_>>().join(" ")
    }
}

/// The word for a container's memory limit that its machine cannot give; the container starts all the same.
pub(crate) fn above_machine(oci: &Spec, machine_mib: u32) -> Option<String> {
    let resources = oci.linux().as_ref()?.resources().as_ref()?;
    let limit = Limits::of_container(resources).memory_bytes?;
    let limit_mib = limit.value.div_ceil(1 << 20);
    (limit_mib > u64::from(machine_mib)).then(|| {
        format!(
            "its memory limit of {limit_mib} MiB ({}) is above the machine's {machine_mib} MiB, which are its limit: the pod said less, or nothing, when it was made",
            limit.source
        )
    })
}

fn vcpus(limits: &Limits, configuration: &Configuration, warnings: &mut Vec<String>) -> Setting<u8> {
    let most = &configuration.max_vcpus;
    let wanted = limits.cpus.clone().unwrap_or_else(|| configuration.default_vcpus.clone().map(u64::from));
    capped("vCPUs", wanted, most.clone().map(u64::from), warnings)
        .map(|vcpus| u8::try_from(vcpus).unwrap_or(most.value))
}

fn memory_mib(limits: &Limits, configuration: &Configuration, warnings: &mut Vec<String>) -> Setting<u32> {
    let most = &configuration.max_memory_mib;
    let overhead = u64::from(configuration.overhead_memory_mib.value);
    let wanted = match limits.memory_bytes.clone() {
        Some(limit) => limit.map(|bytes| machine_for(bytes, overhead)),
        None => configuration.default_memory_mib.clone().map(u64::from),
    };
    capped("MiB of memory", wanted, most.clone().map(u64::from), warnings)
        .map(|mib| u32::try_from(mib).unwrap_or(most.value))
}

/// Memory of a machine whose containers may use so many bytes, in MiB.
fn machine_for(limit_bytes: u64, overhead_mib: u64) -> u64 {
    let limit_mib = limit_bytes.div_ceil(1 << 20);
    let wanted = limit_mib.saturating_add(limit_mib.div_ceil(BOOK_KEEPING_PART)).saturating_add(overhead_mib);
    wanted.next_multiple_of(2).max(u64::from(MEMORY_LEAST_MIB))
}

fn capped(what: &str, wanted: Setting<u64>, most: Setting<u64>, warnings: &mut Vec<String>) -> Setting<u64> {
    if wanted.value <= most.value {
        return wanted;
    }
    // A default that does not fit a small host is no news.
    if wanted.source != Source::Default {
        warnings.push(format!(
            "{} {what} would be wanted ({}), a machine gets at most {} ({})",
            wanted.value, wanted.source, most.value, most.source
        ));
    }
    most
}

#[cfg(test)]
mod tests;
