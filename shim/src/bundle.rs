//! A bundle's config.json: the folder containerd makes for each container.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use pod::ErrorKind;
use serde_json::Value;

use crate::{oci_json, refusal::Refusal};

/// Largest config.json that is read; Kubernetes' own objects end at 1.5 MiB, and a spec is made from one.
pub const CONFIG_LEN_MAX: u64 = 4 << 20;

/// Annotations that name the pod which a container belongs to: containerd's, and CRI-O's.
pub const SANDBOX_ID_ANNOTATIONS: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];

/// The pod that the bundle's container belongs to, if it says so. A broken file says nothing here; `Create` reports it.
pub fn sandbox_id(bundle: &Path) -> Option<String> {
    let config = tree(bundle)?;
    let id = SANDBOX_ID_ANNOTATIONS.iter().find_map(|name| config["annotations"][name].as_str());
    id.filter(|id| !id.is_empty()).map(str::to_owned)
}

/// What the bundle's container asks of the host itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Demands {
    /// `linux.cgroupsPath`.
    pub cgroups_path: Option<String>,
    /// `process.oomScoreAdj`.
    pub oom_score_adj: Option<i32>,
}

/// What the bundle's container asks of the host itself; a broken file asks for nothing here.
pub fn demands(bundle: &Path) -> Demands {
    let Some(config) = tree(bundle) else { return Demands::default() };
    Demands {
        cgroups_path: config["linux"]["cgroupsPath"].as_str().map(str::to_owned),
        oom_score_adj: config["process"]["oomScoreAdj"].as_i64().and_then(|value| i32::try_from(value).ok()),
    }
}

/// Whether the bundle has a configuration, sound or not. A sandbox's has none: containerd's sandbox service tells by calls what it wants.
pub fn has_spec(bundle: &Path) -> bool {
    config_path(bundle).exists()
}

/// The bundle's container as OCI describes it.
///
/// # Errors
/// The file is missing, too large or broken: an invalid argument, which names file and field.
pub fn spec(bundle: &Path) -> Result<Spec, Refusal> {
    let path = config_path(bundle);
    let bytes = read(bundle).map_err(|error| {
        Refusal::new(
            ErrorKind::InvalidArgument,
            format!("cannot read {}: {error}; is this the bundle that containerd made?", path.display()),
        )
    })?;
    oci_json::parse(&bytes).map_err(|misfit| {
        Refusal::new(
            ErrorKind::InvalidArgument,
            format!(
                "{} is not an OCI runtime configuration: {misfit}; correct it or make the container again",
                path.display()
            ),
        )
    })
}

fn tree(bundle: &Path) -> Option<Value> {
    serde_json::from_slice(&read(bundle).ok()?).ok()
}

fn config_path(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}

fn read(bundle: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(config_path(bundle))?.take(CONFIG_LEN_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > CONFIG_LEN_MAX {
        return Err(std::io::Error::other(format!("the file is larger than {CONFIG_LEN_MAX} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle_with(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("config.json"), config).expect("written");
        dir
    }

    #[test]
    fn a_container_of_a_kubernetes_pod_names_it() {
        for name in SANDBOX_ID_ANNOTATIONS {
            let bundle = bundle_with(&format!(r#"{{"ociVersion":"1.0.2","annotations":{{"{name}":"pod1"}}}}"#));
            assert_eq!(sandbox_id(bundle.path()).as_deref(), Some("pod1"));
        }
    }

    #[test]
    fn a_container_by_itself_names_no_pod() {
        assert_eq!(sandbox_id(bundle_with(r#"{"ociVersion":"1.0.2"}"#).path()), None);
        assert_eq!(sandbox_id(bundle_with("{ broken").path()), None);
        assert_eq!(sandbox_id(Path::new("/nowhere")), None);
    }

    #[test]
    fn what_is_asked_of_the_host_is_read_and_a_broken_file_asks_for_nothing() {
        let bundle = bundle_with(r#"{"process":{"oomScoreAdj":-998},"linux":{"cgroupsPath":"/default/c1"}}"#);
        let asked = Demands { cgroups_path: Some("/default/c1".into()), oom_score_adj: Some(-998) };
        assert_eq!(demands(bundle.path()), asked);
        assert_eq!(demands(bundle_with("{ broken").path()), Demands::default());
        assert_eq!(demands(bundle_with(r#"{"linux":[1]}"#).path()), Demands::default());
    }

    #[test]
    fn a_broken_configuration_is_an_invalid_argument_with_its_place() {
        let bundle = bundle_with("{\"ociVersion\":\n [1}");
        let refusal = spec(bundle.path()).expect_err("refused");
        assert_eq!(refusal.kind, ErrorKind::InvalidArgument);
        assert!(refusal.message.contains("config.json") && refusal.message.contains("line 2"), "{}", refusal.message);
    }

    #[test]
    fn a_missing_configuration_is_an_invalid_argument() {
        assert_eq!(spec(Path::new("/nowhere")).expect_err("refused").kind, ErrorKind::InvalidArgument);
    }

    #[test]
    fn an_endless_configuration_is_not_read() {
        let bundle = bundle_with(&" ".repeat(CONFIG_LEN_MAX as usize + 1));
        assert!(spec(bundle.path()).expect_err("refused").message.contains("larger"));
    }
}
