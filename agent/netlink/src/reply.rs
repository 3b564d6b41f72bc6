//! What comes back from the kernel, one datagram at a time. Pure.

use netlink_packet_core::{
    ErrorMessage, NLA_TYPE_MASK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NetlinkBuffer, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use rustix::io::Errno;

use crate::{NetlinkError, Result};

/// Messages begin at multiples of this (NLMSG_ALIGNTO).
const ALIGNMENT: usize = 4;
/// Length of a message's header.
const HEADER_LEN: usize = 16;
/// The kernel's sentence among the attributes of an answer (NLMSGERR_ATTR_MSG).
const ATTRIBUTE_SENTENCE: u16 = 1;

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply<M> {
    /// One of several, or the one that was asked for.
    Item(M),
    /// That was all, or it is done.
    End,
    /// No.
    Refused(NetlinkError),
}

/// What a datagram holds for the asker with this number; answers to earlier questions, which were given up, are left out.
pub(crate) fn read<M: NetlinkDeserializable>(
    mut datagram: &[u8],
    sequence: Option<u32>,
) -> Result<(Vec<Reply<M>>, bool)> {
    let mut replies = Vec::new();
    let mut interrupted = false;
    while !datagram.is_empty() {
        let header = NetlinkBuffer::new_checked(datagram).map_err(unreadable)?;
        let len = header.length() as usize;
        if sequence.is_none_or(|number| number == header.sequence_number()) {
            interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
            replies.extend(reply(&datagram[..len], header.flags())?);
        }
        datagram = datagram.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Ok((replies, interrupted))
}

fn reply<M: NetlinkDeserializable>(message: &[u8], flags: u16) -> Result<Option<Reply<M>>> {
    let message = NetlinkMessage::<M>::deserialize(message).map_err(unreadable)?;
    Ok(match message.payload {
        NetlinkPayload::InnerMessage(item) => Some(Reply::Item(item)),
        NetlinkPayload::Error(answer) => Some(verdict(&answer, flags)),
        NetlinkPayload::Done(done) if done.code == 0 => Some(Reply::End),
        NetlinkPayload::Done(done) => {
            Some(Reply::Refused(refusal(done.code, sentence(&done.extended_ack, flags & NLM_F_ACK_TLVS != 0))))
        }
        _ => None,
    })
}

/// An acknowledgement is an error with the number nought.
fn verdict<M>(answer: &ErrorMessage, flags: u16) -> Reply<M> {
    let Some(code) = answer.code else { return Reply::End };
    // The question comes first, or its header alone.
    let question = match NetlinkBuffer::new_checked(&answer.header) {
        _ if flags & NLM_F_CAPPED != 0 => HEADER_LEN,
        Ok(header) => (header.length() as usize).next_multiple_of(ALIGNMENT),
        Err(_) => answer.header.len(),
    };
    let attributes = answer.header.get(question..).unwrap_or_default();
    Reply::Refused(refusal(code.get(), sentence(attributes, flags & NLM_F_ACK_TLVS != 0)))
}

fn refusal(code: i32, sentence: String) -> NetlinkError {
    NetlinkError::Refused { errno: Errno::from_raw_os_error(code.saturating_abs()), sentence }
}

fn sentence(attributes: &[u8], there: bool) -> String {
    let said = NlasIterator::new(attributes)
        .filter_map(|attribute| attribute.ok())
        .find(|attribute| there && attribute.kind() & NLA_TYPE_MASK == ATTRIBUTE_SENTENCE);
    said.map(|said| String::from_utf8_lossy(said.value()).trim_end_matches('\0').to_owned()).unwrap_or_default()
}

fn unreadable(error: impl std::fmt::Display) -> NetlinkError {
    NetlinkError::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_MULTIPART;

    use netlink_packet_route::RouteNetlinkMessage;

    use super::*;

    fn read(datagram: &[u8], sequence: Option<u32>) -> Result<(Vec<Reply<RouteNetlinkMessage>>, bool)> {
        super::read(datagram, sequence)
    }

    const ERROR: u16 = 2;
    const DONE: u16 = 3;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER_LEN + payload.len()).expect("short");
        let mut bytes = Vec::new();
        bytes.extend(len.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn refused(errno: i32, question: &[u8], sentence: &str) -> Vec<u8> {
        let mut payload = (-errno).to_ne_bytes().to_vec();
        payload.extend(question);
        if !sentence.is_empty() {
            payload.extend((4 + u16::try_from(sentence.len()).expect("short") + 1).to_ne_bytes());
            payload.extend(ATTRIBUTE_SENTENCE.to_ne_bytes());
            payload.extend(sentence.as_bytes());
            payload.push(0);
        }
        payload
    }

    #[test]
    fn a_refusal_comes_with_the_kernels_sentence_behind_the_question_or_its_header() {
        let question = message(16, 5, 7, &[0; 20]);
        for (flags, question) in [(NLM_F_ACK_TLVS, &question[..]), (NLM_F_ACK_TLVS | NLM_F_CAPPED, &question[..16])] {
            let datagram = message(ERROR, flags, 7, &refused(17, question, "it is there"));
            let (replies, _) = read(&datagram, Some(7)).expect("read");
            let expected = NetlinkError::Refused { errno: Errno::EXIST, sentence: "it is there".into() };
            assert_eq!(replies, [Reply::Refused(expected)]);
        }
    }

    #[test]
    fn a_refusal_without_a_sentence_has_none() {
        let datagram = message(ERROR, NLM_F_CAPPED, 7, &refused(19, &[0; 16], ""));
        let (replies, _) = read(&datagram, Some(7)).expect("read");
        assert_eq!(replies, [Reply::Refused(NetlinkError::Refused { errno: Errno::NODEV, sentence: String::new() })]);
    }

    #[test]
    fn an_acknowledgement_and_the_end_of_a_list_are_ends() {
        for datagram in [message(ERROR, 0, 1, &[0; 20]), message(DONE, NLM_F_MULTIPART, 1, &[0; 4])] {
            assert_eq!(read(&datagram, Some(1)).expect("read"), (vec![Reply::End], false));
        }
    }

    #[test]
    fn answers_to_earlier_questions_are_left_out_and_an_interruption_is_seen() {
        let mut datagram = message(ERROR, NLM_F_DUMP_INTR, 1, &[0; 20]);
        datagram.extend(message(DONE, NLM_F_MULTIPART, 2, &[0; 4]));
        assert_eq!(read(&datagram, Some(2)).expect("read"), (vec![Reply::End], false));
        assert!(read(&datagram, Some(1)).expect("read").1);
    }

    #[test]
    fn a_message_that_says_it_is_longer_than_it_is_cannot_be_read() {
        let mut datagram = message(DONE, 0, 1, &[0; 4]);
        datagram[0] = 200;
        assert!(matches!(read(&datagram, Some(1)), Err(NetlinkError::Unreadable(_))));
        datagram[0] = 3;
        assert!(matches!(read(&datagram, Some(1)), Err(NetlinkError::Unreadable(_))));
    }
}
