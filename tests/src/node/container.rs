//! A container of a pod, as the kubelet holds it, and its log as `kubectl logs` reads it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Context;
use cri::{Answer, v1};

use super::{Pod, Stream, Template, poll_until};

/// Longest that a container of a test takes to start or to end.
pub const STARTS_WITHIN: Duration = Duration::from_secs(90);
/// Longest that an ExecSync of a test may take, in seconds.
const EXEC_SECONDS: i64 = 60;

/// A container; it is removed with its pod, or by name.
pub struct Container<'p> {
    /// The pod it is in.
    pub pod: &'p Pod<'p>,
    /// As the runtime calls it.
    pub id: String,
    /// As it was asked for.
    pub config: v1::ContainerConfig,
}

/// One line of a log file: `TIME STREAM TAG TEXT` (Kubernetes' CRI logging design).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Is it a whole line (`F`), or a part of one that is too long (`P`)?
    pub full: bool,
    /// Without the line end.
    pub text: String,
}

impl LogLine {
    fn parse(line: &str) -> anyhow::Result<Self> {
        let mut parts = line.splitn(4, ' ').map(str::to_owned);
        let mut part = || parts.next().with_context(|| format!("not a line of a log: {line:?}"));
        let (time, stream, tag, text) = (part()?, part()?, part()?, part()?);
        anyhow::ensure!(tag == "F" || tag == "P", "no tag in {line:?}");
        Ok(Self { time, stream, full: tag == "F", text })
    }
}

impl<'p> Container<'p> {
    pub(super) fn new(pod: &'p Pod<'p>, id: String, config: v1::ContainerConfig) -> Self {
        Self { pod, id, config }
    }

    /// Starts it.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn start(&self) -> Answer<()> {
        let request = v1::StartContainerRequest { container_id: self.id.clone() };
        self.pod.node.cri.start_container(request).map(drop)
    }

    /// Asks it to end, and kills it when the grace is over.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn stop(&self, grace_seconds: i64) -> Answer<()> {
        let request = v1::StopContainerRequest { container_id: self.id.clone(), timeout: grace_seconds };
        self.pod.node.cri.stop_container(request).map(drop)
    }

    /// Removes it; one that runs is killed first.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn remove(&self) -> Answer<()> {
        let request = v1::RemoveContainerRequest { container_id: self.id.clone() };
        self.pod.node.cri.remove_container(request).map(drop)
    }

    /// Its status.
    ///
    /// # Errors
    /// There is no such container any more.
    pub fn status(&self) -> Answer<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        Ok(self.pod.node.cri.container_status(request)?.status.unwrap_or_default())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It did not end in time, or is gone.
    pub fn wait(&self) -> anyhow::Result<v1::ContainerStatus> {
        let exited = || {
            let status = self.status()?;
            Ok((status.state() == v1::ContainerState::ContainerExited).then_some(status))
        };
        poll_until(STARTS_WITHIN, exited)?.with_context(|| format!("{:?} does not end", self.config.command))
    }

    /// Runs a command beside it, to its end.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn exec(&self, words: &[&str]) -> Answer<v1::ExecSyncResponse> {
        self.exec_for(words, EXEC_SECONDS)
    }

    /// The same with a limit; 0 is none.
    ///
    /// # Errors
    /// What the runtime said.
    pub fn exec_for(&self, words: &[&str], seconds: i64) -> Answer<v1::ExecSyncResponse> {
        let cmd = words.iter().map(|word| (*word).to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: self.id.clone(), cmd, timeout: seconds };
        self.pod.node.cri.exec_sync(request)
    }

    /// Runs a command beside it as `kubectl exec` does; with a terminal there is no error output of its own.
    ///
    /// # Errors
    /// What the runtime said, or its streaming server does not answer.
    pub fn exec_stream(&self, words: &[&str], stdin: bool, tty: bool) -> anyhow::Result<Stream> {
        let cmd = words.iter().map(|word| (*word).to_owned()).collect();
        let container_id = self.id.clone();
        let request = v1::ExecRequest { container_id, cmd, tty, stdin, stdout: true, stderr: !tty };
        Stream::open(&self.pod.node.cri.exec(request)?.url)
    }

    /// Joins its first process's stdio as `kubectl attach` does.
    ///
    /// # Errors
    /// What the runtime said, or its streaming server does not answer.
    pub fn attach(&self, stdin: bool, tty: bool) -> anyhow::Result<Stream> {
        let container_id = self.id.clone();
        let request = v1::AttachRequest { container_id, stdin, tty, stdout: true, stderr: !tty };
        Stream::open(&self.pod.node.cri.attach(request)?.url)
    }

    /// What a shell line prints in it.
    ///
    /// # Errors
    /// The line's exit code is not 0.
    pub fn sh(&self, line: &str) -> anyhow::Result<String> {
        let done = self.exec(&["sh", "-c", line])?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        anyhow::ensure!(done.exit_code == 0, "{line}: exit {}: {}", done.exit_code, text(&done.stderr));
        Ok(text(&done.stdout))
    }

    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        PathBuf::from(&self.pod.config.log_directory).join(&self.config.log_path)
    }

    /// Its log so far.
    ///
    /// # Errors
    /// There is none, or it is not as Kubernetes wants it.
    pub fn log(&self) -> anyhow::Result<Vec<LogLine>> {
        let path = self.log_path();
        let text = fs::read_to_string(&path).with_context(|| format!("no log at {}", path.display()))?;
        text.lines().map(LogLine::parse).collect()
    }

    /// What it printed so far, both streams as they came.
    ///
    /// # Errors
    /// See [`Self::log`].
    pub fn output(&self) -> anyhow::Result<String> {
        let piece = |line: LogLine| if line.full { format!("{}\n", line.text) } else { line.text };
        Ok(self.log()?.into_iter().map(piece).collect())
    }

    /// All that it printed, of a container that has ended: it is said to have while its last lines are still on their way into the log.
    ///
    /// # Errors
    /// containerd does not finish the log.
    pub fn whole_output(&self) -> anyhow::Result<String> {
        let path = self.log_path();
        let finished = || Ok((!self.pod.node.containerd.has_open(&path)).then_some(()));
        poll_until(STARTS_WITHIN, finished)?.context("containerd does not finish the log")?;
        self.output()
    }

    /// Waits until the log holds a text.
    ///
    /// # Errors
    /// It did not come in time.
    pub fn wait_for_output(&self, text: &str) -> anyhow::Result<String> {
        let printed = || Ok(Some(self.output()?).filter(|output| output.contains(text)));
        poll_until(STARTS_WITHIN, printed)?
            .with_context(|| format!("{text:?} does not come; so far: {:?}", self.output()))
    }
}

impl Pod<'_> {
    /// Runs a container to its end.
    ///
    /// # Errors
    /// It did not start, or not end.
    pub fn run_to_end(&self, template: Template) -> anyhow::Result<(v1::ContainerStatus, String)> {
        let container = self.start(template)?;
        let status = container.wait()?;
        Ok((status, container.whole_output()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_log_has_four_parts() {
        let line = LogLine::parse("2026-01-01T00:00:00.000000001Z stderr F two words").expect("a line");
        assert_eq!((line.stream.as_str(), line.full, line.text.as_str()), ("stderr", true, "two words"));
        assert!(LogLine::parse("hello").is_err());
        assert!(LogLine::parse("2026 stdout X hello").is_err());
    }
}
