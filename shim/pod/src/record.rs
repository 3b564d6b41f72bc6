//! The record: what a pod has acquired, written before each acquisition, so that whoever comes after a crash can undo it.
//!
//! One line of JSON each, appended to `record` in the pod's state folder (on a tmpfs: it need not survive the host). A process is recorded twice over:
//! before it is spawned every child of the pod carries the pod's [`token`](Entry::Token) in its environment, which is in the record
//! first; after the spawn its pid and start time follow. So even a crash between the two leaves nothing that cannot be found.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::network::Joined;

/// Name of the file in the state folder.
pub(crate) const RECORD_FILE: &str = "record";
/// Environment variable by which children of a pod are found.
pub(crate) const TOKEN_VARIABLE: &str = "KATA_RS_POD_TOKEN";
/// Longest record that is read back; a pod writes a few hundred bytes.
const RECORD_LEN_MAX: u64 = 1 << 20;

/// One acquisition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// Value of [`TOKEN_VARIABLE`] in every process of the pod.
    Token(String),
    /// A process of the pod.
    Process {
        /// `vmm`, `file server`.
        what: String,
        /// Its pid.
        pid: i32,
        /// Its start in clock ticks since the host's boot (proc(5), field 22), which makes the pid unique.
        start_ticks: u64,
    },
    /// What sends frames of the pod's interfaces to its machine.
    Network(Joined),
}

/// An open record; clones write into the same file.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    file: Arc<File>,
}

impl Record {
    /// Begins the record of a new pod.
    pub(crate) fn create(state_dir: &Path) -> io::Result<Self> {
        let file = File::options().append(true).create_new(true).mode(0o600).open(state_dir.join(RECORD_FILE))?;
        Ok(Self { file: Arc::new(file) })
    }

    /// Appends an entry, in one write, so that a crash cuts at most the last line.
    pub(crate) fn write(&self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry).map_err(io::Error::other)?;
        line.push(b'\n');
        (&*self.file).write_all(&line)
    }
}

/// What every process of a pod is recorded in and carries.
#[derive(Debug, Clone)]
pub(crate) struct Carried {
    /// The pod's record.
    pub record: Record,
    /// The pod's token.
    pub token: String,
}

/// Reads a record back, oldest entry first. A missing record is an empty one; a line that does not parse (cut off by a crash) is left out.
pub(crate) fn read(state_dir: &Path) -> io::Result<Vec<Entry>> {
    let file = match File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(state_dir.join(RECORD_FILE))
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut text = Vec::new();
    file.take(RECORD_LEN_MAX).read_to_end(&mut text)?;
    Ok(text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_order_and_a_torn_line_is_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let record = Record::create(folder.path()).expect("created");
        let entries = [Entry::Token("t".into()), Entry::Process { what: "vmm".into(), pid: 7, start_ticks: 99 }];
        entries.iter().for_each(|e| record.write(e).expect("written"));
        (&*record.file).write_all(b"{\"process\":{\"what\":\"file ser").expect("torn");
        assert_eq!(read(folder.path()).expect("read"), entries);
    }

    #[test]
    fn no_record_is_an_empty_one() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(read(folder.path()).expect("read"), []);
    }

    #[test]
    fn a_record_is_begun_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let _record = Record::create(folder.path()).expect("created");
        assert!(Record::create(folder.path()).is_err());
    }
}
