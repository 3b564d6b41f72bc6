//! Names of pods, containers and execs become file names, so they are checked once, here.

use crate::{ErrorKind, PodError};

/// Longest id; containerd allows 76, Kubernetes makes 64.
const ID_LEN_MAX: usize = 128;

/// Refuses an id that could be anything but one plain file name.
pub(crate) fn check_id(what: &str, id: &str) -> Result<(), PodError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && id.len() <= ID_LEN_MAX && id.bytes().all(plain) {
        return Ok(());
    }
    Err(PodError::new(
        ErrorKind::InvalidArgument,
        format!(
            "{what} id {:?} is not usable: use 1 to {ID_LEN_MAX} letters, digits, '_', '.', '-', the first a letter or digit",
            id.chars().take(ID_LEN_MAX).collect::<String>()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_ids_pass() {
        for id in ["c1", "0a", "my_pod.web-1", &"x".repeat(ID_LEN_MAX)] {
            assert!(check_id("container", id).is_ok(), "{id}");
        }
    }

    #[test]
    fn nothing_that_walks_a_path_passes() {
        for id in ["", ".", "..", "a/b", "/etc", "a\0b", "a\nb", "-rf", ".hidden", &"x".repeat(ID_LEN_MAX + 1)] {
            let error = check_id("container", id).expect_err(id);
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
        }
    }
}
