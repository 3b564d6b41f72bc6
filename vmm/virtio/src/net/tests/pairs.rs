//! Several queue pairs, and the control queue by which the driver chooses among them.

use super::*;

/// Two pairs and a control queue.
pub(super) struct Several {
    pub(super) net: Net,
    memory: GuestMemoryMmap,
    queues: Vec<DriverQueue>,
    hosts: Vec<UnixDatagram>,
    pub(super) seen: Vec<Arc<Seen>>,
    interrupt: Arc<RecordedInterrupt>,
}

impl Several {
    fn new() -> Self {
        Self::of(Net::new)
    }

    /// A device with two pairs, made so.
    pub(super) fn of(make: impl FnOnce(NetConfig, Vec<Box<dyn NetBackend>>) -> io::Result<Net>) -> Self {
        let memory = driver::memory(MEMORY_LEN as usize);
        let queue = |index: u64, size| DriverQueue::new(&memory, 0x1000 + index * 0x3000, size);
        let mut queues: Vec<_> = (0..4).map(|index| queue(index, QUEUE_SIZE)).collect();
        queues.push(queue(4, CONTROL_QUEUE_SIZE));
        let (first, second) = (wire(), wire());
        let mut net = make(NetConfig { pairs: 2, ..config() }, vec![first.0, second.0]).expect("a device");
        let interrupt = RecordedInterrupt::new();
        let all: Vec<_> = queues.iter().collect();
        net.activate(driver::activation(&memory, net.traits().features, &all, &interrupt)).expect("starts");
        Self { net, memory, queues, hosts: vec![first.1, second.1], seen: vec![first.2, second.2], interrupt }
    }

    /// The answer to a control command.
    pub(super) fn command(&mut self, bytes: &[u8]) -> u8 {
        self.memory.write_slice(bytes, GuestAddress(OUT_AT)).expect("memory");
        self.memory.write_obj(0xffu8, GuestAddress(IN_AT)).expect("memory");
        assert_eq!(self.queues[4].call(&[out(OUT_AT, bytes.len() as u32), into(IN_AT, 1)]), 1);
        self.memory.read_obj(GuestAddress(IN_AT)).expect("memory")
    }
}

#[test]
fn the_driver_chooses_how_many_pairs_get_frames() {
    let mut several = Several::new();
    for index in 0..50 {
        several.queues[2].add(&[into(IN_AT + 0x1000 + index * 1536, 1536)]);
    }
    assert_eq!(several.command(&[4, 0, 2, 0]), 0);
    several.hosts[1].send(&with_header(NO_OFFLOAD, &ethernet(60, MAC))).expect("sent");
    assert_eq!(several.queues[2].wait_used(), [(0, 72)]);
    assert_eq!(several.command(&[4, 0, 1, 0]), 0);
    // A pair that is not used may still send: by the first tap.
    let frame = with_header(NO_OFFLOAD, &ethernet(60, MAC));
    several.memory.write_slice(&frame, GuestAddress(OUT_AT + 0x1000)).expect("memory");
    several.queues[3].call(&[out(OUT_AT + 0x1000, 72)]);
    assert_eq!(several.hosts[0].recv(&mut [0; 100]).expect("a frame"), 72);
    assert_eq!(several.net.stop().len(), 5);
    assert_eq!(*several.seen[1].joined.lock().expect("whole"), [false, true, false]);
    assert_eq!(*several.seen[0].joined.lock().expect("whole"), [true, true, true]);
}

#[test]
fn news_of_one_pair_that_waits_comes_with_that_of_another_which_does_not() {
    let mut several = Several::new();
    let send = |several: &mut Several, queue: usize, frame: &[u8]| {
        let at = OUT_AT + 0x2_0000 * queue as u64;
        several.memory.write_slice(frame, GuestAddress(at)).expect("memory");
        several.queues[queue].call(&[out(at, frame.len() as u32)]);
    };
    send(&mut several, 1, &with_header(NO_OFFLOAD, &ethernet(60, MAC)));
    send(&mut several, 3, &with_header(LARGE_TCP, &ethernet(30_000, MAC)));
    eventually("both queues are told of", || several.interrupt.signals() == 2);
    assert_eq!(several.interrupt.rings(), 1);
    several.net.stop();
}

#[test]
fn control_commands_that_were_not_offered_or_make_no_sense_are_errors() {
    let mut several = Several::new();
    let garbage: [&[u8]; 9] = [
        &[],
        &[4],
        &[4, 0, 1],
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 0xff, 0xff],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[1, 1, 2, 3, 4, 5, 6, 7],
    ];
    for bytes in garbage {
        assert_eq!(several.command(bytes), 1, "{bytes:?}");
    }
    // Nowhere to put an answer.
    several.queues[4].add(&[out(OUT_AT, 4)]);
    several.queues[4].kick();
    assert!(several.interrupt.wait_for_reset());
    several.net.stop();
}
