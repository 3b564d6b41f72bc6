//! The registers as Linux uses them, and as a villain does.

use std::sync::Mutex;

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;

use super::*;
use crate::device::{ActivateError, Interrupt};

const VERSION_1: u64 = 1 << 32;
const FEATURES: u64 = VERSION_1 | 1 << 29 | 1;
const QUEUES: [u16; 2] = [16, 8];
const CONFIG: [u8; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

/// What a test sees of the device inside.
#[derive(Default)]
struct Seen {
    activations: Vec<Activation>,
    config_writes: Vec<(u32, Vec<u8>)>,
    stops: u32,
    refuses: bool,
}

struct Probe(Arc<Mutex<Seen>>);

impl Probe {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().expect("one thread")
    }
}

impl VirtioDevice for Probe {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            device_type: 42,
            features: FEATURES,
            queue_sizes: QUEUES.to_vec(),
            config_len: CONFIG.len() as u32,
            name: "probe".into(),
        }
    }
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        crate::config::read_bytes(&CONFIG, offset, data);
    }
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.seen().config_writes.push((offset, data.to_vec()));
    }
    fn activate(&mut self, with: Activation) -> Result<(), ActivateError> {
        if self.seen().refuses {
            return Err(ActivateError::Server { device: "probe".into(), message: "no".into() });
        }
        self.seen().activations.push(with);
        Ok(())
    }
    fn stop(&mut self) -> Vec<QueueState> {
        self.seen().stops += 1;
        Vec::new()
    }
}

/// Where the window is.
const WINDOW: u64 = 0xd000_0000;

struct Bench {
    transport: MmioTransport,
    window: Window,
    seen: Arc<Mutex<Seen>>,
    line: EventFd,
}

impl Bench {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).expect("memory");
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("eventfd");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let device = Box::new(Probe(seen.clone()));
        let pages = GuestMemoryMmap::from_ranges(&[(GuestAddress(WINDOW), 0x1000)]).expect("memory");
        let window = Window::new(pages, WINDOW).expect("a page");
        let irq = line.try_clone().expect("eventfd");
        let transport = MmioTransport::new(device, memory, irq, window.clone()).expect("transport");
        transport.publish();
        Self { transport, window, seen, line }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("one thread")
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.window.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) -> Option<TransportEvent> {
        self.transport.write(offset, &value.to_le_bytes())
    }

    /// Acts like Linux up to and with the status `last`.
    fn drive_to(&mut self, last: u8) -> Option<TransportEvent> {
        let mut event = self.write(0x70, 0);
        for status in [1u8, 3, 11, 15].into_iter().take_while(|status| *status <= last) {
            match status {
                11 => self.choose(FEATURES),
                15 => (0..QUEUES.len() as u32).for_each(|queue| self.place_queue(queue)),
                _ => (),
            }
            event = self.write(0x70, u32::from(status));
        }
        event
    }

    fn choose(&mut self, features: u64) {
        for (select, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, select);
            self.write(0x20, word);
        }
    }

    fn place_queue(&mut self, queue: u32) {
        let base = 0x1000 + queue * 0x3000;
        for (offset, value) in [
            (0x30, queue),
            (0x38, 8),
            (0x80, base),
            (0x84, 0),
            (0x90, base + 0x1000),
            (0x94, 0),
            (0xa0, base + 0x2000),
            (0xa4, 0),
            (0x44, 1),
        ] {
            self.write(offset, value);
        }
    }

    fn rung(&self) -> bool {
        self.line.read().is_ok()
    }
}

#[test]
fn a_driver_finds_the_device_and_drives_it() {
    let mut bench = Bench::new();
    assert_eq!([0, 4, 8, 12].map(|offset| bench.read(offset)), [0x7472_6976, 2, 42, VENDOR]);
    bench.write(0x14, 1);
    assert_eq!(bench.read(0x10), 1);
    bench.write(0x14, 0);
    assert_eq!(bench.read(0x10), FEATURES as u32);
    bench.write(0x14, 2);
    assert_eq!(bench.read(0x10), 0);
    assert_eq!(bench.drive_to(15), Some(TransportEvent::DriverOk));
    assert_eq!(bench.read(0x70), 15);
    let seen = bench.seen();
    let active = &seen.activations[0];
    assert_eq!(active.features, FEATURES);
    let queues: Vec<_> = active.queues.iter().map(|active| (active.queue.size(), active.queue.desc_table())).collect();
    assert_eq!(queues, [(8, 0x1000), (8, 0x4000)]);
    assert!(active.queues.iter().all(|active| active.queue.ready() && active.queue.event_idx_enabled()));
}

#[test]
fn queues_that_do_not_exist_read_as_zero() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(0x34), 16);
    for select in [2, 3, u32::MAX] {
        bench.write(0x30, select);
        assert_eq!((bench.read(0x34), bench.read(0x44)), (0, 0));
    }
}

#[test]
fn there_is_no_shared_memory() {
    let mut bench = Bench::new();
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(bench.read(offset), u32::MAX);
    }
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for features in [0, 1, FEATURES | 2, FEATURES | 1 << 33, u64::MAX] {
        let mut bench = Bench::new();
        bench.drive_to(3);
        bench.choose(features);
        bench.write(0x70, 11);
        assert_eq!(bench.read(0x70), 3, "{features:#x}");
        assert_eq!(bench.write(0x70, 15), None);
        assert!(bench.seen().activations.is_empty());
    }
}

#[test]
fn features_are_frozen_once_they_are_agreed() {
    let mut bench = Bench::new();
    bench.drive_to(11);
    bench.choose(0);
    (0..2).for_each(|queue| bench.place_queue(queue));
    bench.write(0x70, 15);
    assert_eq!(bench.seen().activations[0].features, FEATURES);
}

// what is configured cannot be changed under a device that runs, nor before its time.
#[test]
fn queue_registers_are_open_only_between_features_ok_and_driver_ok() {
    for status in [0, 1, 3, 15] {
        let mut bench = Bench::new();
        bench.drive_to(status);
        let before = bench.transport.queues.clone();
        for queue in 0..3 {
            bench.write(0x30, queue);
            for offset in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
                for value in [0, 1, 4, 0x8000, u32::MAX] {
                    bench.write(offset, value);
                }
            }
        }
        assert_eq!(bench.transport.queues, before, "status {status}");
    }
}

#[test]
fn a_device_with_a_queue_that_is_not_ready_needs_a_reset_and_recovers_by_it() {
    let mut bench = Bench::new();
    bench.drive_to(11);
    bench.place_queue(0);
    assert_eq!(bench.write(0x70, 15), Some(TransportEvent::Failed));
    assert_eq!(bench.read(0x70), 15 | 64);
    assert_eq!(bench.read(0x60), 2);
    assert!(bench.rung());
    assert_eq!(bench.drive_to(15), Some(TransportEvent::DriverOk));
    assert_eq!((bench.read(0x70), bench.read(0x60)), (15, 0));
}

#[test]
fn a_device_that_does_not_start_needs_a_reset() {
    let mut bench = Bench::new();
    bench.seen().refuses = true;
    assert_eq!(bench.drive_to(15), Some(TransportEvent::Failed));
    assert_eq!(bench.read(0x70), 15 | 64);
}

#[test]
fn a_reset_stops_the_device_and_forgets_everything() {
    let mut bench = Bench::new();
    bench.drive_to(15);
    bench.transport.interrupt.signal_queue(0);
    assert_eq!(bench.write(0x70, 0), Some(TransportEvent::Reset));
    let fresh = Bench::new();
    assert_eq!(bench.transport.queues, fresh.transport.queues);
    assert_eq!((bench.read(0x70), bench.read(0x60), bench.transport.driver_features), (0, 0, 0));
    assert_eq!((bench.read(0x08), bench.read(0x34), bench.read(0x44)), (42, 16, 0));
    assert_eq!(bench.seen().stops, 2);
}

#[test]
fn a_driver_that_gives_up_is_reported_and_reset_is_the_only_way_on() {
    let mut bench = Bench::new();
    bench.drive_to(3);
    assert_eq!(bench.write(0x70, 3 | 128), Some(TransportEvent::Failed));
    assert_eq!(bench.write(0x70, 11 | 128), None);
    assert_eq!(bench.read(0x70), 3 | 128);
    assert_eq!(bench.write(0x70, 0), Some(TransportEvent::Reset));
}

#[test]
fn interrupts_set_bits_of_which_an_acknowledgement_clears_that_of_the_configuration() {
    let mut bench = Bench::new();
    let interrupt = bench.transport.interrupt.clone();
    interrupt.signal_config(2, 0x0908);
    assert!(bench.rung());
    interrupt.signal_queue(1);
    assert_eq!((bench.read(0x60), bench.read(0xfc)), (3, 1));
    bench.write(0x64, 1);
    assert_eq!(bench.read(0x60), 3, "as if KVM had answered");
    bench.write(0x64, u32::MAX);
    assert_eq!(bench.read(0x60), 1);
    interrupt.signal_queues(&[0, 1]);
    assert_eq!(bench.line.read().expect("rung twice before"), 2);
}

#[test]
fn a_foreign_signaller_makes_every_status_read_say_used_buffer_until_reset() {
    let mut bench = Bench::new();
    let line = bench.transport.interrupt.queue_eventfd().expect("eventfd");
    line.write(1).expect("ring");
    assert!(bench.rung());
    bench.write(0x64, 1);
    assert_eq!(bench.read(0x60), 1);
    bench.write(0x70, 0);
    assert_eq!(bench.read(0x60), 0);
}

#[test]
fn a_field_that_changes_is_seen_at_once_and_a_reset_reads_what_the_device_has() {
    let mut bench = Bench::new();
    bench.drive_to(15);
    let interrupt = bench.seen().activations[0].interrupt.clone();
    interrupt.signal_config(4, 0xbbaa);
    assert_eq!(bench.read(0x104), 0x0807_bbaa);
    bench.write(0x70, 0);
    assert_eq!((bench.read(0x104), bench.read(0xfc)), (0x0807_0605, 1));
}

#[test]
fn a_place_shows_a_placeholder_until_the_device_can_be_driven() {
    let Bench { transport, window, .. } = Bench::new();
    drop(transport);
    let (memory, line) = (GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]), EventFd::new(EFD_CLOEXEC));
    let device = Box::new(Probe(Arc::default()));
    let next = MmioTransport::new(device, memory.expect("memory"), line.expect("eventfd"), window.clone());
    let next = next.expect("transport");
    assert_eq!(window.get(Shown::DeviceType), 0);
    next.publish();
    assert_eq!((window.get(Shown::DeviceType), window.get(Shown::Vendor)), (42, VENDOR));
}

#[test]
fn a_device_that_has_gone_leaves_a_placeholder() {
    let mut bench = Bench::new();
    bench.drive_to(15);
    bench.seen().activations[0].interrupt.signal_queue(0);
    let Bench { transport, window, .. } = bench;
    drop(transport);
    let mut all = [0; 0x1000];
    window.read(0, &mut all);
    assert!(all.starts_with(b"virt\x02\0\0\0\0") && all[8..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_device_that_is_lost_is_told_to_driver_and_machine() {
    let mut bench = Bench::new();
    let (lost, losses) = std::sync::mpsc::channel();
    bench.transport.on_lost(Box::new(move |cause| lost.send(cause.to_owned()).expect("the test listens")));
    bench.drive_to(15);
    let interrupt = bench.seen().activations[0].interrupt.clone();
    interrupt.lost("the host is out of memory");
    assert_eq!(losses.try_iter().collect::<Vec<_>>(), ["the host is out of memory"]);
    assert_eq!((bench.read(0x70), bench.read(0x60)), (15 | 64, 2));
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_and_the_machine_is_not() {
    let mut bench = Bench::new();
    bench.transport.on_lost(Box::new(|cause| panic!("told the machine: {cause}")));
    bench.drive_to(15);
    let interrupt = bench.seen().activations[0].interrupt.clone();
    interrupt.needs_reset();
    assert_eq!((bench.read(0x70), bench.read(0x60)), (15 | 64, 2));
}

#[test]
fn a_kick_through_the_register_reaches_the_same_eventfd_once_the_device_is_driven() {
    let mut bench = Bench::new();
    let kicked = |bench: &Bench, queue| bench.transport.notify_eventfd(queue).map(|kick| kick.read().is_ok());
    bench.write(0x50, 1);
    assert_eq!(kicked(&bench, 1), Some(false));
    bench.drive_to(15);
    for queue in [1, 2, 0x1_0001, u32::MAX] {
        bench.write(0x50, queue);
    }
    assert_eq!((kicked(&bench, 0), kicked(&bench, 1), kicked(&bench, 2)), (Some(false), Some(true), None));
    assert_eq!(bench.transport.notify_eventfds().len(), 2);
}

#[test]
fn configuration_space_takes_all_widths_and_ends_in_zeros() {
    let mut bench = Bench::new();
    let read = |bench: &mut Bench, offset, len| {
        let mut data = vec![0xff; len];
        bench.window.read(offset, &mut data);
        data
    };
    assert_eq!(read(&mut bench, 0x100, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(read(&mut bench, 0x102, 2), [3, 4]);
    assert_eq!(read(&mut bench, 0x108, 4), [9, 10, 0, 0]);
    assert_eq!(read(&mut bench, 0x10c, 4), [0; 4]);
    bench.transport.write(0x104, &[1]);
    assert!(bench.seen().config_writes.is_empty(), "nobody drives it yet");
    bench.drive_to(3);
    bench.transport.write(0x104, &[1]);
    bench.transport.write(0x10c, &[1]);
    assert_eq!(bench.seen().config_writes, [(4, vec![1])]);
}

/// Registers that read as something else than zero: all others are reserved or write-only.
const READ: [u64; 14] = [0, 4, 8, 0xc, 0x10, 0x34, 0x44, 0x60, 0x70, 0xb0, 0xb4, 0xb8, 0xbc, 0xfc];

// every offset, every width, in every state, with telling values: nothing but the documented registers does anything.
#[test]
fn no_access_to_anything_else_than_a_register_does_anything() {
    for status in [0, 1, 3, 11, 15] {
        let mut bench = Bench::new();
        bench.drive_to(status);
        for offset in 0..0x1000u64 {
            for width in [0, 1, 2, 3, 4, 8] {
                let config = offset >= 0x100 && matches!(Register::decode(offset, width), Register::Config { .. });
                let known = config || !matches!(Register::decode(offset, width), Register::Nothing);
                for value in [0u8, 1, 0xff].into_iter().take_while(|_| !known) {
                    assert_eq!(bench.transport.write(offset, &vec![value; width]), None);
                }
            }
        }
        for offset in (0..0x100).step_by(4).filter(|offset| !READ.contains(offset)) {
            assert_eq!(bench.read(offset), 0, "{offset:#x}");
        }
        assert_eq!(bench.read(0x70), u32::from(status));
        assert_eq!(bench.seen().activations.len(), usize::from(status == 15));
    }
}

proptest! {
    // A villain's writes in any order: no panic; the device is only ever started from a legal place, with the features
    // it offered and queues that lie in memory.
    #[test]
    fn random_writes_never_start_a_device_wrongly(start in prop::sample::select(vec![0u8, 3, 11, 15]),
                                                  writes in prop::collection::vec((0u64..0x110, any::<u8>(), any::<u32>()), 0..300)) {
        let mut bench = Bench::new();
        bench.drive_to(start);
        for (offset, choice, value) in writes {
            let value = match choice % 8 {
                0 => 0, 1 => 1, 2 => 15, 3 => 11, 4 => 0x2000, 5 => 8, _ => value,
            };
            let offset = if choice >= 64 { offset & !3 } else { offset };
            bench.write(offset, value);
            bench.read(offset);
        }
        for active in &bench.seen().activations {
            prop_assert_eq!(active.features & !FEATURES, 0);
            prop_assert!(active.features & VERSION_1 != 0);
            prop_assert!(active.queues.iter().all(|active| active.queue.is_valid(&bench.transport.memory)));
        }
    }
}
