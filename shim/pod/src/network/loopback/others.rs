//! Who else listens on the loopback of a namespace: programs of the host that somebody put there, as a service mesh does.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
};

/// One file a family, of the namespace of the thread that reads.
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
/// TCP_LISTEN of net/tcp_states.h.
const LISTENS: &str = "0A";

/// The ports on which somebody serves the loopback of the calling thread's namespace.
pub(super) fn ports() -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for table in TABLES {
        match std::fs::read_to_string(table) {
            Ok(text) => ports.extend(text.lines().filter_map(served)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ports)
}

/// The port of a line, if it is of a listener that the loopback's addresses reach.
fn served(line: &str) -> Option<u16> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (words.next()?, words.next()?, words.next()?);
    let (address, port) = local.split_once(':')?;
    let address = address_of(address)?;
    let reached = address.is_unspecified() || address.is_loopback();
    (state == LISTENS && reached).then(|| u16::from_str_radix(port, 16).ok()).flatten()
}

/// Words of 32 bits, each as the processor reads it.
fn address_of(digits: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_the_loopback_are_told_and_nobody_else() {
        let of = |address: &str, state: &str| {
            served(&format!("   0: {address}:1F90 00000000:0000 {state} 00000000:00000000"))
        };
        let swapped = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        for address in
            ["00000000".to_owned(), swapped([127, 0, 0, 1]), "0".repeat(32), "0".repeat(24) + &swapped([0, 0, 0, 1])]
        {
            assert_eq!(of(&address, "0A"), Some(8080), "{address}");
            assert_eq!(of(&address, "01"), None, "{address} is connected");
        }
        assert_eq!(of(&swapped([10, 1, 0, 2]), "0A"), None);
        assert_eq!(served("  sl  local_address rem_address   st tx_queue rx_queue tr"), None);
    }
}
