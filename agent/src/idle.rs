//! An idle pod must cost nothing, and each wake-up of its kernel is a dozen traps to the host. Two of the kernel's habits wake it for
//! ever although nobody asks: they are told to rest.

use std::fs;

/// What to write where (Documentation/admin-guide/sysctl/vm.rst), and what it stops.
const SETTINGS: [(&str, &str); 2] = [
    // kcompactd looks twice a second whether memory is fragmented. Huge pages are then made when they are asked for, as by default.
    ("/proc/sys/vm/compaction_proactiveness", "0"),
    // The counters of each CPU are summed up every so many seconds, once a second by default; /proc/vmstat lags by that much.
    ("/proc/sys/vm/stat_interval", "30"),
];

/// Writes them. A kernel without one has no such habit.
pub fn let_the_kernel_rest() {
    for (path, value) in SETTINGS {
        if let Err(error) = fs::write(path, value) {
            log::debug!("{path} stays as it is: {error}");
        }
    }
}
