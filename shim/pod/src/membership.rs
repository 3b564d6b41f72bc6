//! Where a container stands towards a Kubernetes pod, as the annotations of its runtime say. Pure.

use oci_spec::runtime::Spec;

/// Kind of container and id of its sandbox, as containerd's CRI plugin (pkg/cri/annotations) and as CRI-O (pkg/annotations) name them.
const KEYS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];
/// Value of the kind that both give to the container that stands for the pod.
const SANDBOX: &str = "sandbox";

/// Where a container stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Membership {
    /// It has a machine to itself and belongs to no pod: `ctr`, nerdctl, Docker, the `kata-rs` command.
    Alone,
    /// It stands for a pod (the "pause" container) and holds what the pod's containers share.
    Sandbox,
    /// It is a container of the pod.
    Member {
        /// Id of the pod's sandbox.
        sandbox: String,
    },
}

impl Membership {
    /// Reads it. A sandbox id without a kind is what somebody wrote by hand; then the id tells.
    pub(crate) fn of(id: &str, spec: &Spec) -> Self {
        let Some(annotations) = spec.annotations() else { return Self::Alone };
        let found = KEYS.iter().find_map(|(kind, sandbox)| {
            let sandbox = annotations.get(*sandbox).filter(|id| !id.is_empty())?;
            Some((annotations.get(*kind).map(String::as_str), sandbox))
        });
        match found {
            None => Self::Alone,
            Some((Some(SANDBOX), _)) => Self::Sandbox,
            Some((None, sandbox)) if sandbox == id => Self::Sandbox,
            Some((_, sandbox)) => Self::Member { sandbox: sandbox.clone() },
        }
    }
}

impl Membership {
    /// Is this the id of the sandbox that the container belongs to?
    pub(crate) fn is_sandbox(&self, id: &str) -> bool {
        matches!(self, Self::Member { sandbox } if sandbox == id)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(annotations: serde_json::Value) -> Membership {
        let spec = json!({"ociVersion": "1.0.2", "annotations": annotations});
        Membership::of("c1", &serde_json::from_value(spec).expect("a spec"))
    }

    #[test]
    fn containerds_words_and_cri_os_mean_the_same() {
        let member = Membership::Member { sandbox: "p".into() };
        let containerd = |kind| json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "p"});
        let cri_o = |kind| json!({"io.kubernetes.cri-o.ContainerType": kind, "io.kubernetes.cri-o.SandboxID": "p"});
        assert_eq!((of(containerd("sandbox")), of(containerd("container"))), (Membership::Sandbox, member.clone()));
        assert_eq!((of(cri_o("sandbox")), of(cri_o("container"))), (Membership::Sandbox, member));
    }

    #[test]
    fn who_names_no_sandbox_is_alone_and_who_names_itself_is_one() {
        assert_eq!(of(json!({})), Membership::Alone);
        assert_eq!(of(json!({"io.kubernetes.cri.container-type": "container"})), Membership::Alone);
        assert_eq!(of(json!({"io.kubernetes.cri.sandbox-id": ""})), Membership::Alone);
        assert_eq!(of(json!({"io.kubernetes.cri.sandbox-id": "c1"})), Membership::Sandbox);
    }
}
