//! The socket device towards the guest: packets out of the transmit queue, packets into the receive queue.

use super::{
    connection::{Action, Connection, Event as Happening, Next},
    host_side::window_for,
    muxer::{CONNECTIONS_MAX, Id, Muxer, Ports},
    packet::{HEADER_LEN, HOST_CID, Header, Op, PAYLOAD_MAX, TYPE_STREAM},
    stream::{HostRead, HostWrite},
};
use crate::{
    chain::{Chain, ChainFault},
    fault::Fault,
    log_limit::warn_limited,
};

/// Resets that wait for a receive buffer. More are forgotten: the guest has made them and takes none of them in.
const RESETS_MAX: usize = 256;

/// What became of one connection's turn.
enum Turn {
    /// This header is to be sent; its payload is in the buffer already.
    Packet(Header),
    /// The connection has nothing for the guest.
    Idle,
}

impl Muxer {
    /// Takes packets, at most one ring full. True when there may be more.
    pub(super) fn take_from_guest(&mut self) -> Result<bool, Fault> {
        for _ in 0..self.transmit.size() {
            let Some(chain) = self.transmit.pop(&self.memory)? else { return Ok(false) };
            let index = self.transmit.index();
            self.take_packet(&chain).map_err(|source| Fault::Chain { index, source })?;
            let bytes = chain.readable_len() as u64;
            self.transmit.complete(&self.memory, chain, 0)?;
            self.finished.add(bytes);
        }
        Ok(true)
    }

    // The header is copied once, here; all decisions are about this copy.
    fn take_packet(&mut self, chain: &Chain) -> Result<(), ChainFault> {
        let mut bytes = [0; HEADER_LEN];
        chain.read(&self.memory, 0, &mut bytes)?;
        let header = Header::parse(bytes);
        let payload = chain.readable_len().saturating_sub(HEADER_LEN);
        if header.source_cid != self.cid {
            warn_limited!("vsock: the guest sent a packet as context {}", header.source_cid);
            return Ok(());
        }
        let addressed = header.target_cid == HOST_CID && header.socket_type == TYPE_STREAM;
        let whole = usize::try_from(header.len) == Ok(payload) && (payload == 0 || header.op == Op::Data);
        let ports = Ports { host: header.target_port, guest: header.source_port };
        match self.by_ports.get(&ports).copied() {
            _ if !addressed => self.answer_with_reset(&header),
            Some(id) if whole => self.on_packet(id, header, chain)?,
            Some(id) => {
                warn_limited!("vsock: the guest sent {payload} bytes and said {}", header.len);
                self.leave(id, true);
            }
            None if whole && header.op == Op::Request => self.on_request(ports, &header),
            None => self.answer_with_reset(&header),
        }
        Ok(())
    }

    fn on_packet(&mut self, id: Id, header: Header, chain: &Chain) -> Result<(), ChainFault> {
        let Some(connection) = self.entries.get_mut(&id).and_then(|entry| entry.connection.as_mut()) else {
            return Ok(());
        };
        match connection.on(Happening::Packet(header)) {
            Action::Deliver => self.deliver(id, chain)?,
            action => self.act(id, action),
        }
        Ok(())
    }

    fn deliver(&mut self, id: Id, chain: &Chain) -> Result<(), ChainFault> {
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(()) };
        let len = chain.readable_len().saturating_sub(HEADER_LEN);
        let mut taken = 0;
        let mut gone = false;
        for slice in chain.readable_slices(&self.memory, HEADER_LEN, len) {
            match entry.stream.write(&slice?) {
                HostWrite::Took(bytes) => taken += bytes,
                HostWrite::Gone => {
                    gone = true;
                    break;
                }
            }
        }
        // Nothing is kept once a write has failed, so then the whole packet is done with.
        self.tell(id, Happening::HostTook(count(if gone { len } else { taken })));
        if gone {
            self.program_gone(id);
        }
        Ok(())
    }

    fn on_request(&mut self, ports: Ports, header: &Header) {
        let call = self.host.calls.iter().position(|(port, _)| *port == ports.host);
        let (Some(call), true) = (call, self.entries.len() < CONNECTIONS_MAX) else {
            return self.answer_with_reset(header);
        };
        let (port, stream) = self.host.calls.swap_remove(call);
        if let Some(hook) = &mut self.host.on_guest_call {
            hook(port);
        }
        let connection = Connection::accepting(window_for(self.entries.len()), header);
        let id = self.new_id();
        if !self.adopt(id, ports, stream, connection) {
            self.answer_with_reset(header);
        }
    }

    fn answer_with_reset(&mut self, header: &Header) {
        // A reset is never answered, or two sides could go on for ever.
        if header.op != Op::Reset {
            self.push_reset(header.reset());
        }
    }

    pub(super) fn push_reset(&mut self, header: Header) {
        if self.resets.len() < RESETS_MAX {
            self.resets.push_back(header);
        } else {
            warn_limited!(
                "vsock: the guest takes no packets; a reset for its port {} is forgotten",
                header.target_port
            );
        }
    }

    pub(super) fn reset_header(&self, ports: Ports) -> Header {
        self.header(ports, Op::Reset, 0, 0, (0, 0))
    }

    fn header(&self, ports: Ports, op: Op, flags: u32, len: u32, (window, taken): (u32, u32)) -> Header {
        Header {
            source_cid: HOST_CID,
            target_cid: self.cid,
            source_port: ports.host,
            target_port: ports.guest,
            len,
            socket_type: TYPE_STREAM,
            op,
            flags,
            window,
            taken,
        }
    }

    /// Fills receive buffers, at most one ring full. True when there may be more to give and buffers to fill.
    pub(super) fn give_to_guest(&mut self) -> Result<bool, Fault> {
        for _ in 0..self.receive.size() {
            if self.resets.is_empty() && self.ready.is_empty() {
                self.starved = false;
                return Ok(false);
            }
            let chain = self.receive.pop(&self.memory)?;
            self.starved = chain.is_none();
            let Some(chain) = chain else { return Ok(false) };
            let index = self.receive.index();
            let packet = self.next_packet(&chain).map_err(|source| Fault::Chain { index, source })?;
            let Some(header) = packet else {
                self.receive.put_back(chain);
                return Ok(false);
            };
            self.send(chain, &header)?;
        }
        Ok(true)
    }

    fn send(&mut self, chain: Chain, header: &Header) -> Result<(), Fault> {
        let index = self.receive.index();
        chain.write(&self.memory, 0, &header.to_bytes()).map_err(|source| Fault::Chain { index, source })?;
        let written = header.len.saturating_add(HEADER_LEN as u32);
        self.receive.complete(&self.memory, chain, written)
    }

    /// The next packet for the guest, its payload already in `chain`.
    fn next_packet(&mut self, chain: &Chain) -> Result<Option<Header>, ChainFault> {
        // A buffer that holds no payload would stop all connections and tell nobody why.
        let room = chain.writable_len().saturating_sub(HEADER_LEN);
        if room == 0 {
            return Err(ChainFault::TooShort { len: chain.writable_len(), wanted: HEADER_LEN + 1 });
        }
        if let Some(header) = self.resets.pop_front() {
            return Ok(Some(header));
        }
        while let Some(id) = self.ready.pop_front() {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.queued = false;
            }
            if let Turn::Packet(header) = self.take_turn(id, chain, room)? {
                self.enqueue(id);
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    fn take_turn(&mut self, id: Id, chain: &Chain, room: usize) -> Result<Turn, ChainFault> {
        loop {
            let Some(entry) = self.entries.get_mut(&id) else { return Ok(Turn::Idle) };
            let ports = entry.ports;
            let readable = entry.stream.readable();
            let Some(connection) = &mut entry.connection else { return Ok(Turn::Idle) };
            match connection.next(readable) {
                None => return Ok(Turn::Idle),
                Some(Next::Control { op, flags }) => {
                    let credit = connection.sent(op, flags, 0);
                    return Ok(Turn::Packet(self.header(ports, op, flags, 0, credit)));
                }
                Some(Next::Data { max }) => {
                    let len = self.read_program(id, chain, room.min(count_max(max)))?;
                    if len > 0 {
                        return Ok(self.data_packet(id, ports, len));
                    }
                    // Nothing was there after all, or the end of it; the state has changed, so ask again.
                }
            }
        }
    }

    fn data_packet(&mut self, id: Id, ports: Ports, len: u32) -> Turn {
        let connection = self.entries.get_mut(&id).and_then(|entry| entry.connection.as_mut());
        let Some(connection) = connection else { return Turn::Idle };
        let credit = connection.sent(Op::Data, 0, len);
        Turn::Packet(self.header(ports, Op::Data, 0, len, credit))
    }

    /// Reads from the program straight into the guest's buffer; returns how many bytes.
    fn read_program(&mut self, id: Id, chain: &Chain, max: usize) -> Result<u32, ChainFault> {
        let Some(entry) = self.entries.get_mut(&id) else { return Ok(0) };
        let mut total = 0;
        let mut ended = false;
        for slice in chain.writable_slices(&self.memory, HEADER_LEN, max) {
            let mut slice = slice?;
            match entry.stream.read(&mut slice) {
                HostRead::Bytes(bytes) => total += bytes,
                HostRead::Nothing => break,
                HostRead::End => {
                    ended = true;
                    break;
                }
            }
        }
        if ended {
            self.tell(id, Happening::HostEnd);
        }
        Ok(count(total))
    }
}

/// A count of bytes of one packet, which is below 2^32.
fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn count_max(credit: u32) -> usize {
    usize::try_from(credit.min(PAYLOAD_MAX)).unwrap_or(usize::MAX)
}
