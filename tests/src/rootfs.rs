//! A root filesystem as a folder, out of an image archive of ours.

use std::{fs::File, io::Read, path::Path};

use anyhow::Context;
use serde_json::Value;

/// Unpacks the archive's layout (index, manifest, blobs) into a folder.
pub fn unpack_layout(archive: &Path, folder: &Path) -> anyhow::Result<()> {
    tar::Archive::new(File::open(archive)?).unpack(folder).context("the archive is a tar")
}

/// Unpacks all layers of an archive's only image into a folder.
pub fn unpack(archive: &Path, folder: &Path) -> anyhow::Result<()> {
    let layout = tempfile::Builder::new().prefix("kata-rs-layout-").tempdir()?;
    unpack_layout(archive, layout.path())?;
    let index = json(&layout.path().join("index.json"))?;
    let manifest = json(&blob(layout.path(), &index["manifests"][0])?)?;
    for layer in manifest["layers"].as_array().context("a manifest has layers")? {
        let bytes = flate2::read::GzDecoder::new(File::open(blob(layout.path(), layer)?)?);
        let mut tar = tar::Archive::new(bytes);
        tar.set_preserve_permissions(true);
        tar.unpack(folder)?;
    }
    Ok(())
}

fn blob(layout: &Path, descriptor: &Value) -> anyhow::Result<std::path::PathBuf> {
    let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?;
    Ok(layout.join("blobs").join(digest.replacen(':', "/", 1)))
}

fn json(path: &Path) -> anyhow::Result<Value> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
