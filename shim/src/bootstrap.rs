//! The words between containerd and `shim start`, which changed with containerd's versions.
//!
//! | containerd | standard input | answers it takes |
//! |---|---|---|
//! | 1.6 | protobuf `Any` with runtime options, or nothing | the plain address |
//! | 1.7 to 2.2 | the same | the plain address, or JSON |
//! | 2.3 and later | protobuf `BootstrapParams` | protobuf, JSON, or the plain address |
//!
//! What cannot be parsed is no reason to fail: the flags say enough. The answer mirrors what was asked.

use std::io::{self, Read};

use containerd_shim_protos::{
    bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel},
    shim::oci::Options,
};
use protobuf::{Enum, Message, well_known_types::any::Any};

use crate::arguments::Arguments;

/// Longest standard input that is read; options are a few kilobytes.
pub const INPUT_LEN_MAX: u64 = 1 << 20;
/// Name of runc's options, the only ones that place a shim.
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
/// Version of the shim protocol in which the reply became a structure.
const STRUCTURED_REPLY_VERSION: u32 = 3;

/// How the caller wants to be told the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The address alone.
    Plain,
    /// An object with version, address and protocol.
    Json,
    /// `BootstrapResult`.
    Protobuf,
}

/// What `start` was told, in whichever way.
#[derive(Debug)]
pub struct Bootstrap {
    /// The flags, completed by what came on standard input.
    pub arguments: Arguments,
    /// Where containerd takes events, if standard input said so.
    pub ttrpc_address: Option<String>,
    /// The cgroup that the operator's options choose for the shim.
    pub shim_cgroup: Option<String>,
    /// How to answer.
    pub reply: Reply,
}

impl Bootstrap {
    /// Completes the flags with `input` and with the variable MAX_SHIM_VERSION. Pure.
    pub fn new(mut arguments: Arguments, input: &[u8], max_version: Option<&str>) -> Self {
        let Some(params) = params(&arguments, input) else {
            let version = max_version.and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
            let reply = if version >= STRUCTURED_REPLY_VERSION { Reply::Json } else { Reply::Plain };
            let shim_cgroup = Any::parse_from_bytes(input).ok().and_then(|options| shim_cgroup(&options));
            return Self { arguments, ttrpc_address: None, shim_cgroup, reply };
        };
        let shim_cgroup = params.extensions.iter().find_map(|extension| shim_cgroup(&extension.value));
        // More is ever more negative, and numbers that are not known yet count like their neighbours.
        arguments.debug |= params.log_level.value() <= LogLevel::LOG_LEVEL_DEBUG.value();
        for (field, value) in [
            (&mut arguments.id, params.instance_id),
            (&mut arguments.namespace, params.namespace),
            (&mut arguments.address, params.containerd_grpc_address),
            (&mut arguments.publish_binary, params.containerd_binary),
        ] {
            if field.is_empty() {
                *field = value;
            }
        }
        let ttrpc_address = Some(params.containerd_ttrpc_address).filter(|address| !address.is_empty());
        Self { arguments, ttrpc_address, shim_cgroup, reply: Reply::Protobuf }
    }

    /// The bytes of the answer.
    pub fn answer(&self, address: &str) -> Vec<u8> {
        match self.reply {
            Reply::Plain => address.as_bytes().to_vec(),
            Reply::Json => {
                serde_json::json!({ "version": STRUCTURED_REPLY_VERSION, "address": address, "protocol": "ttrpc" })
                    .to_string()
                    .into_bytes()
            }
            Reply::Protobuf => {
                let result = BootstrapResult {
                    version: STRUCTURED_REPLY_VERSION.cast_signed(),
                    address: address.to_owned(),
                    protocol: "ttrpc".to_owned(),
                    ..BootstrapResult::default()
                };
                result.write_to_bytes().unwrap_or_else(|_| address.as_bytes().to_vec())
            }
        }
    }
}

// `Any` and `BootstrapParams` share their first field's number and type, so only its value tells them apart:
// the id that the flags have too, or, without flags, an id in a namespace.
fn params(arguments: &Arguments, input: &[u8]) -> Option<BootstrapParams> {
    let params = BootstrapParams::parse_from_bytes(input).ok().filter(|params| !params.instance_id.is_empty())?;
    let named_by_flags = params.instance_id == arguments.id;
    let named_here = arguments.id.is_empty() && !params.namespace.is_empty();
    (named_by_flags || named_here).then_some(params)
}

fn shim_cgroup(options: &Any) -> Option<String> {
    let name = options.type_url.rsplit('/').next().filter(|name| *name == RUNC_OPTIONS);
    let options = name.and_then(|_| Options::parse_from_bytes(&options.value).ok());
    options.map(|options| options.shim_cgroup).filter(|path| !path.is_empty())
}

/// Reads standard input to its end, or to [`INPUT_LEN_MAX`]; what cannot be read is taken for nothing.
pub fn read_input() -> Vec<u8> {
    let mut input = Vec::new();
    if io::stdin().lock().take(INPUT_LEN_MAX).read_to_end(&mut input).is_err() {
        input.clear();
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;

    fn flags(line: &str) -> Arguments {
        Arguments::parse(line.split_whitespace().map(str::to_owned)).expect("parsed")
    }

    fn from_1_6(input: &[u8]) -> Bootstrap {
        Bootstrap::new(flags("-namespace default -id abc start"), input, None)
    }

    #[test]
    fn containerd_1_6_gets_the_plain_address_whatever_its_input() {
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![1, 2, 3], ..Any::default() };
        for input in [&b""[..], b"\xff\xff\xff noise", &options.write_to_bytes().expect("bytes")] {
            let bootstrap = from_1_6(input);
            assert_eq!(bootstrap.reply, Reply::Plain, "{input:?}");
            assert_eq!(bootstrap.answer("unix:///s"), b"unix:///s");
            assert_eq!(bootstrap.arguments.id, "abc");
        }
    }

    #[test]
    fn the_operators_cgroup_is_read_from_either_form() {
        let value = Options { shim_cgroup: "/shims".into(), ..Options::default() }.write_to_bytes().expect("bytes");
        let options = Any { type_url: RUNC_OPTIONS.into(), value, ..Any::default() };
        let bytes = options.write_to_bytes().expect("bytes");
        assert_eq!(from_1_6(&bytes).shim_cgroup.as_deref(), Some("/shims"));
        let other = Any { type_url: "runtimeoptions.v1.Options".into(), ..options.clone() };
        assert_eq!(from_1_6(&other.write_to_bytes().expect("bytes")).shim_cgroup, None);
        let extension = Extension { value: Some(options).into(), ..Extension::default() };
        let params = BootstrapParams { instance_id: "abc".into(), extensions: vec![extension], ..Default::default() };
        assert_eq!(from_1_6(&params.write_to_bytes().expect("bytes")).shim_cgroup.as_deref(), Some("/shims"));
    }

    #[test]
    fn bootstrap_params_can_ask_for_a_talkative_daemon() {
        for (level, debug) in [(0, false), (4, false), (-4, true), (-8, true), (-3, false), (-100, true)] {
            let params = BootstrapParams {
                instance_id: "abc".into(),
                log_level: protobuf::EnumOrUnknown::from_i32(level),
                ..BootstrapParams::default()
            };
            let input = params.write_to_bytes().expect("bytes");
            assert_eq!(from_1_6(&input).arguments.debug, debug, "{level}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_on_standard_input_the_flags_hold(input in proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..300)) {
            let bootstrap = from_1_6(&input);
            proptest::prop_assert_eq!(bootstrap.arguments.id.as_str(), "abc");
            proptest::prop_assert_eq!(bootstrap.arguments.namespace.as_str(), "default");
        }
    }

    #[test]
    fn a_caller_of_version_3_gets_json() {
        let bootstrap = Bootstrap::new(flags("-namespace default -id abc start"), b"", Some("3"));
        let answer: serde_json::Value = serde_json::from_slice(&bootstrap.answer("unix:///s")).expect("json");
        assert_eq!(answer, serde_json::json!({ "version": 3, "address": "unix:///s", "protocol": "ttrpc" }));
        assert_eq!(Bootstrap::new(flags("-namespace d -id a start"), b"", Some("2")).reply, Reply::Plain);
    }

    #[test]
    fn bootstrap_params_are_answered_in_kind_and_complete_the_flags() {
        let params = BootstrapParams {
            instance_id: "abc".into(),
            namespace: "k8s.io".into(),
            containerd_ttrpc_address: "/c.ttrpc".into(),
            ..BootstrapParams::default()
        };
        let input = params.write_to_bytes().expect("bytes");
        for line in ["-namespace k8s.io -id abc start", "start"] {
            let bootstrap = Bootstrap::new(flags(line), &input, Some("3"));
            assert_eq!(bootstrap.arguments.namespace, "k8s.io");
            assert_eq!(bootstrap.ttrpc_address.as_deref(), Some("/c.ttrpc"));
            let result = BootstrapResult::parse_from_bytes(&bootstrap.answer("unix:///s")).expect("protobuf");
            assert_eq!((result.version, result.address.as_str()), (3, "unix:///s"));
        }
    }
}
