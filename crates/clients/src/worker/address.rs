//! Which addresses a worker can have. Whoever registers a worker names an address that we then call, so
//! it must not be one that only we should reach, such as a cloud machine's own metadata.

use std::net::{IpAddr, Ipv6Addr};

/// Where some clouds answer with credentials over IPv6.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254);

/// Whether a worker can listen at this address: not one for groups, for all, or for the link only
/// (where metadata of clouds are), nor that of no machine.
pub fn is_of_worker(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let elsewhere = address.is_unspecified() || address.is_multicast();
    let special = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == METADATA,
    };
    !elsewhere && !special
}

#[cfg(test)]
mod tests {
    use super::is_of_worker;

    #[test]
    fn metadata_groups_and_no_machine_are_no_workers_and_the_rest_may_be() {
        let of_worker = |text: &str| is_of_worker(text.parse().expect("an address"));
        for refused in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(!of_worker(refused), "{refused}");
        }
        for taken in ["127.0.0.1", "::1", "192.168.1.7", "10.0.0.1", "fd00::7", "100.64.0.1"] {
            assert!(of_worker(taken), "{taken}");
        }
    }
}
