//! Stories of pods that have a network, told with a machine inside the test, as root.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use agent_protocol::messages::{InterfaceAddress, Network};

use super::{
    namespace::Namespace,
    stage::{Stage, lose_their_taps},
};
use crate::{
    Pod, PodError, PodNetwork, PodSpec,
    double::{Double, Script},
};

/// How long news may be on their way.
const PATIENCE: Duration = Duration::from_secs(10);

struct Scene {
    root: tempfile::TempDir,
    double: Double,
    stage: Stage,
    before: String,
}

impl Scene {
    fn new(test: &str, script: Script) -> Option<Self> {
        let stage = Stage::new(test)?;
        stage.pod.run("ip address add 10.1.0.2/24 dev eth0");
        let before = stage.pod.all_there_is();
        Some(Self { root: tempfile::tempdir().expect("a folder"), double: Double::with(script), stage, before })
    }

    fn state_dir(&self) -> PathBuf {
        self.root.path().join("kata-rs/default/p1")
    }

    async fn launch(&self) -> Result<Pod, PodError> {
        self.launch_in(self.stage.pod.path().to_owned()).await
    }

    async fn launch_in(&self, network: PathBuf) -> Result<Pod, PodError> {
        Pod::launch_with(Arc::new(self.double.clone()), self.spec(network)).await
    }

    fn spec(&self, network: PathBuf) -> PodSpec {
        PodSpec {
            id: "p1".into(),
            state_dir: self.state_dir(),
            vcpus: 2,
            memory_mib: 128,
            hostname: if self.double.script.configure_fails { "refused" } else { "web" }.into(),
            sysctls: Default::default(),
            resolv_conf: String::new(),
            network: PodNetwork::Namespace(network),
            interface_rules: Default::default(),
            extra_cmdline: String::new(),
        }
    }

    async fn assert_nothing_left(&self) {
        assert!(!self.state_dir().exists());
        let path = self.stage.pod.path().to_owned();
        // The machine inside the test ends on this thread.
        tokio::task::spawn_blocking(move || lose_their_taps(&path)).await.expect("lost");
        assert_eq!(self.stage.pod.all_there_is(), self.before);
    }
}

#[tokio::test]
async fn needs_root_machine_and_agent_get_the_network_and_nothing_is_left_of_it() {
    let test = "needs_root_machine_and_agent_get_the_network_and_nothing_is_left_of_it";
    let Some(scene) = Scene::new(test, Script::default()) else { return };
    let pod = scene.launch().await.expect("launched");
    {
        let seen = scene.double.seen.lock().expect("whole");
        assert_eq!(seen.queues, [2]);
        let names: Vec<_> = seen.network.interfaces.iter().map(|i| (i.name.as_str(), i.addresses.len())).collect();
        assert!(matches!(names[..], [("eth0", 1..)]), "{names:?}");
    }
    assert!(scene.stage.pod.run("tc filter show dev eth0 ingress").contains("katars0"));
    assert!(pod.launch_marks().iter().any(|mark| mark.name == "network joined"));
    pod.stop().await.expect("stopped");
    scene.assert_nothing_left().await;
}

#[tokio::test]
async fn needs_root_a_launch_that_fails_after_the_network_leaves_nothing_of_it() {
    let test = "needs_root_a_launch_that_fails_after_the_network_leaves_nothing_of_it";
    let fails: [fn(&mut Script); 3] = [
        |script| script.spawn_fails = true,
        |script| script.configure_fails = true,
        |script| script.server_fails = true,
    ];
    for fail in fails {
        let mut script = Script::default();
        fail(&mut script);
        let Some(scene) = Scene::new(test, script) else { return };
        scene.launch().await.expect_err("fails");
        scene.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn needs_root_a_pod_whose_network_is_gone_is_refused_and_leaves_nothing() {
    let test = "needs_root_a_pod_whose_network_is_gone_is_refused_and_leaves_nothing";
    let Some(scene) = Scene::new(test, Script::default()) else { return };
    let error = scene.launch_in("/run/netns/katanet-none".into()).await.expect_err("refused");
    assert!(
        error.message.starts_with("pod p1 cannot be launched: ") && error.message.contains("katanet-none"),
        "{error}"
    );
    scene.assert_nothing_left().await;
}

#[tokio::test]
async fn needs_root_a_pod_stops_when_its_network_went_first() {
    let test = "needs_root_a_pod_stops_when_its_network_went_first";
    let Some(scene) = Scene::new(test, Script::default()) else { return };
    let pod = scene.launch().await.expect("launched");
    scene.stage.pod.run("ip link delete eth0");
    drop(scene.stage);
    pod.stop().await.expect("stopped");
    assert!(!scene.root.path().join("kata-rs").exists());
}

#[tokio::test]
async fn needs_root_a_port_of_the_pods_loopback_leads_to_the_guest_until_the_pod_stops() {
    let test = "needs_root_a_port_of_the_pods_loopback_leads_to_the_guest_until_the_pod_stops";
    let Some(scene) = Scene::new(test, Script::default()) else { return };
    let pod = scene.launch().await.expect("launched");
    let namespace = scene.stage.pod.path().to_owned();
    let heard = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        // Nobody waits in a launch until it is so.
        let mut client = loop {
            match connect_in(&namespace) {
                Ok(client) => break client,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        };
        client.write_all(b"echo").expect("said");
        client.shutdown(std::net::Shutdown::Write).expect("done");
        let mut heard = String::new();
        client.read_to_string(&mut heard).map(|_| heard)
    });
    assert_eq!(heard.await.expect("no panic").expect("heard"), "echo");
    pod.stop().await.expect("stopped");
    let error = connect_in(scene.stage.pod.path()).expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    scene.assert_nothing_left().await;
}

/// Waits until the guest is told of a network that is as wanted.
async fn told(scene: &Scene, what: &str, wanted: impl Fn(&Network) -> bool) {
    let told = async {
        while !wanted(&scene.double.seen.lock().expect("whole").network) {
            scene.double.network_changed.notified().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{what}: the guest was not told"));
}

fn names(network: &Network) -> Vec<&str> {
    network.interfaces.iter().map(|interface| interface.name.as_str()).collect()
}

#[tokio::test]
async fn needs_root_interfaces_that_come_and_go_later_are_the_machines_and_nothing_is_left_of_them() {
    let test = "needs_root_interfaces_that_come_and_go_later_are_the_machines_and_nothing_is_left_of_them";
    let Some(scene) = Scene::new(test, Script::default()) else { return };
    let pod = scene.launch().await.expect("launched");
    // More often than there are places.
    for round in 0..4 {
        scene.stage.add("net1", "02:00:00:00:00:11", "far1");
        scene.stage.pod.run("ip address add 10.7.0.2/24 dev net1");
        let there = |network: &Network| {
            names(network) == ["eth0", "net1"]
                && network.interfaces[1].addresses.iter().any(|a| a.address == [10, 7, 0, 2])
        };
        told(&scene, &format!("come, round {round}"), there).await;
        assert!(scene.stage.pod.run("tc filter show dev net1 ingress").contains("katars1"));
        scene.stage.pod.run("ip link delete net1");
        told(&scene, &format!("gone, round {round}"), |network| names(network) == ["eth0"]).await;
    }
    scene.stage.add("net1", "02:00:00:00:00:11", "far1");
    told(&scene, "come, last", |network| names(network) == ["eth0", "net1"]).await;
    pod.stop().await.expect("stopped");
    assert_eq!(scene.stage.pod.run("tc qdisc show dev net1 ingress").trim(), "");
    scene.stage.pod.run("ip link delete net1");
    scene.assert_nothing_left().await;
}

#[tokio::test]
async fn needs_root_more_interfaces_than_places_stay_on_the_host_until_one_goes() {
    let test = "needs_root_more_interfaces_than_places_stay_on_the_host_until_one_goes";
    let Some(scene) = Scene::new(test, Script::default()) else { return };
    let pod = scene.launch().await.expect("launched");
    for last in 1..=3 {
        scene.stage.add(&format!("net{last}"), &format!("02:00:00:00:01:0{last}"), &format!("far{last}"));
        let wanted = ["eth0", "net1", "net2"];
        told(&scene, "come", |network| names(network) == wanted[..=last.min(2)]).await;
    }
    scene.stage.pod.run("ip link delete eth0");
    told(&scene, "a place is free", |network| {
        let mut names = names(network);
        names.sort_unstable();
        names == ["net1", "net2", "net3"]
    })
    .await;
    pod.stop().await.expect("stopped");
}

#[tokio::test]
async fn needs_root_a_pod_whose_network_is_its_own_has_what_comes_into_it_and_begins_with_it() {
    let test = "needs_root_a_pod_whose_network_is_its_own_has_what_comes_into_it_and_begins_with_it";
    let Some(scene) = Scene::new(test, Script::default()) else { return };
    let spec = PodSpec { network: PodNetwork::Own, ..scene.spec(PathBuf::new()) };
    let pod = Pod::launch_with(Arc::new(scene.double.clone()), spec).await.expect("launched");
    let own = {
        let seen = scene.double.seen.lock().expect("whole");
        let namespace = seen.namespace.as_ref().expect("the machine was started").as_raw_fd();
        PathBuf::from(format!("/proc/{}/fd/{namespace}", std::process::id()))
    };
    scene.stage.outside.run("ip link add net9 address 02:00:00:00:00:19 type veth peer name far9");
    scene.stage.outside.run(&format!("ip link set net9 netns {}", own.display()));
    let namespace = Namespace::open(&own).expect("open");
    let up = || {
        for words in [["address", "add", "10.9.0.2/24", "dev", "net9"].as_slice(), &["link", "set", "net9", "up"]] {
            assert!(std::process::Command::new("ip").args(words).status().expect("iproute2 is there").success());
        }
        Ok(())
    };
    namespace.within(up).expect("entered");
    // What a start of a container waits for.
    pod.network_settled().await;
    let seen = scene.double.seen.lock().expect("whole").network.clone();
    assert_eq!(names(&seen), ["net9"]);
    drop(namespace);
    pod.stop().await.expect("stopped");
    scene.assert_nothing_left().await;
}

fn connect_in(namespace: &Path) -> std::io::Result<TcpStream> {
    Namespace::open(namespace).and_then(|n| n.within(|| Ok(TcpStream::connect("127.0.0.1:8080")))).expect("entered")
}

#[tokio::test]
async fn needs_root_what_a_plugin_changes_later_reaches_the_guest() {
    let test = "needs_root_what_a_plugin_changes_later_reaches_the_guest";
    let Some(scene) = Scene::new(test, Script::default()) else { return };
    let pod = scene.launch().await.expect("launched");
    for (line, addresses, routes) in [
        ("ip address add 10.7.0.2/24 dev eth0", 2, 0),
        ("ip route add 10.8.0.0/16 via 10.7.0.1 dev eth0", 2, 1),
        ("ip route del 10.8.0.0/16", 2, 0),
        ("ip address del 10.7.0.2/24 dev eth0", 1, 0),
    ] {
        scene.stage.pod.run(line);
        let told = async {
            loop {
                scene.double.network_changed.notified().await;
                let seen = scene.double.seen.lock().expect("whole");
                let of_ipv4 = |address: &&InterfaceAddress| address.address.len() == 4;
                let known = seen.network.interfaces[0].addresses.iter().filter(of_ipv4).count();
                let ways = seen.network.routes.iter().filter(|route| route.destination.starts_with(&[10, 8])).count();
                if (known, ways) == (addresses, routes) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, told).await.unwrap_or_else(|_| panic!("{line}: the guest was not told"));
    }
    scene.stage.pod.run("ip link delete eth0");
    pod.stop().await.expect("stopped");
}
