//! Unpacked images below the user's cache folder, each made once and keyed by its manifest's digest.
//!
//! An image is unpacked beside its final place and renamed into it, so a half-made one is never used. Two commands
//! that unpack the same image at once both work; the second one's rename finds the place taken and drops its own copy.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use oci_spec::image::{Descriptor, ImageConfiguration, MediaType};
use sha2::{Digest, Sha256};

use super::{
    layer,
    layout::{ImageError, Layout, io as io_error},
};

/// An image on disk.
#[derive(Debug)]
pub struct StoredImage {
    /// All layers, one on the other. Never written to.
    pub root: PathBuf,
    /// What the image says about running it.
    pub configuration: ImageConfiguration,
}

/// The folder of unpacked images.
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// `$XDG_CACHE_HOME/kata-rs/images-unpacked`, or below `~/.cache`.
    pub fn of_user() -> Self {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let cache = var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|home| home.join(".cache")));
        Self { folder: cache.unwrap_or_else(|| PathBuf::from("/var/cache")).join("kata-rs/images-unpacked") }
    }

    /// A store in a given folder.
    #[cfg(test)]
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The image in the layout, unpacked now if it never was.
    pub fn image(&self, layout: &Layout) -> Result<StoredImage, ImageError> {
        let (digest, manifest) = layout.manifest()?;
        let configuration = layout.configuration(&manifest)?;
        let root = self.folder.join(digest.replace(':', "-"));
        if !root.is_dir() {
            self.unpack(layout, manifest.layers(), &root)?;
        }
        Ok(StoredImage { root, configuration })
    }

    fn unpack(&self, layout: &Layout, layers: &[Descriptor], root: &Path) -> Result<(), ImageError> {
        fs::create_dir_all(&self.folder).map_err(|e| io_error(&self.folder, "make", e))?;
        let making = self.folder.join(format!(".making-{}", std::process::id()));
        let _ = fs::remove_dir_all(&making);
        fs::create_dir(&making).map_err(|e| io_error(&making, "make", e))?;
        let unpacked = layers.iter().try_for_each(|descriptor| unpack_layer(layout, descriptor, &making));
        let placed = unpacked.and_then(|()| match fs::rename(&making, root) {
            Err(error) if !root.is_dir() => Err(io_error(root, "rename into", error)),
            _ => Ok(()),
        });
        let _ = fs::remove_dir_all(&making);
        placed
    }
}

fn unpack_layer(layout: &Layout, descriptor: &Descriptor, root: &Path) -> Result<(), ImageError> {
    let digest = descriptor.digest().to_string();
    let mut blob = Hashing { inner: layout.blob(&digest)?, hash: Sha256::new() };
    let gzip = match descriptor.media_type() {
        MediaType::ImageLayer => false,
        MediaType::ImageLayerGzip => true,
        // Docker's own names for the same two things.
        MediaType::Other(name) if name == "application/vnd.docker.image.rootfs.diff.tar.gzip" => true,
        MediaType::Other(name) if name == "application/vnd.docker.image.rootfs.diff.tar" => false,
        other => {
            return Err(ImageError::LayerType { path: layout.path().to_owned(), media_type: other.to_string() });
        }
    };
    let applied =
        if gzip { layer::apply(flate2::read::GzDecoder::new(&mut blob), root) } else { layer::apply(&mut blob, root) };
    let path = layout.path().to_owned();
    // Bytes after the tar's end belong to the digest, too. A damaged blob is told first: it explains a broken tar.
    io::copy(&mut blob, &mut io::sink()).map_err(|e| io_error(layout.path(), "read", e))?;
    let found = format!("sha256:{}", hex(&blob.hash.finalize()));
    if digest.starts_with("sha256:") && found != digest {
        return Err(ImageError::DamagedBlob { path, digest, found });
    }
    applied.map_err(|problem| ImageError::Layer { path, digest, problem })
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(folder: &Path, bytes: &[u8]) -> String {
        let digest = hex(&Sha256::digest(bytes));
        fs::create_dir_all(folder.join("blobs/sha256")).expect("made");
        fs::write(folder.join("blobs/sha256").join(&digest), bytes).expect("written");
        digest
    }

    fn layout_with(folder: &Path, architecture: &str, layer: &[u8]) -> String {
        let layer_digest = put(folder, layer);
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{layer_digest}"]}}}}"#
        );
        let config_digest = put(folder, config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{config_digest}","size":{}}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{layer_digest}","size":{}}}]}}"#,
            config.len(),
            layer.len()
        );
        let manifest_digest = put(folder, manifest.as_bytes());
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{manifest_digest}","size":{}}}]}}"#,
            manifest.len()
        );
        fs::write(folder.join("index.json"), index).expect("written");
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
        layer_digest
    }

    fn one_file_layer() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        header.set_uid(u64::from(rustix::process::getuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.set_cksum();
        builder.append_data(&mut header, "hello", &b"world"[..]).expect("in memory");
        builder.into_inner().expect("in memory")
    }

    #[test]
    fn an_image_is_unpacked_once() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let cache = tempfile::tempdir().expect("temporary folder");
        layout_with(folder.path(), "amd64", &one_file_layer());
        let store = Store::at(cache.path());
        let layout = Layout::open(folder.path()).expect("a layout");
        let first = store.image(&layout).expect("unpacked");
        assert_eq!(fs::read(first.root.join("hello")).expect("there"), b"world");
        fs::write(first.root.join("mark"), "").expect("written");
        let second = store.image(&layout).expect("found");
        assert!(second.root.join("mark").exists(), "unpacked a second time");
    }

    #[test]
    fn a_damaged_layer_is_named_and_leaves_nothing() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let cache = tempfile::tempdir().expect("temporary folder");
        let layer = layout_with(folder.path(), "amd64", &one_file_layer());
        let blob = folder.path().join("blobs/sha256").join(layer);
        let mut bytes = fs::read(&blob).expect("there");
        let end = bytes.len() - 1;
        bytes[end] ^= 1;
        fs::write(&blob, bytes).expect("written");
        let error = Store::at(cache.path()).image(&Layout::open(folder.path()).expect("a layout"));
        assert!(matches!(error, Err(ImageError::DamagedBlob { .. })), "{error:?}");
        assert_eq!(fs::read_dir(cache.path()).expect("there").count(), 0);
    }

    #[test]
    fn an_image_for_another_machine_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let cache = tempfile::tempdir().expect("temporary folder");
        layout_with(folder.path(), "arm64", &one_file_layer());
        let error = Store::at(cache.path()).image(&Layout::open(folder.path()).expect("a layout"));
        assert!(matches!(error, Err(ImageError::OtherPlatform { .. })), "{error:?}");
    }

    #[test]
    fn a_file_that_is_no_image_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("noise");
        fs::write(&file, vec![0x5a; 4096]).expect("written");
        assert!(matches!(Layout::open(&file), Err(ImageError::NotAnImage(_))));
    }
}
