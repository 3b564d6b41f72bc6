//! A place where no device is yet: the placeholder that drivers pass over without a word (section 4.2.2, register DeviceID).

use super::{
    registers::Register,
    transport::{MAGIC, VERSION},
};

/// The driver reads there. Device type 0, like all else, is zero.
pub fn read_placeholder(offset: u64, data: &mut [u8]) {
    data.fill(0);
    let value = match Register::decode(offset, data.len()) {
        Register::Magic => MAGIC,
        Register::Version => VERSION,
        _ => return,
    };
    data.copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_is_a_device_of_type_0_and_nothing_else() {
        let word = |offset| {
            let mut data = [0xff; 4];
            read_placeholder(offset, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!((word(0), word(4), word(8), word(0x70)), (MAGIC, VERSION, 0, 0));
        let mut byte = [0xff];
        read_placeholder(0, &mut byte);
        assert_eq!(byte, [0]);
    }
}
