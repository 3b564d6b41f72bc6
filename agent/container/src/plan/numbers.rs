//! Lists of CPUs and memory nodes, such as `0-2,7` (cpuset(7), "List format"), against those that the guest has.
//!
//! Numbers in a specification are the host's: a node agent with a static CPU policy names the host's CPUs. The machine's own are numbered from
//! zero, so of a list what exists here is taken, and a list of which nothing exists says nothing about this machine.

use super::PlanError;

/// What of a list there is in this guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// All there is, or nothing: no choice.
    All,
    /// These.
    Some(Vec<u32>),
}

impl Chosen {
    /// As the kernel's files want it.
    pub(super) fn written(&self, existing: u32) -> String {
        match self {
            Self::All => format!("0-{}", existing.saturating_sub(1)),
            Self::Some(numbers) => numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        }
    }
}

/// What `list` chooses of the numbers below `existing`.
///
/// # Errors
/// It is no list.
pub(super) fn choose(field: &str, list: &str, existing: u32) -> Result<Chosen, PlanError> {
    let ranges = parse(list).ok_or_else(|| PlanError::Invalid {
        field: field.to_owned(),
        value: list.to_owned(),
        hint: "write numbers and ranges, such as 0-2,7",
    })?;
    let named = |number: &u32| ranges.iter().any(|(first, last)| (first..=last).contains(&number));
    let chosen: Vec<u32> = (0..existing).filter(named).collect();
    Ok(match chosen.len() {
        0 => Chosen::All,
        all if all == existing as usize => Chosen::All,
        _ => Chosen::Some(chosen),
    })
}

fn parse(list: &str) -> Option<Vec<(u32, u32)>> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let ranges = list.trim().split(',').map(|part| match part.split_once('-') {
        Some((first, last)) => Some((number(first)?, number(last)?)).filter(|(first, last)| first <= last),
        None => number(part).map(|number| (number, number)),
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(list: &str, existing: u32) -> String {
        choose("cpus", list, existing).map_or_else(|error| error.to_string(), |chosen| chosen.written(existing))
    }

    #[test]
    fn what_exists_is_taken_and_the_hosts_own_numbers_choose_nothing() {
        assert_eq!(chosen("1", 4), "1");
        assert_eq!(chosen("2-7,0", 4), "0,2,3");
        assert_eq!(chosen("0-63", 4), "0-3");
        assert_eq!(chosen("48-51", 4), "0-3", "CPUs of the host: the machine has as many as it was sized with");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for wrong in ["", "a", "1-", "3-1", "1;2", "-1"] {
            assert!(choose("linux.resources.cpu.cpus", wrong, 4).is_err(), "{wrong:?}");
        }
    }
}
