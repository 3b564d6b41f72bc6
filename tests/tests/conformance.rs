//! The conformance suite against ours and runc, and its table: what a run shows must be what the repository says.
//!
//! `make conformance` writes `docs/conformance.md` anew. `make conformance RUNTIME=io.containerd.runc.v2` asks one runtime alone, and
//! `ONLY=text` runs the cases that have the text in their name; neither touches the table.

use std::{env, fs};

use tests::{
    conformance::{Options, Report, cases, run},
    needs, prefix,
};

#[test]
fn every_runtime_does_what_the_table_says() {
    needs!(Kvm, Root, Stage, Program("containerd"), Program("runc"), Program("containerd-shim-runc-v2"));
    let wanted = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let (runtime, only) = (wanted("KATA_RS_CONFORMANCE_RUNTIME"), wanted("KATA_RS_CONFORMANCE_ONLY"));
    let whole = runtime.is_none() && only.is_none();
    let runtimes = runtime.map_or_else(|| Options::default().runtimes, |runtime| vec![runtime]);
    let report = run(cases(), &Options { runtimes, only }).expect("the suite runs");
    let table = keep(&report);
    let failures = report.failures();
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
    if whole {
        compare(&table);
    }
}

/// The table of this run, which is also kept in target/conformance.
fn keep(report: &Report) -> String {
    let table = report.table();
    let folder = prefix::workspace().join("target/conformance");
    fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("conformance.md"), &table)).expect("writable");
    table
}

/// Fails when the repository's table is another, unless it is to be written.
fn compare(table: &str) {
    let path = prefix::workspace().join("docs/conformance.md");
    if env::var_os("KATA_RS_CONFORMANCE_UPDATE").is_some() {
        fs::write(&path, table).expect("writable");
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == table,
        "docs/conformance.md is not what this run showed: see target/conformance, `make conformance`"
    );
}
