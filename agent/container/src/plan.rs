//! From an OCI `config.json` to everything a container is made of, decided before anything is touched.
//!
//! [`plan`] reads values and returns values: no file is opened and no clock is asked. What it returns can be shown, compared,
//! and sent to another process. What means nothing inside a machine of its own is in one table, `unsupported.rs`.
//!
//! Source of the rules: the OCI runtime specification 1.2 (config.md, config-linux.md, runtime-linux.md), and where it is
//! silent, what people's images and orchestrators have come to expect of runc.

mod bounds;
mod capabilities;
mod devices;
mod error;
mod limits;
mod mounts;
mod namespaces;
mod numbers;
mod process;
mod types;

pub use bounds::{beyond, check_update};
pub use capabilities::CapabilitySets;
pub(crate) use capabilities::SYS_ADMIN;
pub use error::{PlanError, Warning};
pub use limits::plan_limits;
pub(crate) use process::is_inside_root;
pub use types::*;

use crate::cgroup::DeviceProgram;
use crate::guest::GuestFacts;
use crate::unsupported;
use oci_spec::runtime::{Linux, Spec};
use std::path::{Component, Path, PathBuf};

/// Ids name a directory of the cgroup tree, so they are held to what containerd itself allows.
const MAX_ID_LEN: usize = 76;

/// Decides everything about a container.
///
/// `id` names the container's cgroup (`containers/<id>`). Paths in `spec` are paths of the guest.
///
/// # Errors
/// A field that is missing, contradicts another one, or asks for what a container in a machine cannot have.
pub fn plan(id: &str, spec: &Spec, guest: &GuestFacts) -> Result<ContainerPlan, PlanError> {
    check_id(id)?;
    let mut warnings = unsupported::check(spec)?;
    let nothing = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&nothing);
    let process = spec.process().as_ref().ok_or(PlanError::Missing { field: "process" })?;
    let namespaces = namespaces::plan(linux, &mut warnings)?;
    let rootfs = rootfs(spec, linux)?;
    let mounts = mounts::plan(spec.mounts().as_deref().unwrap_or_default())?;
    let populate_dev = !mounts.iter().any(|mount| mount.is_bind() && mount.destination == Path::new("/dev"));
    let devices =
        if populate_dev { devices::nodes(linux.devices().as_deref().unwrap_or_default())? } else { Vec::new() };
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    warnings.extend(resources.map(|resources| beyond(resources, guest)).unwrap_or_default());
    let own_uts = namespaces.new.contains(&Namespace::Uts);
    Ok(ContainerPlan {
        id: id.to_owned(),
        rootfs,
        mounts,
        populate_dev,
        devices,
        every_device: devices::allows_every(rules),
        masked_paths: absolute_all("linux.maskedPaths", linux.masked_paths().as_deref().unwrap_or_default())?,
        readonly_paths: absolute_all("linux.readonlyPaths", linux.readonly_paths().as_deref().unwrap_or_default())?,
        // Without a UTS namespace of its own the container shares the pod's name, which is not its to change.
        hostname: spec.hostname().clone().filter(|name| own_uts && !name.is_empty()),
        domainname: spec.domainname().clone().filter(|name| own_uts && !name.is_empty()),
        sysctls: sysctls(linux)?,
        cgroup: CgroupPlan {
            path: Path::new("containers").join(id),
            limits: resources.map(|resources| plan_limits(resources, guest)).transpose()?.unwrap_or_default(),
            devices: DeviceProgram::compile(&devices::rules(rules)?),
        },
        process: process::plan(process, linux.seccomp().as_ref(), guest, &mut warnings)?,
        namespaces,
        warnings,
    })
}

/// Decides everything about a further process of `container`.
///
/// What `process` leaves out (capabilities) is taken from the container's first process, as the seccomp filter always is.
///
/// # Errors
/// As [`plan`].
pub fn plan_exec(
    process: &oci_spec::runtime::Process,
    container: &ContainerPlan,
    guest: &GuestFacts,
) -> Result<ExecPlan, PlanError> {
    let mut warnings = Vec::new();
    let mut exec = process::plan(process, None, guest, &mut warnings)?;
    exec.seccomp = container.process.seccomp.clone();
    if process.capabilities().is_none() {
        exec.capabilities = container.process.capabilities;
    }
    if process.oom_score_adj().is_none() {
        exec.oom_score_adj = container.process.oom_score_adj;
    }
    Ok(exec)
}

/// The device rules that an update asks for; none when it says nothing about devices.
///
/// # Errors
/// A rule that is none.
pub fn plan_devices(resources: &oci_spec::runtime::LinuxResources) -> Result<Option<DeviceProgram>, PlanError> {
    let Some(asked) = resources.devices().as_deref().filter(|rules| !rules.is_empty()) else { return Ok(None) };
    Ok(Some(DeviceProgram::compile(&devices::rules(asked)?)))
}

fn check_id(id: &str) -> Result<(), PlanError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let starts_well = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && id.len() <= MAX_ID_LEN && id.bytes().all(plain) {
        return Ok(());
    }
    Err(PlanError::Invalid {
        field: "the container id".into(),
        value: id.into(),
        hint: "use 1 to 76 of a-z, A-Z, 0-9, '_', '-', '.', starting with a letter or digit",
    })
}

fn rootfs(spec: &Spec, linux: &Linux) -> Result<RootfsPlan, PlanError> {
    let root = spec.root().as_ref().ok_or(PlanError::Missing { field: "root" })?;
    let propagation = match linux.rootfs_propagation().as_deref() {
        None | Some("") => None,
        Some(word) => Some(Propagation::from_word(word).ok_or_else(|| PlanError::Invalid {
            field: "linux.rootfsPropagation".into(),
            value: word.into(),
            hint: "use private, slave, shared or unbindable, with or without a leading r",
        })?),
    };
    Ok(RootfsPlan {
        path: absolute("root.path", root.path())?,
        readonly: root.readonly().unwrap_or(false),
        propagation,
    })
}

/// A path that is absolute and free of `..`, without a trailing or doubled slash.
pub(crate) fn absolute(field: &str, path: &Path) -> Result<PathBuf, PlanError> {
    let refuse = |hint| PlanError::Invalid { field: field.to_owned(), value: path.display().to_string(), hint };
    if !path.is_absolute() {
        return Err(refuse("give an absolute path"));
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(refuse("give a path without '..'"));
    }
    Ok(path.components().collect())
}

fn absolute_all(field: &str, paths: &[String]) -> Result<Vec<PathBuf>, PlanError> {
    paths.iter().map(|path| absolute(field, Path::new(path))).collect()
}

/// Kernel parameters, each allowed only where a namespace holds it.
fn sysctls(linux: &Linux) -> Result<Vec<Sysctl>, PlanError> {
    let mut sysctls = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let path = sysctl_path(name)?;
        namespaces::check_sysctl(name, &path)?;
        sysctls.push(Sysctl { path, value: value.clone() });
    }
    sysctls.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sysctls)
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` both name a file below /proc/sys; a slash anywhere means dots are literal.
fn sysctl_path(name: &str) -> Result<String, PlanError> {
    let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let plain = !path.is_empty() && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if plain && !path.contains('\0') {
        return Ok(path);
    }
    Err(PlanError::Invalid {
        field: "linux.sysctl".into(),
        value: name.into(),
        hint: "name a file below /proc/sys, such as net.ipv4.ip_forward",
    })
}

#[cfg(test)]
mod tests;
