//! Queues that the host's kernel serves. The kernel is a double here, which notes what it is told; the real one serves the hardware lane.

use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vmm_sys_util::eventfd::EventFd;

use super::{pairs::Several, *};

/// What the double was told.
#[derive(Default)]
struct Told {
    /// Of each start: features, positions of both queues, and the descriptor of the tap.
    starts: Vec<(u64, [u16; 2], RawFd)>,
    stops: usize,
    /// By which it tells of a broken ring.
    broken: Option<EventFd>,
}

struct Double {
    told: Arc<Mutex<Told>>,
    features: u64,
    starts: bool,
}

impl VhostPair for Double {
    fn features(&self) -> u64 {
        self.features
    }

    fn start(&mut self, with: &VhostQueues<'_>) -> io::Result<()> {
        if !self.starts {
            return Err(Errno::NOBUFS.into());
        }
        let mut told = self.told.lock().expect("whole");
        told.broken = Some(with.broken.try_clone().expect("a descriptor"));
        let [receive, transmit] = &with.rings;
        assert_eq!((receive.size, transmit.size), (QUEUE_SIZE, QUEUE_SIZE));
        told.starts.push((with.features, [receive.position, transmit.position], with.tap));
        Ok(())
    }

    fn stop(&mut self) -> io::Result<[u16; 2]> {
        self.told.lock().expect("whole").stops += 1;
        Ok([7, 9])
    }
}

const OF_VHOST: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | MRG | 1 << VIRTIO_RING_F_INDIRECT_DESC;

fn double() -> (Box<dyn VhostPair>, Arc<Mutex<Told>>) {
    let told = Arc::<Mutex<Told>>::default();
    (Box::new(Double { told: told.clone(), features: OF_VHOST, starts: true }), told)
}

fn activation(net: &Net, interrupt: &Arc<RecordedInterrupt>) -> Activation {
    let memory = driver::memory(MEMORY_LEN as usize);
    let queues = [0x1000, 0x4000].map(|base| DriverQueue::new(&memory, base, QUEUE_SIZE));
    driver::activation(&memory, net.traits().features, &[&queues[0], &queues[1]], interrupt)
}

#[test]
fn the_kernel_serves_from_activation_to_stop_and_tells_how_far_it_came() {
    let (backend, _host, seen) = wire();
    let tap = backend.as_raw_fd();
    let (vhost, told) = double();
    let mut net = Net::over_vhost(config(), vec![backend], vec![vhost]).expect("a device");
    let interrupt = RecordedInterrupt::new();
    net.activate(activation(&net, &interrupt)).expect("starts");
    let positions: Vec<_> = net.stop().iter().map(|state| state.next_avail).collect();
    assert_eq!(positions, [7, 9]);
    // Of the features only what is about queues; the tap knows of the others.
    assert_eq!(told.lock().expect("whole").starts, [(OF_VHOST, [0, 0], tap)]);
    assert_eq!(told.lock().expect("whole").stops, 1);
    let offloads = seen.offloads.lock().expect("whole").clone();
    assert_eq!(offloads, [offloads_of_all(), Offloads::default()]);
    // And once more: the next driver finds it as new.
    net.activate(activation(&net, &interrupt)).expect("starts");
    assert_eq!(net.stop().len(), 2);
    assert_eq!(told.lock().expect("whole").starts.len(), 2);
}

fn offloads_of_all() -> Offloads {
    Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, udp: false }
}

#[test]
fn a_kernel_that_knows_less_is_offered_less() {
    let (backend, _host, _) = wire();
    let features = OF_VHOST & !(1 << VIRTIO_RING_F_EVENT_IDX);
    let vhost = Box::new(Double { told: Arc::default(), features, starts: true });
    let net = Net::over_vhost(config(), vec![backend], vec![vhost]).expect("a device");
    assert!(!has(net.traits().features, VIRTIO_RING_F_EVENT_IDX) && has(net.traits().features, VIRTIO_NET_F_MRG_RXBUF));
}

#[test]
fn a_ring_that_the_kernel_cannot_make_sense_of_asks_for_a_reset() {
    let (backend, _host, _) = wire();
    let (vhost, told) = double();
    let mut net = Net::over_vhost(config(), vec![backend], vec![vhost]).expect("a device");
    let interrupt = RecordedInterrupt::new();
    net.activate(activation(&net, &interrupt)).expect("starts");
    told.lock().expect("whole").broken.as_ref().expect("told").write(1).expect("written");
    assert!(interrupt.wait_for_reset());
    assert!(interrupt.losses().is_empty(), "the guest's own fault");
    assert_eq!(net.stop().len(), 2);
    assert_eq!(told.lock().expect("whole").stops, 1);
}

#[test]
fn a_kernel_that_does_not_serve_is_an_error_with_the_devices_name_and_leaves_nothing_served() {
    let (backend, _host, _) = wire();
    let told = Arc::<Mutex<Told>>::default();
    let refusing = Box::new(Double { told: told.clone(), features: OF_VHOST, starts: false });
    let mut net = Net::over_vhost(config(), vec![backend], vec![refusing]).expect("a device");
    let error = net.activate(activation(&net, &RecordedInterrupt::new())).expect_err("refused");
    assert_eq!(error.to_string(), "device net0: vhost-net failed");
    assert_eq!(told.lock().expect("whole").stops, 1);
    assert!(net.stop().is_empty());
}

#[test]
fn a_tap_that_ends_takes_the_link_down_and_the_machine_lives_on() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let (vhost, _) = double();
    let mut net = Net::over_vhost(config(), vec![Box::new(Silent(reader))], vec![vhost]).expect("a device");
    let interrupt = RecordedInterrupt::new();
    net.activate(activation(&net, &interrupt)).expect("starts");
    assert_eq!(life::link_status(&net), 1);
    drop(writer);
    eventually("the link goes down", || interrupt.configs() == 1 && life::link_status(&net) == 0);
    assert!(interrupt.losses().is_empty() && !interrupt.reset_asked());
    assert_eq!(net.stop().len(), 2);
}

#[test]
fn what_the_kernel_says_of_a_tap_that_is_gone_is_no_fault_of_the_drivers() {
    for complains_first in [true, false] {
        let (reader, writer) = io::pipe().expect("a pipe");
        let (vhost, told) = double();
        let mut net = Net::over_vhost(config(), vec![Box::new(Silent(reader))], vec![vhost]).expect("a device");
        let interrupt = RecordedInterrupt::new();
        net.activate(activation(&net, &interrupt)).expect("starts");
        let broken = told.lock().expect("whole").broken.take().expect("told");
        if complains_first {
            // Both are there when the thread looks next: the pipe ends before the eventfd is written.
            drop(writer);
            broken.write(1).expect("written");
        } else {
            drop(writer);
            eventually("the link goes down", || life::link_status(&net) == 0);
            broken.write(1).expect("written");
        }
        eventually("the link goes down", || interrupt.configs() == 1 && life::link_status(&net) == 0);
        assert_eq!(net.stop().len(), 2);
        assert!(!interrupt.reset_asked() && interrupt.losses().is_empty());
    }
}

#[test]
fn the_driver_chooses_how_many_pairs_get_frames_from_the_kernel_too() {
    let (first, second) = (double(), double());
    let told = [first.1, second.1];
    let mut several = Several::of(|config, taps| Net::over_vhost(config, taps, vec![first.0, second.0]));
    for (command, answer) in [([4, 0, 2, 0], 0), ([4, 0, 3, 0], 1), ([4, 0, 1, 0], 0)] {
        assert_eq!(several.command(&command), answer, "{command:?}");
    }
    assert_eq!(several.net.stop().len(), 5);
    // Both pairs are served all the time; which of them gets frames is the tap's.
    assert_eq!(told.map(|told| told.lock().expect("whole").starts.len()), [1, 1]);
    assert_eq!(*several.seen[1].joined.lock().expect("whole"), [false, true, false]);
}

#[test]
fn each_pair_has_a_tap_and_a_vhost() {
    let of = |taps: usize, vhosts: usize| {
        let taps = (0..taps).map(|_| wire().0).collect();
        Net::over_vhost(config(), taps, (0..vhosts).map(|_| double().0).collect())
    };
    assert!(of(1, 1).is_ok());
    for (taps, vhosts) in [(1, 0), (0, 1), (2, 1), (1, 2), (2, 2)] {
        assert!(of(taps, vhosts).is_err(), "{taps} taps and {vhosts}");
    }
}
