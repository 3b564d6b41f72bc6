//! What a pod's author may ask for by annotations `io.kata-rs.*`: a closed list, typed, and denied unless the operator allows it.
//!
//! None of them carries a path, an argument or a word of a kernel command line; each is a number or a word of a fixed list, with
//! a range. Denied by default, because the author of a pod is not the operator of the node: a pod that sizes its own machine
//! takes more of the node than the scheduler was told, and one that makes its console talk slows the node's log.

use std::collections::HashMap;

use crate::{
    ErrorKind, PodError,
    configuration::{CONSOLE_LEVELS, Configuration, Key, LOG_LEVELS, LogLevel, log_level},
    setting::Setting,
    sizing::MEMORY_LEAST_MIB,
};

/// How all of our annotations begin.
pub const ANNOTATION_PREFIX: &str = "io.kata-rs.";

/// One annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Annotation {
    /// `io.kata-rs.vcpus`
    Vcpus,
    /// `io.kata-rs.memory`
    Memory,
    /// `io.kata-rs.console-level`
    ConsoleLevel,
    /// `io.kata-rs.agent-log-level`
    AgentLogLevel,
}

impl Annotation {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Vcpus, Self::Memory, Self::ConsoleLevel, Self::AgentLogLevel];

    /// How it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpus => "io.kata-rs.vcpus",
            Self::Memory => "io.kata-rs.memory",
            Self::ConsoleLevel => "io.kata-rs.console-level",
            Self::AgentLogLevel => "io.kata-rs.agent-log-level",
        }
    }

    /// The annotation with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|annotation| annotation.name() == name)
    }

    /// What it takes, in words.
    pub fn range(self) -> String {
        match self {
            Self::Vcpus => "a whole number from 1 to `max_vcpus`".to_owned(),
            Self::Memory => {
                format!("a whole number of `Mi` or `Gi`, as in `512Mi`, from {MEMORY_LEAST_MIB}Mi to `max_memory_mib`")
            }
            Self::ConsoleLevel => format!("a whole number from {} to {}", CONSOLE_LEVELS.start(), CONSOLE_LEVELS.end()),
            Self::AgentLogLevel => format!("one of {}", LOG_LEVELS.map(|(word, _)| word).join(", ")),
        }
    }

    /// The operator's bound that is part of the range, as a sentence's end.
    fn bound(self, configuration: &Configuration) -> String {
        let (key, value, source) = match self {
            Self::Vcpus => (Key::MaxVcpus, configuration.max_vcpus.value.into(), &configuration.max_vcpus.source),
            Self::Memory => (Key::MaxMemory, configuration.max_memory_mib.value, &configuration.max_memory_mib.source),
            Self::ConsoleLevel | Self::AgentLogLevel => return String::new(),
        };
        format!(" ({} is {value}: {source})", key.name())
    }

    /// What it does, in a sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Vcpus => "vCPUs of the pod's machine, whatever the pod's limits come to",
            Self::Memory => "memory of the pod's machine as a whole, whatever the pod's limits come to",
            Self::ConsoleLevel => "as `console_level`, for this pod",
            Self::AgentLogLevel => "as `agent_log_level`, for this pod",
        }
    }
}

/// What a pod's author asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// vCPUs of the machine.
    pub vcpus: Option<u8>,
    /// Memory of the machine in MiB.
    pub memory_mib: Option<u32>,
    /// Level of the guest kernel's console.
    pub console_level: Option<u8>,
    /// Level of the agent's log.
    pub agent_log_level: Option<LogLevel>,
}

impl Wishes {
    /// Reads our annotations among all of a pod; the others are not ours to judge. Pure.
    ///
    /// # Errors
    /// One of ours is unknown, not allowed here or malformed: an invalid argument that names it.
    pub fn read(annotations: &HashMap<String, String>, configuration: &Configuration) -> Result<Self, PodError> {
        let mut ours: Vec<_> = annotations.iter().filter(|(name, _)| name.starts_with(ANNOTATION_PREFIX)).collect();
        // The same pod gets the same answer each time.
        ours.sort();
        let mut wishes = Self::default();
        for (name, value) in ours {
            let annotation = Annotation::named(name).ok_or_else(|| unknown(name))?;
            check_allowed(annotation, &configuration.allowed_annotations)?;
            wishes.take(annotation, value, configuration).ok_or_else(|| malformed(annotation, value, configuration))?;
        }
        Ok(wishes)
    }

    fn take(&mut self, annotation: Annotation, value: &str, configuration: &Configuration) -> Option<()> {
        match annotation {
            Annotation::Vcpus => {
                let most = configuration.max_vcpus.value;
                self.vcpus = Some(digits(value)?.try_into().ok().filter(|vcpus| (1..=most).contains(vcpus))?);
            }
            Annotation::Memory => {
                let most = configuration.max_memory_mib.value;
                self.memory_mib = Some(memory_mib(value).filter(|mib| (MEMORY_LEAST_MIB..=most).contains(mib))?);
            }
            Annotation::ConsoleLevel => {
                self.console_level =
                    Some(digits(value)?.try_into().ok().filter(|level| CONSOLE_LEVELS.contains(level))?);
            }
            Annotation::AgentLogLevel => self.agent_log_level = Some(log_level(value)?),
        }
        Some(())
    }
}

/// A number written with digits alone: no sign, no space.
fn digits(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn memory_mib(text: &str) -> Option<u32> {
    match (text.strip_suffix("Mi"), text.strip_suffix("Gi")) {
        (Some(mib), _) => digits(mib),
        (_, Some(gib)) => digits(gib)?.checked_mul(1024),
        _ => None,
    }
}

fn check_allowed(annotation: Annotation, allowed: &Setting<Vec<Annotation>>) -> Result<(), PodError> {
    if allowed.value.contains(&annotation) {
        return Ok(());
    }
    let names: Vec<_> = allowed.value.iter().map(|annotation| annotation.name()).collect();
    let list = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(PodError::new(
        ErrorKind::InvalidArgument,
        format!(
            "the annotation {} is not allowed on this node (allowed: {list}; {}): leave it out, or have the node's operator add it to allowed_annotations",
            annotation.name(),
            allowed.source
        ),
    ))
}

fn unknown(name: &str) -> PodError {
    PodError::new(
        ErrorKind::InvalidArgument,
        format!("unknown annotation {:?}; known are {}", cut(name), Annotation::ALL.map(Annotation::name).join(", ")),
    )
}

fn malformed(annotation: Annotation, value: &str, configuration: &Configuration) -> PodError {
    PodError::new(
        ErrorKind::InvalidArgument,
        format!(
            "the annotation {} takes {}{}, not {:?}",
            annotation.name(),
            annotation.range(),
            annotation.bound(configuration),
            cut(value)
        ),
    )
}

/// As much of a text as an error needs.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{host::HostSize, setting::Source};

    fn allowing(allowed: &[Annotation]) -> Configuration {
        let mut configuration = Configuration::defaults(HostSize { cpus: 8, memory_mib: 4096 });
        configuration.allowed_annotations = Setting::new(allowed.to_vec(), Source::Default);
        configuration
    }

    fn read(pairs: &[(&str, &str)], allowed: &[Annotation]) -> Result<Wishes, String> {
        let annotations = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Wishes::read(&annotations, &allowing(allowed)).map_err(|error| {
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            error.message
        })
    }

    #[test]
    fn what_is_allowed_and_well_formed_is_a_wish() {
        let wishes = read(
            &[
                ("io.kata-rs.vcpus", "2"),
                ("io.kata-rs.memory", "1Gi"),
                ("io.kata-rs.console-level", "7"),
                ("io.kata-rs.agent-log-level", "debug"),
                ("io.kubernetes.cri.sandbox-id", "x"),
                ("io.kata", "y"),
            ],
            &Annotation::ALL,
        );
        let expected = Wishes {
            vcpus: Some(2),
            memory_mib: Some(1024),
            console_level: Some(7),
            agent_log_level: Some(LogLevel::Debug),
        };
        assert_eq!(wishes, Ok(expected));
    }

    #[test]
    fn nothing_is_allowed_by_default_and_the_answer_says_what_to_do() {
        let message = read(&[("io.kata-rs.vcpus", "2")], &[]).expect_err("refused");
        assert!(message.contains("io.kata-rs.vcpus") && message.contains("allowed_annotations"), "{message}");
        let message = read(&[("io.kata-rs.memory", "1Gi")], &[Annotation::Vcpus]).expect_err("refused");
        assert!(message.contains("allowed: io.kata-rs.vcpus"), "{message}");
    }

    #[test]
    fn an_unknown_one_is_named_beside_the_known() {
        let message = read(&[("io.kata-rs.kernel", "/tmp/vmlinux")], &Annotation::ALL).expect_err("refused");
        assert!(message.contains("io.kata-rs.kernel"), "{message}");
        assert!(Annotation::ALL.iter().all(|known| message.contains(known.name())), "{message}");
    }

    #[test]
    fn a_value_out_of_its_range_is_refused_with_the_range() {
        for (name, value) in [
            ("io.kata-rs.vcpus", "0"),
            ("io.kata-rs.vcpus", "9"),
            ("io.kata-rs.vcpus", "+2"),
            ("io.kata-rs.vcpus", "2 "),
            ("io.kata-rs.vcpus", ""),
            ("io.kata-rs.memory", "512"),
            ("io.kata-rs.memory", "127Mi"),
            ("io.kata-rs.memory", "4097Mi"),
            ("io.kata-rs.memory", "4194304Gi"),
            ("io.kata-rs.memory", "Mi"),
            ("io.kata-rs.console-level", "9"),
            ("io.kata-rs.console-level", "7 init=/bin/sh"),
            ("io.kata-rs.agent-log-level", "loud"),
        ] {
            let message = read(&[(name, value)], &Annotation::ALL).expect_err(value);
            assert!(message.contains(name) && message.contains("takes"), "{message}");
        }
    }

    #[test]
    fn the_list_stays_short() {
        assert!(Annotation::ALL.len() <= 10);
        assert!(Annotation::ALL.iter().all(|annotation| annotation.name().starts_with(ANNOTATION_PREFIX)));
    }

    proptest! {
        #[test]
        fn whatever_is_written_a_wish_is_in_its_range_or_the_annotation_is_named(
            annotation in prop::sample::select(Annotation::ALL.to_vec()),
            value in "[ -~]{0,12}|[0-9]{1,6}(Mi|Gi)?",
        ) {
            match read(&[(annotation.name(), &value)], &Annotation::ALL) {
                Ok(wishes) => {
                    prop_assert!(wishes.vcpus.is_none_or(|vcpus| (1..=8).contains(&vcpus)));
                    prop_assert!(wishes.memory_mib.is_none_or(|mib| (MEMORY_LEAST_MIB..=4096).contains(&mib)));
                    prop_assert!(wishes.console_level.is_none_or(|level| level <= 8));
                }
                Err(message) => prop_assert!(message.contains(annotation.name())),
            }
        }
    }
}
