//! The command line as containerd writes it: Go's `flag` syntax (one dash or two, `-name value` or `-name=value`,
//! flags end at the first word that is none), then one word that says what to do.

use std::path::PathBuf;

/// What this process is asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `start`: find or make the pod's daemon and print its address.
    Start,
    /// `delete`: undo what a dead daemon left.
    Delete,
    /// No word at all: be the daemon.
    Serve,
    /// `-info`: describe this runtime.
    Info,
    /// `-v`: print the version.
    Version,
}

/// The command line, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// containerd's own gRPC address; part of the socket's name, so that two containerds do not meet.
    pub address: String,
    /// containerd's binary for publishing; unused, events go over ttrpc.
    pub publish_binary: String,
    /// The bundle, where it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// The socket's path, where containerd chooses it.
    pub socket: Option<PathBuf>,
    /// Log at debug level.
    pub debug: bool,
}

/// Why a command line was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArgumentError {
    /// A flag nobody knows.
    #[error(
        "unknown flag -{0}: this binary is started by containerd, with -namespace, -id, -address and start or delete"
    )]
    UnknownFlag(String),
    /// A flag at the end of the line without its value.
    #[error("the flag -{0} needs a value")]
    MissingValue(String),
    /// A boolean flag with something else.
    #[error("the flag -{flag} takes true or false, not {value:?}")]
    NotBoolean {
        /// The flag.
        flag: String,
        /// What it was given.
        value: String,
    },
    /// A word that is neither start nor delete.
    #[error("unknown action {0:?}: it is start, delete, or nothing (the daemon)")]
    UnknownAction(String),
    /// A flag that must be there.
    #[error("the flag -{0} is missing")]
    Missing(&'static str),
    /// A name that could lead out of our folders.
    #[error(
        "the {what} {value:?} is not an identifier as containerd defines it (letters, digits, and . _ - between them, at most 76)"
    )]
    NotIdentifier {
        /// Which flag or annotation.
        what: &'static str,
        /// What it was.
        value: String,
    },
}

/// containerd's own limit for identifiers (pkg `identifiers`).
pub const IDENTIFIER_LEN_MAX: usize = 76;

impl Arguments {
    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// The first word that is wrong, by name.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, ArgumentError> {
        let mut words = words.into_iter();
        let mut parsed = Self::empty();
        let mut action_word = None;
        while let Some(word) = words.next() {
            match flag_of(&word) {
                Some((name, value)) => parsed.set(name, value, &mut words)?,
                None => {
                    action_word = Some(word);
                    break;
                }
            }
        }
        if matches!(parsed.action, Action::Version | Action::Info) {
            return Ok(parsed);
        }
        parsed.action = match action_word.as_deref() {
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            None => Action::Serve,
            Some(other) => return Err(ArgumentError::UnknownAction(other.to_owned())),
        };
        // `start` may still learn them from its standard input, in containerd 2.3 and later.
        if parsed.action != Action::Start || !parsed.namespace.is_empty() || !parsed.id.is_empty() {
            parsed.check_names()?;
        }
        Ok(parsed)
    }

    /// Checks what will become part of paths.
    ///
    /// # Errors
    /// The name that is missing or is no identifier.
    pub fn check_names(&self) -> Result<(), ArgumentError> {
        check_identifier("namespace", &self.namespace)?;
        check_identifier("id", &self.id)
    }

    /// The bundle: as the flag says, or the working directory, where containerd starts us.
    ///
    /// # Errors
    /// The working directory is gone.
    pub fn bundle_dir(&self) -> std::io::Result<PathBuf> {
        self.bundle.clone().map_or_else(std::env::current_dir, Ok)
    }

    fn empty() -> Self {
        Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            publish_binary: String::new(),
            bundle: None,
            socket: None,
            debug: false,
        }
    }

    fn set(
        &mut self,
        name: &str,
        value: Option<&str>,
        rest: &mut impl Iterator<Item = String>,
    ) -> Result<(), ArgumentError> {
        match name {
            "debug" => self.debug = boolean(name, value)?,
            "v" | "version" if boolean(name, value)? => self.action = Action::Version,
            "info" if boolean(name, value)? => self.action = Action::Info,
            "v" | "version" | "info" => {}
            _ => {
                let field = self.field(name)?;
                let value = value.map(str::to_owned).or_else(|| rest.next());
                field(self, value.ok_or_else(|| ArgumentError::MissingValue(name.to_owned()))?);
            }
        }
        Ok(())
    }

    fn field(&self, name: &str) -> Result<fn(&mut Self, String), ArgumentError> {
        Ok(match name {
            "namespace" => |a, v| a.namespace = v,
            "id" => |a, v| a.id = v,
            "address" => |a, v| a.address = v,
            "publish-binary" => |a, v| a.publish_binary = v,
            "bundle" => |a, v| a.bundle = Some(v.into()).filter(|path: &PathBuf| !path.as_os_str().is_empty()),
            "socket" => |a, v| a.socket = Some(v.into()).filter(|path: &PathBuf| !path.as_os_str().is_empty()),
            other => return Err(ArgumentError::UnknownFlag(other.to_owned())),
        })
    }
}

/// Checks one name that will become part of a path, by containerd's own rule.
///
/// # Errors
/// It is empty, too long, or holds anything else than letters and digits with single `.`, `_`, `-` between them.
pub fn check_identifier(what: &'static str, value: &str) -> Result<(), ArgumentError> {
    if value.is_empty() {
        return Err(ArgumentError::Missing(what));
    }
    let parts_are_words = value
        .split(['.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if value.len() > IDENTIFIER_LEN_MAX || !parts_are_words {
        return Err(ArgumentError::NotIdentifier { what, value: value.to_owned() });
    }
    Ok(())
}

fn flag_of(word: &str) -> Option<(&str, Option<&str>)> {
    let body = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|body| !body.is_empty())?;
    Some(match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    })
}

fn boolean(flag: &str, value: Option<&str>) -> Result<bool, ArgumentError> {
    match value {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(ArgumentError::NotBoolean { flag: flag.to_owned(), value: other.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, ArgumentError> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_1_6_start_line_is_understood() {
        let parsed = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id abc start",
        )
        .expect("parsed");
        assert_eq!(parsed.action, Action::Start);
        assert_eq!((parsed.namespace.as_str(), parsed.id.as_str()), ("k8s.io", "abc"));
        assert_eq!(parsed.address, "/run/containerd/containerd.sock");
        assert_eq!(parsed.publish_binary, "/usr/bin/containerd");
        assert!(!parsed.debug);
    }

    #[test]
    fn delete_line_names_the_bundle() {
        let parsed =
            parse("-namespace default -address a -publish-binary c -id x -bundle /b -debug delete").expect("parsed");
        assert_eq!(parsed.action, Action::Delete);
        assert_eq!(parsed.bundle, Some("/b".into()));
        assert!(parsed.debug);
    }

    #[test]
    fn two_dashes_and_equals_signs_are_the_same_flags() {
        let parsed = parse("--namespace=default -id=x --debug=false -socket=/s").expect("parsed");
        assert_eq!(parsed.action, Action::Serve);
        assert_eq!(parsed.socket, Some("/s".into()));
        assert!(!parsed.debug);
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        assert_eq!(parse("-v").expect("parsed").action, Action::Version);
        assert_eq!(parse("-info").expect("parsed").action, Action::Info);
    }

    #[test]
    fn each_mistake_is_named() {
        assert_eq!(parse("-namespace d -id x -colour red start"), Err(ArgumentError::UnknownFlag("colour".into())));
        assert_eq!(parse("-namespace d -id x stop"), Err(ArgumentError::UnknownAction("stop".into())));
        assert_eq!(parse("-namespace d -id"), Err(ArgumentError::MissingValue("id".into())));
        assert_eq!(parse("-namespace d delete"), Err(ArgumentError::Missing("id")));
        assert!(matches!(parse("-debug=perhaps"), Err(ArgumentError::NotBoolean { .. })));
    }

    #[test]
    fn names_cannot_lead_out_of_our_folders() {
        for bad in ["..", "a/b", ".hidden", "a..b", "-a", "a b", &"x".repeat(77)] {
            assert!(check_identifier("id", bad).is_err(), "{bad:?}");
        }
        for good in ["a", "k8s.io", "a-b_c.d", &"x".repeat(76)] {
            assert_eq!(check_identifier("id", good), Ok(()), "{good:?}");
        }
    }
}
