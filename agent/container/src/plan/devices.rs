//! Device nodes in /dev, and the ordered rules of which devices may be made and opened.

use super::{DeviceKind, DevicePlan, PlanError};
use crate::cgroup::{Access, DeviceRule};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use std::path::Path;

/// Devices that every container has: runtime-linux of the OCI specification, "Default Devices".
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The default nodes, each replaced by one of the same path in `asked`, then the rest of `asked`.
pub(super) fn nodes(asked: &[LinuxDevice]) -> Result<Vec<DevicePlan>, PlanError> {
    let asked = asked.iter().map(node).collect::<Result<Vec<_>, _>>()?;
    let kept = |path: &str| asked.iter().all(|device| device.path != Path::new(path));
    let mut nodes: Vec<_> = DEFAULTS
        .iter()
        .filter(|(path, ..)| kept(path))
        .map(|&(path, major, minor)| DevicePlan {
            path: path.into(),
            kind: DeviceKind::Character,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    nodes.extend(asked);
    Ok(nodes)
}

fn node(device: &LinuxDevice) -> Result<DevicePlan, PlanError> {
    let refuse = |field: &str, value: String, hint| PlanError::Invalid {
        field: format!("linux.devices {} {field}", device.path().display()),
        value,
        hint,
    };
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(refuse("type", "a".into(), "a node is c, u, b or p")),
    };
    let number = |name, value: i64, bits: u32| {
        u32::try_from(value)
            .ok()
            .filter(|value| *value < 1 << bits)
            .ok_or_else(|| refuse(name, value.to_string(), "give a number that fits the kernel's dev_t"))
    };
    let is_fifo = kind == DeviceKind::Fifo;
    Ok(DevicePlan {
        path: super::absolute("linux.devices.path", device.path())?,
        kind,
        major: if is_fifo { 0 } else { number("major", device.major(), 12)? },
        minor: if is_fifo { 0 } else { number("minor", device.minor(), 20)? },
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// The rules of `linux.resources.devices` in their order, then what every container may do.
///
/// Nothing is allowed unless a rule says so. Everyone may make any node, since only opening one gives access; and open the
/// default devices, the terminals of a devpts and the console.
pub(super) fn rules(asked: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, PlanError> {
    let mut rules = asked.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    for kind in [DeviceKind::Character, DeviceKind::Block] {
        rules.push(DeviceRule { allow: true, kind: Some(kind), major: None, minor: None, access: Access::MKNOD });
    }
    let open = |major, minor| DeviceRule {
        allow: true,
        kind: Some(DeviceKind::Character),
        major: Some(major),
        minor,
        access: Access::ALL,
    };
    rules.extend(DEFAULTS.iter().map(|&(_, major, minor)| open(major, Some(minor))));
    // /dev/console, /dev/ptmx, and the terminals themselves.
    rules.extend([open(5, Some(1)), open(5, Some(2)), open(136, None)]);
    Ok(rules)
}

/// Do the rules end by allowing everything, as those of a privileged container do?
pub(super) fn allows_every(asked: &[LinuxDeviceCgroup]) -> bool {
    let any = |number: Option<i64>| matches!(number, None | Some(-1));
    let of_all = |rule: &&LinuxDeviceCgroup| {
        matches!(rule.typ(), None | Some(LinuxDeviceType::A)) && any(rule.major()) && any(rule.minor())
    };
    asked.iter().rfind(of_all).is_some_and(LinuxDeviceCgroup::allow)
}

fn rule(asked: &LinuxDeviceCgroup) -> Result<DeviceRule, PlanError> {
    let number = |name, value: Option<i64>| match value {
        // The specification's way of saying "any".
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| PlanError::Invalid {
            field: format!("linux.resources.devices.{name}"),
            value: value.to_string(),
            hint: "give a device number, or -1 for any",
        }),
    };
    let access = asked.access().as_deref().unwrap_or("rwm");
    Ok(DeviceRule {
        allow: asked.allow(),
        kind: match asked.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(DeviceKind::Block),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DeviceKind::Character),
            Some(LinuxDeviceType::P) => {
                return Err(PlanError::Invalid {
                    field: "linux.resources.devices.type".into(),
                    value: "p".into(),
                    hint: "rules are about a, b or c; a FIFO needs none",
                });
            }
        },
        major: number("major", asked.major())?,
        minor: number("minor", asked.minor())?,
        access: Access::from_letters(access).ok_or_else(|| PlanError::Invalid {
            field: "linux.resources.devices.access".into(),
            value: access.into(),
            hint: "use letters of r, w and m",
        })?,
    })
}
