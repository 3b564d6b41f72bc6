use std::path::Path;

use pod::{configuration::Configuration, sizing::MachineSize};
use proptest::prelude::*;
use protobuf::well_known_types::any::Any;

use super::*;
use crate::sandbox_config::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption};

fn asked(config: &PodSandboxConfig) -> Result<PodRequest, Refusal> {
    PodRequest::of_sandbox(&request(SANDBOX_CONFIG_TYPE, config.write_to_bytes().expect("bytes")))
}

fn request(type_url: &str, value: Vec<u8>) -> CreateSandboxRequest {
    let options = Any { type_url: type_url.to_owned(), value, ..Any::default() };
    CreateSandboxRequest { options: Some(options).into(), ..CreateSandboxRequest::default() }
}

fn with_linux(linux: LinuxPodSandboxConfig) -> PodSandboxConfig {
    PodSandboxConfig { linux: Some(linux).into(), ..PodSandboxConfig::default() }
}

fn configuration() -> Configuration {
    Configuration::load().expect("this host's")
}

fn group() -> Group {
    Group::named(Path::new("/r"), "", "ns", "pod1")
}

#[test]
fn the_pod_takes_the_network_sysctls_and_leaves_the_others_to_the_container() {
    let oci: Spec = serde_json::from_str(
        r#"{"ociVersion":"1.0.2","hostname":"h","linux":{"sysctl":{"net.ipv4.ip_forward":"1","kernel.shm_rmid_forced":"1"}}}"#,
    )
    .expect("spec");
    let request = PodRequest::of_container(&oci);
    assert_eq!(request.hostname.as_deref(), Some("h"));
    assert_eq!(request.sysctls.into_iter().collect::<Vec<_>>(), [("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
}

#[test]
fn the_pods_network_is_named_by_a_path_or_is_its_own() {
    let by_container = |network: serde_json::Value| {
        let list = serde_json::json!([{"type": "pid", "path": "/proc/1/ns/pid"}, network]);
        let spec = serde_json::json!({"ociVersion": "1.0.2", "linux": {"namespaces": list}});
        PodRequest::of_container(&serde_json::from_value(spec).expect("spec")).network
    };
    let path = "/run/netns/cni-1";
    let named = PodNetwork::Namespace(path.into());
    assert_eq!(by_container(serde_json::json!({"type": "network", "path": path})), named);
    assert_eq!(by_container(serde_json::json!({"type": "network"})), PodNetwork::Own);
    assert_eq!(by_container(serde_json::json!({"type": "network", "path": ""})), PodNetwork::Own);
    let by_sandbox = |path: &str| {
        let request = CreateSandboxRequest { netns_path: path.to_owned(), ..CreateSandboxRequest::default() };
        PodRequest::of_sandbox(&request).expect("a pod").network
    };
    assert_eq!(by_sandbox(path), named);
    assert_eq!(by_sandbox(""), PodNetwork::Own);
}

#[test]
fn a_sandbox_and_a_pause_container_ask_for_the_same_machine() {
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 150_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 300 << 20,
        ..LinuxContainerResources::default()
    };
    let by_sandbox = asked(&with_linux(LinuxPodSandboxConfig {
        resources: Some(resources).into(),
        ..LinuxPodSandboxConfig::default()
    }))
    .expect("a pod");
    let oci: Spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "annotations": {
        sizing::CONTAINER_TYPE: "sandbox",
        sizing::SANDBOX_CPU_PERIOD: "100000",
        sizing::SANDBOX_CPU_QUOTA: "150000",
        sizing::SANDBOX_CPU_SHARES: "1024",
        sizing::SANDBOX_MEMORY: "314572800",
    }}))
    .expect("spec");
    let by_container = PodRequest::of_container(&oci);
    let configuration = configuration();
    let size = |request: &PodRequest| {
        let size = MachineSize::of_pod(Some(&request.annotations), request.resources.as_ref(), &configuration);
        let size = size.expect("a size");
        (size.vcpus.value, size.memory_mib.value)
    };
    assert_eq!(size(&by_sandbox), size(&by_container));
    assert_ne!(size(&by_sandbox), size(&PodRequest::default()), "the limits count");
}

#[test]
fn the_author_of_a_pod_cannot_say_how_large_it_is_under_the_names_of_cri() {
    let config = PodSandboxConfig {
        annotations: [(sizing::SANDBOX_MEMORY.to_owned(), (1_u64 << 40).to_string())].into(),
        ..PodSandboxConfig::default()
    };
    assert_eq!(asked(&config).expect("a pod").annotations[sizing::SANDBOX_MEMORY], "0");
}

#[test]
fn names_and_servers_reach_the_pod() {
    let config = PodSandboxConfig {
        hostname: "web-0".into(),
        dns_config: Some(DNSConfig {
            servers: vec!["10.0.0.2".into(), "10.0.0.3".into()],
            searches: vec!["ns.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
            ..DNSConfig::default()
        })
        .into(),
        ..with_linux(LinuxPodSandboxConfig {
            sysctls: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
            ..LinuxPodSandboxConfig::default()
        })
    };
    let spec = asked(&config)
        .expect("a pod")
        .spec(group(), &MachineSize::of_pod(None, None, &configuration()).expect("a size"));
    assert_eq!(spec.hostname, "web-0");
    assert_eq!(spec.resolv_conf, "search ns.svc svc\nnameserver 10.0.0.2\nnameserver 10.0.0.3\noptions ndots:5\n");
    assert_eq!(spec.sysctls["kernel.shm_rmid_forced"], "1");
}

#[test]
fn a_sandbox_without_options_is_a_pod_by_its_own_name() {
    let request = PodRequest::of_sandbox(&CreateSandboxRequest::default()).expect("a pod");
    let size = MachineSize::of_pod(None, None, &configuration()).expect("a size");
    assert_eq!(request.spec(group(), &size).hostname, "pod1");
}

#[test]
fn what_a_machine_cannot_give_is_refused_by_its_field() {
    let namespaces = |namespaces: NamespaceOption| {
        with_linux(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces).into(),
                ..LinuxSandboxSecurityContext::default()
            })
            .into(),
            ..LinuxPodSandboxConfig::default()
        })
    };
    let node = protobuf::EnumOrUnknown::new(NamespaceMode::NODE);
    let sysctl = |name: &str, value: &str| {
        with_linux(LinuxPodSandboxConfig {
            sysctls: [(name.to_owned(), value.to_owned())].into(),
            ..LinuxPodSandboxConfig::default()
        })
    };
    let dns = |dns: DNSConfig| PodSandboxConfig { dns_config: Some(dns).into(), ..PodSandboxConfig::default() };
    for (config, field) in [
        (namespaces(NamespaceOption { network: node, ..NamespaceOption::default() }), "namespace_options.network"),
        (namespaces(NamespaceOption { pid: node, ..NamespaceOption::default() }), "namespace_options.pid"),
        (
            namespaces(NamespaceOption { ipc: protobuf::EnumOrUnknown::from_i32(9), ..NamespaceOption::default() }),
            "ipc",
        ),
        (PodSandboxConfig { hostname: "a b".into(), ..PodSandboxConfig::default() }, "options.hostname"),
        (PodSandboxConfig { hostname: "x".repeat(65), ..PodSandboxConfig::default() }, "options.hostname"),
        (sysctl("net..x", "1"), "linux.sysctls"),
        (sysctl("/kernel/x", "1"), "linux.sysctls"),
        (sysctl("kernel.domainname", "a\0b"), "linux.sysctls"),
        (dns(DNSConfig { servers: vec!["1.2.3.4\nsearch evil".into()], ..DNSConfig::default() }), "dns_config.servers"),
        (dns(DNSConfig { searches: vec!["a".into(); 65], ..DNSConfig::default() }), "dns_config.searches"),
    ] {
        let refusal = asked(&config).expect_err(field);
        assert_eq!(refusal.kind, ErrorKind::InvalidArgument);
        assert!(refusal.message.contains(field), "{}", refusal.message);
    }
}

#[test]
fn options_of_another_type_are_refused() {
    let refusal = PodRequest::of_sandbox(&request("containerd.runc.v1.Options", vec![])).expect_err("refused");
    assert_eq!(refusal.kind, ErrorKind::InvalidArgument);
    assert!(refusal.message.contains("options") && refusal.message.contains("containerd.runc.v1.Options"));
}

/// What containerd sends for a pod of the kubelet's, with a bit of everything.
fn whole_config() -> PodSandboxConfig {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let pod = protobuf::EnumOrUnknown::new(NamespaceMode::POD);
    PodSandboxConfig {
        hostname: "web-0".into(),
        annotations: [("io.kata-rs.vcpus".to_owned(), "1".to_owned())].into(),
        dns_config: Some(DNSConfig {
            servers: words(&["10.0.0.2"]),
            searches: words(&["ns.svc", "svc"]),
            options: words(&["ndots:5"]),
            ..DNSConfig::default()
        })
        .into(),
        ..with_linux(LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/pod7".into(),
            sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(NamespaceOption {
                    network: pod,
                    pid: pod,
                    ipc: pod,
                    ..NamespaceOption::default()
                })
                .into(),
                ..LinuxSandboxSecurityContext::default()
            })
            .into(),
            resources: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 50_000,
                memory_limit_in_bytes: 256 << 20,
                ..LinuxContainerResources::default()
            })
            .into(),
            ..LinuxPodSandboxConfig::default()
        })
    }
}

/// The same as bytes, with a few of them changed, left out, repeated or put in.
fn mutated_bytes() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0_u8..4);
    prop::collection::vec(change, 1..6).prop_map(|changes| {
        let mut bytes = whole_config().write_to_bytes().expect("bytes");
        for (here, there, byte, kind) in changes {
            let (from, to) = (here.index(bytes.len() + 1), there.index(bytes.len() + 1));
            let (from, to) = (from.min(to), from.max(to));
            match kind {
                0 => bytes.iter_mut().skip(from).take(1).for_each(|place| *place = byte),
                1 => bytes.insert(from, byte),
                2 => drop(bytes.drain(from..to)),
                _ => bytes.extend_from_within(from..to),
            }
        }
        bytes
    })
}

// Nothing that reaches the pod is more than its file, its kernel or its machine can take.
fn check_taken(request: PodRequest) -> Result<(), TestCaseError> {
    let lines = request.resolv_conf.lines().count();
    prop_assert!(lines <= 2 + MOST_DNS_WORDS, "{:?}", request.resolv_conf);
    prop_assert!(request.resolv_conf.bytes().all(|byte| byte.is_ascii_graphic() || b" \n".contains(&byte)));
    prop_assert!(request.sysctls.iter().all(|(name, value)| !name.is_empty() && !value.contains('\0')));
    match MachineSize::of_pod(Some(&request.annotations), None, &configuration()) {
        Ok(size) => prop_assert!(request.spec(group(), &size).hostname.len() <= HOST_NAME_LEN_MAX),
        Err(error) => {
            prop_assert_eq!(error.kind, ErrorKind::InvalidArgument);
            prop_assert!(error.message.contains("io.k"), "no annotation is named: {}", error.message);
        }
    }
    Ok(())
}

#[test]
fn the_whole_config_is_a_pod() {
    let request = asked(&whole_config()).expect("a pod");
    assert_eq!(
        (request.hostname.as_deref(), request.cgroup_parent.as_deref()),
        (Some("web-0"), Some("/kubepods/pod7"))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_damaged_config_is_a_pod_or_an_invalid_argument_that_names_the_field(bytes in mutated_bytes()) {
        match PodRequest::of_sandbox(&request(SANDBOX_CONFIG_TYPE, bytes)) {
            Ok(request) => check_taken(request)?,
            Err(refusal) => {
                prop_assert_eq!(refusal.kind, ErrorKind::InvalidArgument);
                prop_assert!(refusal.message.starts_with("options"), "{}", refusal.message);
            }
        }
    }

    #[test]
    fn any_bytes_are_a_pod_or_an_invalid_argument(bytes in prop::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
        let type_url = if known { SANDBOX_CONFIG_TYPE } else { "" };
        if let Err(refusal) = PodRequest::of_sandbox(&request(type_url, bytes)) {
            prop_assert_eq!(refusal.kind, ErrorKind::InvalidArgument);
            prop_assert!(refusal.message.starts_with("options"));
        }
    }

    #[test]
    fn any_words_are_a_pod_or_an_invalid_argument(hostname in any::<String>(), server in any::<String>(), sysctl in any::<String>()) {
        let config = PodSandboxConfig {
            hostname,
            dns_config: Some(DNSConfig { servers: vec![server], ..DNSConfig::default() }).into(),
            ..with_linux(LinuxPodSandboxConfig {
                sysctls: [(sysctl.clone(), sysctl)].into(),
                ..LinuxPodSandboxConfig::default()
            })
        };
        match asked(&config) {
            Ok(pod) => prop_assert_eq!(pod.resolv_conf.lines().count(), 1),
            Err(refusal) => prop_assert_eq!(refusal.kind, ErrorKind::InvalidArgument),
        }
    }
}
