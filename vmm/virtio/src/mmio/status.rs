//! The device status field, section 2.1: what the driver may do next. Pure.
//!
//! ```text
//!   0 --ACKNOWLEDGE--> 1 --DRIVER--> 3 --FEATURES_OK--> 11 --DRIVER_OK--> 15
//!   from anywhere: writing 0 resets, setting FAILED gives up
//! ```
//! The driver sets one bit at a time, in this order, and clears none. DEVICE_NEEDS_RESET is the device's own bit:
//! what the driver writes there does not count.

pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 2;
pub(super) const DRIVER_OK: u8 = 4;
pub(super) const FEATURES_OK: u8 = 8;
pub(super) const NEEDS_RESET: u8 = 64;
pub(super) const FAILED: u8 = 128;

/// What a write to the status field means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The driver starts over.
    Reset,
    /// The field is now this, and the device need not know.
    To(u8),
    /// The driver has chosen its features and asks whether they will do.
    Features(u8),
    /// The driver is ready to drive.
    Activate(u8),
    /// The driver has given up on the device.
    Failed(u8),
    /// Nothing changes.
    Same,
    /// The write breaks the rules; nothing changes.
    Illegal,
}

/// The step from `current` (without NEEDS_RESET) that writing `written` asks for.
pub(super) fn step(current: u8, written: u32) -> Step {
    let Ok(written) = u8::try_from(written) else { return Step::Illegal };
    if written == 0 {
        return Step::Reset;
    }
    let next = written & !NEEDS_RESET;
    if next & current != current {
        return Step::Illegal;
    }
    let reached = current & !FAILED;
    match next & !current {
        0 => Step::Same,
        FAILED => Step::Failed(next),
        _ if current & FAILED != 0 => Step::Illegal,
        ACKNOWLEDGE if reached == 0 => Step::To(next),
        DRIVER if reached == ACKNOWLEDGE => Step::To(next),
        FEATURES_OK if reached == ACKNOWLEDGE | DRIVER => Step::Features(next),
        DRIVER_OK if reached == ACKNOWLEDGE | DRIVER | FEATURES_OK => Step::Activate(next),
        _ => Step::Illegal,
    }
}

/// Whether the driver may choose features: it has said that it can drive, and has not asked for the verdict.
pub(super) fn features_open(status: u8) -> bool {
    status == ACKNOWLEDGE | DRIVER
}

/// Whether the driver may set up queues: between the verdict on features and DRIVER_OK.
pub(super) fn queues_open(status: u8) -> bool {
    status == ACKNOWLEDGE | DRIVER | FEATURES_OK
}

/// Whether the device is driven.
pub(super) fn live(status: u8) -> bool {
    status & (DRIVER_OK | FAILED) == DRIVER_OK
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: [u8; 5] = [0, 1, 3, 11, 15];

    #[test]
    fn the_way_up_is_one_bit_at_a_time() {
        assert_eq!(step(0, 1), Step::To(1));
        assert_eq!(step(1, 3), Step::To(3));
        assert_eq!(step(3, 11), Step::Features(11));
        assert_eq!(step(11, 15), Step::Activate(15));
    }

    #[test]
    fn no_other_write_moves_the_field_than_the_next_bit_failed_or_reset() {
        for (position, current) in PATH.into_iter().enumerate() {
            for written in 1..=u32::from(u8::MAX) {
                let without_ours = (written as u8) & !NEEDS_RESET;
                let next = PATH.get(position + 1).copied();
                let legal = without_ours == current || Some(without_ours) == next || without_ours == current | FAILED;
                assert_eq!(step(current, written) != Step::Illegal, legal, "{current} <- {written}");
            }
        }
    }

    #[test]
    fn zero_resets_from_everywhere_and_wide_values_are_illegal() {
        for current in 0..=u8::MAX {
            assert_eq!(step(current, 0), Step::Reset);
            assert_eq!(step(current, 0x100), Step::Illegal);
            assert_eq!(step(current, u32::MAX), Step::Illegal);
        }
    }

    #[test]
    fn a_failed_device_only_takes_a_reset() {
        assert_eq!(step(3, u32::from(3 | FAILED)), Step::Failed(3 | FAILED));
        assert_eq!(step(3 | FAILED, u32::from(11 | FAILED)), Step::Illegal);
        assert!(!live(15 | FAILED));
    }
}
