//! The archives that `make build` wrote, looked at from outside. Not there: a failure in CI, a skip elsewhere.
#![allow(clippy::unwrap_used, reason = "a test stops at its first surprise")]
use std::path::PathBuf;

use flate2::read::GzDecoder;
use rootfs_builder::elf::Elf;
use rootfs_builder::layer::digest;
use rootfs_builder::tree::{Kind, Node, Tree};
use serde_json::Value;

/// The layers of an archive, lowest first, each checked against the digest that the configuration states.
fn layers(name: &str) -> Option<Vec<Tree>> {
    let path = std::env::var_os("KATA_RS_IMAGES").map(|folder| PathBuf::from(folder).join(name));
    let Some(bytes) = path.and_then(|path| std::fs::read(path).ok()) else {
        assert!(std::env::var_os("CI").is_none(), "no {name} in $KATA_RS_IMAGES; build it: make build");
        eprintln!("skipped: no {name} in $KATA_RS_IMAGES; build it: make build");
        return None;
    };
    let archive = unpacked(&bytes);
    let index: Value = serde_json::from_slice(file(&archive, "index.json")).unwrap();
    let manifest = json_blob(&archive, &index["manifests"][0]);
    let config = json_blob(&archive, &manifest["config"]);
    let layers = manifest["layers"].as_array().unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(layers.len(), diff_ids.len());
    Some(layers.iter().zip(diff_ids).map(|(layer, diff_id)| unpacked(&plain_layer(&archive, layer, diff_id))).collect())
}

fn plain_layer(archive: &Tree, layer: &Value, diff_id: &Value) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::copy(&mut GzDecoder::new(blob(archive, layer)), &mut plain).unwrap();
    assert_eq!(diff_id, digest(&plain).as_str());
    plain
}

fn unpacked(bytes: &[u8]) -> Tree {
    let mut tree = Tree::default();
    tree.add_tar(bytes, |path| Some(path.to_owned())).unwrap();
    tree
}

fn file<'a>(tree: &'a Tree, path: &str) -> &'a [u8] {
    match tree.node(path) {
        Some(Node { kind: Kind::File(content), .. }) => content,
        other => panic!("{path} is {other:?}"),
    }
}

fn blob<'a>(archive: &'a Tree, descriptor: &Value) -> &'a [u8] {
    file(archive, &format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/")))
}

fn json_blob(archive: &Tree, descriptor: &Value) -> Value {
    serde_json::from_slice(blob(archive, descriptor)).unwrap()
}

#[test]
fn every_applet_of_the_busybox_image_is_a_hard_link_to_a_dynamic_program() {
    let Some(layers) = layers("busybox.tar") else { return };
    for applet in ["bin/sh", "bin/ls", "bin/mount", "usr/bin/id", "usr/bin/env"] {
        assert_eq!(layers[0].node(applet).unwrap().kind, Kind::HardLink("bin/busybox".to_owned()), "{applet}");
    }
    let busybox = Elf::parse(file(&layers[0], "bin/busybox")).unwrap();
    assert_eq!(busybox.interpreter.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
}

#[test]
fn the_python_image_has_two_layers_and_the_second_is_python() {
    let Some(layers) = layers("python.tar") else { return };
    assert_eq!(layers.len(), 2);
    assert!(layers[0].node("usr/bin/bash").is_some() && layers[0].node("usr/bin/python3.11").is_none());
    assert!(layers[1].node("usr/bin/python3.11").is_some() && layers[1].node("etc/passwd").is_none());
}

#[test]
fn both_images_know_the_same_people() {
    let (Some(busybox), Some(python)) = (layers("busybox.tar"), layers("python.tar")) else { return };
    for name in ["etc/passwd", "etc/group"] {
        assert_eq!(file(&busybox[0], name), file(&python[0], name));
    }
    let home = busybox[0].node("home/app").unwrap();
    assert_eq!((home.uid, home.gid), (1000, 1000));
}
