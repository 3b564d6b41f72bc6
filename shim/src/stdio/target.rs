//! What containerd names for an output, as values. Pure.
//!
//! | text | meaning |
//! |---|---|
//! | `/run/…/fifo`, `fifo:///run/…/fifo` | a fifo that a client made and reads |
//! | `file:///var/log/x` | a file to append to; its folder is made |
//! | `binary:///bin/logger?key=value` | a program that reads two pipes, ready when it closes a third |
//! | `binary-v2://…` | the same, ready only when it has said a byte first |
//!
//! The last two are containerd's logging protocol (its `core/runtime/v2/logging`); the program's words are the query's keys and
//! values, one after the other.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

use pod::ErrorKind;

use crate::refusal::Refusal;

/// Longest text that is taken; a path ends at 4096 bytes, a query has some words more.
const TEXT_LEN_MAX: usize = 64 << 10;

/// Where an output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A fifo.
    Fifo(PathBuf),
    /// A file.
    File(PathBuf),
    /// A program.
    Program(Program),
}

/// A logging program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its words.
    pub words: Vec<OsString>,
    /// Whether it must say a byte to be ready; otherwise closing the pipe is enough.
    pub must_say: bool,
}

impl Target {
    /// Reads what containerd wrote into the field `field`.
    ///
    /// # Errors
    /// A scheme that nobody knows, or a path that is not absolute; the message names the field.
    pub fn parse(field: &str, text: &str) -> Result<Self, Refusal> {
        if text.len() > TEXT_LEN_MAX || text.contains('\0') {
            return Err(invalid(field, "has no path: it is longer than any, or holds a zero byte"));
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(Self::Fifo(text.into())) };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = PathBuf::from(OsString::from_vec(decoded(path, false)));
        if !path.is_absolute() {
            return Err(invalid(field, &format!("is {text:?}, and what follows {scheme}:// is not an absolute path")));
        }
        match scheme {
            "fifo" => Ok(Self::Fifo(path)),
            "file" => Ok(Self::File(path)),
            "binary" | "binary-v2" => {
                Ok(Self::Program(Program { path, words: words(query), must_say: scheme == "binary-v2" }))
            }
            _ => Err(Refusal::new(
                ErrorKind::InvalidArgument,
                format!(
                    "cannot use {field} {text:?}: nobody knows the scheme {scheme}://; it is fifo, file, binary or binary-v2"
                ),
            )),
        }
    }
}

// Of a key that comes twice the first value counts, as with containerd's own shim.
fn words(query: &str) -> Vec<OsString> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut words = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decoded(key, true);
        if !keys.contains(&key) {
            words.extend([OsString::from_vec(key.clone()), OsString::from_vec(decoded(value, true))]);
            keys.push(key);
        }
    }
    words
}

// Percent encoding (RFC 3986, 2.1); in a query a plus is a space. What is no encoding stands for itself.
fn decoded(text: &str, query: bool) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut place = 0;
    while let Some(&byte) = bytes.get(place) {
        let code = bytes.get(place + 1..place + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (byte, code.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            // A zero byte ends paths and words early.
            (b'%', Some(code)) if code != 0 => {
                out.push(code);
                place += 2;
            }
            (b'+', _) if query => out.push(b' '),
            _ => out.push(byte),
        }
        place += 1;
    }
    out
}

fn invalid(field: &str, what: &str) -> Refusal {
    Refusal::new(ErrorKind::InvalidArgument, format!("{field} {what}; give a fifo, or a URI with an absolute path"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(text: &str) -> Target {
        Target::parse("stdout", text).expect("a target")
    }

    #[test]
    fn a_bare_path_is_a_fifo_as_it_stands() {
        assert_eq!(target("/run/a%20b?c"), Target::Fifo("/run/a%20b?c".into()));
        assert_eq!(target("fifo:///run/a%20b"), Target::Fifo("/run/a b".into()));
        assert_eq!(target("file:///var/log/a%2Fb.log"), Target::File("/var/log/a/b.log".into()));
    }

    #[test]
    fn a_program_gets_the_querys_keys_and_values_as_words() {
        let Target::Program(program) = target("binary:///bin/log?_MAGIC=/var/a%3Fb&level=a+b&flag&level=second") else {
            panic!("a program")
        };
        assert_eq!(program.path, PathBuf::from("/bin/log"));
        assert_eq!(program.words, ["_MAGIC", "/var/a?b", "level", "a b", "flag", ""].map(OsString::from));
        assert!(!program.must_say);
    }

    #[test]
    fn the_second_version_must_say_that_it_is_ready() {
        assert!(matches!(target("binary-v2:///bin/log"), Target::Program(Program { must_say: true, .. })));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_the_fields_name() {
        for text in ["npipe:///x", "file://host/x", "binary://", "file://", "/a\0b"] {
            let refusal = Target::parse("stderr", text).expect_err(text);
            assert_eq!(refusal.kind, ErrorKind::InvalidArgument);
            assert!(refusal.message.contains("stderr"), "{}", refusal.message);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_target_or_an_invalid_argument(text in "(fifo|file|binary|binary-v2|x)?(://)?/?[ -~\u{e9}]{0,60}") {
            match Target::parse("stdout", &text) {
                Ok(_) => {}
                Err(refusal) => prop_assert_eq!(refusal.kind, ErrorKind::InvalidArgument),
            }
        }
    }
}
