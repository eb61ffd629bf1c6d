/// Makes an ordered map or set of what an iterator gives, one by one.
pub trait Gather: Iterator + Sized {
    /// As `collect`, which sorts first, with a sort that is compiled for each type: some 4 kB of
    /// the program.
    fn gather<C: Default + Extend<Self::Item>>(self) -> C {
        let mut all = C::default();
        all.extend(self);
        all
    }
}

impl<I: Iterator> Gather for I {}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::Gather;

    #[test]
    fn of_equal_keys_the_last_value_stands_as_with_collect() {
        let pairs = [(2, 'a'), (1, 'b'), (2, 'c')];
        let gathered: BTreeMap<_, _> = pairs.into_iter().gather();
        assert_eq!(gathered, BTreeMap::from([(1, 'b'), (2, 'c')]));
        let keys: BTreeSet<_> = pairs.iter().map(|(key, _)| *key).gather();
        assert_eq!(keys, BTreeSet::from([1, 2]));
    }
}
