//! Places for network devices, in which they come and go while the machine runs.
//!
//! The guest is told of each place when it boots, whether a device is in it or not. An empty one answers as a placeholder, over which a driver passes: it
//! costs the boot three reads of memory, and its window of addresses. When a device has come, the guest looks there once more (it binds
//! the driver of virtio-mmio to the place again) and finds it as if it had booted with it; before a device goes, the guest lets go of it.
//! A guest that does neither harms itself alone: a device that it does not look for carries nothing, and one that was taken from under its driver is a
//! placeholder from then on.

use vmm_boot::DeviceSlot;
use vmm_control::{InterfaceSpec, NetReport, NetworkError};

use crate::{
    bus::Bus,
    network::{self, Counters, HostEnds},
    wiring::{Wires, WiringError},
};

/// Why a place stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// There is no such place.
    #[error("the machine has no place {0} for a network device: it has {1}")]
    Unknown(usize, usize),
    /// Something is there.
    #[error("a network device is in place {0} already: take it out first")]
    Taken(usize),
    /// Nothing is there.
    #[error("no network device is in place {0}")]
    Empty(usize),
    /// It cannot be a device.
    #[error(transparent)]
    Interface(#[from] NetworkError),
    /// The taps are none, or none came.
    #[error("its taps cannot be used: are they taps with headers, in a machine's form?")]
    Taps(#[from] std::io::Error),
    /// It cannot be connected.
    #[error(transparent)]
    Wiring(#[from] WiringError),
}

/// One place.
struct Place {
    /// Number of its slot on the bus.
    number: usize,
    slot: DeviceSlot,
    /// Of the device in it, if there is one.
    counters: Option<Counters>,
}

/// All places of a machine.
pub struct Places(Vec<Place>);

impl Places {
    /// The devices of the boot, in the first of these slots; the others are empty. `first` is the number of the first one on the bus.
    pub fn new(first: usize, slots: &[DeviceSlot], devices: Vec<Counters>) -> Self {
        let devices = devices.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        let place = |((number, slot), counters): ((usize, &DeviceSlot), _)| Place { number, slot: *slot, counters };
        Self((first..).zip(slots).zip(devices).map(place).collect())
    }

    /// Puts a device into an empty place.
    pub fn attach(
        &mut self,
        place: usize,
        interface: &InterfaceSpec,
        ends: HostEnds,
        wires: Wires<'_>,
        bus: &Bus,
    ) -> Result<(), PlaceError> {
        interface.check(ends.taps.len(), ends.vhosts.len())?;
        let found = self.find(place)?;
        if found.counters.is_some() {
            return Err(PlaceError::Taken(place));
        }
        let device = network::device(&format!("net{place}"), interface, ends)?;
        let counters = Counters::of(&device);
        let transport = wires.connect(Box::new(device), found.slot)?;
        bus.replace(found.number, Some(transport));
        found.counters = Some(counters);
        Ok(())
    }

    /// Takes the device out of its place.
    pub fn detach(&mut self, place: usize, wires: Wires<'_>, bus: &Bus) -> Result<(), PlaceError> {
        let found = self.find(place)?;
        let device = bus.replace(found.number, None);
        found.counters = None;
        let device = device.ok_or(PlaceError::Empty(place))?;
        // Its thread ends, its taps are closed, and the place shows a placeholder, when it is dropped.
        Ok(wires.disconnect(&device, found.slot)?)
    }

    /// Figures of all places; those of an empty one are zero.
    pub fn report(&self) -> Vec<NetReport> {
        self.0.iter().map(|place| place.counters.as_ref().map(Counters::report).unwrap_or_default()).collect()
    }

    fn find(&mut self, place: usize) -> Result<&mut Place, PlaceError> {
        let count = self.0.len();
        self.0.get_mut(place).ok_or(PlaceError::Unknown(place, count))
    }
}
