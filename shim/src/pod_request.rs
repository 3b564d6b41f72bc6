//! What pod containerd asks for, whichever way it asks: by a first container (the pause container, or one by itself), or by its
//! sandbox service. Pure; both ways end in one [`PodRequest`], and everything after it is the same.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};
use pod::{ErrorKind, InterfaceRules, PodNetwork, PodSpec, sizing, sizing::MachineSize};
use protobuf::Message;

use crate::{
    group::Group,
    refusal::Refusal,
    sandbox_config::{DNSConfig, LinuxContainerResources, NamespaceMode, PodSandboxConfig},
};

/// Longest host name that Linux takes (uname(2)).
const HOST_NAME_LEN_MAX: usize = 64;
/// Type of the sandbox's options as containerd's CRI sends them; what is before the last slash is a resolver's business.
const SANDBOX_CONFIG_TYPE: &str = "runtime.v1.PodSandboxConfig";
/// Most servers, searches or options; the C library reads three servers and six searches.
const MOST_DNS_WORDS: usize = 64;

/// A pod as it is asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodRequest {
    /// Its host name, if it has one.
    pub hostname: Option<String>,
    /// Sysctls of the whole pod.
    pub sysctls: BTreeMap<String, String>,
    /// Text of `/etc/resolv.conf`, empty for none.
    pub resolv_conf: String,
    /// Where its network is.
    pub network: PodNetwork,
    /// The cgroup of the host below which its processes shall be, where the bundle does not say so.
    pub cgroup_parent: Option<String>,
    /// What sizes it, and what the operator lets its author choose.
    pub annotations: HashMap<String, String>,
    /// Limits of a container by itself.
    pub resources: Option<LinuxResources>,
}

impl PodRequest {
    /// The pod that a group's first container asks for.
    pub fn of_container(oci: &Spec) -> Self {
        let linux = oci.linux().as_ref();
        // The machine is the pod's network namespace: what is set per network namespace is set for the whole of it.
        let sysctls = linux.and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
        Self {
            hostname: oci.hostname().clone(),
            sysctls: sysctls.into_iter().filter(|(name, _)| name.starts_with("net.")).collect(),
            resolv_conf: String::new(),
            network: network_of(oci),
            cgroup_parent: None,
            annotations: oci.annotations().clone().unwrap_or_default(),
            resources: linux.and_then(|linux| linux.resources().clone()),
        }
    }

    /// The pod that `CreateSandbox` asks for.
    ///
    /// # Errors
    /// The options are of a type that nobody knows, do not parse, or ask for what a machine cannot give; the message names the field.
    pub fn of_sandbox(request: &CreateSandboxRequest) -> Result<Self, Refusal> {
        let config = sandbox_config(request)?;
        let linux = config.linux.as_ref();
        if let Some(namespaces) = linux.and_then(|linux| linux.security_context.namespace_options.as_ref()) {
            check_namespaces(&[
                ("network", namespaces.network.enum_value()),
                ("pid", namespaces.pid.enum_value()),
                ("ipc", namespaces.ipc.enum_value()),
            ])?;
        }
        // CRI's own annotations of the request win over those of the pod's author.
        let mut annotations = config.annotations.clone();
        annotations.extend(request.annotations.clone());
        annotations.extend(sizes(linux.and_then(|linux| linux.resources.as_ref())));
        Ok(Self {
            hostname: host_name_of(&config)?,
            sysctls: linux.map(|linux| sysctls(&linux.sysctls)).transpose()?.unwrap_or_default(),
            resolv_conf: config.dns_config.as_ref().map(resolv_conf).transpose()?.unwrap_or_default(),
            network: network_at(Some(Path::new(&request.netns_path))),
            cgroup_parent: linux.map(|linux| linux.cgroup_parent.clone()).filter(|parent| !parent.is_empty()),
            annotations,
            resources: None,
        })
    }

    /// The host name of the pod of this id: one that is not told has its own, as long as Linux takes one.
    pub fn host_name(&self, id: &str) -> String {
        self.hostname.clone().unwrap_or_else(|| id.chars().take(HOST_NAME_LEN_MAX).collect())
    }

    /// The pod to launch, now that its size is known.
    pub fn spec(self, group: Group, size: &MachineSize) -> PodSpec {
        PodSpec {
            hostname: self.host_name(&group.id),
            id: group.id,
            state_dir: group.state_dir,
            vcpus: size.vcpus.value,
            memory_mib: size.memory_mib.value,
            sysctls: self.sysctls,
            resolv_conf: self.resolv_conf,
            network: self.network,
            interface_rules: InterfaceRules::default(),
            extra_cmdline: size.command_line(),
        }
    }
}

fn network_of(oci: &Spec) -> PodNetwork {
    let namespaces = oci.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten();
    let mut networks = namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    network_at(networks.next().and_then(|network| network.path().as_deref()))
}

/// Without a path the runtime makes one, and who has the task's pid may put something there.
fn network_at(path: Option<&Path>) -> PodNetwork {
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => PodNetwork::Namespace(path.to_owned()),
        None => PodNetwork::Own,
    }
}

fn sandbox_config(request: &CreateSandboxRequest) -> Result<PodSandboxConfig, Refusal> {
    let Some(options) = request.options.as_ref().filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
        return Ok(PodSandboxConfig::default());
    };
    let name = options.type_url.rsplit('/').next().unwrap_or_default();
    if name != SANDBOX_CONFIG_TYPE {
        return Err(invalid(
            "options",
            format!("are of the type {name:?}; this runtime knows {SANDBOX_CONFIG_TYPE} alone"),
        ));
    }
    PodSandboxConfig::parse_from_bytes(&options.value)
        .map_err(|error| invalid("options", format!("are not a {SANDBOX_CONFIG_TYPE}: {error}")))
}

fn check_namespaces(namespaces: &[(&str, Result<NamespaceMode, i32>)]) -> Result<(), Refusal> {
    for (kind, mode) in namespaces {
        let field = format!("options.linux.security_context.namespace_options.{kind}");
        match mode {
            Ok(NamespaceMode::NODE) => {
                return Err(invalid(
                    &field,
                    "asks for the host's namespace, which a machine cannot be in; leave it out, or run this pod with runc",
                ));
            }
            Ok(_) => {}
            Err(number) => return Err(invalid(&field, format!("is {number}, which no version of CRI knows"))),
        }
    }
    Ok(())
}

fn host_name_of(config: &PodSandboxConfig) -> Result<Option<String>, Refusal> {
    let name = config.hostname.as_str();
    if name.is_empty() {
        return Ok(None);
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if name.len() > HOST_NAME_LEN_MAX || !name.bytes().all(known) {
        let rule = format!("is {name:?}; a host name has letters, digits, - and ., at most {HOST_NAME_LEN_MAX}");
        return Err(invalid("options.hostname", rule));
    }
    Ok(Some(name.to_owned()))
}

// The guest, which sets them, decides what it knows; here they have to be names and values at all.
fn sysctls(asked: &HashMap<String, String>) -> Result<BTreeMap<String, String>, Refusal> {
    let is_name = |name: &str| name.split(['.', '/']).all(|part| !part.is_empty() && !part.contains('\0'));
    if let Some((name, value)) = asked.iter().find(|(name, value)| !is_name(name) || value.contains('\0')) {
        let rule =
            format!("has {name:?} = {value:?}; a name is one like net.ipv4.ip_forward, and no value has a zero byte");
        return Err(invalid("options.linux.sysctls", rule));
    }
    Ok(asked.clone().into_iter().collect())
}

// What containerd's CRI says of a pause container by annotations, so that a pod has one size either way. The author's own words under
// these names do not count.
fn sizes(resources: Option<&LinuxContainerResources>) -> Vec<(String, String)> {
    let unlimited = LinuxContainerResources::default();
    let resources = resources.unwrap_or(&unlimited);
    [
        (sizing::CONTAINER_TYPE, sizing::CONTAINER_TYPE_SANDBOX.to_owned()),
        (sizing::SANDBOX_CPU_QUOTA, resources.cpu_quota.to_string()),
        (sizing::SANDBOX_CPU_PERIOD, resources.cpu_period.to_string()),
        (sizing::SANDBOX_CPU_SHARES, resources.cpu_shares.to_string()),
        (sizing::SANDBOX_MEMORY, resources.memory_limit_in_bytes.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

// resolv.conf(5); a word with a space or a line's end in it would say something else there.
fn resolv_conf(dns: &DNSConfig) -> Result<String, Refusal> {
    for (field, words) in [("servers", &dns.servers), ("searches", &dns.searches), ("options", &dns.options)] {
        let field = format!("options.dns_config.{field}");
        if words.len() > MOST_DNS_WORDS {
            return Err(invalid(&field, format!("has {} words; at most {MOST_DNS_WORDS} are taken", words.len())));
        }
        if let Some(word) =
            words.iter().find(|word| word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(invalid(&field, format!("has {word:?}, which is no word of resolv.conf")));
        }
    }
    let line = |name: &str, words: &[String]| format!("{name} {}\n", words.join(" "));
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &line("search", &dns.searches);
    }
    dns.servers.iter().for_each(|server| text += &line("nameserver", std::slice::from_ref(server)));
    if !dns.options.is_empty() {
        text += &line("options", &dns.options);
    }
    Ok(text)
}

fn invalid(field: &str, what: impl std::fmt::Display) -> Refusal {
    Refusal::new(ErrorKind::InvalidArgument, format!("{field} {what}"))
}

#[cfg(test)]
mod tests;
