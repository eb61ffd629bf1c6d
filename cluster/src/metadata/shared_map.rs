//! [`SharedMap`]: an ordered map whose versions share what is the same in them.
//!
//! A B-tree of shared nodes. A clone copies one pointer; a change copies the nodes on the way to
//! its key and shares all others with the map's clones, so it costs the same in a map of a hundred
//! entries and of a hundred thousand; a node that no clone shares is changed in place. The
//! difference of two versions skips what they share.
//!
//! Ours and no library's: the libraries with such a difference are under licences that this project
//! does not take (`deny.toml`).

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The most entries or children of a node.
const WIDTH: usize = 32;
/// A node with fewer is joined with the one beside it.
const NARROW: usize = WIDTH / 4;

/// See the module.
pub struct SharedMap<K, V> {
    root: Arc<Node<K, V>>,
    len: usize,
}

/// Keys rise from left to right, and all leaves are equally deep.
#[derive(Clone)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    /// Never empty. With each child a lower bound of its keys, above all keys before it.
    Inner(Vec<(K, Arc<Self>)>),
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root), len: self.len }
    }
}

impl<K, V> SharedMap<K, V> {
    /// How many entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries in the order of their keys.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { walk: Walk::new(&self.root), left: self.len }
    }

    /// The values in the order of their keys.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The value of `key`.
    #[must_use]
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(present, _)| present.borrow().cmp(key));
                    return at.ok().and_then(|at| entries.get(at)).map(|(_, value)| value);
                }
                Node::Inner(children) => node = &children.get(child_of(children, key))?.1,
            }
        }
    }

    /// Whether `key` is there.
    #[must_use]
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// The value of `key`, to be changed.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        // What is not there is not worth a copy.
        self.get(key)?;
        let mut node = Arc::make_mut(&mut self.root);
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(present, _)| present.borrow().cmp(key));
                    return at.ok().and_then(|at| entries.get_mut(at)).map(|(_, value)| value);
                }
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    node = Arc::make_mut(&mut children.get_mut(at)?.1);
                }
            }
        }
    }

    /// Sets the value of `key`; what it was.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (old, split) = insert(&mut self.root, key, value);
        if let Some(right) = split
            && let Some(least) = self.root.least()
        {
            self.root = Arc::new(Node::Inner(vec![(least, Arc::clone(&self.root)), right]));
        }
        self.len = self.len.saturating_add(usize::from(old.is_none()));
        old
    }

    /// Takes `key` out; what it was.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        let old = remove(&mut self.root, key);
        while let Node::Inner(children) = &*self.root
            && let [(_, only)] = &children[..]
        {
            self.root = Arc::clone(only);
        }
        self.len = self.len.saturating_sub(usize::from(old.is_some()));
        old
    }
}

impl<K: Ord, V: PartialEq> SharedMap<K, V> {
    /// The keys whose entries differ between `self` and `after`, in order, with both values. What
    /// the two maps share is not looked at.
    pub fn diff<'a>(&'a self, after: &'a Self) -> Diff<'a, K, V> {
        Diff { before: Walk::new(&self.root), after: Walk::new(&after.root) }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.diff(other).next().is_none()
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K, V> Node<K, V> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }
}

impl<K: Clone, V> Node<K, V> {
    /// A lower bound of the keys; `None` when there is none.
    fn least(&self) -> Option<K> {
        match self {
            Self::Leaf(entries) => entries.first().map(|(key, _)| key.clone()),
            Self::Inner(children) => children.first().map(|(key, _)| key.clone()),
        }
    }
}

/// Where among `children` the key is, if it is anywhere.
fn child_of<K: Borrow<Q>, Q: Ord + ?Sized, N>(children: &[(K, N)], key: &Q) -> usize {
    children.partition_point(|(least, _)| least.borrow() <= key).saturating_sub(1)
}

/// The right half of what has become too wide, with its least key.
type Split<K, V> = Option<(K, Arc<Node<K, V>>)>;

fn split_off<T>(items: &mut Vec<T>) -> Option<Vec<T>> {
    (items.len() > WIDTH).then(|| items.split_off(items.len() / 2))
}

fn insert<K: Ord + Clone, V: Clone>(
    node: &mut Arc<Node<K, V>>,
    key: K,
    value: V,
) -> (Option<V>, Split<K, V>) {
    let (old, right) = match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            match entries.binary_search_by(|(present, _)| present.cmp(&key)) {
                Ok(at) => {
                    let slot = entries.get_mut(at).map(|(_, slot)| slot);
                    return (slot.map(|slot| std::mem::replace(slot, value)), None);
                }
                Err(at) => entries.insert(at, (key, value)),
            }
            (None, split_off(entries).map(Node::Leaf))
        }
        Node::Inner(children) => {
            let at = child_of(children, &key);
            let Some((least, child)) = children.get_mut(at) else { return (None, None) };
            if key < *least {
                *least = key.clone();
            }
            let (old, split) = insert(child, key, value);
            if let Some(right) = split {
                children.insert(at.saturating_add(1), right);
            }
            (old, split_off(children).map(Node::Inner))
        }
    };
    (old, right.and_then(|right| Some((right.least()?, Arc::new(right)))))
}

fn remove<K: Ord + Clone + Borrow<Q>, V: Clone, Q: Ord + ?Sized>(
    node: &mut Arc<Node<K, V>>,
    key: &Q,
) -> Option<V> {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            let at = entries.binary_search_by(|(present, _)| present.borrow().cmp(key)).ok()?;
            Some(entries.remove(at).1)
        }
        Node::Inner(children) => {
            let at = child_of(children, key);
            let (_, child) = children.get_mut(at)?;
            let old = remove(child, key);
            if child.len() < NARROW {
                join(children, at);
            }
            old
        }
    }
}

/// Joins the child `at` with the one after it, or before it; what is then too wide is halved.
fn join<K: Clone, V: Clone>(children: &mut Vec<(K, Arc<Node<K, V>>)>, at: usize) {
    let left = if at.saturating_add(1) < children.len() { at } else { at.saturating_sub(1) };
    let Some([(_, first), (_, second)]) = children.get_mut(left..left.saturating_add(2)) else {
        return;
    };
    let right = match (Arc::make_mut(first), &**second) {
        (Node::Leaf(first), Node::Leaf(second)) => {
            first.extend(second.iter().cloned());
            split_off(first).map(Node::Leaf)
        }
        (Node::Inner(first), Node::Inner(second)) => {
            first.extend(second.iter().cloned());
            split_off(first).map(Node::Inner)
        }
        // All leaves are equally deep.
        _ => return,
    };
    let right_at = left.saturating_add(1);
    match (
        right.and_then(|right| Some((right.least()?, Arc::new(right)))),
        children.get_mut(right_at),
    ) {
        (Some(right), Some(slot)) => *slot = right,
        _ => drop(children.remove(right_at)),
    }
}

/// What comes next in a walk from left to right: a node that can be skipped or opened, or an entry.
enum Next<'a, K, V> {
    /// With the lower bound of its keys; the root has none.
    Node(Option<&'a K>, &'a Arc<Node<K, V>>),
    Entry(&'a K, &'a V),
}

impl<K, V> Clone for Next<'_, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Next<'_, K, V> {}

/// A walk over a map from left to right: at its `root`, or in the last of the `open` nodes.
struct Walk<'a, K, V> {
    root: Option<&'a Arc<Node<K, V>>>,
    open: Vec<Open<'a, K, V>>,
    levels: usize,
}

enum Open<'a, K, V> {
    Leaf(&'a [(K, V)]),
    Inner(&'a [(K, Arc<Node<K, V>>)]),
}

impl<'a, K, V> Walk<'a, K, V> {
    fn new(root: &'a Arc<Node<K, V>>) -> Self {
        let (mut levels, mut node) = (0, root);
        while let Node::Inner(children) = &**node
            && let Some((_, child)) = children.first()
        {
            (levels, node) = (levels + 1, child);
        }
        Self { root: Some(root), open: Vec::new(), levels }
    }

    fn peek(&mut self) -> Option<Next<'a, K, V>> {
        if let Some(root) = self.root {
            return Some(Next::Node(None, root));
        }
        loop {
            match self.open.last()? {
                Open::Leaf([(key, value), ..]) => return Some(Next::Entry(key, value)),
                Open::Inner([(least, child), ..]) => return Some(Next::Node(Some(least), child)),
                Open::Leaf([]) | Open::Inner([]) => drop(self.open.pop()),
            }
        }
    }

    /// Goes past what [`Self::peek`] shows.
    fn skip(&mut self) {
        if self.root.take().is_some() {
            return;
        }
        match self.open.last_mut() {
            Some(Open::Leaf(entries)) => *entries = entries.get(1..).unwrap_or_default(),
            Some(Open::Inner(children)) => *children = children.get(1..).unwrap_or_default(),
            None => {}
        }
    }

    /// Goes into `node`, which [`Self::peek`] shows.
    fn enter(&mut self, node: &'a Node<K, V>) {
        self.skip();
        self.open.push(match node {
            Node::Leaf(entries) => Open::Leaf(entries),
            Node::Inner(children) => Open::Inner(children),
        });
    }

    /// How many levels of nodes are below what comes next.
    fn height(&self) -> usize {
        self.levels.saturating_sub(self.open.len())
    }
}

/// See [`SharedMap::iter`].
pub struct Iter<'a, K, V> {
    walk: Walk<'a, K, V>,
    left: usize,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.walk.peek()? {
                Next::Node(_, node) => self.walk.enter(node),
                Next::Entry(key, value) => {
                    self.walk.skip();
                    self.left = self.left.saturating_sub(1);
                    return Some((key, value));
                }
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<K, V> ExactSizeIterator for Iter<'_, K, V> {}

/// See [`SharedMap::diff`].
pub struct Diff<'a, K, V> {
    before: Walk<'a, K, V>,
    after: Walk<'a, K, V>,
}

/// One entry that differs.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// Its value before.
    pub before: Option<&'a V>,
    /// Its value after.
    pub after: Option<&'a V>,
}

impl<'a, K: Ord, V: PartialEq> Iterator for Diff<'a, K, V> {
    type Item = Change<'a, K, V>;

    fn next(&mut self) -> Option<Self::Item> {
        use Next::{Entry, Node};
        loop {
            match (self.before.peek(), self.after.peek()) {
                (None, None) => return None,
                (Some(Node(_, one)), Some(Node(_, other))) if Arc::ptr_eq(one, other) => {
                    self.before.skip();
                    self.after.skip();
                }
                (Some(Node(least, one)), Some(Node(other_least, other))) => {
                    // What begins first is opened; of two that begin together, the higher one.
                    let order = least.cmp(&other_least);
                    let (height, other_height) = (self.before.height(), self.after.height());
                    if order.then(other_height.cmp(&height)).is_le() {
                        self.before.enter(one);
                    } else {
                        self.after.enter(other);
                    }
                }
                (Some(Entry(key, value)), None) => return Some(self.went(key, value)),
                (Some(Entry(key, value)), Some(Node(Some(least), _))) if key < least => {
                    return Some(self.went(key, value));
                }
                (None, Some(Entry(key, value))) => return Some(self.came(key, value)),
                (Some(Node(Some(least), _)), Some(Entry(key, value))) if key < least => {
                    return Some(self.came(key, value));
                }
                (Some(Node(_, node)), _) => self.before.enter(node),
                (_, Some(Node(_, node))) => self.after.enter(node),
                (Some(Entry(key, value)), Some(Entry(other_key, other))) => {
                    match key.cmp(other_key) {
                        std::cmp::Ordering::Less => return Some(self.went(key, value)),
                        std::cmp::Ordering::Greater => return Some(self.came(other_key, other)),
                        std::cmp::Ordering::Equal => {
                            self.before.skip();
                            self.after.skip();
                            if value != other {
                                let (before, after) = (Some(value), Some(other));
                                return Some(Change { key, before, after });
                            }
                        }
                    }
                }
            }
        }
    }
}

impl<'a, K, V> Diff<'a, K, V> {
    fn went(&mut self, key: &'a K, value: &'a V) -> Change<'a, K, V> {
        self.before.skip();
        Change { key, before: Some(value), after: None }
    }

    fn came(&mut self, key: &'a K, value: &'a V) -> Change<'a, K, V> {
        self.after.skip();
        Change { key, before: None, after: Some(value) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Map = SharedMap<u32, u32>;
    type Model = BTreeMap<u32, u32>;

    /// The order and the bounds of keys, the depth of leaves and the width of nodes.
    fn check_shape(node: &Node<u32, u32>, is_root: bool, low: u32, high: u32) -> usize {
        assert!(node.len() <= WIDTH && (is_root || node.len() >= NARROW), "{}", node.len());
        match node {
            Node::Leaf(entries) => {
                assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
                assert!(entries.iter().all(|(key, _)| (low..=high).contains(key)));
                0
            }
            Node::Inner(children) => {
                assert!(!is_root || children.len() > 1);
                let ends = children.iter().skip(1).map(|(least, _)| least - 1).chain([high]);
                let depths: Vec<_> = children
                    .iter()
                    .zip(ends)
                    .map(|((least, child), high)| check_shape(child, false, *least, high))
                    .collect();
                assert!(depths.iter().all(|depth| *depth == depths[0]));
                depths[0] + 1
            }
        }
    }

    fn check(map: &Map, model: &Model) {
        check_shape(&map.root, true, 0, u32::MAX);
        assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
        assert!(map.iter().eq(model.iter()));
        assert!(model.iter().all(|(key, value)| map.get(key) == Some(value)));
    }

    fn check_diff(before: (&Map, &Model), after: (&Map, &Model)) {
        let keys: std::collections::BTreeSet<_> = before.1.keys().chain(after.1.keys()).collect();
        let expected = keys
            .into_iter()
            .map(|key| Change { key, before: before.1.get(key), after: after.1.get(key) })
            .filter(|change| change.before != change.after);
        assert_eq!(before.0.diff(after.0).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        assert_eq!(before.0 == after.0, before.1 == after.1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32, u32),
        Remove(u32),
        Set(u32, u32),
        /// Many at once: first, how many, step.
        Fill(u32, u32, u32),
        Clear(u32, u32, u32),
        Keep,
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || 0u32..3000;
        prop_oneof![
            4 => (key(), 0u32..4).prop_map(|(key, value)| Step::Insert(key, value)),
            4 => key().prop_map(Step::Remove),
            2 => (key(), 0u32..4).prop_map(|(key, value)| Step::Set(key, value)),
            1 => (key(), 0u32..1500, 1u32..5).prop_map(|(a, b, c)| Step::Fill(a, b, c)),
            1 => (key(), 0u32..1500, 1u32..5).prop_map(|(a, b, c)| Step::Clear(a, b, c)),
            1 => Just(Step::Keep),
        ]
    }

    fn take(map: &mut Map, model: &mut Model, step: &Step) {
        let range =
            |first: u32, count: u32, by: u32| (first..).step_by(by as usize).take(count as usize);
        match *step {
            Step::Insert(key, value) => {
                assert_eq!(map.insert(key, value), model.insert(key, value))
            }
            Step::Remove(key) => assert_eq!(map.remove(&key), model.remove(&key)),
            Step::Set(key, value) => {
                let slots = (map.get_mut(&key), model.get_mut(&key));
                if let (Some(slot), Some(model)) = slots {
                    (*slot, *model) = (value, value);
                } else {
                    assert_eq!(slots, (None, None));
                }
            }
            Step::Fill(first, count, by) => range(first, count, by).for_each(|key| {
                assert_eq!(map.insert(key, by), model.insert(key, by));
            }),
            Step::Clear(first, count, by) => range(first, count, by).for_each(|key| {
                assert_eq!(map.remove(&key), model.remove(&key));
            }),
            Step::Keep => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn is_as_an_ordered_map_and_versions_do_not_touch_one_another(
            steps in prop::collection::vec(step(), 0..25),
        ) {
            let (mut map, mut model) = (Map::default(), Model::default());
            let mut kept = vec![(map.clone(), model.clone())];
            for step in &steps {
                let before = (map.clone(), model.clone());
                take(&mut map, &mut model, step);
                check(&map, &model);
                check_diff((&before.0, &before.1), (&map, &model));
                check_diff((&map, &model), (&before.0, &before.1));
                if matches!(step, Step::Keep) {
                    kept.push((map.clone(), model.clone()));
                }
            }
            for (old, old_model) in &kept {
                check(old, old_model);
                check_diff((old, old_model), (&map, &model));
            }
        }
    }

    fn nodes<'a>(node: &'a Arc<Node<u32, u32>>, into: &mut Vec<&'a Arc<Node<u32, u32>>>) {
        into.push(node);
        if let Node::Inner(children) = &**node {
            children.iter().for_each(|(_, child)| nodes(child, into));
        }
    }

    /// Issue 10 §1: what a change costs does not grow with the map.
    #[test]
    fn change_copies_only_the_nodes_on_the_way_to_its_key() {
        for (len, levels_max) in [(1_000u32, 3), (10_000, 4), (100_000, 5)] {
            let mut map = Map::default();
            for key in 0..len {
                map.insert(key * 2, 0);
            }
            for change in [Step::Insert(len, 1), Step::Insert(len + 1, 1), Step::Remove(len)] {
                let before = map.clone();
                take(&mut map, &mut before.iter().map(|(k, v)| (*k, *v)).collect(), &change);
                let (mut old, mut new) = (Vec::new(), Vec::new());
                nodes(&before.root, &mut old);
                nodes(&map.root, &mut new);
                let old: std::collections::BTreeSet<_> = old.into_iter().map(Arc::as_ptr).collect();
                let copied = new.iter().filter(|node| !old.contains(&Arc::as_ptr(node))).count();
                // The way, and what a node on it was cut in two for.
                assert!((1..=2 * levels_max).contains(&copied), "{copied} of {}", new.len());
            }
        }
    }
}
