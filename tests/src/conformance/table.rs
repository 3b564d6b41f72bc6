//! The table: one line per case, one column per runtime, and the reasons for what differs. The same outcomes make the same text.

use std::fmt::Write;

use super::{Case, Outcome, Report, Verdict, subject::short_name};
use crate::containerd::RUNC;

const INTRODUCTION: &str = "\
# Conformance

Made by `make conformance`, which runs every case against every runtime named here, in one run; do not edit. `make test` fails when a run
shows anything else. \"differs\" is a documented difference: what the runtime does instead is asserted, too, and the reason is given.
";

/// The report as Markdown.
pub fn render(report: &Report) -> String {
    let mut text = format!("{INTRODUCTION}\n{}", score(report));
    let names: Vec<_> = report.runtimes.iter().map(|name| short_name(name)).collect();
    let mut group = "";
    for (case, outcomes) in &report.lines {
        if case.group != group {
            group = case.group;
            let _ = write!(text, "\n## {group}\n\n| case | {} | why it differs |\n", names.join(" | "));
            let _ = writeln!(text, "|---|{}---|", "---|".repeat(names.len()));
        }
        let words: Vec<_> = outcomes.iter().map(|outcome| word(&outcome.verdict)).collect();
        let _ = writeln!(text, "| {} | {} | {} |", case.name, words.join(" | "), reasons(case, outcomes));
    }
    text
}

fn score(report: &Report) -> String {
    let mut text = String::from("| runtime | cases | pass | differ | fail |\n|---|---|---|---|---|\n");
    for (n, runtime) in report.runtimes.iter().enumerate() {
        let count = |wanted: &str| report.lines.iter().filter(|(_, o)| word(&o[n].verdict) == wanted).count();
        let (pass, differ, fail) = (count("pass"), count("differs"), count("FAIL"));
        let _ = writeln!(text, "| {runtime} | {} | {pass} | {differ} | {fail} |", report.lines.len());
    }
    text
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "pass",
        Verdict::Differs => "differs",
        Verdict::Failed(_) => "FAIL",
    }
}

fn reasons(case: &Case, outcomes: &[Outcome]) -> String {
    let reason = |outcome: &Outcome| {
        let difference = if outcome.runtime == RUNC { case.in_runc } else { case.in_a_vm };
        let reason = difference.filter(|_| outcome.verdict == Verdict::Differs)?.reason;
        Some(format!("{}: {reason}", short_name(&outcome.runtime)))
    };
    outcomes.iter().filter_map(reason).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::RUNTIME;

    #[test]
    fn a_line_has_a_word_for_each_runtime_and_the_reason_of_the_one_that_differs() {
        let case = Case::new("task", "the pid is a host pid", |_| Ok(()))
            .unlike_in_a_vm("the process is in the guest", |_| Ok(()));
        let outcome = |runtime: &str, verdict| Outcome { runtime: runtime.to_owned(), verdict };
        let outcomes = vec![outcome(RUNC, Verdict::Passed), outcome(RUNTIME, Verdict::Differs)];
        let report = Report { runtimes: vec![RUNC.to_owned(), RUNTIME.to_owned()], lines: vec![(case, outcomes)] };
        let text = render(&report);
        let line = "| the pid is a host pid | pass | differs | kata-rs: the process is in the guest |\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| io.containerd.kata-rs.v2 | 1 | 0 | 1 | 0 |\n"), "{text}");
    }
}
