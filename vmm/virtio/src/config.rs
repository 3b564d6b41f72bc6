//! Reading a device's configuration space.

/// Copies from `config` at `offset`; what is beyond its end stays as it is, which is zero.
pub(crate) fn read_bytes(config: &[u8], offset: u32, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let from = config.get(start..).unwrap_or_default();
    data.iter_mut().zip(from).for_each(|(into, byte)| *into = *byte);
}
