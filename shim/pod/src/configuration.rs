//! The operator's configuration: one TOML file and drop-ins beside it.
//!
//! ```text
//! /etc/kata-rs/config.toml        may be missing: everything has a default
//! /etc/kata-rs/config.d/*.toml    by name; of each key the last one counts
//! ```
//! Reading ([`Configuration::load`]) and meaning ([`Configuration::parse`]) are two steps; the second is pure. A file that is broken
//! anywhere is refused as a whole, with file, line and cause: a pod that runs with other values than the operator wrote would be
//! worse than one that does not start. Every value carries its [`Source`].

mod key;
mod reading;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use toml::de::DeTable;
use vmm_control::{MEMORY_MIB_MAX, VCPUS_MAX};

pub(crate) use key::{CONSOLE_LEVELS, LOG_LEVELS, log_level, log_word};
pub use key::{Key, LogLevel};

use crate::{
    ErrorKind, InterfaceRules, PodError,
    annotations::Annotation,
    host::HostSize,
    setting::{Setting, Source},
    sizing::{MEMORY_DEFAULT_MIB, MEMORY_LEAST_MIB, MEMORY_OVERHEAD_MIB, VCPUS_DEFAULT},
};
use reading::{Text, read_all};

/// The main file.
pub const CONFIGURATION_FILE: &str = "/etc/kata-rs/config.toml";
/// Names another main file, whose folder has the drop-ins; for tests.
pub const CONFIGURATION_VARIABLE: &str = "KATA_RS_CONFIG";

/// All values that hold on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// vCPUs of a machine whose pod states none.
    pub default_vcpus: Setting<u8>,
    /// Memory of a machine whose pod states none, in MiB.
    pub default_memory_mib: Setting<u32>,
    /// Memory added for the guest's kernel and agent, in MiB.
    pub overhead_memory_mib: Setting<u32>,
    /// Most vCPUs of a machine.
    pub max_vcpus: Setting<u8>,
    /// Most memory of a machine, in MiB.
    pub max_memory_mib: Setting<u32>,
    /// Level of the guest kernel's console; nothing for the kernel's own.
    pub console_level: Setting<Option<u8>>,
    /// Level of the agent's log; nothing for the agent's own.
    pub agent_log_level: Setting<Option<LogLevel>>,
    /// Level of the shim's log.
    pub log_level: Setting<LogLevel>,
    /// What a pod's author may ask for.
    pub allowed_annotations: Setting<Vec<Annotation>>,
    /// Most that an interface sends, in Mbit/s; 0 for no limit.
    pub network_transmit_mbit: Setting<u32>,
    /// Most that an interface receives, in Mbit/s; 0 for no limit.
    pub network_receive_mbit: Setting<u32>,
    /// Do pods send from any hardware address?
    pub network_any_source: Setting<bool>,
    /// Does the host's kernel move the frames of pods, where it can?
    pub network_vhost: Setting<bool>,
    /// The files that were read, in their order.
    pub files: Vec<PathBuf>,
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration {path}{}: {cause}; correct it, and `kata-rs check` tells whether it is well", Line(*line))]
pub struct ConfigurationError {
    /// The file, as shown.
    pub path: String,
    /// The line, where one can be named.
    pub line: Option<usize>,
    /// What is wrong with it.
    pub cause: String,
}

struct Line(Option<usize>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

impl ConfigurationError {
    fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        Self { path: path.display().to_string(), line: None, cause: format!("cannot be read: {error}") }
    }
}

impl From<ConfigurationError> for PodError {
    fn from(error: ConfigurationError) -> Self {
        Self::new(ErrorKind::FailedPrecondition, error.to_string())
    }
}

impl Configuration {
    /// What holds on this host now.
    ///
    /// # Errors
    /// A file is broken.
    pub fn load() -> Result<Self, ConfigurationError> {
        let named = std::env::var_os(CONFIGURATION_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        let main = named.as_deref().unwrap_or(Path::new(CONFIGURATION_FILE));
        Self::parse(&read_all(main, named.is_some())?, HostSize::now())
    }

    /// What holds where no file says anything.
    pub(crate) fn defaults(host: HostSize) -> Self {
        Self {
            default_vcpus: Setting::default(VCPUS_DEFAULT),
            default_memory_mib: Setting::default(MEMORY_DEFAULT_MIB),
            overhead_memory_mib: Setting::default(MEMORY_OVERHEAD_MIB),
            max_vcpus: Setting::new(host.cpus.clamp(1, VCPUS_MAX), Source::Host),
            max_memory_mib: Setting::new(host.memory_mib.clamp(MEMORY_LEAST_MIB, MEMORY_MIB_MAX), Source::Host),
            console_level: Setting::default(None),
            agent_log_level: Setting::default(None),
            log_level: Setting::default(LogLevel::Info),
            allowed_annotations: Setting::default(Vec::new()),
            network_transmit_mbit: Setting::default(0),
            network_receive_mbit: Setting::default(0),
            network_any_source: Setting::default(false),
            network_vhost: Setting::default(false),
            files: Vec::new(),
        }
    }

    /// What these files say on this host. Pure.
    fn parse(texts: &[Text], host: HostSize) -> Result<Self, ConfigurationError> {
        let mut configuration = Self::defaults(host);
        for text in texts {
            configuration.take(text)?;
            configuration.files.push(text.path.clone());
        }
        configuration.check()?;
        Ok(configuration)
    }

    fn take(&mut self, file: &Text) -> Result<(), ConfigurationError> {
        let wrong = |offset: Option<usize>, cause: String| ConfigurationError {
            path: file.path.display().to_string(),
            line: offset.map(|offset| line_of(&file.text, offset)),
            cause,
        };
        let table = DeTable::parse(&file.text)
            .map_err(|error| wrong(error.span().map(|span| span.start), error.message().to_owned()))?;
        for (name, value) in table.get_ref() {
            let offset = name.span().start;
            let key = Key::named(name.get_ref()).ok_or_else(|| wrong(Some(offset), unknown(name.get_ref())))?;
            let source = Source::File { path: file.path.clone(), line: line_of(&file.text, offset) };
            key.set(self, value.get_ref(), source).map_err(|cause| wrong(Some(offset), cause))?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ConfigurationError> {
        let number = |setting: &Setting<u8>| setting.clone().map(u32::from);
        contradiction(
            (Key::DefaultVcpus, &number(&self.default_vcpus)),
            (Key::MaxVcpus, &number(&self.max_vcpus)),
            "is more than",
            |default, most| default > most,
        )?;
        contradiction(
            (Key::DefaultMemory, &self.default_memory_mib),
            (Key::MaxMemory, &self.max_memory_mib),
            "is more than",
            |default, most| default > most,
        )?;
        let limits =
            [(Key::NetworkTransmit, &self.network_transmit_mbit), (Key::NetworkReceive, &self.network_receive_mbit)];
        let vhost = (Key::NetworkVhost, &self.network_vhost);
        let without = "has no limits, which hold in our own device alone, beside";
        limits
            .into_iter()
            .try_for_each(|limit| contradiction(vhost, limit, without, |vhost, limit| *vhost && *limit > 0))
    }

    /// What holds for the interfaces of every pod.
    pub fn interface_rules(&self) -> InterfaceRules {
        InterfaceRules {
            transmit_mbit: self.network_transmit_mbit.value,
            receive_mbit: self.network_receive_mbit.value,
            any_source: self.network_any_source.value,
            vhost: self.network_vhost.value,
        }
    }

    /// The value of a key as it would be written in a file, and its source.
    pub fn shown(&self, key: Key) -> Setting<String> {
        let number = |setting: &Setting<u32>| setting.clone().map(|value| value.to_string());
        match key {
            Key::DefaultVcpus => number(&self.default_vcpus.clone().map(u32::from)),
            Key::DefaultMemory => number(&self.default_memory_mib),
            Key::OverheadMemory => number(&self.overhead_memory_mib),
            Key::MaxVcpus => number(&self.max_vcpus.clone().map(u32::from)),
            Key::MaxMemory => number(&self.max_memory_mib),
            Key::ConsoleLevel => {
                self.console_level.clone().map(|level| level.unwrap_or(CONSOLE_LEVEL_QUIET).to_string())
            }
            Key::AgentLogLevel => {
                self.agent_log_level.clone().map(|level| format!("{:?}", log_word(level.unwrap_or(LogLevel::Warn))))
            }
            Key::LogLevel => self.log_level.clone().map(|level| format!("{:?}", log_word(level))),
            Key::NetworkTransmit => number(&self.network_transmit_mbit),
            Key::NetworkReceive => number(&self.network_receive_mbit),
            Key::NetworkAnySource => self.network_any_source.clone().map(|value| value.to_string()),
            Key::NetworkVhost => self.network_vhost.clone().map(|value| value.to_string()),
            Key::AllowedAnnotations => self
                .allowed_annotations
                .clone()
                .map(|list| format!("{:?}", list.into_iter().map(Annotation::name).collect::<Vec<_>>())),
        }
    }
}

/// What `quiet`, which every machine is booted with, means (Linux CONFIG_CONSOLE_LOGLEVEL_QUIET).
const CONSOLE_LEVEL_QUIET: u8 = 4;

/// Of two values of files that contradict each other, neither is likelier to be the mistake: both are named.
fn contradiction<A: fmt::Display, B: fmt::Display>(
    (key, setting): (Key, &Setting<A>),
    (other_key, other): (Key, &Setting<B>),
    words: &str,
    contradict: impl FnOnce(&A, &B) -> bool,
) -> Result<(), ConfigurationError> {
    let (Source::File { path, line }, Source::File { .. }) = (&setting.source, &other.source) else { return Ok(()) };
    if !contradict(&setting.value, &other.value) {
        return Ok(());
    }
    let [name, other_name] = [key, other_key].map(Key::name);
    let cause = format!("{name} = {} {words} {other_name} = {} ({})", setting.value, other.value, other.source);
    Err(ConfigurationError { path: path.display().to_string(), line: Some(*line), cause })
}

fn unknown(name: &str) -> String {
    let shown: String = name.chars().take(64).collect();
    format!("unknown key {shown:?}; known are {}", Key::ALL.map(Key::name).join(", "))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
