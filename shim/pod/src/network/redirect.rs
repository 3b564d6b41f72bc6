//! How frames get from an interface to another without a bridge: whatever comes in at one goes out at the other. Messages of traffic control; pure.
//!
//! Incoming frames meet the ingress queueing discipline before anything else of the kernel does (VLANs, bridges, addresses). One filter there takes every
//! frame (u32 with no key) and sends it out elsewhere (mirred). It is found again by its priority, which nobody else uses. Where nobody else checks
//! the source of what a machine sends, the filter has keys for it, and a second one drops the rest.

use netlink::{
    core::{DefaultNla, Emitable},
    packet::{
        RouteNetlinkMessage,
        tc::{
            TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption, TcActionType,
            TcAttribute, TcFilterU32Option, TcHandle, TcHeader, TcMessage, TcMirror, TcMirrorActionType, TcOption,
            TcU32Key, TcU32Selector, TcU32SelectorFlags,
        },
    },
};

/// Priority of our filter, by which it is found. Others choose 1 and up, or are given 49152 and down.
const PRIORITY: u16 = 0x6b72;
/// Number of our first filter among those of its priority; who joins the same interface finds it taken.
const FILTER: u32 = 1;
/// Attribute of the action "gact" (TCA_GACT_PARMS of linux/tc_act/tc_gact.h), which the library does not know.
const GACT_PARAMETERS: u16 = 2;
/// Every protocol (ETH_P_ALL of linux/if_ether.h).
const EVERY_PROTOCOL: u16 = 0x0003;
/// What takes incoming frames: one interface has one, for everybody.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Where filters for incoming frames are, in either kind of discipline.
const INCOMING: TcHandle = TcHandle { major: 0xffff, minor: TcHandle::MIN_INGRESS };

/// The discipline for incoming frames of an interface.
pub(crate) fn ingress(index: u32) -> TcMessage {
    let header = TcHeader { handle: INGRESS, parent: TcHandle::INGRESS, ..of(index) };
    TcMessage::from_parts(header, vec![TcAttribute::Kind("ingress".to_owned())])
}

/// The filter that sends every frame that comes in at one interface out at another.
pub(crate) fn redirect(from: u32, to: u32) -> TcMessage {
    filter(from, FILTER, Vec::new(), send_out_at(to))
}

/// The same for frames whose source is this address; a second filter drops, and counts, those of any other.
pub(crate) fn redirect_from(from: u32, to: u32, mac: [u8; 6]) -> [TcMessage; 2] {
    [filter(from, FILTER, source_is(mac), send_out_at(to)), filter(from, FILTER + 1, Vec::new(), drop_it())]
}

fn filter(index: u32, number: u32, keys: Vec<TcU32Key>, action: TcAction) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = u8::try_from(keys.len()).expect("two at most");
    selector.keys = keys;
    let options = vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ];
    let mut message = ours(index);
    message.header.handle = number.into();
    message.attributes.push(TcAttribute::Options(options));
    message
}

/// Six bytes, eight before the packet: u32 counts from the end of the Ethernet header, also where a VLAN tag was taken out of it.
fn source_is([a, b, c, d, e, f]: [u8; 6]) -> Vec<TcU32Key> {
    let key = |value: u32, mask: u32, offset: i32| {
        let mut key = TcU32Key::default();
        (key.val, key.mask, key.off) = (value, mask, offset);
        key
    };
    vec![key(u32::from_be_bytes([a, b, c, d]), u32::MAX, -8), key(u32::from_be_bytes([e, f, 0, 0]), 0xffff_0000, -4)]
}

fn send_out_at(index: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}

fn drop_it() -> TcAction {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Shot;
    let mut parameters = vec![0; generic.buffer_len()];
    generic.emit(&mut parameters);
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("gact".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Other(DefaultNla::new(GACT_PARAMETERS, parameters))]),
    ];
    action
}

/// Our filters at an interface, whatever they do: for their removal.
pub(crate) fn ours(index: u32) -> TcMessage {
    let info = u32::from(PRIORITY) << 16 | u32::from(EVERY_PROTOCOL.to_be());
    let header = TcHeader { parent: INCOMING, info, ..of(index) };
    TcMessage::from_parts(header, vec![TcAttribute::Kind("u32".to_owned())])
}

/// Asks for all disciplines of all interfaces.
pub(crate) fn disciplines() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default())
}

/// Asks for all filters for incoming frames of an interface.
pub(crate) fn filters(index: u32) -> RouteNetlinkMessage {
    let header = TcHeader { parent: INCOMING, ..of(index) };
    RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(header, Vec::new()))
}

/// The interface whose discipline for incoming frames this is.
pub(crate) fn takes_incoming_of(message: &RouteNetlinkMessage) -> Option<u32> {
    match message {
        RouteNetlinkMessage::NewQueueDiscipline(discipline) if discipline.header.parent == TcHandle::INGRESS => {
            u32::try_from(discipline.header.index).ok()
        }
        _ => None,
    }
}

/// Is this filter ours?
pub(crate) fn is_ours(message: &RouteNetlinkMessage) -> bool {
    matches!(message, RouteNetlinkMessage::NewTrafficFilter(filter) if filter.header.info >> 16 == u32::from(PRIORITY))
}

fn of(index: u32) -> TcHeader {
    // Numbers of interfaces are positive ints in the kernel.
    TcHeader { index: index.cast_signed(), ..TcHeader::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_known_as_ours_and_others_filters_are_not() {
        let known = |message| is_ours(&RouteNetlinkMessage::NewTrafficFilter(message));
        assert!(known(redirect(2, 3)) && known(ours(2)));
        let mut strangers = redirect(2, 3);
        strangers.header.info = 49_152 << 16;
        assert!(!known(strangers));
    }

    #[test]
    fn only_what_takes_incoming_frames_counts() {
        let mut root = ingress(7);
        assert_eq!(takes_incoming_of(&RouteNetlinkMessage::NewQueueDiscipline(root.clone())), Some(7));
        root.header.parent = TcHandle::ROOT;
        assert_eq!(takes_incoming_of(&RouteNetlinkMessage::NewQueueDiscipline(root)), None);
    }
}
