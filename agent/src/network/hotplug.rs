//! Network devices that come and go while the guest runs.
//!
//! The kernel knows all places of the machine from its command line, and looked into each once. What came since is found when the driver of
//! virtio-mmio is bound to its place again; an empty place refuses that with a word (ENODEV). A device that goes is unbound from its place first:
//! its interface goes with it, and nothing of the kernel's touches the place any more.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// How the kernel names places.
const PLACE: &str = "virtio-mmio.";

/// The machine's places for devices, as sysfs shows them.
#[derive(Debug)]
pub struct Places {
    sys: PathBuf,
}

impl Places {
    /// Those of the machine that we are in.
    pub fn of_the_machine() -> Self {
        Self::at(Path::new("/sys"))
    }

    /// Those that sysfs shows here.
    pub fn at(sys: &Path) -> Self {
        Self { sys: sys.to_owned() }
    }

    /// Looks once more into every place without a device.
    ///
    /// # Errors
    /// sysfs is not there.
    pub fn look(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.sys.join("bus/platform/devices"))? {
            let entry = entry?;
            let name = entry.file_name();
            let is_empty = !entry.path().join("driver").exists();
            if is_empty && name.to_string_lossy().starts_with(PLACE) {
                match fs::write(self.driver("bind"), name.as_encoded_bytes()) {
                    Err(error) if error.raw_os_error() != Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                        log::warn!("cannot look into the place {}: {error}", name.display());
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Lets go of the device behind an interface; false if that is not one of the machine's.
    ///
    /// # Errors
    /// The driver cannot be unbound.
    pub fn let_go(&self, interface: &str) -> io::Result<bool> {
        // .../virtio-mmio.5/virtio4
        let Ok(device) = fs::canonicalize(self.sys.join("class/net").join(interface).join("device")) else {
            return Ok(false);
        };
        let place = device.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let Some(place) = place.filter(|name| name.starts_with(PLACE)) else { return Ok(false) };
        fs::write(self.driver("unbind"), place)?;
        Ok(true)
    }

    fn driver(&self, file: &str) -> PathBuf {
        self.sys.join("bus/platform/drivers/virtio-mmio").join(file)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A sysfs with a place that is taken, an empty one, and something else of the platform's.
    fn sysfs() -> tempfile::TempDir {
        let sys = tempfile::tempdir().expect("a folder");
        let at = |path: &str| sys.path().join(path);
        for folder in [
            "bus/platform/devices/virtio-mmio.1",
            "bus/platform/devices/serial8250",
            "bus/platform/drivers/virtio-mmio",
            "devices/virtio-mmio.0/virtio0",
            "devices/other/card0",
            "class/net/eth0",
            "class/net/br0",
            "class/net/eth9",
        ] {
            fs::create_dir_all(at(folder)).expect("made");
        }
        symlink(at("devices/virtio-mmio.0"), at("bus/platform/devices/virtio-mmio.0")).expect("made");
        symlink(at("bus/platform/drivers/virtio-mmio"), at("devices/virtio-mmio.0/driver")).expect("made");
        symlink(at("devices/virtio-mmio.0/virtio0"), at("class/net/eth0/device")).expect("made");
        symlink(at("devices/other/card0"), at("class/net/eth9/device")).expect("made");
        sys
    }

    fn written(sys: &tempfile::TempDir, file: &str) -> Option<String> {
        fs::read_to_string(sys.path().join("bus/platform/drivers/virtio-mmio").join(file)).ok()
    }

    #[test]
    fn empty_places_alone_are_looked_into() {
        let sys = sysfs();
        Places::at(sys.path()).look().expect("looked");
        assert_eq!(written(&sys, "bind").as_deref(), Some("virtio-mmio.1"));
    }

    #[test]
    fn the_device_of_an_interface_is_let_go_and_no_other() {
        let sys = sysfs();
        let places = Places::at(sys.path());
        for interface in ["br0", "eth9", "gone"] {
            assert!(!places.let_go(interface).expect("none of ours"), "{interface}");
        }
        assert_eq!(written(&sys, "unbind"), None);
        assert!(places.let_go("eth0").expect("unbound"));
        assert_eq!(written(&sys, "unbind").as_deref(), Some("virtio-mmio.0"));
    }
}
