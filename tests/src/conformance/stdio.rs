//! Stdio as containerd gives it to a shim: named pipes in a folder.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
};

use anyhow::Context;

use super::{Reader, fifo};

/// The pipes of one process.
#[derive(Default)]
pub struct Stdio {
    /// Path of stdin, or nothing.
    pub stdin: String,
    /// Path of stdout, or nothing.
    pub stdout: String,
    /// Path of stderr, or nothing.
    pub stderr: String,
    /// Is it a terminal?
    pub terminal: bool,
    writer: Option<File>,
    /// Reads stdout.
    pub out: Option<Reader>,
    /// Reads stderr.
    pub err: Option<Reader>,
}

impl Stdio {
    /// None at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Output and errors to an address such as `file:///path`.
    pub fn to(address: &str) -> Self {
        Self { stdout: address.to_owned(), stderr: address.to_owned(), ..Self::default() }
    }

    /// Output and errors to pipes named `name.out` and `name.err`, which are read.
    ///
    /// # Errors
    /// The pipes cannot be made.
    pub fn output(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let (out, err) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.err")));
        Ok(Self {
            stdout: out.display().to_string(),
            stderr: err.display().to_string(),
            out: Some(Reader::new(&out)?),
            err: Some(Reader::new(&err)?),
            ..Self::default()
        })
    }

    /// The same, with a pipe named `name.in` for input.
    ///
    /// # Errors
    /// The pipes cannot be made.
    pub fn all(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let path = folder.join(format!("{name}.in"));
        fifo::make(&path)?;
        let mut stdio = Self { stdin: path.display().to_string(), ..Self::output(folder, name)? };
        stdio.come_back()?;
        Ok(stdio)
    }

    /// Opens this end of the input, for the first time or again.
    ///
    /// # Errors
    /// The pipe is gone.
    pub fn come_back(&mut self) -> anyhow::Result<()> {
        // For both, so that opening waits for nobody.
        self.writer = Some(OpenOptions::new().read(true).write(true).open(&self.stdin)?);
        Ok(())
    }

    /// Input, errors that are read, and output to a pipe that is there and not read.
    ///
    /// # Errors
    /// The pipes cannot be made.
    pub fn unread(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let path = |end: &str| folder.join(format!("{name}.{end}"));
        fifo::make(&path("in"))?;
        fifo::make(&path("out"))?;
        let text = |end: &str| path(end).display().to_string();
        let err = Some(Reader::new(&path("err"))?);
        let mut stdio = Self { stdin: text("in"), stdout: text("out"), stderr: text("err"), err, ..Self::default() };
        stdio.come_back()?;
        Ok(stdio)
    }

    /// A terminal: input and one output.
    ///
    /// # Errors
    /// The pipes cannot be made.
    pub fn terminal(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let all = Self::all(folder, name)?;
        Ok(Self { terminal: true, stderr: String::new(), err: None, ..all })
    }

    /// Types.
    ///
    /// # Errors
    /// There is no input, or it has been closed.
    pub fn type_in(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.writer.as_mut().context("no input")?.write_all(text.as_bytes())?)
    }

    /// Closes this end of the input when all of it has been taken: what is in a pipe when CloseIO comes may be lost.
    ///
    /// # Errors
    /// It is not taken.
    pub fn drained_and_closed(&mut self) -> anyhow::Result<()> {
        fifo::wait_until_empty(&self.writer.take().context("no input")?)
    }

    /// Closes this end of the input.
    pub fn hang_up(&mut self) {
        self.writer = None;
    }

    /// The whole of stdout.
    ///
    /// # Errors
    /// There is none, or it does not end.
    pub fn whole(&self) -> anyhow::Result<String> {
        self.out.as_ref().context("no output")?.whole()
    }

    /// stdout, as soon as it contains a text.
    ///
    /// # Errors
    /// It does not come.
    pub fn until(&self, text: &str) -> anyhow::Result<String> {
        self.out.as_ref().context("no output")?.until(text)
    }
}
