//! What a running pod's processes hold beside the guest's memory: proportional set size (proc(5), smaps).

use anyhow::Context;

use crate::{figure::Figure, runs::Background};

/// `pss.vmm`, `pss.shim`, `pss.fs`.
pub fn figures(pod: &Background) -> anyhow::Result<Vec<Figure>> {
    let figure = |name: &str, process: &str| -> anyhow::Result<Figure> {
        let pids = pod.pids(process);
        anyhow::ensure!(!pids.is_empty(), "no {process} runs");
        let kib = pids.iter().map(|pid| pss_kib(*pid)).sum::<anyhow::Result<u64>>()?;
        Ok(Figure::alone(name, "MiB", &[kib as f64 / 1024.0]))
    };
    Ok(vec![figure("pss.vmm", "kata-rs-vmm")?, figure("pss.shim", "containerd-shim")?, figure("pss.fs", "virtiofsd")?])
}

/// All mappings but the guest's memory, which is a memfd in each process that maps it.
pub fn pss_kib(pid: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).with_context(|| format!("smaps of {pid}"))?;
    Ok(pss_of(&text))
}

fn pss_of(smaps: &str) -> u64 {
    let mut guest_memory = false;
    let mut kib = 0;
    for line in smaps.lines() {
        match line.strip_prefix("Pss:") {
            Some(size) if !guest_memory => kib += size.trim().trim_end_matches(" kB").parse().unwrap_or(0),
            None if line.contains('-') && !line.contains(" kB") => guest_memory = line.contains("memfd:"),
            _ => {}
        }
    }
    kib
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "7f00-7f01 rw-p 00000000 00:00 0 \nSize: 4 kB\nPss:                   4 kB\n\
                     7f02-7f03 rw-s 00000000 00:01 5 /memfd:guest-memory (deleted)\nPss:                 900 kB\n\
                     7f04-7f05 r-xp 00000000 00:01 6 /x\nPss:                   3 kB\nSwapPss: 0 kB\n";
        assert_eq!(pss_of(smaps), 7);
    }
}
