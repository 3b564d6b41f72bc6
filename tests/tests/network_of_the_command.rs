//! `kata-rs run --net` and `--publish`. The host's network is a namespace of the test's own, and the world behind it another one.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard},
    thread,
    time::Duration,
};

use tests::{Finished, NetworkNamespace, Residue, command, needs, prefix, run};

/// Addresses of the host in its network, and of the world.
const HOST: &str = "203.0.113.2";
const WORLD: &str = "203.0.113.1";
const WORLD_V6: &str = "2001:db8::1";
/// Longest that a network may take for one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Counting what is left behind allows nothing beside it.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A host with one way out, and the world at its other end.
struct Net {
    host: NetworkNamespace,
    world: NetworkNamespace,
}

impl Net {
    fn new() -> Self {
        let net = Self { host: NetworkNamespace::new().expect("made"), world: NetworkNamespace::new().expect("made") };
        let ip = |namespace: &NetworkNamespace, words: &str| namespace.ip(words).expect("taken");
        ip(&net.host, &format!("link add out0 type veth peer name in0 netns {}", net.world.path().display()));
        for (namespace, name, v4, v6) in
            [(&net.host, "out0", HOST, "2001:db8::2"), (&net.world, "in0", WORLD, WORLD_V6)]
        {
            ip(namespace, &format!("link set {name} up"));
            ip(namespace, &format!("address add {v4}/24 dev {name}"));
            ip(namespace, &format!("address add {v6}/64 dev {name} nodad"));
        }
        ip(&net.host, &format!("route add default via {WORLD}"));
        ip(&net.host, &format!("-6 route add default via {WORLD_V6}"));
        net
    }

    /// All that could be left in the host's network.
    fn all_there_is(&self) -> String {
        let ip = |words: &str| self.host.ip(words).expect("told");
        let by_iproute2 =
            ["-4 -o address", "-6 -o address show scope global", "route", "-6 route", "rule"].map(ip).concat();
        // Without their states, which change by themselves.
        let links = ip("-o link");
        let names: String = links.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        let iptables = self.host.run(|| run(Command::new("iptables-save").arg("-c").stdin(Stdio::null()))).stdout;
        by_iproute2.replace(" linkdown", "") + &names + &iptables
    }

    fn run(&self, flags: &[&str], line: &str) -> Finished {
        self.host.run(|| run(kata_rs(flags, "busybox", &["sh", "-c", line]).stdin(Stdio::null())))
    }

    /// A container that has said `ready`.
    fn ready(&self, flags: &[&str], image: &str, words: &[&str]) -> Running {
        let mut command = kata_rs(flags, image, words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut running = Running(self.host.run(|| command.spawn()).expect("starts"));
        let mut word = String::new();
        BufReader::new(running.0.stdout.take().expect("asked for")).read_line(&mut word).expect("a line");
        assert_eq!(word, "ready\n");
        running
    }

    /// A container whose web server says this at its port 80.
    fn serving(&self, flags: &[&str], page: &str) -> Running {
        let line =
            format!("mkdir /www; echo {page} > /www/index.html; httpd -p 80 -h /www; echo ready; exec sleep 1000");
        self.ready(flags, "busybox", &["sh", "-c", &line])
    }
}

fn kata_rs(flags: &[&str], image: &str, words: &[&str]) -> Command {
    let mut command = Command::new(prefix::bin("kata-rs"));
    command.arg("run").args(flags).arg(prefix::image(image)).args(words);
    command
}

/// A command whose container sleeps: no signal handler of its own is PID 1's, so it takes SIGKILL. It ends with the value, however the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says `heard` and the line, to each caller.
fn answer(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a caller");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a line");
            stream.write_all(format!("heard {line}").as_bytes()).expect("taken");
        }
    });
}

fn page(at: impl ToSocketAddrs) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Processes of passt that a command of ours started.
fn passts() -> usize {
    let is_one = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains("fd6b:6174:6100::2")
    };
    fs::read_dir("/proc").expect("there").flatten().filter(is_one).count()
}

#[test]
fn a_container_reaches_the_world_and_not_the_loopback_of_its_host() {
    needs!(Kvm, Root, Stage, Program("passt"), Program("ip"), Program("iptables-save"));
    let _alone = alone();
    let net = Net::new();
    let (before, before_in_network) = (Residue::now(), net.all_there_is());
    net.world.run(|| answer(TcpListener::bind("[::]:7000").expect("bound")));
    net.host.run(|| answer(TcpListener::bind("127.0.0.1:7001").expect("bound")));
    // A client that closes its side at once is not told the end of what it hears by this passt: see the page.
    let line = format!(
        "for place in '{WORLD} 7000' '{WORLD_V6} 7000'; do (echo $place; sleep 0.5) | timeout 20 nc $place; done; echo x | timeout 1 nc 10.170.85.1 7001"
    );
    let finished = net.run(&["--net"], &line);
    assert_eq!(finished.stdout, format!("heard {WORLD} 7000\nheard {WORLD_V6} 7000\n"), "{}", finished.stderr);
    assert!(finished.stderr.contains("network by passt"), "{}", finished.stderr);
    assert_eq!((net.all_there_is(), passts()), (before_in_network, 0));
    before.assert_nothing_new();
}

#[test]
fn without_the_flag_there_is_loopback_only() {
    needs!(Kvm, Root, Stage, Program("ip"));
    let _alone = alone();
    let finished = Net::new().run(&[], "ls /sys/class/net");
    assert_eq!(finished.success(), "lo\n");
}

#[test]
fn published_ports_lead_into_their_containers_two_at_once() {
    needs!(Kvm, Root, Stage, Program("passt"), Program("ip"), Program("iptables-save"));
    let _alone = alone();
    let net = Net::new();
    let before_in_network = net.all_there_is();
    let first = net.serving(&["-p", "8080:80"], "first");
    let second = net.serving(&["-p", "127.0.0.1:81:80"], "second");
    let of = |namespace: &NetworkNamespace, at: (&str, u16)| namespace.run(|| page(at));
    for at in [("127.0.0.1", 8080), ("::1", 8080), (HOST, 8080)] {
        let page = of(&net.host, at).unwrap_or_else(|error| panic!("{at:?}: {error}"));
        assert!(page.contains("first"), "{at:?}: {page}");
    }
    for at in [(HOST, 8080), ("2001:db8::2", 8080)] {
        let page = of(&net.world, at).unwrap_or_else(|error| panic!("{at:?}: {error}"));
        assert!(page.contains("first"), "{at:?}: {page}");
    }
    assert!(of(&net.host, ("127.0.0.1", 81)).expect("a page").contains("second"));
    assert!(of(&net.world, (HOST, 81)).is_err(), "published at the loopback only");

    let third = net.run(&["-p", "8080:80"], "true");
    assert_eq!(third.code(), 125);
    assert!(third.stderr.contains("port 8080 of the host is in use"), "{}", third.stderr);

    drop((first, second));
    net.run(&[], "true").success();
    assert_eq!((net.all_there_is(), passts()), (before_in_network, 0));
}

#[test]
fn a_published_port_of_udp_leads_into_the_container() {
    needs!(Kvm, Root, Stage, Program("passt"), Program("ip"));
    let _alone = alone();
    let net = Net::new();
    let program = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('', 53))\n\
                   print('ready', flush=True)\nwhile True:\n  data, who = s.recvfrom(2000)\n  s.sendto(b'heard ' + data, who)\n";
    let child = net.ready(&["-p", "5353:53/udp"], "python", &["python3", "-c", program]);
    let socket = net.world.run(|| UdpSocket::bind((WORLD, 0)).expect("bound"));
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket.send_to(b"hello", (HOST, 5353)).expect("sent");
    let mut answer = [0; 64];
    let (count, from) = socket.recv_from(&mut answer).expect("an answer");
    assert_eq!((&answer[..count], from.to_string()), (&b"heard hello"[..], format!("{HOST}:5353")));
    drop(child);
    net.run(&[], "true").success();
}

#[test]
fn a_killed_command_leaves_no_network_after_the_next_one() {
    needs!(Kvm, Root, Stage, Program("passt"), Program("ip"), Program("iptables-save"));
    let _alone = alone();
    let net = Net::new();
    let (before, before_in_network) = (Residue::now(), net.all_there_is());
    drop(net.serving(&["--net", "-p", "8080:80"], "gone"));
    net.run(&["--net", "-p", "8080:80"], "true").success();
    assert_eq!((net.all_there_is(), passts()), (before_in_network, 0));
    before.assert_nothing_new();
}

/// Answers one question for an address (RFC 1035, 4): the question again, and one record that points to its name.
fn answer_for_names(socket: &UdpSocket, address: Ipv4Addr) {
    let mut question = [0; 512];
    while let Ok((count, who)) = socket.recv_from(&mut question) {
        let asks_for_v4 = question[count - 3] == 1;
        let mut answer = question[..count].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        if asks_for_v4 {
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address.octets());
        }
        socket.send_to(&answer, who).expect("sent");
    }
}

#[test]
fn the_hosts_name_servers_answer_the_container() {
    needs!(Kvm, Root, Stage, Program("passt"), Program("ip"), Program("unshare"));
    let _alone = alone();
    let net = Net::new();
    let socket = net.world.run(|| UdpSocket::bind((WORLD, 53)).expect("bound"));
    thread::spawn(move || answer_for_names(&socket, Ipv4Addr::new(192, 0, 2, 9)));
    let file = tempfile::Builder::new().prefix("kata-rs-resolv-").tempfile().expect("a file");
    fs::write(file.path(), format!("nameserver 127.0.0.53\nnameserver {WORLD}\nsearch example.org\n"))
        .expect("written");
    let line = format!(
        "mount --bind {} /etc/resolv.conf && exec {} run --net {} sh -c 'cat /etc/resolv.conf; nslookup name.example.org'",
        file.path().display(),
        prefix::bin("kata-rs").display(),
        prefix::image("busybox").display()
    );
    let finished = net.host.run(|| run(Command::new("unshare").args(["-m", "sh", "-c", &line]).stdin(Stdio::null())));
    let expected = format!("nameserver {WORLD}\nsearch example.org\n");
    assert!(finished.stdout.starts_with(&expected), "{}\n{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains("192.0.2.9"), "{}\n{}", finished.stdout, finished.stderr);
}

#[test]
fn what_cannot_be_is_refused_with_what_to_do_and_leaves_nothing() {
    needs!(Kvm, Root, Stage, Program("passt"), Program("ip"), Program("unshare"));
    let _alone = alone();
    let net = Net::new();
    let before = Residue::now();
    let refused = |finished: Finished, words: &[&str]| {
        assert_ne!(finished.code(), 0);
        assert!(words.iter().all(|word| finished.stderr.contains(word)), "{}", finished.stderr);
    };
    refused(net.run(&["--net=bridge"], "true"), &["--net=bridge", "passt"]);
    refused(net.run(&["--net=none", "-p", "80:80"], "true"), &["--net=none"]);
    refused(net.run(&["-p", "80"], "true"), &["\"80\"", "HOSTPORT:PORT"]);
    refused(net.run(&["-p", "80:1", "-p", "80:2"], "true"), &["80:2/tcp", "another port"]);
    refused(net.run(&["-p", "192.0.2.77:80:80"], "true"), &["192.0.2.77", "ip address"]);
    let without = |taken: &str| {
        let line = format!(
            "{taken}; exec {} run --net {} true",
            prefix::bin("kata-rs").display(),
            prefix::image("busybox").display()
        );
        net.host.run(|| run(Command::new("unshare").args(["-m", "sh", "-c", &line]).stdin(Stdio::null())))
    };
    refused(without("PATH=/nowhere"), &["passt", "apt-get install passt"]);
    refused(without("mount -t tmpfs none /dev/net"), &["/dev/net/tun", "modprobe tun"]);
    net.host.ip("route delete default").expect("deleted");
    net.host.ip("-6 route delete default").expect("deleted");
    refused(net.run(&["--net"], "true"), &["no default route"]);
    assert_eq!(passts(), 0);
    before.assert_nothing_new();
}

#[test]
fn a_passt_that_dies_is_told_and_the_container_goes_on() {
    needs!(Kvm, Root, Stage, Program("passt"), Program("ip"));
    let _alone = alone();
    let net = Net::new();
    let mut command = kata_rs(&["--net", "-i"], "busybox", &["sh", "-c", "echo ready; read word; echo $word"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = net.host.run(|| command.spawn()).expect("starts");
    let mut out = BufReader::new(child.stdout.take().expect("asked for"));
    let mut err = BufReader::new(child.stderr.take().expect("asked for"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    let pid = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).expect("told");
    let is_passt =
        |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().starts_with("passt");
    let passt = pid.split_whitespace().find(is_passt).expect("a child");
    command::signal(passt.parse().expect("a number"), rustix::process::Signal::KILL);
    line.clear();
    while !line.contains("passt has ended") {
        line.clear();
        assert_ne!(err.read_line(&mut line).expect("a line"), 0, "nothing was told");
    }
    child.stdin.take().expect("asked for").write_all(b"alive\n").expect("taken");
    line.clear();
    out.read_line(&mut line).expect("a line");
    assert_eq!(line, "alive\n");
    assert_eq!(command::wait_for(&mut child, command::DEADLINE).expect("ends").code(), Some(0));
}
