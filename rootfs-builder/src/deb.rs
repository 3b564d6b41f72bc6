//! Debian packages: which versions apt offers, their files in a cache, and their contents as a [`Tree`].
//!
//! apt chooses the version, downloads, and verifies the signature chain; this module adds that a cached file is
//! compared with the checksum in apt's signed index each time it is used, so a damaged cache cannot reach an image.
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::tree::{Tree, TreeError};

/// Top-level directories that Debian merged into /usr; packages of Debian 12 still ship files below the old names.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Why packages could not be turned into a tree.
#[derive(Debug, Error)]
pub enum DebError {
    /// A tool is missing.
    #[error("cannot start {tool}; this needs a Debian 12 machine (package apt or dpkg)")]
    Tool {
        /// The program.
        tool: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// apt does not know a package, or its lists are old.
    #[error("apt cannot provide {names}: {says}; refresh its lists with: apt-get update")]
    Unavailable {
        /// The packages asked for.
        names: String,
        /// The end of what apt printed.
        says: String,
    },
    /// apt printed something unexpected.
    #[error("apt-get download --print-uris printed a line this program does not understand: {line:?}")]
    Line {
        /// As printed.
        line: String,
    },
    /// A downloaded file is not what apt's index promises.
    #[error("{path} does not have the checksum of apt's index; delete the file and try again")]
    Checksum {
        /// In the cache.
        path: PathBuf,
    },
    /// The cache cannot be used.
    #[error("cannot use the package cache {path}; check that the folder is writable")]
    Cache {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// dpkg-deb failed on a package.
    #[error("dpkg-deb cannot unpack {path}; delete the file and try again")]
    Unpack {
        /// In the cache.
        path: PathBuf,
    },
    /// The content does not fit in a tree.
    #[error("cannot lay out {package}")]
    Tree {
        /// The package file.
        package: String,
        /// What is wrong.
        #[source]
        source: TreeError,
    },
}

/// One package in the version that apt would install now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// The name of the .deb as apt saves it; holds name, version and architecture.
    pub file_name: String,
    /// Hexadecimal, from apt's signed index.
    pub sha256: String,
}

impl Package {
    /// The package's own name.
    pub fn name(&self) -> &str {
        self.file_name.split('_').next().unwrap_or(&self.file_name)
    }

    /// The version, with apt's percent signs for the epoch's colon undone.
    pub fn version(&self) -> String {
        self.file_name.split('_').nth(1).unwrap_or_default().replace("%3a", ":")
    }
}

/// How paths of a package are placed in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As in the package.
    AsPacked,
    /// /bin, /sbin, /lib and /lib64 below /usr, as on an installed Debian.
    MergedUsr,
}

impl Layout {
    /// Where a path of a package goes.
    pub fn place(self, path: &str) -> String {
        let top = path.split('/').next().unwrap_or_default();
        match self {
            Self::MergedUsr if MERGED.contains(&top) => format!("usr/{path}"),
            _ => path.to_owned(),
        }
    }

    /// The symbolic links that this layout wants at the top.
    pub fn links(self) -> impl Iterator<Item = (&'static str, String)> {
        let links = if self == Self::MergedUsr { &MERGED[..] } else { &[] };
        links.iter().map(|name| (*name, format!("usr/{name}")))
    }
}

/// The folder in which downloaded packages are kept: `kata-rs/debs` in the user's cache.
pub fn cache_dir() -> PathBuf {
    user_cache().join("debs")
}

/// `$XDG_CACHE_HOME/kata-rs`, or the same below `~/.cache`.
pub fn user_cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("kata-rs")
}

/// Asks apt which files it would fetch for these packages: their versions and checksums, sorted. Downloads nothing.
pub fn resolve(names: &[&str]) -> Result<Vec<Package>, DebError> {
    // apt prints nothing for a file that lies in the working directory already, so it is asked in an empty one.
    let empty = tempfile::tempdir().map_err(|source| DebError::Cache { path: std::env::temp_dir(), source })?;
    let printed = apt(empty.path(), &["--print-uris"], names)?;
    let mut packages = printed
        .lines()
        .filter(|line| line.starts_with('\''))
        .map(|line| package_of(line).ok_or_else(|| DebError::Line { line: line.to_owned() }))
        .collect::<Result<Vec<_>, _>>()?;
    packages.sort();
    Ok(packages)
}

/// Parses `'URI' FILE SIZE SHA256:HEX`.
fn package_of(line: &str) -> Option<Package> {
    let mut fields = line.split_whitespace().skip(1);
    let file_name = fields.next()?.to_owned();
    let sha256 = fields.nth(1)?.strip_prefix("SHA256:")?.to_owned();
    let plain = !file_name.contains('/') && sha256.len() == 64;
    plain.then_some(Package { file_name, sha256 })
}

/// Sees that each package's file is in the cache folder with the right checksum; downloads those that are missing.
pub fn fetch(packages: &[Package], cache: &Path) -> Result<(), DebError> {
    let unusable = |source| DebError::Cache { path: cache.to_owned(), source };
    std::fs::create_dir_all(cache).map_err(unusable)?;
    let missing: Vec<_> = packages.iter().filter(|package| !cache.join(&package.file_name).exists()).collect();
    if !missing.is_empty() {
        // Downloaded beside the cache and renamed in, so that a run cut short leaves no half file behind.
        let arriving = tempfile::tempdir_in(cache).map_err(unusable)?;
        let wanted: Vec<_> =
            missing.iter().map(|package| format!("{}={}", package.name(), package.version())).collect();
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        apt(arriving.path(), &[], &wanted)?;
        for package in &missing {
            let from = arriving.path().join(&package.file_name);
            std::fs::rename(&from, cache.join(&package.file_name))
                .map_err(|source| DebError::Cache { path: from, source })?;
        }
    }
    packages.iter().try_for_each(|package| verify(package, &cache.join(&package.file_name)))
}

fn verify(package: &Package, path: &Path) -> Result<(), DebError> {
    let mut file = std::fs::File::open(path).map_err(|source| DebError::Cache { path: path.to_owned(), source })?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(|source| DebError::Cache { path: path.to_owned(), source })?;
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == package.sha256 { Ok(()) } else { Err(DebError::Checksum { path: path.to_owned() }) }
}

/// Adds the files of one cached package for which `keep` says yes (asked with the path as placed).
pub fn add_files(
    tree: &mut Tree,
    package: &Package,
    cache: &Path,
    layout: Layout,
    keep: impl Fn(&str) -> bool,
) -> Result<(), DebError> {
    let path = cache.join(&package.file_name);
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| DebError::Tool { tool: "dpkg-deb", source })?;
    let placed = |path: &str| Some(layout.place(path)).filter(|place| !place.is_empty() && keep(place));
    let added = match child.stdout.take() {
        Some(mut stream) => {
            let added = tree.add_tar(&mut stream, placed);
            // Read to the end, or dpkg-deb complains about a broken pipe.
            let _ = io::copy(&mut stream, &mut io::sink());
            added
        }
        None => Ok(()),
    };
    let status = child.wait().map_err(|source| DebError::Tool { tool: "dpkg-deb", source })?;
    if !status.success() {
        return Err(DebError::Unpack { path });
    }
    added.map_err(|source| DebError::Tree { package: package.file_name.clone(), source })
}

/// The packages that `name` itself depends on and whose names begin with `prefix`: how a meta package is followed.
/// None is an error.
pub fn dependencies(name: &str, prefix: &str) -> Result<Vec<String>, DebError> {
    let output = Command::new("apt-cache")
        .args(["depends", "--important", name])
        .output()
        .map_err(|source| DebError::Tool { tool: "apt-cache", source })?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let depends = printed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let found: Vec<_> = depends.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect();
    if found.is_empty() {
        let says = format!("it does not depend on any {prefix}*");
        return Err(DebError::Unavailable { names: name.to_owned(), says });
    }
    Ok(found)
}

fn apt(directory: &Path, flags: &[&str], names: &[&str]) -> Result<String, DebError> {
    let output = Command::new("apt-get")
        // The download user of apt may not write to a private folder; files are verified all the same.
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
        .args(flags)
        .args(names)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| DebError::Tool { tool: "apt-get", source })?;
    if !output.status.success() {
        let says = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        return Err(DebError::Unavailable { names: names.join(" "), says });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt_gives_name_version_and_checksum() {
        let sha = "4b355fad07d4fe1f5aa282e949281f8dcb7bcdebb023d7e40f4f8fe475e21e29";
        let line = format!("'http://x/busybox.deb' busybox_1%3a1.35.0-4+b1_amd64.deb 452120 SHA256:{sha}");
        let package = package_of(&line).unwrap();
        assert_eq!((package.name(), package.version().as_str()), ("busybox", "1:1.35.0-4+b1"));
        assert_eq!(package.sha256, sha);
    }

    #[test]
    fn a_line_without_a_sha256_is_refused() {
        assert_eq!(package_of("'http://x/a.deb' a_1_amd64.deb 12 MD5Sum:00"), None);
        assert_eq!(package_of("'http://x/a.deb' ../a_1_amd64.deb 12 SHA256:00"), None);
    }

    #[test]
    fn the_merged_layout_moves_the_four_old_folders_and_nothing_else() {
        let places: Vec<_> =
            ["bin/ls", "lib64", "usr/bin/env", "library/x"].map(|path| Layout::MergedUsr.place(path)).into();
        assert_eq!(places, ["usr/bin/ls", "usr/lib64", "usr/bin/env", "library/x"]);
        assert_eq!(Layout::AsPacked.place("bin/ls"), "bin/ls");
    }

    #[test]
    fn a_damaged_file_in_the_cache_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let package = Package { file_name: "a_1_amd64.deb".to_owned(), sha256: "0".repeat(64) };
        std::fs::write(cache.path().join(&package.file_name), "not a package").unwrap();
        assert!(matches!(fetch(&[package], cache.path()), Err(DebError::Checksum { .. })));
    }
}
