//! Random numbers into smaller ranges.

/// A number below `bound`, each with the same probability where `random` is spread over all
/// values; 0 where `bound` is 0. By multiplication instead of division (Lemire, "Fast random
/// integer generation in an interval", 2019), without its correction of a bias that is below
/// `bound` / 2^64.
pub fn below(random: u64, bound: u64) -> u64 {
    let product = u128::from(random) * u128::from(bound);
    // What is left has 64 bits.
    u64::try_from(product >> 64).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_below_the_bound_has_its_part_and_none_above() {
        assert_eq!(below(0, 3), 0);
        assert_eq!(below(u64::MAX / 3, 3), 0);
        assert_eq!(below(u64::MAX / 3 + 1, 3), 1);
        assert_eq!(below(u64::MAX, 3), 2);
        assert_eq!(below(u64::MAX, u64::MAX), u64::MAX - 1);
        assert_eq!(below(u64::MAX, 0), 0);
    }
}
