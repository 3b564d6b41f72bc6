//! Finds the host processes of one pod.

/// Processes whose name starts so and whose command line, or that of their parent, names the container.
pub fn pids_of(name: &str, id: &str) -> Vec<u32> {
    let read = |pid: u32, file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let names_it = |pid: u32| String::from_utf8_lossy(&read(pid, "cmdline")).contains(id);
    let parent = |pid: u32| {
        let status = String::from_utf8_lossy(&read(pid, "status")).into_owned();
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok()).unwrap_or(0)
    };
    let all = std::fs::read_dir("/proc").expect("mounted").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| String::from_utf8_lossy(&read(*pid, "comm")).starts_with(name))
        .filter(|pid| names_it(*pid) || names_it(parent(*pid)))
        .collect()
}
