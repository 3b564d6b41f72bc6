//! An OCI image layout, as a tar archive or as a folder (OCI image-spec 1.1, image-layout.md).

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};

/// Longest JSON blob that is read into memory: manifests and configurations are a few KiB.
const JSON_LEN_MAX: u64 = 8 << 20;
/// An index may name an index; nobody nests deeper than this.
const INDEX_DEPTH_MAX: usize = 4;

/// Why an image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Reading or writing failed.
    #[error("{path}: cannot {action}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// From the kernel.
        #[source]
        source: std::io::Error,
    },
    /// Neither an archive nor a layout.
    #[error(
        "{0}: not an OCI image: no index.json inside; make one with `skopeo copy ... oci-archive:FILE` or `docker save` (25 or later)"
    )]
    NotAnImage(PathBuf),
    /// A blob that the manifest names is not there.
    #[error("{path}: blob {digest} is named but missing: the image is incomplete, export it again")]
    MissingBlob {
        /// The image.
        path: PathBuf,
        /// Name of the blob.
        digest: String,
    },
    /// The bytes are not what their name says.
    #[error("{path}: blob {digest} is damaged (its bytes hash to {found}): export the image again")]
    DamagedBlob {
        /// The image.
        path: PathBuf,
        /// Name of the blob.
        digest: String,
        /// What its bytes hash to.
        found: String,
    },
    /// A JSON document does not parse.
    #[error("{path}: {what} does not parse as OCI image-spec JSON")]
    Malformed {
        /// The image.
        path: PathBuf,
        /// Which document.
        what: String,
        /// From the parser.
        #[source]
        source: oci_spec::OciSpecError,
    },
    /// For another machine.
    #[error("{path}: the image is for {found}, this host runs linux/amd64: choose the amd64 variant of the image")]
    OtherPlatform {
        /// The image.
        path: PathBuf,
        /// os/architecture.
        found: String,
    },
    /// A compression that is not supported.
    #[error(
        "{path}: a layer is of type {media_type}: only tar and tar+gzip are supported; convert with `skopeo copy --dest-compress-format gzip`"
    )]
    LayerType {
        /// The image.
        path: PathBuf,
        /// What the manifest says.
        media_type: String,
    },
    /// A layer's tar is broken or wants out of its folder.
    #[error("{path}: layer {digest}: {problem}")]
    Layer {
        /// The image.
        path: PathBuf,
        /// Which layer.
        digest: String,
        /// What is wrong.
        problem: String,
    },
}

/// Where the blobs are.
enum Place {
    Folder,
    /// Offset and size of each member of the tar.
    Archive(HashMap<String, (u64, u64)>),
}

/// An image layout, ready to be read from.
pub struct Layout {
    path: PathBuf,
    place: Place,
}

impl Layout {
    /// Is this folder an image layout (and not a root filesystem)?
    pub fn is_layout_folder(path: &Path) -> bool {
        path.join("oci-layout").is_file() && path.join("index.json").is_file()
    }

    /// Opens an archive or a layout folder.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let path = path.to_owned();
        if path.is_dir() {
            return match Self::is_layout_folder(&path) {
                true => Ok(Self { path, place: Place::Folder }),
                false => Err(ImageError::NotAnImage(path)),
            };
        }
        let members = members_of(&path)?;
        match members.contains_key("index.json") {
            true => Ok(Self { path, place: Place::Archive(members) }),
            false => Err(ImageError::NotAnImage(path)),
        }
    }

    /// Path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest for this machine, with its digest.
    pub fn manifest(&self) -> Result<(String, ImageManifest), ImageError> {
        let index =
            self.parse("index.json", self.member("index.json", "index.json")?, |r| ImageIndex::from_reader(r))?;
        let descriptor = self.resolve(&index, 0)?;
        let digest = descriptor.digest().to_string();
        let manifest = self.parse(&digest, self.blob(&digest)?, |r| ImageManifest::from_reader(r))?;
        Ok((digest, manifest))
    }

    /// The image's configuration; refuses images for other machines.
    pub fn configuration(&self, manifest: &ImageManifest) -> Result<ImageConfiguration, ImageError> {
        let digest = manifest.config().digest().to_string();
        let config = self.parse(&digest, self.blob(&digest)?, |r| ImageConfiguration::from_reader(r))?;
        if *config.architecture() != Arch::Amd64 || *config.os() != Os::Linux {
            let found = format!("{}/{}", config.os(), config.architecture());
            return Err(ImageError::OtherPlatform { path: self.path.clone(), found });
        }
        Ok(config)
    }

    /// The bytes of a blob.
    pub fn blob(&self, digest: &str) -> Result<Box<dyn Read>, ImageError> {
        let name = format!("blobs/{}", digest.replacen(':', "/", 1));
        self.member(&name, digest)
    }

    fn resolve(&self, index: &ImageIndex, depth: usize) -> Result<Descriptor, ImageError> {
        let fits = |d: &&Descriptor| {
            d.platform().as_ref().is_none_or(|p| *p.architecture() == Arch::Amd64 && *p.os() == Os::Linux)
        };
        let Some(chosen) = index.manifests().iter().find(fits) else {
            let found = index.manifests().iter().filter_map(|d| d.platform().as_ref());
            let found = found.map(|p| format!("{}/{}", p.os(), p.architecture())).collect::<Vec<_>>().join(", ");
            return Err(ImageError::OtherPlatform { path: self.path.clone(), found });
        };
        if *chosen.media_type() != MediaType::ImageIndex || depth >= INDEX_DEPTH_MAX {
            return Ok(chosen.clone());
        }
        let digest = chosen.digest().to_string();
        let inner = self.parse(&digest, self.blob(&digest)?, |r| ImageIndex::from_reader(r))?;
        self.resolve(&inner, depth + 1)
    }

    fn parse<T>(
        &self,
        what: &str,
        from: Box<dyn Read>,
        parse: impl FnOnce(&mut dyn Read) -> oci_spec::Result<T>,
    ) -> Result<T, ImageError> {
        let malformed = |source| ImageError::Malformed { path: self.path.clone(), what: what.to_owned(), source };
        parse(&mut from.take(JSON_LEN_MAX)).map_err(malformed)
    }

    fn member(&self, name: &str, digest: &str) -> Result<Box<dyn Read>, ImageError> {
        let missing = || ImageError::MissingBlob { path: self.path.clone(), digest: digest.to_owned() };
        match &self.place {
            Place::Folder => {
                let file = File::open(self.path.join(name)).map_err(|_| missing())?;
                Ok(Box::new(file))
            }
            Place::Archive(members) => {
                let (offset, size) = *members.get(name).ok_or_else(missing)?;
                let mut file = open(&self.path)?;
                file.seek(SeekFrom::Start(offset)).map_err(|e| io(&self.path, "seek in", e))?;
                Ok(Box::new(file.take(size)))
            }
        }
    }
}

fn members_of(path: &Path) -> Result<HashMap<String, (u64, u64)>, ImageError> {
    let mut archive = tar::Archive::new(open(path)?);
    let not_an_image = |_| ImageError::NotAnImage(path.to_owned());
    let mut members = HashMap::new();
    for entry in archive.entries_with_seek().map_err(not_an_image)? {
        let entry = entry.map_err(not_an_image)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        members.insert(name, (entry.raw_file_position(), entry.size()));
    }
    Ok(members)
}

fn open(path: &Path) -> Result<File, ImageError> {
    File::open(path).map_err(|e| io(path, "open", e))
}

/// An I/O error with its path and action.
pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> ImageError {
    ImageError::Io { path: path.to_owned(), action, source }
}
