//! The kernel command line.
//!
//! | words | why |
//! |---|---|
//! | `quiet` | each character of the early console is two exits; errors are printed anyhow. First, since Linux takes these words in order and prints its log so far when it meets `earlyprintk` |
//! | `console=hvc0` | the console is a virtio device: bytes go out in chunks, not one trap each |
//! | `earlyprintk=serial,0x3f8,115200` | what is printed before that device lives, above all an early panic, goes out by port 0x3f8 |
//! | `panic=-1 reboot=k,f` | a panic ends in a reset, at once, by the keyboard controller's port: one exit that the VMM knows; `f` leaves out switching off interrupt controllers that end with the machine |
//! | `root=/dev/vda rootfstype=erofs ro` | the guest image is the first disk; naming the file system skips trying others |
//! | `tsc=reliable no_timer_check` | no watching and testing of clocks that the host guarantees |
//! | `swiotlb=noforce` | no 64 MiB set aside for devices that cannot reach high memory: virtio reaches all |
//! | `virtio_mmio.device=4K@...:...` | there is no bus to ask: each device is named with its place and interrupt |

use crate::layout::DeviceSlot;

/// Longest command line, with its final zero: COMMAND_LINE_SIZE of Linux on x86.
pub const COMMAND_LINE_MAX: usize = 2048;

const ALWAYS: &str = "quiet console=hvc0 earlyprintk=serial,0x3f8,115200 panic=-1 reboot=k,f tsc=reliable \
                      no_timer_check swiotlb=noforce";
const ROOT: &str = "root=/dev/vda rootfstype=erofs ro init=/sbin/init";

/// Why there is no command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandLineError {
    /// Over [`COMMAND_LINE_MAX`].
    #[error(
        "the kernel command line has {0} bytes, Linux takes {COMMAND_LINE_MAX}: shorten the extra words or use fewer devices"
    )]
    TooLong(usize),
    /// A byte that could end the line early or mean something else.
    #[error("the extra words of the kernel command line hold the character {0:?}: use printable ASCII only")]
    Character(char),
}

/// A command line being put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// For a machine whose first disk, if it has any, is the root file system.
    pub fn new(has_disk: bool) -> Self {
        let root = if has_disk { ROOT } else { "" };
        Self(format!("{ALWAYS} {root}").trim_end().to_owned())
    }

    /// Names a virtio-mmio device.
    pub fn device(&mut self, slot: DeviceSlot) {
        self.0.push_str(&format!(" virtio_mmio.device=4K@{:#x}:{}", slot.address, slot.line));
    }

    /// Adds words at the end, where they win over those before.
    pub fn extra(&mut self, words: &str) -> Result<(), CommandLineError> {
        if let Some(wrong) = words.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
            return Err(CommandLineError::Character(wrong));
        }
        if !words.trim().is_empty() {
            self.0.push(' ');
            self.0.push_str(words.trim());
        }
        Ok(())
    }

    /// The line without its final zero.
    pub fn finish(self) -> Result<String, CommandLineError> {
        if self.0.len() >= COMMAND_LINE_MAX { Err(CommandLineError::TooLong(self.0.len())) } else { Ok(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{SLOTS_MAX, device_slot};

    #[test]
    fn a_device_is_named_with_its_place_and_line() {
        let mut line = CommandLine::new(true);
        line.device(device_slot(0).expect("first"));
        let line = line.finish().expect("short");
        assert!(line.ends_with(" virtio_mmio.device=4K@0xd0000000:5"), "{line}");
        assert!(line.contains("root=/dev/vda"));
    }

    #[test]
    fn the_early_console_starts_quiet() {
        let line = CommandLine::new(true).finish().expect("short");
        assert!(line.find("quiet") < line.find("earlyprintk"), "{line}");
    }

    #[test]
    fn a_machine_without_disks_has_no_root_device() {
        assert!(!CommandLine::new(false).finish().expect("short").contains("root="));
    }

    #[test]
    fn a_machine_with_every_slot_taken_fits() {
        let mut line = CommandLine::new(true);
        (0..SLOTS_MAX).filter_map(device_slot).for_each(|slot| line.device(slot));
        assert!(line.finish().is_ok());
    }

    #[test]
    fn extra_words_come_last_and_cannot_smuggle_a_line_end() {
        let mut line = CommandLine::new(true);
        line.extra(" loglevel=7 ").expect("plain words");
        assert_eq!(line.extra("a\0b"), Err(CommandLineError::Character('\0')));
        assert_eq!(line.extra("a\nb"), Err(CommandLineError::Character('\n')));
        assert!(line.clone().finish().expect("short").ends_with(" loglevel=7"));
        line.extra(&"x".repeat(COMMAND_LINE_MAX)).expect("only the end checks the length");
        assert!(matches!(line.finish(), Err(CommandLineError::TooLong(_))));
    }
}
