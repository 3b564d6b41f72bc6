use proptest::prelude::*;

use super::*;
use crate::host::HostSize;

const MIB: i64 = 1 << 20;

fn configuration() -> Configuration {
    Configuration::defaults(HostSize { cpus: 8, memory_mib: 16 << 10 })
}

fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The machine of a sandbox with these annotations.
fn sandbox(pairs: &[(&str, &str)]) -> MachineSize {
    let mut all = annotations(pairs);
    all.insert(CONTAINER_TYPE.to_owned(), CONTAINER_TYPE_SANDBOX.to_owned());
    let limits = Limits::of_pod(&all, None).expect("well formed");
    MachineSize::plan(&limits, &Wishes::default(), &configuration())
}

/// The machine of a container by itself.
fn container(resources: &str) -> MachineSize {
    let resources: LinuxResources = serde_json::from_str(resources).expect("resources");
    let limits = Limits::of_pod(&HashMap::new(), Some(&resources)).expect("nothing to misread");
    MachineSize::plan(&limits, &Wishes::default(), &configuration())
}

fn size(machine: &MachineSize) -> (u8, u32) {
    (machine.vcpus.value, machine.memory_mib.value)
}

#[test]
fn a_container_by_itself_gets_its_limits_and_what_the_guest_needs() {
    for (resources, expected) in [
        ("{}", (1, 512)),
        (r#"{"memory":{"limit":0},"cpu":{"quota":-1,"period":100000}}"#, (1, 512)),
        (r#"{"memory":{"limit":-1},"cpu":{"quota":50000,"period":100000}}"#, (1, 512)),
        (r#"{"memory":{"limit":1},"cpu":{"quota":150000}}"#, (2, 128)),
        (r#"{"memory":{"limit":134217728},"cpu":{"quota":400000,"period":0}}"#, (4, 128 + 2 + 64)),
        (r#"{"memory":{"limit":1073741824},"cpu":{"shares":4096}}"#, (1, 1024 + 16 + 64)),
    ] {
        assert_eq!(size(&container(resources)), expected, "{resources}");
    }
}

#[test]
fn a_limit_above_the_bounds_is_capped_with_a_word() {
    let machine =
        container(r#"{"memory":{"limit":9223372036854775807},"cpu":{"quota":9223372036854775807,"period":1}}"#);
    assert_eq!(size(&machine), (8, 16 << 10));
    assert_eq!((&machine.vcpus.source, &machine.memory_mib.source), (&Source::Host, &Source::Host));
    assert_eq!(machine.warnings.len(), 2);
    assert!(machine.warnings[1].contains("linux.resources.memory.limit"), "{:?}", machine.warnings);
}

#[test]
fn a_sandbox_is_sized_by_what_the_kubelet_says_of_the_whole_pod() {
    let machine = sandbox(&[
        (SANDBOX_CPU_PERIOD, "100000"),
        (SANDBOX_CPU_QUOTA, "250000"),
        (SANDBOX_CPU_SHARES, "512"),
        (SANDBOX_MEMORY, "178257920"),
    ]);
    assert_eq!(size(&machine), (3, 170 + 3 + 64 + 1));
    assert_eq!(machine.vcpus.source, Source::Annotation(SANDBOX_CPU_QUOTA));
    assert_eq!(machine.memory_mib.source, Source::Annotation(SANDBOX_MEMORY));
}

#[test]
fn a_sandbox_that_asks_for_nothing_gets_the_defaults() {
    let nothing =
        [(SANDBOX_CPU_PERIOD, "100000"), (SANDBOX_CPU_QUOTA, "0"), (SANDBOX_CPU_SHARES, "2"), (SANDBOX_MEMORY, "0")];
    let machine = sandbox(&nothing);
    assert_eq!(size(&machine), (1, MEMORY_DEFAULT_MIB));
    assert_eq!(machine.memory_mib.source, Source::Default);
    assert_eq!(size(&sandbox(&[])), (1, MEMORY_DEFAULT_MIB));
}

#[test]
fn requested_cpus_count_where_a_limit_is_lower_or_missing() {
    let machine = sandbox(&[(SANDBOX_CPU_QUOTA, "50000"), (SANDBOX_CPU_SHARES, "3072")]);
    assert_eq!((machine.vcpus.value, &machine.vcpus.source), (3, &Source::Annotation(SANDBOX_CPU_SHARES)));
    assert_eq!(sandbox(&[(SANDBOX_CPU_QUOTA, "0"), (SANDBOX_CPU_SHARES, "2049")]).vcpus.value, 3);
}

#[test]
fn a_sandbox_is_not_sized_by_its_own_container() {
    let resources: LinuxResources = serde_json::from_str(r#"{"memory":{"limit":1073741824}}"#).expect("resources");
    for kind in [CONTAINER_TYPE, CONTAINER_TYPE_CRIO] {
        let all = annotations(&[(kind, CONTAINER_TYPE_SANDBOX)]);
        assert_eq!(Limits::of_pod(&all, Some(&resources)).expect("well formed"), Limits::default());
    }
}

#[test]
fn a_malformed_annotation_is_an_invalid_argument_with_its_name() {
    for (name, value) in [
        (SANDBOX_CPU_PERIOD, "-1"),
        (SANDBOX_CPU_PERIOD, "100ms"),
        (SANDBOX_CPU_QUOTA, ""),
        (SANDBOX_CPU_QUOTA, "-2"),
        (SANDBOX_CPU_SHARES, "1024.5"),
        (SANDBOX_MEMORY, "128Mi"),
        (SANDBOX_MEMORY, "9223372036854775808"),
    ] {
        let all = annotations(&[(CONTAINER_TYPE, CONTAINER_TYPE_SANDBOX), (name, value)]);
        let error = Limits::of_pod(&all, None).expect_err(value);
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.contains(name) && error.message.contains(value), "{}", error.message);
    }
}

#[test]
fn an_allowed_wish_counts_more_than_limits_and_defaults() {
    let wishes = Wishes {
        vcpus: Some(4),
        memory_mib: Some(1024),
        console_level: Some(7),
        agent_log_level: Some(LogLevel::Debug),
    };
    let limits = Limits::stated(None, Some((64 * MIB, Source::Flag("--memory"))));
    let machine = MachineSize::plan(&limits, &wishes, &configuration());
    assert_eq!(size(&machine), (4, 1024));
    assert_eq!(machine.vcpus.source, Source::Annotation("io.kata-rs.vcpus"));
    assert_eq!(machine.command_line(), "loglevel=7 kata_rs.log=debug");
}

#[test]
fn without_a_wish_the_operators_levels_hold_and_by_default_nothing_is_said() {
    let mut configuration = configuration();
    let plan = |configuration: &Configuration| {
        MachineSize::plan(&Limits::default(), &Wishes::default(), configuration).command_line()
    };
    assert_eq!(plan(&configuration), "");
    configuration.console_level.value = Some(0);
    assert_eq!(plan(&configuration), "loglevel=0");
}

#[test]
fn a_container_that_comes_later_with_a_limit_above_the_machine_has_a_word_in_the_log() {
    let oci = |limit: i64| -> Spec {
        let json = serde_json::json!({"ociVersion": "1.0.2", "linux": {"resources": {"memory": {"limit": limit}}}});
        serde_json::from_value(json).expect("a spec")
    };
    for limit in [-1, 0, 1, 512 * MIB] {
        assert_eq!(above_machine(&oci(limit), 512), None);
    }
    let word = above_machine(&oci(1024 * MIB), 512).expect("a word");
    assert!(word.contains("1024 MiB") && word.contains("the machine's 512 MiB"), "{word}");
}

#[test]
fn a_default_that_does_not_fit_a_small_host_is_capped_in_silence() {
    let small = Configuration::defaults(HostSize { cpus: 1, memory_mib: 256 });
    let machine = MachineSize::plan(&Limits::default(), &Wishes::default(), &small);
    assert_eq!((machine.memory_mib.value, machine.warnings.len()), (256, 0));
}

proptest! {
    #[test]
    fn whatever_the_annotations_say_the_machine_is_within_bounds_or_one_of_them_is_named(
        values in prop::array::uniform4(prop_oneof!["-?[0-9]{1,20}", "[ -~]{0,8}", any::<i64>().prop_map(|n| n.to_string())])
    ) {
        let names = [SANDBOX_CPU_PERIOD, SANDBOX_CPU_QUOTA, SANDBOX_CPU_SHARES, SANDBOX_MEMORY];
        let mut all = annotations(&[(CONTAINER_TYPE, CONTAINER_TYPE_SANDBOX)]);
        all.extend(names.iter().zip(values).map(|(name, value)| ((*name).to_owned(), value)));
        match Limits::of_pod(&all, None) {
            Ok(limits) => {
                let machine = MachineSize::plan(&limits, &Wishes::default(), &configuration());
                prop_assert!((1..=8).contains(&machine.vcpus.value));
                prop_assert!((MEMORY_LEAST_MIB..=16 << 10).contains(&machine.memory_mib.value));
            }
            Err(error) => {
                prop_assert_eq!(error.kind, ErrorKind::InvalidArgument);
                prop_assert!(names.iter().any(|name| error.message.contains(name)));
            }
        }
    }

    #[test]
    fn a_larger_limit_never_makes_a_smaller_machine(one in any::<i64>(), two in any::<i64>()) {
        let (less, more) = (one.min(two).max(1), one.max(two).max(1));
        let memory = |bytes| {
            let limits = Limits::stated(None, Some((bytes, Source::Flag("--memory"))));
            MachineSize::plan(&limits, &Wishes::default(), &configuration()).memory_mib.value
        };
        prop_assert!(memory(less) <= memory(more));
    }
}
