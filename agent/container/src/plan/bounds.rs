//! Limits beside what the machine has, which is decided when its pod is made and stays.
//!
//! A new container may have any limit: one above the machine means that the machine is the limit. A running container that is promised more
//! memory than there is would be killed by the machine's shortage in place of its own, so that promise is not given. Processor time above the
//! machine's is only slower than hoped, and taken.

use super::{PlanError, Warning};
use crate::guest::GuestFacts;
use oci_spec::runtime::LinuxResources;

/// Refuses a new limit of memory that the machine cannot keep.
///
/// # Errors
/// The limit is above the machine's memory.
pub fn check_update(resources: &LinuxResources, guest: &GuestFacts) -> Result<(), PlanError> {
    match memory_limit(resources).filter(|limit| *limit > guest.memory_bytes) {
        None => Ok(()),
        Some(limit) => {
            Err(PlanError::Beyond { field: "linux.resources.memory.limit", value: limit, has: guest.memory_bytes })
        }
    }
}

/// What of a container's limits is above the machine.
pub fn beyond(resources: &LinuxResources, guest: &GuestFacts) -> Vec<Warning> {
    let mut all = Vec::new();
    if let Some(limit) = memory_limit(resources).filter(|limit| *limit > guest.memory_bytes) {
        let has = guest.memory_bytes;
        let sentence = format!("{limit} bytes are more than the machine's {has}, so the machine is the limit");
        all.push(Warning { field: "linux.resources.memory.limit".into(), sentence });
    }
    if let Some((quota, period)) = cpu(resources).filter(|(quota, period)| quota.div_ceil(*period) > guest.cpus.into())
    {
        let cpus = guest.cpus;
        let sentence = format!("{quota} of every {period} us are more than the machine's {cpus} CPUs can give");
        all.push(Warning { field: "linux.resources.cpu.quota".into(), sentence });
    }
    all
}

fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let limit = resources.memory().as_ref()?.limit()?;
    u64::try_from(limit).ok()
}

/// Quota and period, neither of them zero.
fn cpu(resources: &LinuxResources) -> Option<(u64, u64)> {
    let cpu = resources.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(super::limits::DEFAULT_CPU_PERIOD);
    Some((quota, period))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn guest() -> GuestFacts {
        GuestFacts {
            cpus: 2,
            memory_bytes: 1000,
            cgroup_root: "/sys/fs/cgroup".into(),
            controllers: Default::default(),
            last_capability: 40,
        }
    }

    fn resources(value: serde_json::Value) -> LinuxResources {
        serde_json::from_value(value).expect("the test's own resources")
    }

    #[test]
    fn a_promise_of_memory_that_the_machine_has_not_is_refused_with_both_figures() {
        let check = |limit: i64| check_update(&resources(json!({"memory": {"limit": limit}})), &guest());
        assert!(check(1000).is_ok() && check(-1).is_ok());
        let sentence = check(1001).expect_err("refused").to_string();
        assert!(sentence.contains("1001") && sentence.contains("1000"), "{sentence}");
    }

    #[test]
    fn a_container_above_its_machine_is_told_so() {
        let fields = |value| beyond(&resources(value), &guest()).into_iter().map(|w| w.field).collect::<Vec<_>>();
        assert_eq!(fields(json!({"memory": {"limit": 1001}})), ["linux.resources.memory.limit"]);
        assert_eq!(fields(json!({"cpu": {"quota": 200_001}})), ["linux.resources.cpu.quota"]);
        assert_eq!(fields(json!({"cpu": {"quota": 200_000}, "memory": {"limit": 1000}})), Vec::<String>::new());
    }
}
