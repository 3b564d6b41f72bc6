//! `kata-rs check`: is this host ready? Every line that fails says what to do.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Args;
use pod::{
    Configuration, Installation,
    configuration::{CONFIGURATION_FILE, ConfigurationError},
};
use serde::Serialize;
use vmm_control::{KvmKind, Probe};

use crate::network::{self, NetworkError};

/// Flags of `kata-rs check`.
#[derive(Args, Debug)]
pub struct Flags {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a line came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Runs without it, but less well, or not for every use.
    Warn,
    Fail,
}

/// One line.
#[derive(Debug, Serialize)]
struct Line {
    what: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// Prints the lines; 0 when none fails.
pub fn main(flags: &Flags) -> i32 {
    let lines = lines();
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&lines).expect("plain data"));
    } else {
        lines.iter().for_each(print);
    }
    let failed = lines.iter().filter(|line| line.verdict == Verdict::Fail).count();
    if !flags.json {
        println!("{}", if failed == 0 { "this host is ready".to_owned() } else { format!("{failed} failed") });
    }
    i32::from(failed > 0)
}

fn print(line: &Line) {
    let word = match line.verdict {
        Verdict::Ok => "ok  ",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    println!("{word}  {:<22} {}", line.what, line.found);
    if let Some(advice) = &line.advice {
        println!("      {:<22} -> {advice}", "");
    }
}

fn lines() -> Vec<Line> {
    let mut lines = vec![root(), kvm_device()];
    match Installation::find() {
        Ok(installation) => {
            lines.extend(files(&installation));
            lines.push(kvm(&installation));
        }
        Err(error) => lines.push(fail(
            "installation",
            error.to_string(),
            "install kata-rs again: `make install PREFIX=/opt/kata-rs`",
        )),
    }
    lines.extend([
        configuration(Configuration::load()),
        overlayfs(),
        memory(),
        network(network::possible()),
        containerd(),
    ]);
    lines
}

fn ok(what: &'static str, found: impl Into<String>) -> Line {
    Line { what, verdict: Verdict::Ok, found: found.into(), advice: None }
}

fn warn(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Line {
    Line { what, verdict: Verdict::Warn, found: found.into(), advice: Some(advice.into()) }
}

fn fail(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Line {
    Line { what, verdict: Verdict::Fail, found: found.into(), advice: Some(advice.into()) }
}

fn root() -> Line {
    match rustix::process::geteuid().is_root() {
        true => ok("rights", "running as root"),
        false => fail("rights", "not root: mounts and namespaces need it", "run with sudo"),
    }
}

fn kvm_device() -> Line {
    let path = "/dev/kvm";
    match File::options().read(true).write(true).open(path) {
        Ok(_) => ok("KVM device", format!("{path} opens")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fail(
            "KVM device",
            format!("{path} is not there"),
            "turn on VT-x or SVM in the firmware (on a cloud: choose a type with nested virtualisation), then `modprobe kvm-intel` or `modprobe kvm-amd`",
        ),
        Err(error) => fail(
            "KVM device",
            format!("{path}: {error}"),
            "run as root, or join the group that owns it: `usermod -aG kvm USER`",
        ),
    }
}

fn files(installation: &Installation) -> Vec<Line> {
    let elf = b"\x7fELF".as_slice();
    vec![
        file("VMM", &installation.vmm, 0, elf),
        file("file server", &installation.virtiofsd, 0, elf),
        file("kernel (hw)", &installation.kernel_hw, 0, elf),
        file("kernel (pvm)", &installation.kernel_pvm, 0, elf),
        // Magic of EROFS, little endian, 1024 bytes in (fs/erofs/erofs_fs.h).
        file("guest image", &installation.guest_image, 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ]
}

fn file(what: &'static str, path: &Path, offset: usize, magic: &[u8]) -> Line {
    let again = "install kata-rs again: `make install PREFIX=...`";
    let mut head = vec![0; offset + magic.len()];
    match File::open(path).and_then(|mut file| file.read_exact(&mut head)) {
        Ok(()) if head[offset..] == *magic => ok(what, path.display().to_string()),
        Ok(()) => fail(what, format!("{} is not what its name says", path.display()), again),
        Err(error) => fail(what, format!("{}: {error}", path.display()), again),
    }
}

fn kvm(installation: &Installation) -> Line {
    let what = "KVM";
    let output = match Command::new(&installation.vmm).arg("probe").output() {
        Ok(output) => output,
        Err(error) => {
            return fail(
                what,
                format!("{} does not start: {error}", installation.vmm.display()),
                "install kata-rs again",
            );
        }
    };
    match serde_json::from_slice::<Probe>(&output.stdout) {
        Ok(probe) => judge(what, &probe),
        Err(_) => fail(
            what,
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            "mend what the line above says, then check again",
        ),
    }
}

fn judge(what: &'static str, probe: &Probe) -> Line {
    if !probe.missing_capabilities.is_empty() {
        let missing = probe.missing_capabilities.join(", ");
        return fail(
            what,
            format!("lacks {missing}"),
            "use a kernel of 5.10 or later with KVM built as distributions do",
        );
    }
    let kind = match probe.kvm {
        KvmKind::Hardware => "hardware virtualisation",
        KvmKind::Pvm => "software virtualisation (PVM): one vCPU a machine, slower traps",
    };
    ok(what, format!("{kind}, up to {} vCPUs a machine", probe.vcpus_max))
}

fn configuration(loaded: Result<Configuration, ConfigurationError>) -> Line {
    let what = "configuration";
    match loaded {
        Ok(configuration) if configuration.files.is_empty() => {
            ok(what, format!("all defaults: {CONFIGURATION_FILE} is not there"))
        }
        Ok(configuration) => {
            let files: Vec<_> = configuration.files.iter().map(|path| path.display().to_string()).collect();
            ok(what, format!("{} (`kata-rs env` shows what it comes to)", files.join(", ")))
        }
        Err(error) => {
            let place = error.line.map_or_else(|| error.path.clone(), |line| format!("{}:{line}", error.path));
            let advice = format!("correct {place}; until then no pod starts (docs/configuration.md lists all keys)");
            fail(what, format!("{place}: {}", error.cause), advice)
        }
    }
}

fn overlayfs() -> Line {
    let what = "overlayfs";
    match std::fs::read_to_string("/proc/filesystems") {
        Ok(text) if text.lines().any(|line| line.ends_with("\toverlay")) => ok(what, "known to the kernel"),
        _ => warn(what, "not loaded", "`modprobe overlay`; most distributions load it on first use"),
    }
}

/// Below this a machine of the default size does not fit beside its host.
const MEMORY_AVAILABLE_MIB_MIN: u64 = 256;

fn memory() -> Line {
    let what = "memory";
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    match kib.map(|kib| kib / 1024) {
        Some(mib) if mib < MEMORY_AVAILABLE_MIB_MIN => warn(
            what,
            format!("{mib} MiB available"),
            format!("free some: a machine of the default size wants {MEMORY_AVAILABLE_MIB_MIN} MiB"),
        ),
        Some(mib) => ok(what, format!("{mib} MiB available")),
        None => warn(what, "/proc/meminfo does not tell", "mount /proc"),
    }
}

fn network(possible: Result<PathBuf, NetworkError>) -> Line {
    let what = "network (--net)";
    match possible {
        Ok(program) => ok(what, format!("by {}", program.display())),
        Err(error) => {
            warn(what, error.to_string(), "only `kata-rs run --net` needs it; with containerd, CNI plugins do it")
        }
    }
}

fn containerd() -> Line {
    let what = "containerd shim";
    let name = "containerd-shim-kata-rs-v2";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    match found {
        Some(path) => ok(what, display(path)),
        None => warn(
            what,
            format!("{name} is not on PATH"),
            "only `kata-rs run` works; for containerd, put PREFIX/bin on its PATH",
        ),
    }
}

fn display(path: PathBuf) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_and_a_wrong_one_both_say_what_to_do() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let wrong = folder.path().join("vmlinux");
        std::fs::write(&wrong, vec![0; 4096]).expect("written");
        for path in [wrong, folder.path().join("nothing")] {
            let line = file("kernel", &path, 0, b"\x7fELF");
            assert_eq!(line.verdict, Verdict::Fail);
            assert!(line.found.contains(&path.display().to_string()), "{}", line.found);
            assert!(line.advice.is_some());
        }
    }

    #[test]
    fn a_broken_configuration_fails_with_its_place_and_what_to_do() {
        let broken = ConfigurationError { path: "/etc/x.toml".into(), line: Some(3), cause: "unknown key".into() };
        let line = configuration(Err(broken));
        assert_eq!((line.verdict, line.found.as_str()), (Verdict::Fail, "/etc/x.toml:3: unknown key"));
        assert!(line.advice.expect("there is something to do").contains("/etc/x.toml:3"));
    }

    #[test]
    fn a_host_without_a_network_to_give_is_ready_nevertheless() {
        let line = network(Err(NetworkError::NotInstalled));
        assert_eq!(line.verdict, Verdict::Warn);
        assert!(line.found.contains("apt-get install passt"), "{}", line.found);
        assert_eq!(network(Ok("/usr/bin/passt".into())).verdict, Verdict::Ok);
    }

    #[test]
    fn a_host_without_a_capability_is_told_which() {
        let probe = Probe {
            kvm: KvmKind::Hardware,
            api_version: 12,
            missing_capabilities: vec!["KVM_CAP_IRQFD".into()],
            vcpus_max: 4,
        };
        let line = judge("KVM", &probe);
        assert_eq!(line.verdict, Verdict::Fail);
        assert!(line.found.contains("KVM_CAP_IRQFD"));
    }
}
