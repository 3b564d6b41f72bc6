//! The keys of the configuration: name, unit, range and meaning of each, and how its value is read.

use std::ops::RangeInclusive;

use toml::de::DeValue;
use vmm_control::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, VCPUS_MAX};

use super::{CONSOLE_LEVEL_QUIET, Configuration};
use crate::{
    annotations::Annotation,
    setting::{Setting, Source},
    sizing::{MEMORY_DEFAULT_MIB, MEMORY_LEAST_MIB, MEMORY_OVERHEAD_MIB, VCPUS_DEFAULT},
};

/// Most overhead that makes sense: far more than kernel and agent can use.
const OVERHEAD_MIB_MAX: u32 = 4096;
/// Levels of the kernel's console: messages with a smaller number are printed, so 0 is none and 8 is all, debug messages (7) among them
/// (Linux Documentation/admin-guide/kernel-parameters.txt, `loglevel`).
pub(crate) const CONSOLE_LEVELS: RangeInclusive<u8> = 0..=8;

/// Fastest limit of an interface: a terabit.
const MBIT_MAX: u32 = 1_000_000;

/// How much is logged.
pub type LogLevel = log::LevelFilter;

/// The words for a [`LogLevel`].
pub(crate) const LOG_LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

/// A key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `default_vcpus`
    DefaultVcpus,
    /// `default_memory_mib`
    DefaultMemory,
    /// `overhead_memory_mib`
    OverheadMemory,
    /// `max_vcpus`
    MaxVcpus,
    /// `max_memory_mib`
    MaxMemory,
    /// `console_level`
    ConsoleLevel,
    /// `agent_log_level`
    AgentLogLevel,
    /// `log_level`
    LogLevel,
    /// `allowed_annotations`
    AllowedAnnotations,
    /// `network_transmit_mbit`
    NetworkTransmit,
    /// `network_receive_mbit`
    NetworkReceive,
    /// `network_any_source`
    NetworkAnySource,
    /// `network_vhost`
    NetworkVhost,
}

impl Key {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 13] = [
        Self::DefaultVcpus,
        Self::DefaultMemory,
        Self::OverheadMemory,
        Self::MaxVcpus,
        Self::MaxMemory,
        Self::ConsoleLevel,
        Self::AgentLogLevel,
        Self::LogLevel,
        Self::AllowedAnnotations,
        Self::NetworkTransmit,
        Self::NetworkReceive,
        Self::NetworkAnySource,
        Self::NetworkVhost,
    ];

    /// How it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::DefaultVcpus => "default_vcpus",
            Self::DefaultMemory => "default_memory_mib",
            Self::OverheadMemory => "overhead_memory_mib",
            Self::MaxVcpus => "max_vcpus",
            Self::MaxMemory => "max_memory_mib",
            Self::ConsoleLevel => "console_level",
            Self::AgentLogLevel => "agent_log_level",
            Self::LogLevel => "log_level",
            Self::AllowedAnnotations => "allowed_annotations",
            Self::NetworkTransmit => "network_transmit_mbit",
            Self::NetworkReceive => "network_receive_mbit",
            Self::NetworkAnySource => "network_any_source",
            Self::NetworkVhost => "network_vhost",
        }
    }

    /// The key with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    /// What it counts; empty where there is nothing to count.
    pub fn unit(self) -> &'static str {
        match self {
            Self::DefaultVcpus | Self::MaxVcpus => "vCPUs",
            Self::DefaultMemory | Self::OverheadMemory | Self::MaxMemory => "MiB",
            Self::NetworkTransmit | Self::NetworkReceive => "Mbit/s",
            _ => "",
        }
    }

    /// What it takes, in words.
    pub fn range(self) -> String {
        match self {
            Self::DefaultVcpus | Self::MaxVcpus => format!("a whole number from 1 to {VCPUS_MAX}"),
            Self::DefaultMemory | Self::MaxMemory => {
                format!("a whole number from {MEMORY_LEAST_MIB} to {MEMORY_MIB_MAX}")
            }
            Self::OverheadMemory => format!("a whole number from {MEMORY_MIB_MIN} to {OVERHEAD_MIB_MAX}"),
            Self::ConsoleLevel => format!("a whole number from {} to {}", CONSOLE_LEVELS.start(), CONSOLE_LEVELS.end()),
            Self::AgentLogLevel | Self::LogLevel => format!("one of {}", quoted(LOG_LEVELS.map(|(word, _)| word))),
            Self::NetworkTransmit | Self::NetworkReceive => {
                format!("a whole number from 1 to {MBIT_MAX}, or 0 for no limit")
            }
            Self::NetworkAnySource | Self::NetworkVhost => "true or false".to_owned(),
            Self::AllowedAnnotations => format!("a list of any of {}", quoted(Annotation::ALL.map(Annotation::name))),
        }
    }

    /// What holds when no file says anything, in words.
    pub fn default(self) -> String {
        match self {
            Self::DefaultVcpus => VCPUS_DEFAULT.to_string(),
            Self::DefaultMemory => MEMORY_DEFAULT_MIB.to_string(),
            Self::OverheadMemory => MEMORY_OVERHEAD_MIB.to_string(),
            Self::MaxVcpus | Self::MaxMemory => "what this host has".to_owned(),
            Self::ConsoleLevel => CONSOLE_LEVEL_QUIET.to_string(),
            Self::AgentLogLevel => "\"warn\"".to_owned(),
            Self::LogLevel => "\"info\"".to_owned(),
            Self::AllowedAnnotations => "[]".to_owned(),
            Self::NetworkTransmit | Self::NetworkReceive => "0".to_owned(),
            Self::NetworkAnySource | Self::NetworkVhost => "false".to_owned(),
        }
    }

    /// What it does, in a sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::DefaultVcpus => "vCPUs of a machine whose pod states no CPU limit and no CPU request",
            Self::DefaultMemory => "memory of a machine whose pod states no memory limit",
            Self::OverheadMemory => {
                "memory added to a pod's limit for the guest's kernel and agent, beside 1/64 for the kernel's book-keeping"
            }
            Self::MaxVcpus => {
                "most vCPUs of a machine: a limit above it is capped, an annotation that asks for more is refused"
            }
            Self::MaxMemory => {
                "most memory of a machine: a limit above it is capped, an annotation that asks for more is refused"
            }
            Self::ConsoleLevel => "how much the guest's kernel prints on its console",
            Self::AgentLogLevel => "how much the agent prints on the guest's console",
            Self::LogLevel => {
                "how much the shim logs through containerd; the guest's console is logged at debug. containerd's own debug mode raises it to debug"
            }
            Self::AllowedAnnotations => "annotations that a pod's author may use",
            Self::NetworkTransmit => "most that each interface of a pod sends, beside any limit of a CNI plugin",
            Self::NetworkReceive => "most that each interface of a pod receives",
            Self::NetworkAnySource => {
                "let pods send frames from other hardware addresses than their interfaces' own, as for bridges and virtual routers in a pod; otherwise such frames are dropped and counted"
            }
            Self::NetworkVhost => {
                "let the host's kernel move the frames of pods by vhost-net, where the host has it: faster, and more of the host's kernel within reach of a guest. There are no limits then"
            }
        }
    }

    /// Puts a value of a file into its place.
    ///
    /// # Errors
    /// It is not what the key takes: the words after the key's name.
    pub(super) fn set(
        self,
        configuration: &mut Configuration,
        value: &DeValue<'_>,
        source: Source,
    ) -> Result<(), String> {
        let c = configuration;
        match self {
            Self::DefaultVcpus => c.default_vcpus = Setting::new(self.number(value, 1..=VCPUS_MAX)?, source),
            Self::DefaultMemory => c.default_memory_mib = Setting::new(self.number(value, MEMORY_MIB)?, source),
            Self::OverheadMemory => {
                c.overhead_memory_mib = Setting::new(self.number(value, MEMORY_MIB_MIN..=OVERHEAD_MIB_MAX)?, source);
            }
            Self::MaxVcpus => c.max_vcpus = Setting::new(self.number(value, 1..=VCPUS_MAX)?, source),
            Self::MaxMemory => c.max_memory_mib = Setting::new(self.number(value, MEMORY_MIB)?, source),
            Self::ConsoleLevel => c.console_level = Setting::new(Some(self.number(value, CONSOLE_LEVELS)?), source),
            Self::AgentLogLevel => c.agent_log_level = Setting::new(Some(self.log_level(value)?), source),
            Self::LogLevel => c.log_level = Setting::new(self.log_level(value)?, source),
            Self::AllowedAnnotations => c.allowed_annotations = Setting::new(self.annotations(value)?, source),
            Self::NetworkTransmit => c.network_transmit_mbit = Setting::new(self.number(value, 0..=MBIT_MAX)?, source),
            Self::NetworkReceive => c.network_receive_mbit = Setting::new(self.number(value, 0..=MBIT_MAX)?, source),
            Self::NetworkAnySource => c.network_any_source = Setting::new(self.truth(value)?, source),
            Self::NetworkVhost => c.network_vhost = Setting::new(self.truth(value)?, source),
        }
        Ok(())
    }

    fn number<T: TryFrom<i64> + PartialOrd>(self, value: &DeValue<'_>, range: RangeInclusive<T>) -> Result<T, String> {
        let number = value.as_integer().and_then(|n| {
            let digits = n.as_str().replace('_', "");
            i64::from_str_radix(&digits, n.radix()).ok()
        });
        number.and_then(|n| T::try_from(n).ok()).filter(|n| range.contains(n)).ok_or_else(|| self.wrong(value))
    }

    fn truth(self, value: &DeValue<'_>) -> Result<bool, String> {
        value.as_bool().ok_or_else(|| self.wrong(value))
    }

    fn log_level(self, value: &DeValue<'_>) -> Result<LogLevel, String> {
        let level = value.as_str().and_then(log_level);
        level.ok_or_else(|| self.wrong(value))
    }

    fn annotations(self, value: &DeValue<'_>) -> Result<Vec<Annotation>, String> {
        let list = value.as_array().ok_or_else(|| self.wrong(value))?;
        let mut allowed = Vec::new();
        for item in list.iter() {
            let item = item.get_ref();
            let annotation = item.as_str().and_then(Annotation::named).ok_or_else(|| self.wrong(item))?;
            if !allowed.contains(&annotation) {
                allowed.push(annotation);
            }
        }
        Ok(allowed)
    }

    fn wrong(self, value: &DeValue<'_>) -> String {
        let unit = self.unit();
        let of_what = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
        format!("{} takes {}{of_what}, not {}", self.name(), self.range(), shown(value))
    }
}

const MEMORY_MIB: RangeInclusive<u32> = MEMORY_LEAST_MIB..=MEMORY_MIB_MAX;

/// The level with this name.
pub(crate) fn log_level(word: &str) -> Option<LogLevel> {
    LOG_LEVELS.into_iter().find(|(name, _)| *name == word).map(|(_, level)| level)
}

/// The name of a level.
pub(crate) fn log_word(level: LogLevel) -> &'static str {
    LOG_LEVELS.into_iter().find(|(_, known)| *known == level).map_or("off", |(name, _)| name)
}

fn quoted<const N: usize>(words: [&str; N]) -> String {
    words.map(|word| format!("\"{word}\"")).join(", ")
}

/// A value in an error, no longer than a line.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", text.chars().take(64).collect::<String>()),
        DeValue::Integer(number) => number.to_string().chars().take(64).collect(),
        DeValue::Boolean(value) => value.to_string(),
        other => format!("{} {}", article(other.type_str()), other.type_str()),
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}
