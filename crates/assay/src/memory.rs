//! How much memory there is for this process.

/// Bytes of memory that this process may take: what the machine has, or less where a control group allows less. Nothing where the system does not say.
#[cfg(target_os = "linux")]
pub fn there_is() -> Option<u64> {
    let machine = rustix::system::sysinfo();
    let machine = (machine.totalram as u64).checked_mul(machine.mem_unit.into())?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(
        allowed(&groups, |file| std::fs::read_to_string(file).ok()).map_or(machine, |most| most.min(machine)),
    )
}

/// As above: other systems are not asked.
#[cfg(not(target_os = "linux"))]
pub fn there_is() -> Option<u64> {
    None
}

/// The least that the control groups of a process (`/proc/self/cgroup`), and those around them, allow.
#[cfg(target_os = "linux")]
fn allowed(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (base, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            let most = read(&format!("{base}{path}/{file}")).and_then(|text| text.trim().parse().ok());
            least = match (least, most) {
                (Some(least), Some(most)) => Some(u64::min(least, most)),
                (least, most) => least.or(most),
            };
            match path.rfind('/') {
                Some(parent) => path = &path[..parent],
                None => break,
            }
        }
    }
    least
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_counts() {
        let files = |file: &str| match file {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/a/memory.max" => Some("5000\n".to_owned()),
            "/sys/fs/cgroup/memory.max" => Some("9000\n".to_owned()),
            "/sys/fs/cgroup/memory/x/memory.limit_in_bytes" => Some("9223372036854771712\n".to_owned()),
            _ => None,
        };
        assert_eq!(allowed("0::/a/b\n", files), Some(5000));
        assert_eq!(allowed("0::/\n", files), Some(9000));
        assert_eq!(allowed("4:cpu,memory:/x\n1:cpu:/a\n", files), Some(9_223_372_036_854_771_712));
        assert_eq!(allowed("0::/a\n4:memory:/x\n", files), Some(5000));
        assert_eq!(allowed("nonsense\n7\n", files), None);
        assert!(there_is().is_some_and(|bytes| bytes > 1 << 20));
    }
}
