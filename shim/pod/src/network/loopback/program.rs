//! The program that the kernel runs for each new connection in the pod's namespace, before it looks for a listener. Pure.
//!
//! ```text
//!   not TCP, or to a port that is left to others                 ->  as ever
//!   to 127.0.0.0/8   ->  our first listener
//!   to ::1           ->  our second one
//!   else                                                         ->  as ever
//! ```
//! Whatever goes wrong in it is "as ever" too. Source: struct bpf_sk_lookup of linux/bpf.h (Linux 5.9), and the eBPF instruction set (RFC 9669).

/// Where the listener for 127.0.0.0/8 is in the table of listeners.
pub(super) const FOUR: u32 = 0;
/// Where the listener for ::1 is.
pub(super) const SIX: u32 = 1;

// Registers. The context comes in r1, as arguments do; r0 is the answer, of calls too; r6 and on outlive calls; r10 is the frame's end.
const ANSWER: u8 = 0;
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const THIRD: u8 = 3;
const CONTEXT: u8 = 6;
const LISTENER: u8 = 7;
const FRAME: u8 = 10;

// Operations: class, operation and source of RFC 9669. Jumps compare 64 bits.
const LOAD_32: u8 = 0x61;
const LOAD_IMM_64: u8 = 0x18;
const STORE_32: u8 = 0x63;
const STORE_IMM_32: u8 = 0x62;
const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ADD_IMM: u8 = 0x07;
const AND_IMM: u8 = 0x57;
const JUMP: u8 = 0x05;
const JUMP_EQ_IMM: u8 = 0x15;
const JUMP_NE_IMM: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// The source of [`LOAD_IMM_64`] whose number is a map's descriptor.
const MAP: u8 = 1;

// Functions of the kernel, by number.
const MAP_LOOKUP: u32 = 1;
const SOCKET_RELEASE: u32 = 86;
const SOCKET_ASSIGN: u32 = 124;

// Places of struct bpf_sk_lookup. Addresses are in network order, the port is not.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const ADDRESS_4: i16 = 40;
const ADDRESS_6: i16 = 44;
const PORT: i16 = 60;

const TCP: u32 = 6;
const INET: u32 = 2;
const INET6: u32 = 10;
/// SK_PASS.
const AS_EVER: u32 = 1;
/// Where keys of maps are built.
const KEY: i16 = -4;
/// A jump's way that is not known yet: to the end.
const TO_THE_END: i16 = i16::MAX;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, value: u32) -> u64 {
    let registers = u64::from(destination | source << 4);
    u64::from(code) | registers << 8 | u64::from(offset.cast_unsigned()) << 16 | u64::from(value) << 32
}

/// The instructions, packed as the kernel lays them out. The maps are named by descriptor: ports that are left to others, and our listeners.
pub(super) fn instructions(left: u32, listeners: u32) -> Vec<u64> {
    let mut code = vec![
        instruction(MOV_REG, CONTEXT, FIRST, 0, 0),
        instruction(LOAD_32, SECOND, CONTEXT, PROTOCOL, 0),
        instruction(JUMP_NE_IMM, SECOND, 0, TO_THE_END, TCP),
        instruction(LOAD_32, SECOND, CONTEXT, PORT, 0),
        instruction(STORE_32, FRAME, SECOND, KEY, 0),
    ];
    code.extend(look_up(left));
    code.push(instruction(JUMP_NE_IMM, ANSWER, 0, TO_THE_END, 0));
    code.push(instruction(LOAD_32, THIRD, CONTEXT, FAMILY, 0));
    let four = four();
    code.push(instruction(JUMP_NE_IMM, THIRD, 0, way(four.len() + 1), INET));
    let six = six();
    code.extend(four);
    code.push(instruction(JUMP, 0, 0, way(six.len()), 0));
    code.extend(six);
    code.extend(look_up(listeners));
    code.push(instruction(JUMP_EQ_IMM, ANSWER, 0, TO_THE_END, 0));
    code.extend(assign());
    let end = code.len();
    code.push(instruction(MOV_IMM, ANSWER, 0, 0, AS_EVER));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code.into_iter().enumerate().map(|(at, word)| settle(word, at, end)).collect()
}

/// Is it to 127.0.0.0/8? Then the key is its listener's.
fn four() -> Vec<u64> {
    let network = |first| u32::from_ne_bytes([first, 0, 0, 0]);
    vec![
        instruction(LOAD_32, SECOND, CONTEXT, ADDRESS_4, 0),
        instruction(AND_IMM, SECOND, 0, 0, network(255)),
        instruction(JUMP_NE_IMM, SECOND, 0, TO_THE_END, network(127)),
        instruction(STORE_IMM_32, FRAME, 0, KEY, FOUR),
    ]
}

/// The same for ::1.
fn six() -> Vec<u64> {
    let mut code = vec![instruction(JUMP_NE_IMM, THIRD, 0, TO_THE_END, INET6)];
    for (place, word) in [(0, 0), (4, 0), (8, 0), (12, u32::from_ne_bytes([0, 0, 0, 1]))] {
        code.push(instruction(LOAD_32, SECOND, CONTEXT, ADDRESS_6 + place, 0));
        code.push(instruction(JUMP_NE_IMM, SECOND, 0, TO_THE_END, word));
    }
    code.push(instruction(STORE_IMM_32, FRAME, 0, KEY, SIX));
    code
}

/// Asks a map for what is at the key.
fn look_up(map: u32) -> [u64; 5] {
    [
        instruction(LOAD_IMM_64, FIRST, MAP, 0, map),
        // The upper half of the number.
        0,
        instruction(MOV_REG, SECOND, FRAME, 0, 0),
        instruction(ADD_IMM, SECOND, 0, 0, i32::from(KEY).cast_unsigned()),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP),
    ]
}

/// Gives the connection to the listener that was found, and the reference to it back.
fn assign() -> [u64; 7] {
    [
        instruction(MOV_REG, LISTENER, ANSWER, 0, 0),
        instruction(MOV_REG, FIRST, CONTEXT, 0, 0),
        instruction(MOV_REG, SECOND, LISTENER, 0, 0),
        instruction(MOV_IMM, THIRD, 0, 0, 0),
        instruction(CALL, 0, 0, 0, SOCKET_ASSIGN),
        instruction(MOV_REG, FIRST, LISTENER, 0, 0),
        instruction(CALL, 0, 0, 0, SOCKET_RELEASE),
    ]
}

fn way(instructions: usize) -> i16 {
    i16::try_from(instructions).expect("the program is short")
}

/// Fills in the way to the end.
fn settle(word: u64, at: usize, end: usize) -> u64 {
    let (code, offset) = (word as u8, (word >> 16) as u16);
    let open = matches!(code, JUMP_EQ_IMM | JUMP_NE_IMM) && offset == TO_THE_END.cast_unsigned();
    if !open {
        return word;
    }
    word & !0xffff_0000 | u64::from(way(end - at - 1).cast_unsigned()) << 16
}
