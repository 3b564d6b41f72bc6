//! Which register a write means. Pure. What the driver reads is in [`Window`](super::Window).

/// First byte of the device's own configuration space.
pub(super) const CONFIG_OFFSET: u64 = 0x100;
/// Width of all other registers: anything else is not an access to a register (section 4.2.2.2).
const REGISTER_WIDTH: usize = 4;

/// Ring whose guest-physical address a register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    Descriptors,
    Available,
    Used,
}

/// Which 32 bits of an address a register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

/// A register of section 4.2.2 that takes writes, or part of the configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    DeviceFeaturesSelect,
    DriverFeatures,
    DriverFeaturesSelect,
    QueueSelect,
    QueueSize,
    QueueReady,
    QueueNotify,
    InterruptAcknowledge,
    Status,
    QueueAddress(Ring, Half),
    /// `offset` counts from the start of the configuration space.
    Config {
        offset: u32,
    },
    /// Read-only, reserved, of the wrong width or not aligned: writes are ignored. So is the choice of a shared memory region, of which
    /// no device here has one.
    Nothing,
}

impl Register {
    /// The register behind a write of `width` bytes at `offset` of the device's window.
    pub(super) fn decode(offset: u64, width: usize) -> Self {
        if offset >= CONFIG_OFFSET {
            return Self::decode_config(offset - CONFIG_OFFSET, width);
        }
        if width != REGISTER_WIDTH {
            return Self::Nothing;
        }
        match offset {
            0x014 => Self::DeviceFeaturesSelect,
            0x020 => Self::DriverFeatures,
            0x024 => Self::DriverFeaturesSelect,
            0x030 => Self::QueueSelect,
            0x038 => Self::QueueSize,
            0x044 => Self::QueueReady,
            0x050 => Self::QueueNotify,
            0x064 => Self::InterruptAcknowledge,
            0x070 => Self::Status,
            0x080 => Self::QueueAddress(Ring::Descriptors, Half::Low),
            0x084 => Self::QueueAddress(Ring::Descriptors, Half::High),
            0x090 => Self::QueueAddress(Ring::Available, Half::Low),
            0x094 => Self::QueueAddress(Ring::Available, Half::High),
            0x0a0 => Self::QueueAddress(Ring::Used, Half::Low),
            0x0a4 => Self::QueueAddress(Ring::Used, Half::High),
            _ => Self::Nothing,
        }
    }

    fn decode_config(offset: u64, width: usize) -> Self {
        let aligned = matches!(width, 1 | 2 | 4 | 8) && offset.is_multiple_of(width as u64);
        match u32::try_from(offset) {
            Ok(offset) if aligned => Self::Config { offset },
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_answer_to_aligned_words_only() {
        assert_eq!(Register::decode(0x70, 4), Register::Status);
        for (offset, width) in [(0x70, 1), (0x70, 2), (0x70, 8), (0x71, 4), (0x6e, 4), (0x70, 0), (0x70, 3)] {
            assert_eq!(Register::decode(offset, width), Register::Nothing, "{offset:#x} by {width}");
        }
    }

    #[test]
    fn configuration_space_takes_every_natural_width() {
        for width in [1, 2, 4, 8] {
            assert_eq!(Register::decode(0x108, width), Register::Config { offset: 8 });
        }
        assert_eq!(Register::decode(0x102, 4), Register::Nothing);
        assert_eq!(Register::decode(0x100, 3), Register::Nothing);
        assert_eq!(Register::decode(u64::MAX, 1), Register::Nothing);
    }

    #[test]
    fn gaps_between_registers_and_what_is_read_only_are_nothing() {
        for offset in
            [0, 8, 0x10, 0x18, 0x1c, 0x28, 0x34, 0x3c, 0x40, 0x48, 0x54, 0x60, 0x68, 0x74, 0x88, 0xa8, 0xc0, 0xfc]
        {
            assert_eq!(Register::decode(offset, 4), Register::Nothing, "{offset:#x}");
        }
    }
}
