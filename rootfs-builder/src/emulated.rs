//! Running a command in the emulated machine: an SVM processor emulated by QEMU, with a stock Debian kernel whose KVM
//! is the real one, so that what depends on unmodified hardware KVM can be tested where there is none.
//!
//! ```text
//! run ─► temporary folder: initramfs + run-spec (command, environment), status, console
//!     ─► QEMU ─► stage 1 (disks) ─► stage 2 (mounts, modules) ─► the command
//!            stdout ◄── port 1: what the command prints, out and err in one stream
//!            status ◄── port 2: "exit N", written when the command ended
//!           console ◄── serial: the kernel's messages; its end is shown when the machine ends without a status
//! ```
//! QEMU is a test tool here; no run of kata-rs involves it.
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;

use crate::cpio;
use crate::machine_image::{BASE_DISK, INITRAMFS, KERNEL, PAYLOAD_DISK};
use crate::tree::{Node, Tree, TreeError};

const QEMU: &str = "qemu-system-x86_64";
/// The processor: the first AMD model with SVM and nested paging that QEMU's emulation covers well.
const PROCESSOR: &str =
    "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec";
/// The kernel's command line: end at a panic, no counter-measures that only cost time here, and no complaint about
/// processors that stand still while the host does something else.
const COMMAND_LINE: &str =
    "console=ttyS0 panic=-1 loglevel=5 mitigations=off nosoftlockup rcupdate.rcu_cpu_stall_suppress=1";
/// How much of the console goes into an error, in bytes.
const CONSOLE_TAIL: usize = 4096;

/// One run: which machine, how large, what is shared, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The folder that `machine_image::build` wrote.
    pub machine: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// A host folder seen read-only at /share.
    pub share: Option<PathBuf>,
    /// A host folder writable at /out.
    pub out: Option<PathBuf>,
    /// `NAME=value` each, added to the command's environment.
    pub env: Vec<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// When the machine is stopped at the latest.
    pub timeout: Duration,
}

/// Why a command did not run to its end in the machine.
#[derive(Debug, Error)]
pub enum EmulatedError {
    /// No such machine.
    #[error("there is no emulated machine in {path}; build it: make machine")]
    NotBuilt {
        /// The missing file.
        path: PathBuf,
    },
    /// A variable without a plain name.
    #[error("{given:?} is not NAME=value")]
    Environment {
        /// As given.
        given: String,
    },
    /// A path that QEMU's option syntax cannot take.
    #[error("cannot use {path} for the machine; give a path without commas")]
    Path {
        /// As given.
        path: PathBuf,
    },
    /// QEMU is missing.
    #[error("cannot start {QEMU}; install it: apt-get install qemu-system-x86")]
    Qemu(#[source] io::Error),
    /// The run's own files could not be written.
    #[error("cannot write the files of the run")]
    Files(#[source] io::Error),
    /// The command could not be packed.
    #[error("cannot pack the command")]
    Spec(#[source] TreeError),
    /// Ctrl-C, or another wish to stop.
    #[error("stopped before the command ended; the end of its console:\n{console}")]
    Interrupted {
        /// Kernel messages.
        console: String,
    },
    /// The command took too long.
    #[error(
        "the command did not end within {seconds} s and the machine was stopped; the end of its console:\n{console}"
    )]
    Timeout {
        /// The deadline.
        seconds: u64,
        /// Kernel messages.
        console: String,
    },
    /// The machine ended before the command did.
    #[error(
        "the machine ended ({status}) before the command did; QEMU said: {qemu}\nthe end of its console:\n{console}"
    )]
    Ended {
        /// QEMU's.
        status: ExitStatus,
        /// QEMU's messages.
        qemu: String,
        /// Kernel messages.
        console: String,
    },
}

impl Run {
    /// Boots the machine, runs the command with its output on this process's stdout, and returns its exit status
    /// (128 + N for signal N, as shells count). The machine is stopped early when `interrupt` becomes readable.
    pub fn execute(&self, interrupt: Option<BorrowedFd<'_>>) -> Result<u8, EmulatedError> {
        let folder = tempfile::Builder::new().prefix("kata-rs-machine.").tempdir().map_err(EmulatedError::Files)?;
        self.write_initramfs(&folder.path().join("initramfs"))?;
        let deadline = Instant::now() + self.timeout;
        let mut child = self.start(folder.path())?;
        let ending = wait(&mut child, deadline, interrupt).map_err(EmulatedError::Files)?;
        let text =
            |name| String::from_utf8_lossy(&std::fs::read(folder.path().join(name)).unwrap_or_default()).into_owned();
        let console = || tail(&text("console"));
        match ending {
            Ending::Interrupt => Err(EmulatedError::Interrupted { console: console() }),
            Ending::Deadline => Err(EmulatedError::Timeout { seconds: self.timeout.as_secs(), console: console() }),
            Ending::Exit(status) => reported(&text("status")).ok_or_else(|| EmulatedError::Ended {
                status,
                qemu: text("qemu").trim().to_owned(),
                console: console(),
            }),
        }
    }

    fn start(&self, folder: &Path) -> Result<Child, EmulatedError> {
        let arguments = self.arguments(folder)?;
        if !in_path(QEMU) {
            return Err(EmulatedError::Qemu(io::ErrorKind::NotFound.into()));
        }
        let log = File::create(folder.join("qemu")).map_err(EmulatedError::Files)?;
        // Through setpriv (util-linux, on every Debian), so that the machine ends with this process, however that ends.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", QEMU])
            .args(arguments)
            // Held open and never written: at its end QEMU would unplug the output port, whose other side is stdout.
            .stdin(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(EmulatedError::Qemu)
    }

    /// The machine's initramfs with one more archive behind it that holds this run's command.
    fn write_initramfs(&self, path: &Path) -> Result<(), EmulatedError> {
        let present = self.machine.join(INITRAMFS);
        let mut bytes = std::fs::read(&present).map_err(|_| EmulatedError::NotBuilt { path: present })?;
        bytes.extend(cpio::archive(&self.spec()?));
        std::fs::write(path, bytes).map_err(EmulatedError::Files)
    }

    fn spec(&self) -> Result<Tree, EmulatedError> {
        let mut tree = Tree::default();
        let mut put =
            |name: &str, text: String| tree.insert(name, Node::file(0o644, text)).map_err(EmulatedError::Spec);
        put("run-spec/command", self.script()?)?;
        if self.share.is_some() {
            put("run-spec/share", String::new())?;
        }
        if self.out.is_some() {
            put("run-spec/out", String::new())?;
        }
        Ok(tree)
    }

    /// The command as a shell script, each word quoted.
    fn script(&self) -> Result<String, EmulatedError> {
        let mut script = String::from("cd /\n");
        for variable in &self.env {
            let (name, value) = assignment(variable)?;
            let _ = writeln!(script, "export {name}={}", quoted(value));
        }
        let words: Vec<_> = self.command.iter().map(|word| quoted(word)).collect();
        let _ = writeln!(script, "exec {}", words.join(" "));
        Ok(script)
    }

    fn arguments(&self, folder: &Path) -> Result<Vec<String>, EmulatedError> {
        let machine = |name| self.existing(name);
        let temporary = |name| plain(&folder.join(name));
        let mut arguments = words("-nodefaults -no-user-config -display none -no-reboot -accel tcg,thread=multi");
        arguments.extend(["-machine".into(), "q35".into(), "-cpu".into(), PROCESSOR.into()]);
        arguments.extend(["-smp".into(), self.cpus.to_string(), "-m".into(), format!("{}M", self.memory_mib)]);
        arguments.extend(["-kernel".into(), machine(KERNEL)?, "-initrd".into(), temporary("initramfs")?]);
        arguments.extend(["-append".into(), COMMAND_LINE.into()]);
        arguments.extend(["-serial".into(), format!("file:{}", temporary("console")?)]);
        for (id, name) in [("base", BASE_DISK), ("payload", PAYLOAD_DISK)] {
            arguments
                .extend(["-drive".into(), format!("id={id},if=none,readonly=on,format=raw,file={}", machine(name)?)]);
            arguments.extend(["-device".into(), format!("virtio-blk-pci,drive={id}")]);
        }
        arguments.extend(words("-device virtio-serial-pci -device virtio-rng-pci"));
        arguments
            .extend(words("-chardev stdio,id=output,signal=off -device virtserialport,chardev=output,name=output"));
        arguments.extend(["-chardev".into(), format!("file,id=status,path={}", temporary("status")?)]);
        arguments.extend(words("-device virtserialport,chardev=status,name=status"));
        for (tag, path, readonly) in [("share", &self.share, "on"), ("out", &self.out, "off")] {
            let Some(path) = path else { continue };
            let options = "security_model=none,multidevs=remap";
            arguments.extend([
                "-fsdev".into(),
                format!("local,id={tag},{options},readonly={readonly},path={}", plain(path)?),
            ]);
            arguments.extend(["-device".into(), format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        Ok(arguments)
    }

    fn existing(&self, name: &str) -> Result<String, EmulatedError> {
        let path = self.machine.join(name);
        if path.exists() { plain(&path) } else { Err(EmulatedError::NotBuilt { path }) }
    }
}

enum Ending {
    Exit(ExitStatus),
    Deadline,
    Interrupt,
}

/// Waits for the child's end, the deadline or an interrupt, whichever is first; the child is gone afterwards.
fn wait(child: &mut Child, deadline: Instant, interrupt: Option<BorrowedFd<'_>>) -> io::Result<Ending> {
    let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let mut events = vec![PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
    events.extend(interrupt.map(|interrupt| PollFd::from_borrowed_fd(interrupt, PollFlags::IN)));
    let ready = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut events, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => break ready?,
        }
    };
    if let Some(status) = child.try_wait()? {
        return Ok(Ending::Exit(status));
    }
    child.kill()?;
    child.wait()?;
    Ok(if ready == 0 { Ending::Deadline } else { Ending::Interrupt })
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The status in the machine's report, `exit N`.
fn reported(report: &str) -> Option<u8> {
    report.lines().find_map(|line| line.strip_prefix("exit ")?.trim().parse().ok())
}

fn assignment(variable: &str) -> Result<(&str, &str), EmulatedError> {
    let named = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    variable
        .split_once('=')
        .filter(|(name, _)| named(name))
        .ok_or_else(|| EmulatedError::Environment { given: variable.to_owned() })
}

/// A word for a POSIX shell that means exactly itself.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn plain(path: &Path) -> Result<String, EmulatedError> {
    let text = path.to_str().filter(|text| !text.contains(','));
    text.map(str::to_owned).ok_or_else(|| EmulatedError::Path { path: path.to_owned() })
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn tail(console: &str) -> String {
    let mut start = console.len().saturating_sub(CONSOLE_TAIL);
    while !console.is_char_boundary(start) {
        start += 1;
    }
    console[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &[&str]) -> Run {
        Run {
            machine: PathBuf::from("/nowhere"),
            memory_mib: 512,
            cpus: 2,
            share: None,
            out: None,
            env: vec!["GREETING=it's 5 o'clock; $(reboot)".to_owned()],
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn words_and_variables_reach_a_shell_unchanged() {
        let script = run(&["printf", "%s|", "a b", "it's", "$HOME `x` \"y\"\n"]).script().unwrap();
        let script = script.replace("exec ", "printf '%s|' \"$GREETING\"; exec ");
        let output = Command::new("/bin/sh").arg("-c").arg(script).output().unwrap();
        let expected = "it's 5 o'clock; $(reboot)|a b|it's|$HOME `x` \"y\"\n|";
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }

    #[test]
    fn a_variable_without_a_plain_name_is_refused() {
        for given in ["novalue", "=x", "1A=x", "A B=x", "A;reboot=x"] {
            assert!(assignment(given).is_err(), "{given}");
        }
        assert_eq!(assignment("A_1=x=y").unwrap(), ("A_1", "x=y"));
    }

    #[test]
    fn a_machine_that_was_never_built_is_named_with_the_way_to_build_it() {
        let error = run(&["true"]).execute(None).unwrap_err().to_string();
        assert!(error.contains("/nowhere/initramfs.cpio") && error.contains("make machine"), "{error}");
    }

    #[test]
    fn only_a_whole_report_counts_as_a_status() {
        assert_eq!(reported("exit 3\n"), Some(3));
        assert_eq!(reported("exit \n"), None);
        assert_eq!(reported(""), None);
    }
}
