//! Whatever is put into a specification: it is read as it stands there, or refused by the field's name.

use container::{GuestFacts, plan};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use super::{Misfit, parse};

/// What containerd writes for a pod's container, with a bit of everything.
fn specification() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "root": { "path": "/rootfs", "readonly": true },
        "hostname": "h",
        "process": {
            "terminal": false,
            "args": ["sh", "-c", "true"], "cwd": "/", "env": ["A=b"],
            "user": { "uid": 1, "gid": 2, "umask": 18, "additionalGids": [3] },
            "consoleSize": { "height": 24, "width": 80 },
            "capabilities": { "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512 }],
            "oomScoreAdj": 100,
            "noNewPrivileges": true,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec"] },
            { "destination": "/data", "type": "bind", "source": "/run/x", "options": ["rbind", "ro"] },
        ],
        "annotations": { "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod1" },
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "ipc", "path": "/proc/1/ns/ipc" }],
            "sysctl": { "kernel.shm_rmid_forced": "1" },
            "cgroupsPath": "/kubepods/c1",
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" }],
                "memory": { "limit": 1_048_576, "swap": 1_048_576 },
                "cpu": { "quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0" },
                "pids": { "limit": 30 },
                "unified": { "memory.high": "1000000" },
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                    { "index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ" },
                ] }],
            },
        },
    })
}

/// A machine of the guest, for its plan of the container.
fn guest() -> GuestFacts {
    GuestFacts {
        cpus: 1,
        memory_bytes: 1 << 30,
        cgroup_root: "/sys/fs/cgroup".into(),
        controllers: ["cpu", "cpuset", "memory", "pids"].map(str::to_owned).into(),
        last_capability: 40,
    }
}

fn nested(depth: usize, innermost: &Value, wrap: fn(Value) -> Value) -> Value {
    (0..depth).fold(innermost.clone(), |inner, _| wrap(inner))
}

/// What does not belong where it is put, or just may.
fn intruder() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(vec![
            json!(-1),
            json!(0),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1e300),
            json!(1_u64 << 32),
            json!(0.5)
        ]),
    ];
    let text = prop_oneof![
        any::<String>(),
        "[ -~]{0,12}",
        select(vec!["", "..", "/", "a\0b", "\u{202e}", "pid", "CAP_CHOWN", "SCMP_ACT_ALLOW", "CAP_NO_SUCH", "1=2"])
            .prop_map(str::to_owned),
        (1_usize..200_000).prop_map(|length| "x".repeat(length)),
    ];
    let deep = (1_usize..120, any::<bool>()).prop_map(|(depth, list)| {
        nested(depth, &json!(1), if list { |inner| json!([inner]) } else { |inner| json!({ "a": inner }) })
    });
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        text.prop_map(Value::from),
        select(vec![json!([]), json!({}), json!([1, "a", null]), json!([[]]), json!([{}]), json!({ "a": {} })]),
        deep,
    ]
}

/// What is done to one place.
#[derive(Debug, Clone)]
enum Change {
    /// Something else stands there.
    Put(Value),
    /// An object becomes the list of its values, which serde alone would read as the same.
    Unname,
    /// A word becomes an object with this one member.
    Wrap,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![6 => intruder().prop_map(Change::Put), 2 => Just(Change::Unname), 1 => Just(Change::Wrap)]
}

impl Change {
    fn applied(self, to: &Value) -> Value {
        match (self, to) {
            (Self::Put(value), _) => value,
            (Self::Unname, Value::Object(members)) => members.values().cloned().collect(),
            (Self::Wrap, Value::String(word)) => json!({ word: null }),
            (Self::Unname | Self::Wrap, other) => json!([other]),
        }
    }
}

/// A path into the tree: as JSON pointers write it, and as a refusal does.
#[derive(Debug, Clone)]
struct Spot {
    pointer: String,
    name: String,
}

fn spots(value: &Value, here: Spot, found: &mut Vec<Spot>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(key, member)| {
            let dot = if here.name.is_empty() { "" } else { "." };
            let pointer = format!("{}/{}", here.pointer, key.replace('~', "~0").replace('/', "~1"));
            spots(member, Spot { pointer, name: format!("{}{dot}{key}", here.name) }, found);
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(number, item)| {
            let spot = Spot { pointer: format!("{}/{number}", here.pointer), name: format!("{}[{number}]", here.name) };
            spots(item, spot, found);
        }),
        _ => {}
    }
    found.push(here);
}

/// `whole` with one place changed, and which.
fn mutated(whole: Value) -> impl Strategy<Value = (Spot, Value)> {
    let mut all = Vec::new();
    spots(&whole, Spot { pointer: String::new(), name: String::new() }, &mut all);
    (select(all), change()).prop_map(move |(spot, change)| {
        let mut mutant = whole.clone();
        let place = mutant.pointer_mut(&spot.pointer).expect("a place of the whole");
        *place = change.applied(place);
        (spot, mutant)
    })
}

/// Whether everything that was understood is in the text too: nothing was made up but the defaults of what is missing or null.
fn is_said(understood: &Value, text: &Value) -> bool {
    let default = matches!(understood, Value::Null | Value::Bool(false))
        || [json!(""), json!([]), json!({})].contains(understood);
    match (understood, text) {
        (understood, Value::Null) => default || understood == &json!(0),
        (Value::Object(understood), Value::Object(text)) => {
            understood.iter().all(|(key, value)| is_said(value, text.get(key).unwrap_or(&Value::Null)))
        }
        // Capabilities are sets: in any order, each once.
        (Value::Array(understood), Value::Array(text)) => {
            understood.len() <= text.len() && understood.iter().all(|item| text.iter().any(|said| is_said(item, said)))
        }
        (understood, text) => understood == text,
    }
}

/// Whether the known fields of the text, those of `known`, were all understood.
fn is_understood(text: &Value, known: &Value, understood: &Value) -> bool {
    match (text, known, understood) {
        (Value::Null, _, _) => true,
        (Value::Object(text), Value::Object(known), _) => known.iter().all(|(key, known)| {
            let nothing = Value::Null;
            is_understood(text.get(key).unwrap_or(&nothing), known, understood.get(key).unwrap_or(&nothing))
        }),
        (Value::Array(text), _, Value::Array(understood)) => {
            text.iter().all(|item| understood.iter().any(|known| is_said(known, item)))
        }
        // Left out again where it says nothing.
        (text, _, Value::Null) => [json!([]), json!({}), json!(""), json!(false)].contains(text),
        (text, _, understood) => is_said(understood, text),
    }
}

fn read<T>(mutant: &Value) -> Result<T, Misfit>
where
    T: serde::de::DeserializeOwned,
{
    parse(mutant.to_string().as_bytes())
}

/// Read as it stands there, or refused by the name of the changed place: that of the place, of what is in it, or of what lacks it.
fn check<T>(whole: &Value, spot: &Spot, mutant: &Value) -> Result<Option<T>, TestCaseError>
where
    T: serde::de::DeserializeOwned + serde::Serialize,
{
    match read::<T>(mutant) {
        Ok(made) => {
            let understood = serde_json::to_value(&made).expect("a tree");
            prop_assert!(is_said(&understood, mutant), "{mutant} was read as {understood}");
            prop_assert!(is_understood(mutant, whole, &understood), "{mutant} was read as {understood}");
            Ok(Some(made))
        }
        Err(misfit) => {
            let message = misfit.to_string();
            prop_assert!(message.starts_with(&spot.name), "{} is not named: {message}", spot.name);
            Ok(None)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_specification_is_read_as_it_stands_or_its_field_is_named((spot, mutant) in mutated(specification())) {
        let Some(spec) = check::<Spec>(&specification(), &spot, &mutant)? else { return Ok(()) };
        // What is left to the guest's plan is refused by it, by the name of the place or of what it is in: "mount at /proc ..." for one of `mounts`.
        if let Err(error) = plan("c", &spec, &guest()) {
            let message = error.to_string();
            let mut steps = spot.name.split(['.', '[']).map(|step| step.trim_end_matches('s'));
            prop_assert!(steps.any(|step| message.contains(step)), "{} is not named: {message}", spot.name);
        }
    }

    #[test]
    fn a_process_and_resources_too(
        (place, process) in mutated(specification()["process"].clone()),
        (spot, resources) in mutated(specification()["linux"]["resources"].clone()),
    ) {
        check::<Process>(&specification()["process"], &place, &process)?;
        check::<LinuxResources>(&specification()["linux"]["resources"], &spot, &resources)?;
    }

    #[test]
    fn several_mistakes_at_once_are_still_one_answer(
        changes in prop::collection::vec(mutated(specification()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut mutant = specification();
        for (spot, source) in changes {
            let value = source.pointer(&spot.pointer).cloned();
            if let (Some(place), Some(value)) = (mutant.pointer_mut(&spot.pointer), value) {
                *place = value;
            }
        }
        if let Ok(spec) = read::<Spec>(&mutant) {
            let _ = plan("c", &spec, &guest());
        }
        let whole = json!({ "process": mutant }).to_string();
        let half = &whole.as_bytes()[..cut.index(whole.len())];
        let misfit = parse::<Spec>(half).expect_err("half a text");
        prop_assert!(misfit.to_string().contains("line 1"), "{misfit}");
    }
}

#[test]
fn the_whole_specification_is_sound() {
    let spec = check::<Spec>(&specification(), &Spot { pointer: String::new(), name: String::new() }, &specification())
        .expect("as it stands")
        .expect("read");
    plan("c", &spec, &guest()).expect("planned");
}
