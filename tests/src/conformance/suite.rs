//! Runs every case against every runtime. The runtimes go side by side, and so do the lists of cases; the cases of a list come one after the
//! other.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use super::{Case, Outcome, Subject, Verdict, subject::short_name, table};
use crate::containerd::{RUNC, RUNTIME};

/// Longest that one case may take; each call and each wait in it has a shorter deadline of its own.
const CASE_DEADLINE: Duration = Duration::from_secs(180);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The runtimes, the measure first.
    pub runtimes: Vec<String>,
    /// Only cases whose group or name contains this.
    pub only: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { runtimes: vec![RUNC.to_owned(), RUNTIME.to_owned()], only: None }
    }
}

/// What a run showed.
pub struct Report {
    /// The runtimes, in the order of the table's columns.
    pub runtimes: Vec<String>,
    /// Each case, with an outcome for each runtime, in the same order.
    pub lines: Vec<(Case, Vec<Outcome>)>,
}

impl Report {
    /// The table as text.
    pub fn table(&self) -> String {
        table::render(self)
    }

    /// Every case that a runtime failed, as a sentence.
    pub fn failures(&self) -> Vec<String> {
        let failures = self.lines.iter().flat_map(|(case, outcomes)| {
            outcomes.iter().filter_map(move |outcome| {
                let Verdict::Failed(why) = &outcome.verdict else { return None };
                let hint = if outcome.runtime == RUNC { " (runc is the measure: is the case wrong?)" } else { "" };
                Some(format!("{}: {}: {}{hint}: {why}", short_name(&outcome.runtime), case.group, case.name))
            })
        });
        failures.collect()
    }
}

/// Runs lists of cases.
///
/// # Errors
/// A runtime is not here, or no case has the wanted name.
pub fn run(lists: Vec<Vec<Case>>, options: &Options) -> anyhow::Result<Report> {
    let wanted = |case: &Case| options.only.as_ref().is_none_or(|o| case.group.contains(o) || case.name.contains(o));
    let lists: Vec<Vec<_>> = lists.into_iter().map(|list| list.into_iter().filter(wanted).collect()).collect();
    anyhow::ensure!(lists.iter().any(|list| !list.is_empty()), "no case has {:?} in its name", options.only);
    let subjects = options.runtimes.iter().map(|name| Subject::new(name).map(Arc::new));
    let subjects = subjects.collect::<anyhow::Result<Vec<_>>>()?;
    let columns: Vec<Vec<Outcome>> = thread::scope(|scope| {
        let start = |subject| lists.iter().map(move |list| scope.spawn(move || column(list, subject)));
        // All of them are started before the first is waited for.
        let columns: Vec<Vec<_>> = subjects.iter().map(|subject| start(subject).collect()).collect();
        let whole = |column: thread::ScopedJoinHandle<'_, _>| column.join().expect("cases run on threads of their own");
        columns.into_iter().map(|parts| parts.into_iter().flat_map(whole).collect()).collect()
    });
    let lines = lists.into_iter().flatten().enumerate();
    let line = |(n, case): (usize, Case)| (case, columns.iter().map(|column| column[n].clone()).collect());
    Ok(Report { runtimes: options.runtimes.clone(), lines: lines.map(line).collect() })
}

fn column(cases: &[Case], subject: &Arc<Subject>) -> Vec<Outcome> {
    let outcome = |case: &Case| {
        let verdict = verdict(case, subject);
        // Of several hundred cases only these are worth a line in a long log.
        if let Verdict::Failed(why) = &verdict {
            println!("{}: {}: {}: FAILED: {why}", subject.short_name(), case.group, case.name);
        }
        Outcome { runtime: subject.runtime().to_owned(), verdict }
    };
    let groups = cases.chunk_by(|a, b| a.group == b.group);
    let group = |cases: &[Case]| {
        let outcomes: Vec<_> = cases.iter().map(outcome).collect();
        println!("{}: {}: {} cases ended", subject.short_name(), cases[0].group, cases.len());
        outcomes
    };
    groups.flat_map(group).collect()
}

// On a thread of its own, so that a case that hangs or panics is a case that failed.
fn verdict(case: &Case, subject: &Arc<Subject>) -> Verdict {
    let (check, its_subject) = (case.check(subject), Arc::clone(subject));
    let (done, is_done) = mpsc::channel();
    let worker = thread::spawn(move || drop(done.send(check(&its_subject))));
    match is_done.recv_timeout(CASE_DEADLINE) {
        Ok(Ok(())) if case.difference(subject).is_some() => Verdict::Differs,
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(error)) => Verdict::Failed(format!("{error:#}")),
        Err(mpsc::RecvTimeoutError::Timeout) => Verdict::Failed(format!("no end within {CASE_DEADLINE:?}")),
        Err(mpsc::RecvTimeoutError::Disconnected) => Verdict::Failed(panic_text(worker)),
    }
}

fn panic_text(worker: thread::JoinHandle<()>) -> String {
    let payload = worker.join().err();
    let text = payload.as_ref().and_then(|payload| {
        payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref::<&str>().copied())
    });
    text.unwrap_or("the case panicked").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(verdict: Verdict) -> Outcome {
        Outcome { runtime: RUNC.to_owned(), verdict }
    }

    #[test]
    fn a_case_that_runc_fails_is_suspected_itself() {
        let case = Case::new("task", "always fails", |_| anyhow::bail!("no"));
        let report = Report {
            runtimes: vec![RUNC.to_owned()],
            lines: vec![(case, vec![outcome(Verdict::Failed("no".into()))])],
        };
        assert_eq!(report.failures(), ["runc: task: always fails (runc is the measure: is the case wrong?): no"]);
    }

    #[test]
    fn a_name_that_no_case_has_is_an_error_and_not_an_empty_success() {
        let options = Options { runtimes: Vec::new(), only: Some("xyzzy".to_owned()) };
        let case = Case::new("task", "passes", |_| Ok(()));
        assert!(run(vec![vec![case]], &options).is_err());
    }
}
