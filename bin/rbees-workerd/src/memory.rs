//! How much memory the machine has left.

/// Memory that programs could still take without swapping, in bytes; 0 where it cannot be told.
pub fn available_bytes() -> u64 {
    std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse(&text)).unwrap_or(0)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        assert_eq!(parse("MemTotal: 9 kB\nMemAvailable:   1024 kB\n"), Some(1_048_576));
        assert_eq!(parse("MemTotal: 9 kB\n"), None);
    }
}
