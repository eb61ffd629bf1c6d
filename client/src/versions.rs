//! Which version of each API this client speaks: one table.

use kafka_protocol::protocol::Request;

/// The versions this client speaks of the API `R`: what the message crate has, cut where a newer version changes more than the client follows.
pub(crate) fn range<R: Request>() -> (i16, i16) {
    let newest = match R::KEY {
        // Topic ids instead of names from Produce 13, Fetch 13, OffsetCommit 10 and OffsetFetch 10 on: this client works with names.
        0 | 1 => 12,
        8 | 9 => 9,
        // 6 asks for two-phase commit, which this client does not use.
        22 => 5,
        _ => i16::MAX,
    };
    (R::VERSIONS.min, R::VERSIONS.max.min(newest))
}

/// The newest version both sides speak.
pub(crate) fn agree(ours: (i16, i16), theirs: Option<(i16, i16)>) -> Option<i16> {
    let (min, max) = theirs?;
    let newest = ours.1.min(max);
    (newest >= ours.0.max(min)).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::agree;

    #[test]
    fn newest_common_version_is_taken_and_disjoint_ranges_have_none() {
        assert_eq!(agree((1, 9), Some((0, 5))), Some(5));
        assert_eq!(agree((1, 4), Some((2, 50))), Some(4));
        assert_eq!(agree((1, 4), Some((5, 9))), None);
        assert_eq!(agree((3, 4), Some((0, 2))), None);
        assert_eq!(agree((3, 4), None), None);
    }
}
