//! `linux.resources` to the files of cgroup v2.
//!
//! The specification speaks the language of version 1; the conversions are those its ecosystem settled on (the table in
//! runc's and crun's documentation): weights 1..10000 from shares 2..262144, swap without the memory it contains, and so on.

use super::PlanError;
use super::numbers::{self, Chosen};
use crate::cgroup::{IfAbsent, Limits};
use crate::guest::GuestFacts;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// Period of cpu.max when none is given, microseconds: the kernel's own default.
pub(super) const DEFAULT_CPU_PERIOD: u64 = 100_000;

/// The limits of a container, also for an update of a running one.
///
/// # Errors
/// A value that cgroup v2 cannot express, or CPUs that do not exist.
pub fn plan_limits(resources: &LinuxResources, guest: &GuestFacts) -> Result<Limits, PlanError> {
    let mut limits = Limits::default();
    if let Some(memory) = resources.memory() {
        add_memory(&mut limits, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        add_cpu(&mut limits, cpu, guest)?;
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        limits.must("pids.max", amount(limit));
    }
    if let Some(block) = resources.block_io() {
        add_io(&mut limits, block);
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        limits.write(&format!("hugetlb.{}.max", huge.page_size()), amount(huge.limit()), IfAbsent::Skip);
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        check_unified(file)?;
        limits.must(file, value.clone());
    }
    Ok(limits)
}

/// Negative means without limit.
fn amount(value: i64) -> String {
    u64::try_from(value).map_or_else(|_| "max".to_owned(), |value| value.to_string())
}

fn add_memory(limits: &mut Limits, memory: &LinuxMemory) -> Result<(), PlanError> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
        let without_memory = match (swap, limit) {
            (-1, _) => "max".to_owned(),
            (swap, Some(limit)) if limit >= 0 && swap >= limit => (swap - limit).to_string(),
            _ => {
                return Err(PlanError::Invalid {
                    field: "linux.resources.memory.swap".into(),
                    value: swap.to_string(),
                    hint: "it counts memory and swap together, so give memory.limit too, and not more than this",
                });
            }
        };
        // A guest without swap has no such file, and nothing to limit.
        limits.write("memory.swap.max", without_memory, IfAbsent::Skip);
    }
    if let Some(limit) = limit {
        // Without a limit of memory there is none of both together, unless one was named.
        if limit < 0 && memory.swap().is_none_or(|swap| swap == 0) {
            limits.write("memory.swap.max", amount(limit), IfAbsent::Skip);
        }
        limits.must("memory.max", amount(limit));
    }
    if let Some(reservation) = memory.reservation().filter(|amount| *amount != 0) {
        limits.must("memory.low", amount(reservation));
    }
    Ok(())
}

fn add_cpu(limits: &mut Limits, cpu: &LinuxCpu, guest: &GuestFacts) -> Result<(), PlanError> {
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        limits.must("cpu.weight", weight_from_shares(shares).to_string());
    }
    if let Some(idle) = cpu.idle() {
        limits.must("cpu.idle", idle.to_string());
    }
    if cpu.quota().is_some() || cpu.period().is_some() {
        let quota = match cpu.quota() {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        let period = cpu.period().filter(|period| *period != 0).unwrap_or(DEFAULT_CPU_PERIOD);
        limits.must("cpu.max", format!("{quota} {period}"));
    }
    if let Some(burst) = cpu.burst() {
        limits.must("cpu.max.burst", burst.to_string());
    }
    add_cpuset(limits, ("linux.resources.cpu.cpus", "cpuset.cpus"), cpu.cpus().as_deref(), guest.cpus, guest)?;
    // A guest has one memory node.
    add_cpuset(limits, ("linux.resources.cpu.mems", "cpuset.mems"), cpu.mems().as_deref(), 1, guest)
}

fn add_cpuset(
    limits: &mut Limits,
    (field, file): (&str, &str),
    list: Option<&str>,
    existing: u32,
    guest: &GuestFacts,
) -> Result<(), PlanError> {
    let Some(list) = list.filter(|list| !list.is_empty()) else { return Ok(()) };
    let chosen = numbers::choose(field, list, existing)?;
    if guest.controllers.contains("cpuset") {
        limits.must(file, chosen.written(existing));
        return Ok(());
    }
    match chosen {
        Chosen::All => Ok(()),
        Chosen::Some(_) => Err(PlanError::Invalid {
            field: field.to_owned(),
            value: list.to_owned(),
            hint: "this guest's kernel has no cpuset controller, so only a list that names everything can be met",
        }),
    }
}

/// Shares 2..=262144 onto weights 1..=10000, linearly.
fn weight_from_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn add_io(limits: &mut Limits, block: &LinuxBlockIo) {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        // 10..=1000 onto 1..=10000.
        let scaled = 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9_999 / 990;
        limits.must("io.weight", format!("default {scaled}"));
    }
    let kinds = [
        ("rbps", block.throttle_read_bps_device()),
        ("wbps", block.throttle_write_bps_device()),
        ("riops", block.throttle_read_iops_device()),
        ("wiops", block.throttle_write_iops_device()),
    ];
    for (key, devices) in kinds {
        for device in devices.iter().flatten() {
            limits.must("io.max", throttle(key, device));
        }
    }
}

fn throttle(key: &str, device: &LinuxThrottleDevice) -> String {
    let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
    format!("{}:{} {key}={rate}", device.major(), device.minor())
}

/// The unified map may name any limit of a controller, and nothing of the tree's own machinery.
fn check_unified(file: &str) -> Result<(), PlanError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_limit = file.contains('.') && !file.starts_with('.') && !file.starts_with("cgroup.");
    if is_limit && file.bytes().all(plain) {
        return Ok(());
    }
    Err(PlanError::Invalid {
        field: "linux.resources.unified".into(),
        value: file.to_owned(),
        hint: "name a file of a controller, such as memory.high",
    })
}
