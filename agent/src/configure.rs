//! Everything of the pod that is not a container: hostname, shares, network, sysctls, clock, entropy, resolv.conf.
//!
//! [`Configuration::parse`] checks the whole request before anything is done; [`Configuration::apply`] then acts, blocking.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent_protocol::messages::ConfigurePodRequest;
use rustix::{
    mount::{MountFlags, mount},
    time::{ClockId, Timespec, clock_settime},
};

use crate::{
    home::Home,
    network::{Network, NetworkError, Places},
    sys,
};

/// Longest hostname that the kernel takes (__NEW_UTS_LEN).
const HOSTNAME_MAX: usize = 64;
/// Longest tag of a virtio-fs device (virtio spec 1.2, section 5.11.4).
const TAG_MAX: usize = 36;
/// A clock nearer to the host's than this is left alone: setting it would be no better than the message's own delay.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);

/// Why the pod could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The request itself is wrong.
    #[error("{field} {value:?} is not usable: {rule}")]
    Invalid {
        /// Field of the request.
        field: &'static str,
        /// What it says.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
    /// The guest's kernel refused.
    #[error("cannot {action} {object}: {hint}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// The next thing to try.
        hint: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The pod's network is wrong, or the kernel refused it.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl ConfigureError {
    /// The request is wrong; nothing was done.
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::Invalid { .. } => true,
            Self::Refused { .. } => false,
            Self::Network(error) => error.is_invalid(),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Share {
    tag: String,
    mount_point: PathBuf,
    read_only: bool,
}

/// A checked request.
#[derive(Debug, PartialEq, Eq)]
pub struct Configuration {
    hostname: String,
    shares: Vec<Share>,
    /// Path below /proc/sys, and value.
    sysctls: Vec<(PathBuf, String)>,
    host_time: Option<Duration>,
    entropy: Vec<u8>,
    resolv_conf: String,
    network: Network,
}

impl Configuration {
    /// Checks everything; changes nothing.
    pub fn parse(request: ConfigurePodRequest, home: &Home) -> Result<Self, ConfigureError> {
        if request.hostname.len() > HOSTNAME_MAX || request.hostname.contains('\0') {
            return Err(invalid("hostname", &request.hostname, "at most 64 bytes without NUL"));
        }
        if request.entropy.len() > sys::ENTROPY_MAX {
            return Err(invalid("entropy", &request.entropy.len().to_string(), "at most 512 bytes"));
        }
        let shares = request.shares.into_iter().map(|share| parse_share(share, home)).collect::<Result<_, _>>()?;
        let sysctls = request.sysctls.into_iter().map(parse_sysctl).collect::<Result<_, _>>()?;
        Ok(Self {
            hostname: request.hostname,
            shares,
            sysctls,
            host_time: (request.host_time_nanos != 0).then(|| Duration::from_nanos(request.host_time_nanos)),
            entropy: request.entropy,
            resolv_conf: request.resolv_conf,
            network: Network::parse(&request.network)?,
        })
    }

    /// Does it; blocking, as a share's mount waits for the file server.
    pub fn apply(&self, home: &Home) -> Result<(), ConfigureError> {
        if home.owns_machine {
            self.set_clock()?;
            self.add_entropy();
            self.set_hostname()?;
        }
        for share in &self.shares {
            share.mount()?;
        }
        if home.owns_machine {
            // Sysctls name interfaces.
            self.network.apply(&Places::of_the_machine())?;
            for (path, value) in &self.sysctls {
                set_sysctl(path, value)?;
            }
        }
        self.write_resolv_conf(home)
    }

    fn set_hostname(&self) -> Result<(), ConfigureError> {
        if self.hostname.is_empty() {
            return Ok(());
        }
        rustix::system::sethostname(self.hostname.as_bytes()).map_err(|errno| {
            refused("set the hostname", &self.hostname, "the kernel takes at most 64 bytes", errno.into())
        })
    }

    fn set_clock(&self) -> Result<(), ConfigureError> {
        let Some(host) = self.host_time else { return Ok(()) };
        let guest = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if host.abs_diff(guest) < CLOCK_TOLERANCE {
            return Ok(());
        }
        let time = Timespec {
            tv_sec: i64::try_from(host.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(host.subsec_nanos()),
        };
        clock_settime(ClockId::Realtime, time).map_err(|errno| {
            refused("set the clock to", &format!("{host:?}"), "is the host's clock sane?", errno.into())
        })
    }

    fn add_entropy(&self) {
        if self.entropy.is_empty() {
            return;
        }
        // The kernel has sources of its own; this one is a gift.
        if let Err(error) = sys::add_entropy(&self.entropy) {
            log::warn!("the host's entropy was not added: {error}");
        }
    }

    fn write_resolv_conf(&self, home: &Home) -> Result<(), ConfigureError> {
        if self.resolv_conf.is_empty() {
            return Ok(());
        }
        let path = home.run.join("resolv.conf");
        fs::write(&path, &self.resolv_conf)
            .map_err(|source| refused("write", &path.display().to_string(), "is the guest out of memory?", source))
    }
}

impl Share {
    fn mount(&self) -> Result<(), ConfigureError> {
        let mount_point = self.mount_point.display().to_string();
        fs::create_dir_all(&self.mount_point)
            .map_err(|source| refused("make", &mount_point, "mount points belong below /run/kata-rs", source))?;
        let read_only = if self.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mount(self.tag.as_str(), &self.mount_point, "virtiofs", MountFlags::NODEV | read_only, None).map_err(|errno| {
            let object = format!("virtio-fs {:?} at {mount_point}", self.tag);
            refused("mount", &object, "does the machine have a file server with this tag?", errno.into())
        })
    }
}

fn parse_share(share: agent_protocol::messages::Share, home: &Home) -> Result<Share, ConfigureError> {
    let mount_point = PathBuf::from(&share.mount_point);
    let plain = mount_point.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !plain || !mount_point.starts_with(&home.run) || mount_point == home.run || share.mount_point.contains('\0') {
        return Err(invalid("mount point", &share.mount_point, "an absolute path below /run/kata-rs, without \"..\""));
    }
    if share.tag.is_empty() || share.tag.len() > TAG_MAX || share.tag.contains('\0') {
        return Err(invalid("share tag", &share.tag, "1 to 36 bytes without NUL"));
    }
    Ok(Share { tag: share.tag, mount_point, read_only: share.read_only })
}

/// `net.ipv4.ip_forward`, or with slashes where a name itself has dots (sysctl.d(5)).
fn parse_sysctl((key, value): (String, String)) -> Result<(PathBuf, String), ConfigureError> {
    let slashed = match key.find(['.', '/']).map(|at| key.as_bytes()[at]) {
        Some(b'/') => key.clone(),
        Some(_) => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        None => key.clone(),
    };
    let path = Path::new(&slashed);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if slashed.is_empty() || !plain || slashed.contains('\0') {
        return Err(invalid("sysctl", &key, "a name like net.ipv4.ip_forward"));
    }
    Ok((Path::new("/proc/sys").join(path), value))
}

fn set_sysctl(path: &Path, value: &str) -> Result<(), ConfigureError> {
    // Not `fs::write`: a name that the kernel lacks must not be created, though procfs would refuse that as well.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(|source| {
        refused("set", &path.display().to_string(), "does the guest kernel know this sysctl and value?", source)
    })
}

fn invalid(field: &'static str, value: &str, rule: &'static str) -> ConfigureError {
    ConfigureError::Invalid { field, value: value.to_owned(), rule }
}

fn refused(action: &'static str, object: &str, hint: &'static str, source: io::Error) -> ConfigureError {
    ConfigureError::Refused { action, object: object.to_owned(), hint, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(request: ConfigurePodRequest) -> Result<Configuration, ConfigureError> {
        Configuration::parse(request, &Home::machine())
    }

    fn with_share(mount_point: &str, tag: &str) -> ConfigurePodRequest {
        let share =
            agent_protocol::messages::Share { tag: tag.into(), mount_point: mount_point.into(), ..Default::default() };
        ConfigurePodRequest { shares: vec![share], ..Default::default() }
    }

    #[test]
    fn shares_are_mounted_below_our_own_folder_only() {
        assert!(parse(with_share("/run/kata-rs/share", "kata-rs")).is_ok());
        for place in ["", "/", "/etc", "/run/kata-rs", "/run/kata-rs/../x", "run/kata-rs/share", "/run/kata-rsx"] {
            assert!(parse(with_share(place, "kata-rs")).is_err(), "{place:?}");
        }
    }

    #[test]
    fn a_tag_fits_its_field() {
        assert!(parse(with_share("/run/kata-rs/share", &"t".repeat(36))).is_ok());
        assert!(parse(with_share("/run/kata-rs/share", &"t".repeat(37))).is_err());
        assert!(parse(with_share("/run/kata-rs/share", "")).is_err());
    }

    #[test]
    fn sysctl_names_become_paths() {
        let path = |key: &str| parse_sysctl((key.to_owned(), "1".to_owned())).map(|(path, _)| path).ok();
        assert_eq!(path("net.ipv4.ip_forward"), Some("/proc/sys/net/ipv4/ip_forward".into()));
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding"), Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding".into()));
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding"), Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding".into()));
        for bad in ["", "/kernel/x", "kernel/../../etc", "a\0b"] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_hostname_too_long_is_refused_before_anything_is_done() {
        let request = ConfigurePodRequest { hostname: "h".repeat(65), ..Default::default() };
        let error = parse(request).expect_err("refused");
        assert!(error.to_string().contains("64 bytes"), "{error}");
    }

    #[test]
    fn resolv_conf_is_written_where_containers_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::guest_of_process(dir.path().to_owned());
        let request = ConfigurePodRequest { resolv_conf: "nameserver 10.0.0.1\n".into(), ..Default::default() };
        Configuration::parse(request, &home).unwrap().apply(&home).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("resolv.conf")).unwrap(), "nameserver 10.0.0.1\n");
    }
}
