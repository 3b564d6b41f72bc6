use proptest::prelude::*;

use super::*;

const HOST: HostSize = HostSize { cpus: 4, memory_mib: 8192 };

fn parse(texts: &[(&str, &str)]) -> Result<Configuration, ConfigurationError> {
    let text = |(path, text): &(&str, &str)| Text { path: PathBuf::from(path), text: (*text).to_owned() };
    Configuration::parse(&texts.iter().map(text).collect::<Vec<_>>(), HOST)
}

fn refusal(text: &str) -> String {
    parse(&[("/etc/kata-rs/config.toml", text)]).expect_err("refused").to_string()
}

fn line(path: &str, line: usize) -> Source {
    Source::File { path: path.into(), line }
}

#[test]
fn without_files_there_are_defaults_and_the_hosts_bounds() {
    let configuration = parse(&[]).expect("nothing to refuse");
    assert_eq!(configuration, Configuration::defaults(HOST));
    assert_eq!(configuration.default_memory_mib, Setting::new(512, Source::Default));
    assert_eq!(configuration.max_vcpus, Setting::new(4, Source::Host));
    assert_eq!(configuration.allowed_annotations.value, []);
}

#[test]
fn the_defaults_in_words_are_those_that_hold() {
    let configuration = Configuration::defaults(HOST);
    let bound_by_the_host = [Key::MaxVcpus, Key::MaxMemory];
    for key in Key::ALL.into_iter().filter(|key| !bound_by_the_host.contains(key)) {
        assert_eq!(configuration.shown(key).value, key.default(), "{key:?}");
    }
}

#[test]
fn each_value_knows_its_line() {
    let text = "# sizes\ndefault_vcpus = 2\n\nmax_memory_mib = 0x400\nlog_level = \"debug\"\nconsole_level = 7\n\
                allowed_annotations = [\n  \"io.kata-rs.vcpus\",\n  \"io.kata-rs.vcpus\",\n]\nagent_log_level = 'info'\n";
    let configuration = parse(&[("c", text)]).expect("well formed");
    assert_eq!(configuration.default_vcpus, Setting::new(2, line("c", 2)));
    assert_eq!(configuration.max_memory_mib, Setting::new(1024, line("c", 4)));
    assert_eq!(configuration.log_level, Setting::new(LogLevel::Debug, line("c", 5)));
    assert_eq!(configuration.console_level, Setting::new(Some(7), line("c", 6)));
    assert_eq!(configuration.allowed_annotations, Setting::new(vec![Annotation::Vcpus], line("c", 7)));
    assert_eq!(configuration.agent_log_level, Setting::new(Some(LogLevel::Info), line("c", 11)));
}

#[test]
fn of_each_key_the_last_file_counts() {
    let files = [
        ("main", "default_vcpus = 2\ndefault_memory_mib = 256\nallowed_annotations = [\"io.kata-rs.vcpus\"]"),
        ("drop-in", "default_memory_mib = 1024\nallowed_annotations = []"),
    ];
    let configuration = parse(&files).expect("well formed");
    assert_eq!(configuration.default_vcpus, Setting::new(2, line("main", 1)));
    assert_eq!(configuration.default_memory_mib, Setting::new(1024, line("drop-in", 1)));
    assert_eq!(configuration.allowed_annotations, Setting::new(vec![], line("drop-in", 2)));
    assert_eq!(configuration.files, [PathBuf::from("main"), PathBuf::from("drop-in")]);
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_the_known_keys() {
    let message = refusal("default_vcpus = 1\n\ndefault_memory = 512\n");
    assert!(message.contains("/etc/kata-rs/config.toml:3: unknown key \"default_memory\""), "{message}");
    assert!(Key::ALL.iter().all(|key| message.contains(key.name())), "{message}");
    assert!(message.contains("kata-rs check"), "{message}");
    assert!(refusal("[machine]\nvcpus = 1\n").contains(":1: unknown key \"machine\""));
}

#[test]
fn a_value_out_of_its_range_or_of_another_type_is_named_with_what_the_key_takes() {
    for (text, words) in [
        ("default_vcpus = 0", "from 1 to 32 (vCPUs), not 0"),
        ("max_vcpus = 33", "from 1 to 32 (vCPUs), not 33"),
        ("default_vcpus = \"2\"", "(vCPUs), not \"2\""),
        ("default_vcpus = 1.5", "not a float"),
        ("default_memory_mib = 127", "from 128 to 1048576 (MiB), not 127"),
        ("default_memory_mib = 99999999999999999999", "(MiB), not 9999"),
        ("overhead_memory_mib = 1", "from 48 to 4096 (MiB)"),
        ("console_level = -1", "from 0 to 8, not -1"),
        ("log_level = \"loud\"", "one of \"error\", \"warn\""),
        ("agent_log_level = 7", "one of"),
        ("allowed_annotations = \"io.kata-rs.vcpus\"", "a list of any of"),
        ("allowed_annotations = [\"io.kata-rs.kernel\"]", "not \"io.kata-rs.kernel\""),
        ("allowed_annotations = [1]", "not 1"),
        ("max_vcpus = { a = 1 }", "not a table"),
    ] {
        let message = refusal(text);
        assert!(message.contains(words) && message.contains("config.toml:1"), "{text}: {message}");
    }
}

#[test]
fn broken_toml_is_named_with_its_line() {
    for (text, at) in [("default_vcpus = 1\nmax_vcpus =\n", ":2"), ("a = 1\nb = 2\na = 3\n", ":3"), ("= 1", ":1")] {
        let message = refusal(text);
        assert!(message.contains(&format!("config.toml{at}: ")), "{message}");
    }
}

#[test]
fn values_that_contradict_each_other_are_both_named() {
    let error = parse(&[("one", "default_memory_mib = 1024"), ("two", "\nmax_memory_mib = 512")]).expect_err("refused");
    let message = error.to_string();
    assert!(
        message.contains("one:1: default_memory_mib = 1024 is more than max_memory_mib = 512 (two:2)"),
        "{message}"
    );
    parse(&[("one", "max_memory_mib = 256")]).expect("a default is no contradiction");
    let error = parse(&[("one", "network_vhost = true\nnetwork_receive_mbit = 10")]).expect_err("refused").to_string();
    assert!(error.contains("one:1: network_vhost = true has no limits"), "{error}");
    assert!(error.contains("network_receive_mbit = 10 (one:2)"), "{error}");
    parse(&[("one", "network_vhost = true\nnetwork_receive_mbit = 0")]).expect("that is no limit");
}

#[test]
fn a_value_is_shown_as_it_would_be_written() {
    let text = "console_level = 3\nallowed_annotations = [\"io.kata-rs.memory\"]\nlog_level = \"warn\"\n";
    let configuration = parse(&[("c", text)]).expect("well formed");
    let written: String =
        Key::ALL.iter().map(|key| format!("{} = {}\n", key.name(), configuration.shown(*key).value)).collect();
    let again = parse(&[("again", &written)]).expect("what is shown can be read");
    for key in Key::ALL {
        assert_eq!(configuration.shown(key).value, again.shown(key).value, "{key:?}");
    }
    assert!(written.contains("log_level = \"warn\"\n"), "{written}");
}

#[test]
fn an_error_becomes_a_failed_precondition_with_the_same_words() {
    let error = parse(&[("c", "x = 1")]).expect_err("refused");
    let words = error.to_string();
    let error = PodError::from(error);
    assert_eq!((error.kind, error.message), (ErrorKind::FailedPrecondition, words));
}

proptest! {
    #[test]
    fn whatever_a_file_says_the_values_are_in_range_or_the_file_is_named(
        key in prop::sample::select(Key::ALL.to_vec()),
        value in prop_oneof![any::<i64>().prop_map(|n| n.to_string()), "[0-9]{1,7}", "[ -~\n]{0,16}", Just("\"debug\"".to_owned())],
    ) {
        match parse(&[("a-file", &format!("{} = {value}\n", key.name()))]) {
            Ok(configuration) => {
                prop_assert!((1..=VCPUS_MAX).contains(&configuration.default_vcpus.value));
                prop_assert!((MEMORY_LEAST_MIB..=MEMORY_MIB_MAX).contains(&configuration.max_memory_mib.value));
                prop_assert!(configuration.console_level.value.is_none_or(|level| level <= 8));
            }
            Err(error) => {
                let message = error.to_string();
                prop_assert!(message.contains("a-file"), "{}", message);
                prop_assert!(error.line.is_some(), "{}", message);
            }
        }
    }

    #[test]
    fn noise_is_never_taken_for_a_configuration_by_panic(text in "\\PC{0,200}") {
        let _ = parse(&[("noise", &text)]);
    }
}
