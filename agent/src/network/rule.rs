//! A rule that says which table a packet's route is looked up in.

use agent_protocol::messages as m;
use netlink::packet::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::{
    NetworkError,
    field::{self, Family, Prefix, invalid},
    route::TABLE_MAIN,
};

/// FR_ACT_TO_TBL, and the last action there is (FR_ACT_PROHIBIT).
const LOOK_UP: u8 = 1;
const ACTION_MAX: u8 = 8;
/// FR_ACT_GOTO, whose aim is not told to us.
const GOTO: u8 = 2;

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    family: Family,
    priority: u32,
    source: Prefix,
    destination: Prefix,
    table: u32,
    mark: u32,
    mask: u32,
    incoming: Option<String>,
    outgoing: Option<String>,
    action: u8,
}

impl Rule {
    /// Checks what the host says.
    pub fn parse(wanted: &m::Rule) -> Result<Self, NetworkError> {
        let family = Family::parse("family of a rule", wanted.family)?;
        Ok(Self {
            family,
            priority: wanted.priority,
            source: family.range("source of a rule", &wanted.source, wanted.source_prefix_length)?,
            destination: family.range(
                "destination of a rule",
                &wanted.destination,
                wanted.destination_prefix_length,
            )?,
            table: if wanted.table == 0 { TABLE_MAIN } else { wanted.table },
            mark: wanted.mark,
            mask: if wanted.mark != 0 && wanted.mask == 0 { u32::MAX } else { wanted.mask },
            incoming: field::optional_name("incoming interface of a rule", &wanted.incoming_interface)?,
            outgoing: field::optional_name("outgoing interface of a rule", &wanted.outgoing_interface)?,
            action: action(wanted.action)?,
        })
    }

    /// None for one that looks at more than ours do.
    pub fn of(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        if header.tos != 0 || header.flags.contains(RuleFlags::Invert) {
            return None;
        }
        let family = Family::of_packet(header.family)?;
        let mut rule = Self {
            family,
            priority: 0,
            source: Prefix { address: family.any(), length: header.src_len },
            destination: Prefix { address: family.any(), length: header.dst_len },
            table: header.table.into(),
            mark: 0,
            mask: 0,
            incoming: None,
            outgoing: None,
            action: header.action.into(),
        };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Source(from) => rule.source.address = field::network(*from, header.src_len),
                RuleAttribute::Destination(to) => rule.destination.address = field::network(*to, header.dst_len),
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::FwMark(mark) => rule.mark = *mark,
                RuleAttribute::FwMask(mask) => rule.mask = *mask,
                RuleAttribute::Iifname(name) => rule.incoming = Some(name.clone()),
                RuleAttribute::Oifname(name) => rule.outgoing = Some(name.clone()),
                // Who made it does not matter, and nothing is held back.
                RuleAttribute::Protocol(_)
                | RuleAttribute::SuppressPrefixLen(u32::MAX)
                | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
                _ => return None,
            }
        }
        Some(rule)
    }

    /// For the kernel.
    pub fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = self.family.packet();
        message.header.src_len = self.source.length;
        message.header.dst_len = self.destination.length;
        message.header.action = RuleAction::from(self.action);
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Priority(self.priority));
        if self.action == LOOK_UP {
            attributes.push(RuleAttribute::Table(self.table));
        }
        if self.source.length != 0 {
            attributes.push(RuleAttribute::Source(self.source.address));
        }
        if self.destination.length != 0 {
            attributes.push(RuleAttribute::Destination(self.destination.address));
        }
        if (self.mark, self.mask) != (0, 0) {
            attributes.push(RuleAttribute::FwMark(self.mark));
            attributes.push(RuleAttribute::FwMask(self.mask));
        }
        attributes.extend(self.incoming.clone().map(RuleAttribute::Iifname));
        attributes.extend(self.outgoing.clone().map(RuleAttribute::Oifname));
        message
    }
}

fn action(number: u32) -> Result<u8, NetworkError> {
    match field::byte("action of a rule", number)? {
        0 => Ok(LOOK_UP),
        action @ LOOK_UP..=ACTION_MAX if action != GOTO => Ok(action),
        action => Err(invalid("action of a rule", action, "1 (look up) or 3 to 8")),
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} from {} to {} table {}", self.priority, self.source, self.destination, self.table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> m::Rule {
        m::Rule { family: 2, priority: 100, table: 7, ..Default::default() }
    }

    #[test]
    fn a_rule_looks_into_its_table_unless_it_says_otherwise() {
        let message = Rule::parse(&wanted()).unwrap().message();
        assert_eq!(message.header.action, RuleAction::ToTable);
        assert_eq!(message.attributes, [RuleAttribute::Priority(100), RuleAttribute::Table(7)]);
        let message = Rule::parse(&m::Rule { action: 6, ..wanted() }).unwrap().message();
        assert_eq!(message.header.action, RuleAction::Blackhole);
        assert_eq!(message.attributes, [RuleAttribute::Priority(100)]);
    }

    #[test]
    fn a_mark_goes_with_its_mask() {
        let message = Rule::parse(&m::Rule { mark: 0, mask: 0xff, ..wanted() }).unwrap().message();
        assert!(message.attributes.contains(&RuleAttribute::FwMark(0)));
        assert!(message.attributes.contains(&RuleAttribute::FwMask(0xff)));
    }

    #[test]
    fn what_the_kernel_is_told_is_what_it_tells() {
        let all = m::Rule {
            source: vec![10, 1, 0, 0],
            source_prefix_length: 16,
            destination: vec![10, 2, 0, 1],
            destination_prefix_length: 32,
            table: 1000,
            mark: 7,
            incoming_interface: "eth0".into(),
            outgoing_interface: "eth1".into(),
            ..wanted()
        };
        for wanted in [wanted(), all] {
            let rule = Rule::parse(&wanted).unwrap();
            let mut message = rule.message();
            message.attributes.push(RuleAttribute::SuppressPrefixLen(u32::MAX));
            assert_eq!(Rule::of(&message), Some(rule));
            message.attributes.push(RuleAttribute::TunId(1));
            assert_eq!(Rule::of(&message), None);
        }
    }

    #[test]
    fn a_rule_is_for_the_whole_range_of_an_address() {
        let sloppy = m::Rule { source: vec![10, 1, 2, 3], source_prefix_length: 8, ..wanted() };
        let message = Rule::parse(&sloppy).unwrap().message();
        assert!(message.attributes.contains(&RuleAttribute::Source([10, 0, 0, 0].into())), "{message:?}");
    }

    #[test]
    fn what_cannot_be_said_to_the_kernel_is_refused() {
        for bad in [
            m::Rule { family: 7, ..wanted() },
            m::Rule { action: 2, ..wanted() },
            m::Rule { action: 9, ..wanted() },
            m::Rule { source: vec![10, 0, 0, 0], source_prefix_length: 33, ..wanted() },
            m::Rule { destination: vec![1; 16], destination_prefix_length: 128, ..wanted() },
            m::Rule { incoming_interface: "a/b".into(), ..wanted() },
        ] {
            assert!(Rule::parse(&bad).is_err(), "{bad:?}");
        }
    }
}
