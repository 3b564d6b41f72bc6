//! The machine's two I/O ports: an output-only UART and the reset line of a keyboard controller.
//!
//! Linux prints to the UART before its virtio console lives (`earlyprintk`), and only then; it waits for "transmitter empty" and
//! writes one character. So three registers are enough, and nothing here can block, grow or interrupt. Source: 16550A data sheet;
//! Linux arch/x86/kernel/early_printk.c and reboot.c.

use std::{os::fd::OwnedFd, sync::Arc};

use vmm_virtio::ConsoleTail;

const UART_FIRST: u16 = 0x3f8;
const UART_LAST: u16 = 0x3ff;
const DATA: u16 = 0;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;
/// While set, the data register is the baud rate divisor.
const DIVISOR_ACCESS: u8 = 1 << 7;
/// Transmitter and its holding register empty.
const ALWAYS_EMPTY: u8 = 0x60;

const KEYBOARD_STATUS: u16 = 0x64;
/// Command that pulses the processor's reset line.
const PULSE_RESET: u8 = 0xfe;

/// Longest piece of a line that is held back until it is whole: the guest decides when a line ends.
const LINE_MAX: usize = 256;

/// What the guest asked for by a port write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortEvent {
    /// Restart or switch off: the machine ends.
    Reset,
}

/// All ports of the machine.
#[derive(Debug)]
pub struct Ports {
    output: OwnedFd,
    tail: Arc<ConsoleTail>,
    line_control: u8,
    line: Vec<u8>,
}

impl Ports {
    /// The UART's characters go to `output`, a non-blocking descriptor, as whole lines where they are short; what it does not take at once is
    /// dropped.
    pub fn new(output: OwnedFd, tail: Arc<ConsoleTail>) -> Self {
        Self { output, tail, line_control: 0, line: Vec::with_capacity(LINE_MAX) }
    }

    /// Answers a read. A port where nothing is reads as all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let [byte] = data else { return };
        *byte = match port {
            KEYBOARD_STATUS => 0,
            UART_FIRST..=UART_LAST => match port - UART_FIRST {
                LINE_CONTROL => self.line_control,
                LINE_STATUS => ALWAYS_EMPTY,
                _ => 0,
            },
            _ => 0xff,
        };
    }

    /// Takes a write. A port where nothing is swallows it.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<PortEvent> {
        // A string instruction (OUTSB) brings several bytes for one port.
        for byte in data {
            match port {
                KEYBOARD_STATUS if *byte == PULSE_RESET => return Some(PortEvent::Reset),
                UART_FIRST..=UART_LAST => self.write_uart(port - UART_FIRST, *byte),
                _ => {}
            }
        }
        None
    }

    fn write_uart(&mut self, register: u16, byte: u8) {
        match register {
            LINE_CONTROL => self.line_control = byte,
            DATA if self.line_control & DIVISOR_ACCESS == 0 => {
                self.line.push(byte);
                if byte == b'\n' || self.line.len() >= LINE_MAX {
                    self.flush();
                }
            }
            _ => {}
        }
    }

    /// Writes out a line that has not ended yet. For the machine's end: the last words of a guest may lack their newline.
    pub fn flush(&mut self) {
        if self.line.is_empty() {
            return;
        }
        self.tail.push(&self.line);
        let taken = rustix::io::write(&self.output, &self.line).unwrap_or(0);
        self.tail.count_dropped(self.line.len() - taken);
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn ports() -> (Ports, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        rustix::io::ioctl_fionbio(&writer, true).expect("a pipe");
        (Ports::new(writer.into(), Arc::new(ConsoleTail::new())), reader)
    }

    #[test]
    fn characters_come_out_and_the_divisor_does_not() {
        let (mut ports, mut reader) = ports();
        ports.write(0x3fb, &[0x80]);
        ports.write(0x3f8, &[12]);
        ports.write(0x3fb, &[3]);
        ports.write(0x3f8, b"early\n");
        ports.write(0x3f8, b"last words");
        ports.flush();
        drop(ports);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("a pipe");
        assert_eq!(text, "early\nlast words");
    }

    #[test]
    fn the_transmitter_is_always_ready() {
        let (ports, _reader) = ports();
        let mut status = [0];
        ports.read(0x3fd, &mut status);
        assert_eq!(status[0] & 0x20, 0x20);
    }

    #[test]
    fn only_the_reset_command_resets() {
        let (mut ports, _reader) = ports();
        assert_eq!(ports.write(0x64, &[0xaa]), None);
        assert_eq!(ports.write(0x60, &[0xfe]), None);
        assert_eq!(ports.write(0x64, &[0xfe]), Some(PortEvent::Reset));
    }

    #[test]
    fn any_port_and_width_is_answered() {
        let (mut ports, _reader) = ports();
        for port in 0..=u16::MAX {
            for width in [0, 1, 2, 4] {
                let mut data = [0; 4];
                ports.read(port, &mut data[..width]);
                ports.write(port, &[0x41; 4][..width]);
            }
        }
    }

    #[test]
    fn a_reader_that_does_not_read_never_stops_the_guest() {
        let (mut ports, _reader) = ports();
        for _ in 0..20_000 {
            ports.write(0x3f8, b"sixteen letters\n");
        }
    }
}
