//! The images that tests and demos run: a busybox, a Debian with Python, and the pause program of a pod.
//!
//! The first two hold `/etc/passwd` and `/etc/group` with the same people: root, nobody, and `app` (uid 1000) who is in two
//! supplementary groups, so that every way of naming a user can be tested.
//!
//! A program whose library is in no layer is an error here, at build time, with the names of both; the package lists
//! below are kept short by hand and this is what keeps them right.
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::deb::{self, DebError, Layout, Package};
use crate::elf::{self, Elf};
use crate::layer::Layer;
use crate::ld_cache;
use crate::oci::{ArchiveError, Defaults, Image};
use crate::tree::{Kind, Node, Tree, TreeError};

/// Part of the cache key: raise it when this file changes what an image holds.
const RECIPE_VERSION: u32 = 3;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
    app:x:1000:1000:an ordinary user:/home/app:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\naudio:x:29:app\nvideo:x:44:app\napp:x:1000:\n\
    crew:x:2000:app\nnogroup:x:65534:\n";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Packages of the Debian base layer.
const BASE: [&str; 16] = [
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "hostname",
    "libacl1",
    "libattr1",
    "libc6",
    "libgcc-s1",
    "libgmp10",
    "libpcre2-8-0",
    "libselinux1",
    "libtinfo6",
    "sed",
];
/// Packages of the Python layer.
const PYTHON: [&str; 16] = [
    "libbz2-1.0",
    "libcrypt1",
    "libdb5.3",
    "libexpat1",
    "libffi8",
    "liblzma5",
    "libncursesw6",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "libuuid1",
    "python3.11-minimal",
    "python3-minimal",
    "zlib1g",
];
/// Left out of the Debian image: documents except licences, translations, character sets, and what needs libraries of
/// its own (NIS) that no test would use.
const LEFT_OUT: [&str; 13] = [
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/info/",
    "usr/share/lintian/",
    "usr/share/bug/",
    "usr/share/bash-completion/",
    "usr/share/doc-base/",
    "usr/share/menu/",
    "usr/share/binfmts/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/lib/python3.11/lib-dynload/nis.",
    "usr/lib/python3.11/pydoc_data/",
    "usr/lib/python3.11/ensurepip/",
];

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// Dynamic busybox with its C library; every applet a hard link.
    Busybox,
    /// Debian's base programs in one layer, Python 3.11 and its standard library in another.
    Python,
    /// One static program that waits and reaps: what the first container of a Kubernetes pod runs.
    Pause,
}

/// Why an image was not made.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Packages could not be had.
    #[error("cannot get the packages of the {recipe:?} image")]
    Packages {
        /// Which image.
        recipe: Recipe,
        /// What went wrong.
        #[source]
        source: DebError,
    },
    /// Something could not be laid out.
    #[error("cannot lay out the {recipe:?} image")]
    Tree {
        /// Which image.
        recipe: Recipe,
        /// What went wrong.
        #[source]
        source: TreeError,
    },
    /// A library is missing: a package changed its dependencies.
    #[error(
        "{program} needs {library}, which no package of the image has; add that package to the list in rootfs-builder/src"
    )]
    Library {
        /// Inside the image.
        program: String,
        /// As the program names it.
        library: String,
    },
    /// The applet list could not be had from the busybox just unpacked.
    #[error("cannot list the applets of {path}; it has to run on this machine")]
    Applets {
        /// A copy on the host.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A layer could not be compressed.
    #[error("cannot write a layer")]
    Layer(#[source] io::Error),
    /// The archive could not be written.
    #[error("cannot write the archive")]
    Archive(#[from] ArchiveError),
    /// The cache cannot be used.
    #[error("cannot use the image cache {path}; check that the folder is writable")]
    Cache {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The archive of an image, from the cache when the same packages were built before. Returns its path in the cache:
/// `images/<key>/<name>.tar`, where the key comes from the recipe and the exact versions of all packages.
pub fn cached_archive(recipe: Recipe) -> Result<PathBuf, ImageError> {
    let packages = recipe.resolve()?;
    let path = deb::user_cache().join("images").join(key(recipe, &packages)).join(format!("{}.tar", recipe.name()));
    if !path.exists() {
        let archive = recipe.build(&packages)?.archive()?;
        store(&path, &archive).map_err(|source| ImageError::Cache { path: path.clone(), source })?;
    }
    Ok(path)
}

/// Writes a file under a temporary name and renames it, so that it is whole or not there.
pub(crate) fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent)?;
    let arriving = tempfile::NamedTempFile::new_in(parent)?;
    std::fs::write(arriving.path(), bytes)?;
    arriving.persist(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
}

fn key(recipe: Recipe, packages: &[Package]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{recipe:?} {RECIPE_VERSION} {}\n", env!("CARGO_PKG_VERSION")));
    for package in packages {
        hash.update(format!("{} {}\n", package.file_name, package.sha256));
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Recipe {
    /// The short name: of the archive, and in the image's reference.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Python => "python",
            Self::Pause => "pause",
        }
    }

    /// The name under which containerd imports the image.
    pub fn reference(self) -> String {
        format!("docker.io/library/kata-rs-{}:latest", self.name())
    }

    fn package_names(self) -> Vec<&'static str> {
        match self {
            Self::Busybox => vec!["busybox", "libc6"],
            Self::Python => BASE.into_iter().chain(PYTHON).collect(),
            Self::Pause => vec!["catatonit"],
        }
    }

    fn resolve(self) -> Result<Vec<Package>, ImageError> {
        deb::resolve(&self.package_names()).map_err(|source| ImageError::Packages { recipe: self, source })
    }

    fn build(self, packages: &[Package]) -> Result<Image, ImageError> {
        deb::fetch(packages, &deb::cache_dir()).map_err(|source| ImageError::Packages { recipe: self, source })?;
        let mut trees = match self {
            Self::Busybox => vec![("busybox and the C library", self.busybox(packages)?)],
            Self::Python => vec![
                ("Debian base", self.debian_layer(packages, &BASE, true)?),
                ("Python", self.debian_layer(packages, &PYTHON, false)?),
            ],
            Self::Pause => vec![("catatonit", self.pause(packages)?)],
        };
        check_libraries(trees.iter().map(|(_, tree)| tree))?;
        self.add_loader_cache(&mut trees)?;
        let mut layers = Vec::new();
        for (what, tree) in &trees {
            layers.push(((*what).to_owned(), Layer::of(tree).map_err(ImageError::Layer)?));
        }
        Ok(Image { reference: self.reference(), defaults: self.defaults(packages), layers })
    }

    /// In the last layer, for the libraries of all; the pause program is static.
    fn add_loader_cache(self, trees: &mut [(&str, Tree)]) -> Result<(), ImageError> {
        let cache = ld_cache::of(trees.iter().map(|(_, tree)| tree));
        match trees.last_mut() {
            Some((_, last)) if self != Self::Pause => {
                let insert = last.insert("etc/ld.so.cache", Node::file(0o644, cache));
                insert.map_err(|source| ImageError::Tree { recipe: self, source })
            }
            _ => Ok(()),
        }
    }

    fn defaults(self, packages: &[Package]) -> Defaults {
        let command: &[&str] = match self {
            Self::Busybox => &["sh"],
            Self::Python => &["python3"],
            Self::Pause => &["/usr/bin/catatonit", "-P"],
        };
        let versions: Vec<_> =
            packages.iter().map(|package| format!("{}={}", package.name(), package.version())).collect();
        Defaults {
            env: vec![PATH.to_owned()],
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            labels: [("io.kata-rs.debian-packages".to_owned(), versions.join(" "))].into(),
            ..Defaults::default()
        }
    }

    fn add_package(
        self,
        tree: &mut Tree,
        packages: &[Package],
        name: &str,
        layout: Layout,
        keep: impl Fn(&str) -> bool,
    ) -> Result<(), ImageError> {
        let package = packages.iter().find(|package| package.name() == name).ok_or_else(|| ImageError::Packages {
            recipe: self,
            source: DebError::Unavailable { names: name.to_owned(), says: "no file of that name".to_owned() },
        })?;
        deb::add_files(tree, package, &deb::cache_dir(), layout, keep)
            .map_err(|source| ImageError::Packages { recipe: self, source })
    }

    fn busybox(self, packages: &[Package]) -> Result<Tree, ImageError> {
        let lay_out = |source| ImageError::Tree { recipe: self, source };
        let mut tree = Tree::default();
        let licence = |path: &str| path.ends_with("/copyright");
        self.add_package(&mut tree, packages, "busybox", Layout::AsPacked, |path| {
            path == "bin/busybox" || licence(path)
        })?;
        self.add_package(&mut tree, packages, "libc6", Layout::AsPacked, |path| {
            let library = path.starts_with("lib/") || path.starts_with("lib64") || path.starts_with("etc");
            library || licence(path)
        })?;
        for applet in applets(&tree, "bin/busybox")? {
            if tree.node(&applet).is_none() {
                tree.insert(&applet, Node::hard_link("bin/busybox")).map_err(lay_out)?;
            }
        }
        add_base_files(&mut tree).map_err(lay_out)?;
        Ok(tree)
    }

    fn pause(self, packages: &[Package]) -> Result<Tree, ImageError> {
        let mut tree = Tree::default();
        self.add_package(&mut tree, packages, "catatonit", Layout::AsPacked, |path| {
            path == "usr/bin/catatonit" || path.ends_with("/copyright")
        })?;
        Ok(tree)
    }

    fn debian_layer(self, packages: &[Package], names: &[&str], base: bool) -> Result<Tree, ImageError> {
        let lay_out = |source| ImageError::Tree { recipe: self, source };
        let mut tree = Tree::default();
        if base {
            for (link, target) in Layout::MergedUsr.links() {
                tree.insert(link, Node::symlink(target)).map_err(lay_out)?;
            }
        }
        for name in names {
            self.add_package(&mut tree, packages, name, Layout::MergedUsr, kept)?;
        }
        if base {
            if tree.node("usr/bin/sh").is_none() {
                tree.insert("usr/bin/sh", Node::symlink("dash")).map_err(lay_out)?;
            }
            add_base_files(&mut tree).map_err(lay_out)?;
        }
        Ok(tree)
    }
}

fn kept(path: &str) -> bool {
    let document = path.starts_with("usr/share/doc/") && !path.ends_with("/copyright");
    !document && !LEFT_OUT.iter().any(|prefix| path.starts_with(prefix) || format!("{path}/") == *prefix)
}

/// What a user expects below the root besides programs.
pub(crate) fn add_base_files(tree: &mut Tree) -> Result<(), TreeError> {
    for directory in ["dev", "proc", "sys", "mnt", "run", "etc", "var/log", "var/lib", "usr/local/bin"] {
        if tree.node(directory).is_none() {
            tree.insert(directory, Node::directory(0o755))?;
        }
    }
    tree.insert("tmp", Node::directory(0o1777))?;
    tree.insert("var/tmp", Node::directory(0o1777))?;
    tree.insert("root", Node::directory(0o700))?;
    tree.insert("home/app", Node::directory(0o755).owned_by(1000, 1000))?;
    tree.insert("var/run", Node::symlink("/run"))?;
    tree.insert("etc/passwd", Node::file(0o644, PASSWD))?;
    tree.insert("etc/group", Node::file(0o644, GROUP))?;
    tree.insert("etc/hosts", Node::file(0o644, "127.0.0.1\tlocalhost\n::1\tlocalhost\n"))?;
    tree.insert("etc/nsswitch.conf", Node::file(0o644, "passwd: files\ngroup: files\nhosts: files dns\n"))
}

/// Asks the unpacked busybox for its applets' paths. It runs on the host for a moment, as any program of Debian does.
pub(crate) fn applets(tree: &Tree, busybox: &str) -> Result<Vec<String>, ImageError> {
    let Some(Node { kind: Kind::File(program), .. }) = tree.node(busybox) else {
        return Err(ImageError::Library { program: "bin/sh".to_owned(), library: busybox.to_owned() });
    };
    let folder = tempfile::tempdir().map_err(|source| ImageError::Cache { path: std::env::temp_dir(), source })?;
    let path = folder.path().join("busybox");
    let listed = store(&path, program)
        .and_then(|()| std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)))
        .and_then(|()| std::process::Command::new(&path).arg("--list-full").output())
        .map_err(|source| ImageError::Applets { path: path.clone(), source })?;
    Ok(String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect())
}

/// Fails when a program names a library that is nowhere in the layers.
pub(crate) fn check_libraries<'a>(trees: impl Iterator<Item = &'a Tree> + Clone) -> Result<(), ImageError> {
    let nodes = || trees.clone().flat_map(Tree::iter);
    let names: BTreeSet<&str> = nodes().filter_map(|(path, _)| path.rsplit('/').next()).collect();
    for (path, node) in nodes() {
        let Kind::File(content) = &node.kind else { continue };
        if !elf::is_elf(content) {
            continue;
        }
        let needed = Elf::parse(content).map(|elf| elf.needed).unwrap_or_default();
        if let Some(library) = needed.into_iter().find(|library| !names.contains(library.as_str())) {
            return Err(ImageError::Library { program: path.to_owned(), library });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_stay_and_manuals_go() {
        assert!(kept("usr/share/doc/bash/copyright"));
        assert!(kept("usr/bin/manpath"));
        assert!(!kept("usr/share/doc/bash/README"));
        assert!(!kept("usr/share/man"));
        assert!(!kept("usr/share/man/man1/bash.1.gz"));
    }

    #[test]
    fn another_version_of_a_package_is_another_cache_entry() {
        let package = |sha: char| Package { file_name: "a_1_amd64.deb".to_owned(), sha256: sha.to_string().repeat(64) };
        assert_ne!(key(Recipe::Busybox, &[package('0')]), key(Recipe::Busybox, &[package('1')]));
        assert_ne!(key(Recipe::Busybox, &[package('0')]), key(Recipe::Python, &[package('0')]));
    }

    #[test]
    fn a_program_whose_library_is_missing_stops_the_build() {
        let mut tree = Tree::default();
        tree.insert("bin/ls", Node::file(0o755, std::fs::read("/bin/ls").unwrap())).unwrap();
        let error = check_libraries([&tree].into_iter()).unwrap_err();
        assert!(error.to_string().starts_with("bin/ls needs lib"), "{error}");
    }

    #[test]
    fn the_ordinary_user_is_in_supplementary_groups() {
        let groups = GROUP.lines().filter(|line| line.ends_with(":app")).count();
        assert_eq!(groups, 3);
        assert!(PASSWD.contains("app:x:1000:1000:"));
    }
}
