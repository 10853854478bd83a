//! How much memory this process may still take on its device.
//!
//! On the CPU the least of three: what the machine has to give, what the process's control group
//! leaves, and what the operator allows one engine. Of a GPU nothing is known before it is used.

use std::fs;
use std::path::Path;

use tch::Device;

/// The operator's word on an engine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Bytes that the whole process may take; none means as many as there are.
    pub limit: Option<u64>,
}

impl Room {
    /// Bytes that can be allocated now; none when nothing is known about it.
    pub fn free(self, device: Device) -> Option<u64> {
        if device != Device::Cpu {
            return None;
        }
        let proc = Path::new("/proc");
        let allowed =
            || Some(self.limit?.saturating_sub(field(&proc.join("self/status"), "VmRSS:")?));
        let machine = field(&proc.join("meminfo"), "MemAvailable:");
        [machine, group_leaves(Path::new("/sys/fs/cgroup")), allowed()].into_iter().flatten().min()
    }
}

/// A line `NAME   123 kB` of a file of the kernel's, in bytes.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// What a container's control group (version 2) leaves; none without a limit. The group's file cache does
/// not count as used: the kernel gives it up before it ends a process, and after a while of reading and
/// writing it fills every group to its limit.
fn group_leaves(folder: &Path) -> Option<u64> {
    let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    let limit = number("memory.max")?;
    let statistics = text("memory.stat").unwrap_or_default();
    let cache: u64 = statistics
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| matches!(*name, "active_file" | "inactive_file"))
        .filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok())
        .sum();
    Some(limit.saturating_sub(number("memory.current")?.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_what_the_process_has_already() {
        let free = |limit: u64| Room { limit: Some(limit) }.free(Device::Cpu).unwrap();
        assert_eq!(free(1), 0);
        let plenty = Room::default().free(Device::Cpu).unwrap();
        assert!(plenty > 0 && free(u64::MAX) >= plenty / 2);
        assert!(Room::default().free(Device::Cuda(0)).is_none());
    }

    #[test]
    fn a_control_group_is_read_where_it_has_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(group_leaves(folder.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "4096\n");
        assert_eq!(group_leaves(folder.path()), None);
        write("memory.max", "10000\n");
        assert_eq!(group_leaves(folder.path()), Some(5904));
        write(
            "memory.stat",
            "anon 96\nfile 4000\nactive_file 1000\ninactive_file 2500\nshmem 500\n",
        );
        assert_eq!(group_leaves(folder.path()), Some(9404));
    }
}
