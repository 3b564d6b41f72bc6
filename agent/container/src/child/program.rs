//! The program: found as a shell would, and executed as the last thing.

use super::identity::set_held;
use super::{Newborn, StepError};
use crate::plan::CapabilitySets;
use crate::seccomp;
use crate::steps::{FailureKind, describe};
use crate::sys::{self, Program};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Searched when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of /etc/passwd is read for a home directory; an image can put anything there.
const MAX_PASSWD: u64 = 1 << 20;

impl Newborn {
    pub(super) fn find_program(&mut self, args: &[String], env: &[String], uid: u32) -> Result<(), StepError> {
        let Some(name) = args.first() else { return Err(StepError::because("there is no program")) };
        let path = if name.contains('/') { named(name)? } else { searched(name, env)? };
        let mut env = env.to_vec();
        if value_of("HOME", &env).is_none_or(str::is_empty) {
            env.retain(|entry| !entry.starts_with("HOME="));
            env.push(format!("HOME={}", home_of(uid)));
        }
        let path = CString::new(path.into_os_string().into_encoded_bytes()).map_err(|_| Errno::INVAL)?;
        self.program_name = Some(name.clone());
        self.program = Some(Program::new(path, c_strings(args)?, c_strings(&env)?));
        Ok(())
    }

    /// Becomes the program; what comes back is why not.
    ///
    /// Between the filter and execve there is one system call at most: a profile may forbid any other.
    pub(super) fn execute(&mut self, filter: Option<&seccomp::Program>, drop_to: Option<&CapabilitySets>) -> StepError {
        let Some(program) = &self.program else { return StepError::because("there is no program") };
        let ready = sys::close_all_but_stdio_on_exec().map_err(StepError::from);
        match ready.and_then(|()| confine(filter, drop_to)) {
            Ok(()) => explain(program.execute()),
            Err(error) => error,
        }
    }
}

fn confine(filter: Option<&seccomp::Program>, drop_to: Option<&CapabilitySets>) -> Result<(), StepError> {
    if let Some(filter) = filter {
        sys::install_seccomp(&filter.instructions, filter.flags)
            .map_err(|error| StepError::from(error).noting("the system call filter was not accepted"))?;
    }
    drop_to.map_or(Ok(()), |sets| set_held(sets, 0))
}

fn explain(error: std::io::Error) -> StepError {
    let errno = error.raw_os_error().unwrap_or(0);
    let kind = if errno == Errno::NOENT.raw_os_error() || errno == Errno::NOTDIR.raw_os_error() {
        FailureKind::CommandNotFound
    } else {
        FailureKind::CommandNotExecutable
    };
    StepError { errno, note: None, kind }
}

fn named(name: &str) -> Result<PathBuf, StepError> {
    let path = PathBuf::from(name);
    match executable(&path) {
        Ok(()) => Ok(path),
        Err(errno @ (Errno::NOENT | Errno::NOTDIR)) => Err(StepError {
            errno: errno.raw_os_error(),
            note: Some(format!("stat {name}: {}", describe(errno.raw_os_error()))),
            kind: FailureKind::CommandNotFound,
        }),
        Err(errno) => {
            Err(StepError { errno: errno.raw_os_error(), note: None, kind: FailureKind::CommandNotExecutable })
        }
    }
}

/// Relative entries of PATH are passed over: what is found must not depend on where the process starts.
fn searched(name: &str, env: &[String]) -> Result<PathBuf, StepError> {
    let directories = value_of("PATH", env).unwrap_or(DEFAULT_PATH);
    let candidates = directories.split(':').map(Path::new).filter(|directory| directory.is_absolute());
    let found = candidates.map(|directory| directory.join(name)).find(|path| executable(path).is_ok());
    found.ok_or_else(|| StepError {
        errno: 0,
        note: Some("executable file not found in $PATH".into()),
        kind: FailureKind::CommandNotFound,
    })
}

fn executable(path: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn value_of<'env>(name: &str, env: &'env [String]) -> Option<&'env str> {
    env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>, StepError> {
    strings.iter().map(|string| CString::new(string.as_str()).map_err(|_| Errno::INVAL.into())).collect()
}

/// The home directory that the container's /etc/passwd names for a user, or `/`.
fn home_of(uid: u32) -> String {
    read_passwd().and_then(|text| home_in(&text, uid)).unwrap_or_else(|| "/".to_owned())
}

/// Not waiting for a FIFO, and not reading a device: the file is the image's.
fn read_passwd() -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/etc/passwd", flags, Mode::empty()).ok()?;
    let is_file = FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode) == FileType::RegularFile;
    let mut bytes = Vec::new();
    is_file.then(|| File::from(file).take(MAX_PASSWD).read_to_end(&mut bytes).ok())??;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// passwd(5): name:password:uid:gid:comment:home:shell
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut entries = line.filter(|fields| fields.len() >= 6 && fields[2].parse() == Ok(uid));
    entries.next().map(|fields| fields[5].to_owned()).filter(|home| !home.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_directory_is_the_users_own() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1000::/home/app:/bin/sh\nempty:x:7:7:::\n";
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/app"));
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 42), None);
    }

    #[test]
    fn a_name_without_a_slash_is_searched_in_absolute_directories_only() {
        let env = ["PATH=.:relative:/bin".to_owned()];
        assert_eq!(searched("sh", &env).expect("found"), Path::new("/bin/sh"));
        let missing = searched("surely-not-there", &env).expect_err("not found");
        assert_eq!(missing.kind, FailureKind::CommandNotFound);
    }

    #[test]
    fn a_directory_and_a_plain_file_are_no_programs() {
        assert_eq!(named("/etc").expect_err("a directory").kind, FailureKind::CommandNotExecutable);
        assert_eq!(named("/etc/passwd").expect_err("a file").kind, FailureKind::CommandNotExecutable);
        assert_eq!(named("/etc/nowhere").expect_err("nothing").kind, FailureKind::CommandNotFound);
    }
}
