//! A pure writer of OCI image archives: layers and a configuration in, the bytes of one tar file out.
//!
//! Source: OCI image specification 1.0 (image layout, index, manifest, configuration) and the two annotations from
//! which containerd names an imported image.
use std::collections::BTreeMap;
use std::io;

use serde_json::{Value, json};

use crate::layer::{Layer, digest};
use crate::tree::{Node, Tree, TreeError};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The time that the configuration and history state; fixed, like that of every file.
const CREATED: &str = "2026-01-01T00:00:00Z";

/// What a container of the image runs by default, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults {
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// The command, when a container names none.
    pub command: Vec<String>,
    /// The working directory; empty means `/`.
    pub working_dir: String,
    /// Printed by tools that show images.
    pub labels: BTreeMap<String, String>,
}

/// One image for linux/amd64 in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The full name under which it is imported, e.g. `docker.io/library/x:latest`.
    pub reference: String,
    /// What its containers do by default.
    pub defaults: Defaults,
    /// Lowest first, each with the sentence that the history gives it.
    pub layers: Vec<(String, Layer)>,
}

impl Image {
    /// The whole archive, as `ctr images import` reads it.
    pub fn archive(&self) -> Result<Vec<u8>, ArchiveError> {
        let mut tree = Tree::default();
        for (_, layer) in &self.layers {
            put_blob(&mut tree, &layer.compressed)?;
        }
        let config = put_blob(&mut tree, &json_bytes(&self.config()))?;
        let manifest = put_blob(&mut tree, &json_bytes(&self.manifest(config)))?;
        tree.insert("index.json", Node::file(0o644, json_bytes(&self.index(manifest))))?;
        tree.insert("oci-layout", Node::file(0o644, json_bytes(&json!({"imageLayoutVersion": "1.0.0"}))))?;
        Ok(crate::layer::tar_stream(&tree)?)
    }

    fn config(&self) -> Value {
        let diff_ids: Vec<_> = self.layers.iter().map(|(_, layer)| &layer.diff_id).collect();
        let history: Vec<_> =
            self.layers.iter().map(|(what, _)| json!({"created": CREATED, "created_by": what})).collect();
        json!({
            "architecture": "amd64",
            "os": "linux",
            "created": CREATED,
            "config": {
                "Env": self.defaults.env,
                "Cmd": self.defaults.command,
                "WorkingDir": self.defaults.working_dir,
                "Labels": self.defaults.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        })
    }

    fn manifest(&self, config: Blob) -> Value {
        let layers: Vec<_> =
            self.layers.iter().map(|(_, layer)| Blob::of(&layer.compressed).descriptor(LAYER)).collect();
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(CONFIG), "layers": layers})
    }

    fn index(&self, manifest: Blob) -> Value {
        let mut descriptor = manifest.descriptor(MANIFEST);
        descriptor["platform"] = json!({"architecture": "amd64", "os": "linux"});
        descriptor["annotations"] = json!({
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": self.reference,
        });
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor]})
    }
}

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A path was refused.
    #[error("cannot lay out the image archive")]
    Tree(#[from] TreeError),
    /// The tar writer refused an entry.
    #[error("cannot write the image archive")]
    Tar(#[from] io::Error),
}

struct Blob {
    digest: String,
    size: usize,
}

impl Blob {
    fn of(bytes: &[u8]) -> Self {
        Self { digest: digest(bytes), size: bytes.len() }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.size})
    }
}

fn put_blob(tree: &mut Tree, bytes: &[u8]) -> Result<Blob, TreeError> {
    let blob = Blob::of(bytes);
    tree.insert(&format!("blobs/{}", blob.digest.replace(':', "/")), Node::file(0o644, bytes))?;
    Ok(blob)
}

fn json_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;

    fn sample() -> Image {
        let mut tree = Tree::default();
        tree.insert("bin/true", Node::file(0o755, "elf")).unwrap();
        Image {
            reference: "docker.io/library/sample:latest".to_owned(),
            defaults: Defaults { command: vec!["/bin/true".to_owned()], ..Defaults::default() },
            layers: vec![("one file".to_owned(), Layer::of(&tree).unwrap())],
        }
    }

    fn unpacked(archive: &[u8]) -> Tree {
        let mut tree = Tree::default();
        tree.add_tar(archive, |path| Some(path.to_owned())).unwrap();
        tree
    }

    fn json_at(tree: &Tree, path: &str) -> Value {
        let Some(Node { kind: Kind::File(bytes), .. }) = tree.node(path) else { panic!("no {path}") };
        serde_json::from_slice(bytes).unwrap()
    }

    fn blob_of(tree: &Tree, descriptor: &Value) -> Value {
        json_at(tree, &format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/")))
    }

    #[test]
    fn every_blob_is_named_by_its_own_digest() {
        let tree = unpacked(&sample().archive().unwrap());
        let blobs: Vec<_> = tree.iter().filter(|(path, _)| path.starts_with("blobs/sha256/")).collect();
        assert_eq!(blobs.len(), 3, "layer, configuration, manifest");
        for (path, node) in blobs {
            let Kind::File(bytes) = &node.kind else { panic!("{path} is no file") };
            assert_eq!(digest(bytes).replace(':', "/"), path.trim_start_matches("blobs/"));
        }
    }

    #[test]
    fn the_index_leads_to_the_configuration_and_its_layers() {
        let image = sample();
        let tree = unpacked(&image.archive().unwrap());
        let index = json_at(&tree, "index.json");
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], image.reference.as_str());
        let manifest = blob_of(&tree, &index["manifests"][0]);
        let config = blob_of(&tree, &manifest["config"]);
        assert_eq!(config["rootfs"]["diff_ids"][0], image.layers[0].1.diff_id.as_str());
        assert_eq!(config["architecture"], "amd64");
        assert_eq!(config["config"]["Cmd"][0], "/bin/true");
        assert_eq!(manifest["layers"][0]["size"], image.layers[0].1.compressed.len());
    }

    #[test]
    fn the_same_image_gives_the_same_archive() {
        assert_eq!(sample().archive().unwrap(), sample().archive().unwrap());
    }
}
