//! How a process's end becomes the one number that containerd is told.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// The exit code, or 128 plus the signal that ended the process, as shells count.
pub fn exit_status(status: ExitStatus) -> u32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code.unsigned_abs() & 0xff,
        (None, Some(signal)) => 128 + signal.unsigned_abs(),
        // Neither ended: stopped or continued. Whoever asks has not waited for the end.
        (None, None) => 255,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stay_and_signals_count_from_128() {
        assert_eq!(exit_status(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_status(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_status(ExitStatus::from_raw(255 << 8)), 255);
        assert_eq!(exit_status(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_status(ExitStatus::from_raw(15)), 143);
        // A core dump sets bit 7 beside the signal.
        assert_eq!(exit_status(ExitStatus::from_raw(11 | 0x80)), 139);
    }
}
