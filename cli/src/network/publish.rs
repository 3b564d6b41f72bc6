//! `--publish [HOSTIP:]HOSTPORT:PORT[/tcp|/udp]`: which port of the host leads to which of the container.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

/// What is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// One published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// At which address of the host; none for all of them.
    pub host: Option<IpAddr>,
    /// Port of the host.
    pub host_port: u16,
    /// Port of the container.
    pub port: u16,
    /// What is forwarded.
    pub protocol: Protocol,
}

/// Why a port is not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// `--publish` is off.
    #[error(
        "{0:?} is not [HOSTIP:]HOSTPORT:PORT[/tcp|/udp] with ports of 1 to 65535: write 8080:80, 127.0.0.1:5353:53/udp or [::1]:8080:80"
    )]
    Syntax(String),
    /// One port of the host, two ports of the container.
    #[error(
        "{first} and {second} lead from one port of the host to different places: take another port for one of them"
    )]
    Twice {
        /// The one before.
        first: Publish,
        /// The one after.
        second: Publish,
    },
    /// Somebody else has it.
    #[error("port {} of the host is in use ({publish}): take another, or end what has it (`ss -lnp 'sport = :{}'` tells)", .publish.host_port, .publish.host_port)]
    InUse {
        /// What was to be published.
        publish: Publish,
    },
    /// The host cannot listen there.
    #[error("cannot publish {publish}: {source} (`ip address` lists the addresses of this host)")]
    Unusable {
        /// What was to be published.
        publish: Publish,
        /// Why not.
        source: io::Error,
    },
}

impl Publish {
    /// Reads it.
    ///
    /// # Errors
    /// It is written in another way.
    pub fn parse(text: &str) -> Result<Self, PublishError> {
        Self::read(text).ok_or_else(|| PublishError::Syntax(text.to_owned()))
    }

    fn read(text: &str) -> Option<Self> {
        let (rest, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next()?, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some(_) => return None,
        };
        let (rest, port) = rest.rsplit_once(':')?;
        let (host, host_port) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((host, host_port)) => (Some(address(host)?), host_port),
        };
        Some(Self { host, host_port: number(host_port)?, port: number(port)?, protocol })
    }

    /// Can the host listen there now? Somebody may still come in between: then it is passt that says so.
    ///
    /// # Errors
    /// The port is taken, or the address is not the host's.
    pub fn check_free(&self) -> Result<(), PublishError> {
        let everywhere = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        for host in self.host.map_or(everywhere.to_vec(), |host| vec![host]) {
            match self.listen(host) {
                Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                    return Err(PublishError::InUse { publish: *self });
                }
                // A host without IPv6 publishes what it has.
                Err(_) if host == IpAddr::from(Ipv6Addr::UNSPECIFIED) => {}
                Err(source) => return Err(PublishError::Unusable { publish: *self, source }),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn listen(&self, host: IpAddr) -> io::Result<()> {
        let at = SocketAddr::new(host, self.host_port);
        match self.protocol {
            Protocol::Tcp => TcpListener::bind(at).map(drop),
            Protocol::Udp => UdpSocket::bind(at).map(drop),
        }
    }
}

/// A port of the host leads to one port of the container, at whatever address of the host: passt knows no more.
///
/// # Errors
/// Two of them contradict each other.
pub fn check_together(all: &[Publish]) -> Result<(), PublishError> {
    let mut seen = BTreeMap::new();
    for publish in all {
        let first = *seen.entry((publish.protocol, publish.host_port)).or_insert(*publish);
        if first.port != publish.port {
            return Err(PublishError::Twice { first, second: *publish });
        }
    }
    Ok(())
}

/// An IPv6 address stands in brackets: a colon ends it otherwise.
fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

fn number(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            None => {}
            Some(IpAddr::V4(host)) => write!(f, "{host}:")?,
            Some(IpAddr::V6(host)) => write!(f, "[{host}]:")?,
        }
        let protocol = if self.protocol == Protocol::Tcp { "tcp" } else { "udp" };
        write!(f, "{}:{}/{protocol}", self.host_port, self.port)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Publish {
        Publish::parse(text).expect("valid")
    }

    fn any_publish() -> impl Strategy<Value = Publish> {
        let host = prop_oneof![
            Just(None),
            any::<Ipv4Addr>().prop_map(|host| Some(IpAddr::from(host))),
            any::<Ipv6Addr>().prop_map(|host| Some(IpAddr::from(host))),
        ];
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
        (host, 1..=u16::MAX, 1..=u16::MAX, protocol).prop_map(|(host, host_port, port, protocol)| Publish {
            host,
            host_port,
            port,
            protocol,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(publish in any_publish()) {
            prop_assert_eq!(of(&publish.to_string()), publish);
        }

        #[test]
        fn whatever_is_typed_is_read_whole_or_refused_by_name(text in "[0-9a-f:./\\[\\]tcudp ]{0,24}") {
            match Publish::parse(&text) {
                Ok(publish) => prop_assert_eq!(of(&publish.to_string()), publish),
                Err(error) => {
                    let named = error.to_string().contains(&format!("{text:?}"));
                    prop_assert!(named, "{error}");
                }
            }
        }
    }

    #[test]
    fn tcp_is_meant_unless_udp_is_said() {
        assert_eq!(of("8080:80"), Publish { host: None, host_port: 8080, port: 80, protocol: Protocol::Tcp });
        assert_eq!(of("8080:80/tcp"), of("8080:80"));
        let dns = of("127.0.0.1:5353:53/udp");
        assert_eq!((dns.host, dns.port, dns.protocol), (Some(Ipv4Addr::LOCALHOST.into()), 53, Protocol::Udp));
        assert_eq!(of("[::1]:1:2").host, Some(Ipv6Addr::LOCALHOST.into()));
    }

    #[test]
    fn what_is_almost_right_is_refused() {
        for wrong in [
            "",
            "80",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "65536:80",
            "+80:80",
            "80:80/sctp",
            "80:80/tcp/udp",
            "::1:80:80",
            "a:80:80",
            "[127.0.0.1]:80:80",
            "1-2:3",
        ] {
            assert!(Publish::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_port_of_the_host_leads_to_one_place() {
        assert!(check_together(&[of("80:1"), of("80:1/udp"), of("81:1"), of("127.0.0.1:80:1")]).is_ok());
        let error = check_together(&[of("80:1"), of("127.0.0.1:80:2")]).expect_err("two places");
        assert!(error.to_string().contains("127.0.0.1:80:2/tcp"), "{error}");
    }

    #[test]
    fn a_port_that_somebody_has_and_an_address_of_others_are_told_apart() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("some port");
        let port = taken.local_addr().expect("bound").port();
        let error = of(&format!("127.0.0.1:{port}:80")).check_free().expect_err("taken");
        assert!(error.to_string().contains(&format!("port {port} of the host is in use")), "{error}");
        of(&format!("127.0.0.1:{port}:80/udp")).check_free().expect("other protocols have ports of their own");
        let error = of("192.0.2.77:1:80").check_free().expect_err("a stranger's");
        assert!(error.to_string().contains("192.0.2.77"), "{error}");
    }
}
