//! Requests that nobody in their right mind would send: whatever comes, the answer is one of the codes that containerd expects, the
//! daemon goes on, and nothing is half made.

mod fake_pod;

use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest, UpdateTaskRequest};
use fake_pod::{Shim, code, connect, delete, kill, quick};
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use ttrpc::Code;

/// What a request may be refused with; everything else would be a bug of ours.
const CODES: [Code; 5] =
    [Code::INVALID_ARGUMENT, Code::NOT_FOUND, Code::FAILED_PRECONDITION, Code::ALREADY_EXISTS, Code::UNIMPLEMENTED];
const SERVICES: [&str; 3] =
    ["containerd.task.v2.Task", "containerd.task.v3.Task", "containerd.runtime.sandbox.v1.Sandbox"];
const METHODS: [&str; 27] = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
    "CreateSandbox",
    "StartSandbox",
    "Platform",
    "StopSandbox",
    "WaitSandbox",
    "SandboxStatus",
    "PingSandbox",
    "ShutdownSandbox",
    "SandboxMetrics",
    "Nothing",
];

/// A specification with a bit of everything.
fn specification() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "h",
        "process": {
            "terminal": false,
            "args": ["true"], "cwd": "/", "env": ["A=b"],
            "user": { "uid": 0, "gid": 0, "additionalGids": [1] },
            "consoleSize": { "height": 24, "width": 80 },
            "capabilities": { "bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] }],
        "annotations": { "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-memory": "1" },
        "linux": {
            "namespaces": [{ "type": "pid" }],
            "sysctl": { "net.ipv4.ip_forward": "1" },
            "resources": { "memory": { "limit": 1 }, "cpu": { "quota": 1, "period": 100_000, "shares": 2 }, "pids": { "limit": 3 } },
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"] },
        },
    })
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just(String::new()), Just("..".into()), Just("/".into()), Just("a\0b".into()), any::<String>()]
            .prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, "a", null])),
    ]
}

/// Where something can be put: each member and element, by its pointer.
fn places(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, member)| places(member, &format!("{here}/{}", escaped(key)), found));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(place, item)| places(item, &format!("{here}/{place}"), found));
        }
        _ => {}
    }
}

fn mutated(whole: Value) -> impl Strategy<Value = Value> {
    let mut all = Vec::new();
    places(&whole, "", &mut all);
    let change = (prop::sample::select(all), scalar());
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut mutant = whole.clone();
        for (place, value) in changes {
            if let Some(member) = mutant.pointer_mut(&place) {
                *member = value;
            }
        }
        mutant
    })
}

/// A shim that all cases of one property meet.
fn host() -> (Runtime, Shim) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let shim = runtime.block_on(Shim::start());
    (runtime, shim)
}

fn check<S: Strategy>(cases: u32, strategy: S, case: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    TestRunner::new(config).run(&strategy, case).unwrap_or_else(|failure| panic!("{failure}"));
}

fn expected<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> Result<Option<String>, TestCaseError> {
    let Err(error) = answer else { return Ok(None) };
    let ttrpc::Error::RpcStatus(status) = error else { return Err(TestCaseError::fail(format!("no answer: {error}"))) };
    prop_assert!(CODES.contains(&status.code()), "{:?}: {}", status.code(), status.message());
    prop_assert!(!status.message().is_empty());
    Ok(Some(status.message().to_owned()))
}

#[test]
fn a_malformed_specification_is_refused_by_its_place_or_made() {
    let (runtime, shim) = host();
    let config = shim.dir.path().join("config.json");
    check(300, mutated(specification()), |mutant| {
        std::fs::write(&config, serde_json::to_vec(&mutant).expect("bytes")).expect("written");
        let refused = runtime.block_on(async {
            let refused = expected(shim.task.create(quick(), &shim.create_request("c")).await)?;
            match &refused {
                Some(_) => prop_assert_eq!(code(shim.state("c", "").await), Code::NOT_FOUND, "half made"),
                None => drop(shim.task.delete(quick(), &delete("c", "")).await.expect("deleted")),
            }
            Ok(refused)
        })?;
        if let Some(sentence) = refused {
            prop_assert!(sentence.contains("config.json"), "{sentence}");
        }
        Ok(())
    });
}

#[test]
fn a_malformed_object_in_a_request_is_refused_by_its_name() {
    let (runtime, shim) = host();
    runtime.block_on(shim.run("c"));
    let spec = specification();
    let process = mutated(spec["process"].clone());
    let resources = mutated(spec["linux"]["resources"].clone());
    check(200, (process, resources), |(process, resources)| {
        let any = |object: Value| Some(Any { value: object.to_string().into_bytes(), ..Any::default() });
        let exec =
            ExecProcessRequest { id: "c".into(), exec_id: "e".into(), spec: any(process).into(), ..Default::default() };
        let update = UpdateTaskRequest { id: "c".into(), resources: any(resources).into(), ..Default::default() };
        runtime.block_on(async {
            match expected(shim.task.exec(quick(), &exec).await)? {
                Some(sentence) => prop_assert!(sentence.contains("process"), "{sentence}"),
                None => drop(shim.task.delete(quick(), &delete("c", "e")).await.expect("deleted")),
            }
            if let Some(sentence) = expected(shim.task.update(quick(), &update).await)? {
                prop_assert!(sentence.contains("resources"), "{sentence}");
            }
            Ok(())
        })
    });
}

#[test]
fn any_bytes_to_any_method_are_answered() {
    let (runtime, shim) = host();
    let client = runtime.block_on(connect(&shim.socket()));
    let request = (
        prop::sample::select(&SERVICES[..]),
        prop::sample::select(&METHODS[..]),
        prop::collection::vec(any::<u8>(), 0..64),
    );
    check(2000, request, |(service, method, payload)| {
        // Without a container, a Shutdown without any field is a good request.
        prop_assume!(method != "Shutdown" && method != "ShutdownSandbox");
        let request = ttrpc::Request {
            service: service.into(),
            method: method.into(),
            payload,
            timeout_nano: 10_000_000_000,
            ..ttrpc::Request::default()
        };
        runtime.block_on(client.request(request)).map_or_else(|error| expected::<()>(Err(error)).map(drop), |_| Ok(()))
    });
    runtime.block_on(shim.run("still-serves"));
}

#[test]
fn names_and_paths_of_any_kind_are_taken_or_refused() {
    let (runtime, shim) = host();
    let path =
        || prop_oneof![Just(String::new()), Just("/dev/null".to_owned()), Just("file://".to_owned()), any::<String>()];
    check(
        300,
        (any::<String>(), path(), path(), path(), any::<u32>(), any::<bool>()),
        |(id, bundle, stdin, stdout, signal, terminal)| {
            let request = CreateTaskRequest { id: id.clone(), bundle, stdin, stdout, terminal, ..Default::default() };
            runtime.block_on(async {
                if expected(shim.task.create(quick(), &request).await)?.is_none() {
                    shim.task.delete(quick(), &delete(&id, "")).await.expect("deleted");
                }
                expected(shim.task.kill(quick(), &kill(&id, signal)).await)?;
                expected(shim.add_exec(&id, &id).await)?;
                Ok(())
            })
        },
    );
}
