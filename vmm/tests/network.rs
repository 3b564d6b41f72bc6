//! A real guest kernel on a real tap. Needs KVM of either kind, the guest kernel, mkfs.erofs, root and /dev/net/tun.
//!
//! The guest's init is this very test binary, see `rig/linux.rs`. Its machine's tap lies in a network namespace that the test makes.

mod rig;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use rig::{
    Machine, PATIENCE, Wanted, interface,
    linux::{as_init, booted, order, wanted},
    namespace::{GUEST, Namespace, namespace},
    sys,
};
use vmm_control::{Ending, FromMachine, Report, ToMachine, descriptors};

const MAC: [u8; 6] = [2, 0, 0, 9, 0, 2];
/// Where the guest sends every datagram back.
const ECHO_PORT: u16 = 7;
/// The largest datagram over IPv4.
const DATAGRAM_MAX: usize = 65507;
/// What one test moves by TCP.
const MIB: u64 = 64;
/// Most exits for one MiB in either direction: kicks, and one for each interrupt. Some 10 are usual; a kick and an interrupt for each frame
/// of 64 KiB, and as many for its acknowledgement, would be 60.
const EXITS_PER_MIB_MAX: u64 = 40;

/// Process 1 of the guest. Named on the kernel command line; ignored when the tests run.
#[test]
#[ignore = "runs in the guest"]
fn as_guest_init() {
    as_init(|order| {
        let words: Vec<_> = order.split(' ').collect();
        match words[..] {
            ["up"] => sys::bring_up("eth0", GUEST).map(|()| echo()).map_or_else(|e| e.to_string(), |()| "up".into()),
            ["link"] => sys::has_link("eth0").expect("eth0 is there").to_string(),
            ["look"] => look(),
            ["let", "go"] => let_go("eth0"),
            ["send", to, bytes] => send(&connected(to), bytes.parse().expect("a number")).to_string(),
            ["receive", from] => receive(&connected(from)).to_string(),
            _ => format!("no such order: {order}"),
        }
    });
}

/// Where Linux shows the places for devices, and binds its driver to them.
const PLACES: &str = "/sys/bus/platform/devices";
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// Looks at every place without a device once more; tells what network devices there are.
fn look() -> String {
    sys::mount_sys();
    for place in fs::read_dir(PLACES).expect("mounted").flatten() {
        let name = place.file_name().to_string_lossy().into_owned();
        if name.starts_with("virtio-mmio.") && !place.path().join("driver").exists() {
            // An empty place is ENODEV.
            let _ = fs::write(format!("{DRIVER}/bind"), name);
        }
    }
    let devices = fs::read_dir("/sys/class/net").expect("mounted").flatten();
    let told = devices.filter(|device| device.path().join("device").exists()).map(|device| {
        let fact = |name: &str| fs::read_to_string(device.path().join(name)).expect("a fact");
        let mac: Vec<u8> =
            fact("address").trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
        format!("{} {mac:02x?} {}", device.file_name().to_string_lossy(), fact("mtu").trim())
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Takes the driver from the interface's place.
fn let_go(interface: &str) -> String {
    sys::mount_sys();
    let device = fs::canonicalize(format!("/sys/class/net/{interface}/device")).expect("a device");
    let place = device.parent().and_then(|place| place.file_name()).expect("in a place");
    fs::write(format!("{DRIVER}/unbind"), place.as_encoded_bytes()).map_or_else(|e| e.to_string(), |()| String::new())
}

/// Sends every datagram back where it came from.
fn echo() {
    // It answers already when the interface is a second one.
    let Ok(socket) = UdpSocket::bind((GUEST, ECHO_PORT)) else { return };
    std::thread::spawn(move || {
        let mut datagram = vec![0; DATAGRAM_MAX];
        loop {
            let (len, from) = socket.recv_from(&mut datagram).expect("a datagram");
            socket.send_to(&datagram[..len], from).expect("sent");
        }
    });
}

fn connected(to: &str) -> TcpStream {
    TcpStream::connect(to.parse::<SocketAddr>().expect("an address")).expect("the host listens")
}

/// A byte of the stream that both sides agree on.
fn byte_at(position: u64) -> u8 {
    (position / 61 % 251) as u8
}

fn send(mut stream: &TcpStream, bytes: u64) -> u64 {
    let mut sent = 0;
    while sent < bytes {
        let part: Vec<u8> = (sent..bytes.min(sent + (256 << 10))).map(byte_at).collect();
        stream.write_all(&part).expect("connected");
        sent += part.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).expect("connected");
    sent
}

/// How many bytes came, all of them right.
fn receive(mut stream: &TcpStream) -> u64 {
    let (mut part, mut received) = (vec![0; 256 << 10], 0);
    loop {
        let len = stream.read(&mut part).expect("connected");
        if len == 0 {
            return received;
        }
        let wrong = (received..).zip(&part[..len]).find(|(position, byte)| byte_at(*position) != **byte);
        assert_eq!(wrong, None, "a byte is not what was sent");
        received += len as u64;
    }
}

/// A machine whose eth0 is up, and the host's side; or a skip.
fn networked(test: &str, queues: usize) -> Option<(Machine, Namespace)> {
    let (kvm, wanted) = wanted(test)?;
    let (namespace, taps) = namespace(test, queues)?;
    let vcpus = u8::try_from(queues).expect("a few");
    let machine = booted(kvm, Wanted { vcpus, network: Some((taps, MAC)), ..wanted });
    assert_eq!(order(&machine.call, "up"), "up");
    Some((machine, namespace))
}

#[test]
fn datagrams_of_all_sizes_go_to_the_guest_and_back() {
    let Some((mut machine, host)) = networked("datagrams_of_all_sizes_go_to_the_guest_and_back", 1) else { return };
    assert_eq!(order(&machine.call, "link"), "true");
    for len in [0, 1, 1472, 1473, 20_000, DATAGRAM_MAX] {
        let datagram: Vec<u8> = (0..len as u64).map(byte_at).collect();
        host.udp.send_to(&datagram, (GUEST, ECHO_PORT)).expect("sent");
        let mut back = vec![0; DATAGRAM_MAX];
        let (received, from) = host.udp.recv_from(&mut back).unwrap_or_else(|error| panic!("{len} bytes: {error}"));
        assert_eq!((from.ip(), from.port(), received), (GUEST.into(), ECHO_PORT, len));
        assert!(back[..len] == datagram, "{len} bytes come back as others");
    }
    let figures = machine.report().networks[0];
    assert!(figures.sent_bytes > DATAGRAM_MAX as u64 && figures.received_bytes > DATAGRAM_MAX as u64, "{figures:?}");
    assert_eq!((figures.dropped_malformed, figures.dropped_unfit, figures.dropped_full), (0, 0, 0), "{figures:?}");
}

#[test]
fn a_device_comes_into_an_empty_place_and_goes_and_another_comes() {
    let test = "a_device_comes_into_an_empty_place_and_goes_and_another_comes";
    let (Some((kvm, wanted)), Some((host, taps))) = (wanted(test), namespace(test, 1)) else { return };
    let mut machine = booted(kvm, Wanted { network_places: 1, ..wanted });
    assert_eq!(order(&machine.call, "look"), "", "an empty place is no device");
    for _ in 0..2 {
        assert_eq!(attach(&mut machine, MAC, &taps), None);
        let taken = attach(&mut machine, MAC, &taps).expect("refused");
        assert!(taken.contains("place 0 already"), "{taken}");
        assert_eq!(order(&machine.call, "look"), format!("eth0 {MAC:02x?} 1500"));
        assert_eq!(order(&machine.call, "up"), "up");
        host.udp.send_to(b"late", (GUEST, ECHO_PORT)).expect("sent");
        assert_eq!(host.udp.recv(&mut [0; 9]).expect("an echo"), 4);
        assert!(machine.report().networks[0].received_frames > 0);

        assert_eq!(order(&machine.call, "let go"), "");
        assert_eq!(detach(&mut machine, 0), None);
        assert_eq!(order(&machine.call, "look"), "");
        assert!(detach(&mut machine, 0).expect("refused").contains("no network device is in place 0"));
    }
    assert!(detach(&mut machine, 1).expect("refused").contains("no place 1"));
}

// What the guest's driver then reads and writes is nobody's, and the rest of the machine goes on.
#[test]
fn a_device_that_is_taken_from_under_its_driver_hurts_nobody() {
    let test = "a_device_that_is_taken_from_under_its_driver_hurts_nobody";
    let Some((mut machine, host)) = networked(test, 1) else { return };
    assert_eq!(detach(&mut machine, 0), None);
    let lost = host.udp.send_to(b"lost", (GUEST, ECHO_PORT)).expect_err("the tap has gone with its device");
    assert_eq!(lost.kind(), std::io::ErrorKind::NetworkUnreachable);
    assert_eq!(order(&machine.call, "let go"), "");
    machine.send(&ToMachine::Stop);
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::Stopped));
}

fn attach(machine: &mut Machine, mac: [u8; 6], taps: &[OwnedFd]) -> Option<String> {
    machine.send(&ToMachine::AttachNetwork { place: 0, taps: taps.len(), vhosts: 0, interface: interface(mac) });
    let taps: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
    descriptors::send(&machine.control, &taps).expect("the VMM reads");
    changed(machine, 0)
}

fn detach(machine: &mut Machine, place: usize) -> Option<String> {
    machine.send(&ToMachine::DetachNetwork { place });
    changed(machine, place)
}

/// Why a place was not changed.
fn changed(machine: &mut Machine, wanted: usize) -> Option<String> {
    match machine.receive() {
        FromMachine::NetworkChanged { place, failure } if place == wanted => failure,
        other => panic!("{other:?}"),
    }
}

/// Waits until the guest sees its link so: the news goes by an interrupt, and the answer by another device.
fn link_becomes(machine: &Machine, up: bool) {
    let deadline = Instant::now() + PATIENCE;
    while order(&machine.call, "link") != up.to_string() {
        assert!(Instant::now() < deadline, "the link never becomes {up}");
    }
}

// The guest uses as many pairs as it has processors: one on software KVM. Frames of no flow may go to a queue that is not looked at.
#[test]
fn a_tap_of_several_queues_loses_no_flow() {
    let Some((mut machine, host)) = networked("a_tap_of_several_queues_loses_no_flow", 3) else { return };
    for _ in 0..20 {
        let (listener, address) = (host.tcp.try_clone().expect("a descriptor"), host.tcp.local_addr().expect("bound"));
        let theirs = std::thread::spawn(move || receive(&listener.accept().expect("the guest connects").0));
        assert_eq!(order(&machine.call, &format!("send {address} 100000")), "100000");
        assert_eq!(theirs.join().expect("the host's side"), 100_000);
    }
    let figures = machine.report().networks[0];
    assert_eq!((figures.dropped_link, figures.dropped_full), (0, 0), "{figures:?}");
    assert_eq!(order(&machine.call, "link"), "true");
}

/// Exits between two reports that the network is to blame for: kicks, and what the driver does at an interrupt.
fn exits_between(before: &Report, after: &Report) -> u64 {
    let registers =
        |report: &Report| ["mmio_write", "acknowledged"].iter().filter_map(|name| report.exits.get(*name)).sum::<u64>();
    let kicks = after.networks[0].kicks - before.networks[0].kicks;
    registers(after) - registers(before) + kicks
}

#[test]
fn a_stream_passes_both_ways_in_large_frames_and_few_exits() {
    let Some((mut machine, host)) = networked("a_stream_passes_both_ways_in_large_frames_and_few_exits", 1) else {
        return;
    };
    let address = host.tcp.local_addr().expect("an address");
    let bytes = MIB << 20;
    for guest_sends in [true, false] {
        let before = machine.report();
        let began = Instant::now();
        let listener = host.tcp.try_clone().expect("a descriptor");
        let theirs = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("the guest connects");
            stream.set_read_timeout(Some(PATIENCE)).expect("a time");
            if guest_sends { receive(&stream) } else { send(&stream, bytes) }
        });
        let words = if guest_sends { format!("send {address} {bytes}") } else { format!("receive {address}") };
        assert_eq!(order(&machine.call, &words), bytes.to_string());
        assert_eq!(theirs.join().expect("the host's side"), bytes);
        let (took, after) = (began.elapsed(), machine.report());
        let (old, new) = (before.networks[0], after.networks[0]);
        let (frames, payload) = match guest_sends {
            true => (new.sent_frames - old.sent_frames, new.sent_bytes - old.sent_bytes),
            false => (new.received_frames - old.received_frames, new.received_bytes - old.received_bytes),
        };
        let per_mib = exits_between(&before, &after) / MIB;
        let figures = format!(
            "guest sends: {guest_sends}; {MIB} MiB in {took:?}, frames of {} bytes, {per_mib} exits a MiB; {old:?} -> {new:?}",
            payload / frames
        );
        println!("{figures}");
        assert!(payload / frames > 4 * 1500, "{figures}");
        assert!(per_mib <= EXITS_PER_MIB_MAX, "{figures}");
    }
}

#[test]
fn a_guest_whose_tap_is_removed_loses_its_link_and_nothing_else() {
    let test = "a_guest_whose_tap_is_removed_loses_its_link_and_nothing_else";
    let Some((mut machine, host)) = networked(test, 1) else { return };
    assert_eq!(order(&machine.call, "link"), "true");
    host.remove_tap();
    link_becomes(&machine, false);
    machine.send(&ToMachine::Stop);
    assert_eq!(machine.receive(), FromMachine::Ended(Ending::Stopped));
}
