//! Addresses that begin alike.

use std::net::IpAddr;

/// An address, or all addresses that begin alike: `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    address: IpAddr,
    bits: u8,
}

impl AddressRange {
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address.parse::<IpAddr>().ok()?, Some(bits.parse::<u8>().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        (bits <= most).then_some(Self { address, bits })
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(of), IpAddr::V4(it)) => (of.to_bits() ^ it.to_bits()).leading_zeros() >= self.bits.into(),
            (IpAddr::V6(of), IpAddr::V6(it)) => (of.to_bits() ^ it.to_bits()).leading_zeros() >= self.bits.into(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_compared_by_their_first_bits() {
        for (network, inside, outside) in [
            ("10.9.0.0/16", "10.9.255.1", "10.8.0.1"),
            ("10.9.0.7", "10.9.0.7", "10.9.0.6"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::1", "::1", "::2"),
            ("10.9.0.0/16", "::ffff:10.9.0.1", "::ffff:10.8.0.1"),
        ] {
            let network = AddressRange::parse(network).unwrap();
            assert!(
                network.contains(inside.parse().unwrap()) && !network.contains(outside.parse().unwrap()),
                "{network:?}"
            );
        }
        for bad in ["", "x", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "10.0.0/8"] {
            assert_eq!(AddressRange::parse(bad), None, "{bad}");
        }
    }
}
