//! Who the container's process is: `--user` or the image's user, looked up in the image's own /etc/passwd and /etc/group.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

/// Longest passwd or group file that is read; the image is not trusted.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Numbers, as the kernel wants them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub additional_gids: Vec<u32>,
}

/// Why a user is unknown.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    /// No such name.
    #[error("{kind} {name:?} is not in the image's {file}: use a number, or a name that is there")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// Which file.
        file: &'static str,
    },
}

impl User {
    /// Finds `name[:group]` (names or numbers) in the image at `root`; an empty name is root.
    pub fn find(root: &Path, name: &str) -> Result<Self, UserError> {
        let passwd = read_inside(root, "etc/passwd");
        let group = read_inside(root, "etc/group");
        Self::among(&passwd, &group, name)
    }

    fn among(passwd: &str, group: &str, name: &str) -> Result<Self, UserError> {
        let (user, wanted_group) = match name.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (name, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entry = rows(passwd).find(|row| row[0] == user || row.get(2) == Some(&user));
        let number = |row: &[&str], field: usize| row.get(field).and_then(|f| f.parse().ok());
        let uid = entry.as_deref().and_then(|row| number(row, 2)).or_else(|| user.parse().ok());
        let uid = uid.ok_or_else(|| unknown("user", user, "/etc/passwd"))?;
        if let Some(wanted) = wanted_group {
            return Ok(Self { uid, gid: group_id(group, wanted)?, additional_gids: Vec::new() });
        }
        let gid = entry.as_deref().and_then(|row| number(row, 3)).unwrap_or(0);
        let login = entry.as_deref().map_or(user, |row| row[0]);
        let member = |row: &Vec<&str>| row.get(3).is_some_and(|members| members.split(',').any(|m| m == login));
        let additional_gids = rows(group).filter(member).filter_map(|row| number(&row, 2)).collect();
        Ok(Self { uid, gid, additional_gids })
    }
}

fn group_id(group: &str, wanted: &str) -> Result<u32, UserError> {
    let named = rows(group).find(|row| row[0] == wanted).and_then(|row| row.get(2)?.parse().ok());
    named.or_else(|| wanted.parse().ok()).ok_or_else(|| unknown("group", wanted, "/etc/group"))
}

fn unknown(kind: &'static str, name: &str, file: &'static str) -> UserError {
    UserError::Unknown { kind, name: name.to_owned(), file }
}

fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| line.split(':').collect())
}

/// A file of the image as text, with symlinks kept inside the image; empty when there is none.
fn read_inside(root: &Path, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let read = || -> Option<String> {
        let folder =
            rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let file = openat2(&folder, PathBuf::from(path), flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
        let mut text = Vec::new();
        File::from(file).take(FILE_LEN_MAX).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nplugdev:x:46:app,other\naudio:x:29:other,app\n";

    fn find(name: &str) -> Result<User, UserError> {
        User::among(PASSWD, GROUP, name)
    }

    #[test]
    fn a_name_brings_its_groups() {
        let app = User { uid: 1000, gid: 1001, additional_gids: vec![46, 29] };
        assert_eq!(find("app"), Ok(app.clone()));
        assert_eq!(find("1000"), Ok(app));
    }

    #[test]
    fn a_number_needs_no_entry() {
        assert_eq!(find("4242"), Ok(User { uid: 4242, gid: 0, additional_gids: vec![] }));
        assert_eq!(find("4242:46"), Ok(User { uid: 4242, gid: 46, additional_gids: vec![] }));
    }

    #[test]
    fn no_name_is_root() {
        assert_eq!(find(""), Ok(User::default()));
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        assert!(matches!(find("nobody-here"), Err(UserError::Unknown { kind: "user", .. })));
        assert!(matches!(find("app:nogroup-here"), Err(UserError::Unknown { kind: "group", .. })));
    }

    #[test]
    fn a_symlink_stays_inside_the_image() {
        let root = tempfile::tempdir().expect("temporary folder");
        std::fs::create_dir(root.path().join("etc")).expect("made");
        std::os::unix::fs::symlink("/proc/self/status", root.path().join("etc/passwd")).expect("linked");
        assert_eq!(read_inside(root.path(), "etc/passwd"), "");
    }
}
