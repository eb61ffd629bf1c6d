//! Fetching from one leader: which partitions the next request asks for, and when it is sent.
//!
//! A state machine without I/O. One request at a time asks for every partition that wants records;
//! a partition whose log is being changed wants none, and holds up no other. In a fetch session
//! (KIP-227) the leader remembers what was asked for, so that a request names only what changed,
//! and one of idle partitions names nothing.
//!
//! Nothing is asked before those that the last answer was about have looked at it: a request of the
//! others alone would be parked at the leader, and they would have to wait for its end.
//!
//! Invariants: at most one request is under way. What the leader remembers of the session, once it
//! has a request, is what wanted records when that was sent, but for what an answer was about: the
//! next request names that again, or forgets it, and repeats what was reported. What a request
//! costs follows from what it names, so it names [`NAMED_MAX`] at most; the rest is for the next
//! one, which follows at once. After a failure nothing is sent before `replica.fetch.backoff.ms`
//! are over, and the session begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;

use letterbox_env::Gather as _;
use letterbox_protocol::model::{LeaderEpoch, Offset, TopicId};

/// A partition.
pub(crate) type Key = (TopicId, i32);

/// Partitions that one request names. With more, at three elements for each, their leader would
/// handle it where it handles what takes long, behind such requests of its clients.
pub(crate) const NAMED_MAX: usize = 160;

/// From where a partition wants records: see [`super::follower::FollowerEffect::Fetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) at: Offset,
    pub(crate) last_epoch: LeaderEpoch,
    pub(crate) counts: Offset,
    pub(crate) is_full: bool,
}

/// What happens to a fetcher.
#[derive(Clone, Debug)]
pub(crate) enum FetcherEvent {
    /// The partition wants records from there. Replaces what it wanted before.
    Wants(Key, Position),
    /// The partition wants none from this leader any more.
    Gone(Key),
    /// The answer, in this session (0: the leader keeps none), with something about these: records,
    /// another high watermark or log start, or an error. It is theirs to look at. `served` is the
    /// last with records.
    Answered { session: i32, about: Vec<Key>, served: Option<Key> },
    /// They have looked at it, and said what they want now as far as they know.
    Told,
    /// It was reported how far the partition counts: the next request says so too.
    Reported(Key),
    /// The leader does not know the session (FETCH_SESSION_ID_NOT_FOUND) or its epoch
    /// (INVALID_FETCH_SESSION_EPOCH).
    SessionEnded,
    /// The connection has, and was open before this request: the leader may have started again, and
    /// a new connection tells.
    ConnectionEnded,
    /// No answer came.
    Failed,
    /// The time is that: what was put off is due.
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetcherEffect {
    /// Send this.
    Send(FetchSession),
    /// The partition is told what the answer says about it; it was asked from there.
    Tell(Key, Position),
    /// Nothing until then; then [`FetcherEvent::Tick`].
    WaitUntil(u64),
}

/// A request within a session. An epoch of 0 begins one, and names all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchSession {
    pub(crate) id: i32,
    pub(crate) epoch: i32,
    /// New, or from elsewhere than the leader remembers; in the order in which the leader is to
    /// serve them.
    pub(crate) asks: Vec<(Key, Position)>,
    /// Not any more.
    pub(crate) forgets: Vec<Key>,
    /// There are more of these: it is to be answered at once.
    pub(crate) is_more: bool,
}

/// What is fetched from one leader.
#[derive(Debug)]
pub(crate) struct Fetcher {
    backoff_ms: u64,
    wanting: BTreeMap<Key, Position>,
    /// Its id, and the epoch of the next request.
    session: Option<(i32, i32)>,
    /// What the leader was asked in this session, and not told to forget.
    asked: BTreeMap<Key, Position>,
    /// What the next request names or forgets: the leader may remember something else of it.
    changed: BTreeSet<Key>,
    /// The last that was named, where more is to be named: those behind it come first.
    named: Option<Key>,
    /// The last that got records. Those behind it come first where the leader keeps no session: its
    /// answer is bounded, and who has a backlog would fill each of them.
    served: Option<Key>,
    /// How many partitions a request names at most, where the leader keeps a session.
    named_max: usize,
    /// The last answer was without a session: what is not named then is not answered.
    has_no_session: bool,
    is_asking: bool,
    /// Some are looking at the last answer.
    is_telling: bool,
    wait_until_ms: Option<u64>,
}

impl Fetcher {
    pub(crate) fn new(backoff_ms: u64) -> Self {
        Self {
            backoff_ms,
            wanting: BTreeMap::new(),
            session: None,
            asked: BTreeMap::new(),
            changed: BTreeSet::new(),
            named: None,
            served: None,
            named_max: NAMED_MAX,
            has_no_session: false,
            is_asking: false,
            is_telling: false,
            wait_until_ms: None,
        }
    }

    /// Takes `event` in and gives what is to be done.
    pub(crate) fn step(&mut self, event: FetcherEvent, now_ms: u64) -> Vec<FetcherEffect> {
        let mut effects = Vec::new();
        match event {
            FetcherEvent::Wants(key, position) => {
                self.wanting.insert(key, position);
                if self.asked.get(&key) != Some(&position) {
                    self.changed.insert(key);
                }
            }
            FetcherEvent::Gone(key) => {
                self.wanting.remove(&key);
                self.changed.insert(key);
            }
            FetcherEvent::Answered { session, about, served } if self.is_asking => {
                self.is_asking = false;
                self.served = served.or(self.served);
                let next = self.session.map_or(1, |(_, epoch)| next_epoch(epoch));
                self.session = (session != 0).then_some((session, next));
                self.has_no_session = session == 0;
                for key in about {
                    self.changed.insert(key);
                    // What it wants may be another place by now, or nothing.
                    let asked = self.asked.get(&key);
                    if let Some(asked) = asked.filter(|asked| self.wanting.get(&key) == Some(asked))
                    {
                        effects.push(FetcherEffect::Tell(key, *asked));
                        self.wanting.remove(&key);
                    }
                }
                self.is_telling = !effects.is_empty();
            }
            FetcherEvent::Told => self.is_telling = false,
            FetcherEvent::Reported(key) => drop(self.changed.insert(key)),
            FetcherEvent::ConnectionEnded if self.is_asking => {
                (self.is_asking, self.session) = (false, None);
            }
            FetcherEvent::SessionEnded if self.is_asking && self.session.is_some() => {
                (self.is_asking, self.session) = (false, None);
            }
            // Who says so of a session that was to begin would be asked again and again.
            FetcherEvent::Failed | FetcherEvent::SessionEnded if self.is_asking => {
                (self.is_asking, self.session) = (false, None);
                let until_ms = now_ms.saturating_add(self.backoff_ms);
                self.wait_until_ms = Some(until_ms);
                effects.push(FetcherEffect::WaitUntil(until_ms));
            }
            FetcherEvent::Answered { .. }
            | FetcherEvent::ConnectionEnded
            | FetcherEvent::SessionEnded
            | FetcherEvent::Failed => {}
            FetcherEvent::Tick => {
                self.wait_until_ms = self.wait_until_ms.filter(|until_ms| now_ms < *until_ms);
            }
        }
        effects.extend(self.ask());
        effects
    }

    /// The next request, when one may be sent and asks for something.
    fn ask(&mut self) -> Option<FetcherEffect> {
        let is_busy = self.is_asking || self.is_telling || self.wait_until_ms.is_some();
        if is_busy || self.wanting.is_empty() {
            return None;
        }
        let (id, epoch) = self.session.unwrap_or_default();
        if self.session.is_none() {
            self.asked.clear();
            self.changed = self.wanting.keys().copied().gather();
        }
        let (mut asks, mut forgets) = (Vec::new(), Vec::new());
        let most = if self.has_no_session { usize::MAX } else { self.named_max };
        let mut last = if self.has_no_session { self.served } else { self.named };
        while asks.len() + forgets.len() < most
            && let Some(key) = self.take_changed(last)
        {
            last = Some(key);
            if let Some(position) = self.wanting.get(&key) {
                asks.push((key, *position));
                self.asked.insert(key, *position);
            } else if self.asked.remove(&key).is_some() {
                forgets.push(key);
            }
        }
        self.is_asking = true;
        let is_more = !self.changed.is_empty();
        self.named = last.filter(|_| is_more);
        Some(FetcherEffect::Send(FetchSession { id, epoch, asks, forgets, is_more }))
    }

    /// The first one behind the last, and those up to that at the end.
    fn take_changed(&mut self, last: Option<Key>) -> Option<Key> {
        let behind = last.map(|last| (Bound::Excluded(last), Bound::Unbounded));
        let next = behind.and_then(|behind| self.changed.range(behind).next());
        let key = *next.or_else(|| self.changed.first())?;
        self.changed.remove(&key);
        Some(key)
    }
}

/// From 1 on, and 1 again after the largest (KIP-227).
fn next_epoch(epoch: i32) -> i32 {
    epoch.checked_add(1).unwrap_or(1)
}

impl fmt::Display for FetcherEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(FetchSession { id, epoch, asks, forgets, is_more }) => {
                write!(f, "send in session {id}, epoch {epoch}:")?;
                for ((_, index), position) in asks {
                    write!(f, " {index} from {}", position.at)?;
                }
                for (_, index) in forgets {
                    write!(f, " not {index}")?;
                }
                f.write_str(if *is_more { " and more" } else { "" })
            }
            Self::Tell((_, index), position) => write!(f, "tell {index} from {}", position.at),
            Self::WaitUntil(at_ms) => write!(f, "wait until {at_ms}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use letterbox_sim::transcript::check;

    const TOPIC: TopicId = TopicId::from_u128(1);

    fn position(at: Offset) -> Position {
        Position { epoch: 0, at, last_epoch: 0, counts: at, is_full: false }
    }

    fn tell(script: &str) {
        let (mut fetcher, mut now_ms) = (Fetcher::new(1_000), 1_000);
        fetcher.named_max = 3;
        check(script, |line| {
            now_ms = line.find("now").map_or(now_ms, |now| now.parse().unwrap());
            let event = match line.word() {
                "wants" => {
                    FetcherEvent::Wants((TOPIC, line.number("of")), position(line.number("at")))
                }
                "gone" => FetcherEvent::Gone((TOPIC, line.number("of"))),
                "answered" => FetcherEvent::Answered {
                    session: line.number("session"),
                    about: line.ids("about").iter().map(|index| (TOPIC, index.0)).collect(),
                    served: line.find("served").map(|index| (TOPIC, index.parse().unwrap())),
                },
                "told" => FetcherEvent::Told,
                "reported" => FetcherEvent::Reported((TOPIC, line.number("of"))),
                "session-ended" => FetcherEvent::SessionEnded,
                "connection-ended" => FetcherEvent::ConnectionEnded,
                "failed" => FetcherEvent::Failed,
                "tick" => FetcherEvent::Tick,
                other => panic!("{other}"),
            };
            fetcher.step(event, now_ms).iter().map(ToString::to_string).collect()
        });
    }

    #[test]
    fn a_session_names_only_what_changed() {
        tell(
            "
            > wants of=0 at=10
              send in session 0, epoch 0: 0 from 10
            > wants of=1 at=20
            > wants of=2 at=30
            > answered session=77 about=
              send in session 77, epoch 1: 1 from 20 2 from 30
            # Nothing new anywhere: nothing is named.
            > answered session=77 about=
              send in session 77, epoch 2:
            # Partition 1 has records to append, and asks for more at once.
            > answered session=77 about=1
              tell 1 from 20
            > wants of=1 at=25
            > told
              send in session 77, epoch 3: 1 from 25
            # It has to cut its log first; the others are asked for meanwhile.
            > answered session=77 about=1
              tell 1 from 25
            > told
              send in session 77, epoch 4: not 1
            > wants of=1 at=22
            > gone of=2
            > answered session=77 about=
              send in session 77, epoch 5: 1 from 22 not 2
            # What the leader has told something about it remembers no more.
            > answered session=77 about=1
              tell 1 from 22
            > wants of=1 at=22
            > told
              send in session 77, epoch 6: 1 from 22
            # A report may be lost.
            > reported of=0
            > reported of=2
            > answered session=77 about=
              send in session 77, epoch 7: 0 from 10
            # Nor does it when nobody was told: it wanted nothing, and wants the same again.
            > gone of=0
            > answered session=77 about=0,1
              tell 1 from 22
            > wants of=0 at=10
            > wants of=1 at=22
            > told
              send in session 77, epoch 8: 0 from 10 1 from 22
            ",
        );
    }

    /// Its leader would have it wait behind what takes long.
    #[test]
    fn a_request_names_only_so_many_and_the_next_one_the_rest() {
        tell(
            "
            > wants of=0 at=10
              send in session 0, epoch 0: 0 from 10
            > wants of=1 at=10
            > wants of=2 at=10
            > wants of=3 at=10
            > wants of=4 at=10
            > wants of=5 at=10
            > failed
              wait until 2000
            > tick now=2000
              send in session 0, epoch 0: 0 from 10 1 from 10 2 from 10 and more
            # What was served comes last, also when it has changed since.
            > answered session=7 about=1 served=1
              tell 1 from 10
            > wants of=1 at=20
            > gone of=0
            > told
              send in session 7, epoch 1: 3 from 10 4 from 10 5 from 10 and more
            > answered session=7 about=
              send in session 7, epoch 2: 1 from 20 not 0
            > answered session=7 about=
              send in session 7, epoch 3:
            ",
        );
    }

    /// Those that are not named wait for as long as that lasts.
    #[test]
    fn each_is_named_in_turn_whoever_gets_records_meanwhile() {
        tell(
            "
            > wants of=0 at=10
              send in session 0, epoch 0: 0 from 10
            > wants of=1 at=10
            > wants of=2 at=10
            > wants of=3 at=10
            > wants of=4 at=10
            > answered session=7 about=
              send in session 7, epoch 1: 1 from 10 2 from 10 3 from 10 and more
            > answered session=7 about=0,1,2,3 served=3
              tell 0 from 10
              tell 1 from 10
              tell 2 from 10
              tell 3 from 10
            > wants of=0 at=20
            > wants of=1 at=20
            > wants of=2 at=20
            > wants of=3 at=20
            > told
              send in session 7, epoch 2: 4 from 10 0 from 20 1 from 20 and more
            # The leader knows 4, and it is served; 2 and 3 were not named yet.
            > answered session=7 about=0,1,4 served=4
              tell 0 from 20
              tell 1 from 20
              tell 4 from 10
            > wants of=0 at=30
            > wants of=1 at=30
            > wants of=4 at=30
            > told
              send in session 7, epoch 3: 2 from 20 3 from 20 4 from 30 and more
            > answered session=7 about=
              send in session 7, epoch 4: 0 from 30 1 from 30
            ",
        );
    }

    #[test]
    fn a_leader_that_keeps_no_session_is_told_all_each_time() {
        tell(
            "
            > wants of=0 at=10
              send in session 0, epoch 0: 0 from 10
            > wants of=1 at=20
            > wants of=2 at=20
            > wants of=3 at=20
            > answered session=0 about=
              send in session 0, epoch 0: 0 from 10 1 from 20 2 from 20 3 from 20
            ",
        );
    }

    /// The first ones have so many records that an answer is full with them.
    #[test]
    fn who_was_not_served_comes_first() {
        tell(
            "
            > wants of=0 at=10
              send in session 0, epoch 0: 0 from 10
            > wants of=1 at=10
            > wants of=2 at=10
            > answered session=0 about=0 served=0
              tell 0 from 10
            > wants of=0 at=20
            > told
              send in session 0, epoch 0: 1 from 10 2 from 10 0 from 20
            > answered session=0 about=1,2 served=2
              tell 1 from 10
              tell 2 from 10
            > wants of=1 at=20
            > told
              send in session 0, epoch 0: 0 from 20 1 from 20
            # Nothing came.
            > answered session=0 about=
              send in session 0, epoch 0: 0 from 20 1 from 20
            ",
        );
    }

    #[test]
    fn a_session_that_has_ended_begins_anew_at_once_and_after_a_failure_later() {
        tell(
            "
            > wants of=0 at=10
              send in session 0, epoch 0: 0 from 10
            > answered session=77 about=
              send in session 77, epoch 1:
            > session-ended
              send in session 0, epoch 0: 0 from 10
            > answered session=78 about=
              send in session 78, epoch 1:
            > connection-ended
              send in session 0, epoch 0: 0 from 10
            > connection-ended
              send in session 0, epoch 0: 0 from 10
            # That was to begin one.
            > session-ended
              wait until 2000
            > tick now=2000
              send in session 0, epoch 0: 0 from 10
            > answered session=79 about=
              send in session 79, epoch 1:
            > failed now=5000
              wait until 6000
            > wants of=1 at=20
            > tick now=5999
            > tick now=6000
              send in session 0, epoch 0: 0 from 10 1 from 20
            ",
        );
    }

    #[test]
    fn an_answer_is_told_only_to_who_still_wants_it() {
        tell(
            "
            > wants of=0 at=10
              send in session 0, epoch 0: 0 from 10
            # Its leader epoch changed: it asks from elsewhere.
            > wants of=0 at=7
            > answered session=77 about=0
              send in session 77, epoch 1: 0 from 7
            > gone of=0
            > answered session=77 about=0
            > answered session=77 about=0
            > failed
            ",
        );
    }

    proptest! {
        /// Whatever happens, the leader's idea of the session is what is wanted when a request is
        /// sent that names all, one request is under way, and nothing that is wanted is left out for
        /// good.
        #[test]
        fn the_leader_remembers_what_is_wanted(
            events in proptest::collection::vec((0u8..8, 0i32..4, 0i64..4), 0..200),
        ) {
            let (mut fetcher, mut wanted) = (Fetcher::new(10), BTreeMap::new());
            fetcher.named_max = 2;
            let mut leader = BTreeMap::new();
            let (mut is_asking, mut now_ms, mut last_epoch) = (false, 0, 0);
            for (what, of, at) in events {
                let key = (TOPIC, of);
                now_ms += 3;
                let event = match what {
                    0..=2 => {
                        wanted.insert(key, position(at));
                        FetcherEvent::Wants(key, position(at))
                    }
                    3 => {
                        wanted.remove(&key);
                        FetcherEvent::Gone(key)
                    }
                    4 | 5 => FetcherEvent::Answered {
                        session: 9,
                        about: vec![key],
                        served: Some(key),
                    },
                    6 if at == 0 => FetcherEvent::SessionEnded,
                    6 if at == 1 => FetcherEvent::ConnectionEnded,
                    6 => FetcherEvent::Failed,
                    _ => FetcherEvent::Tick,
                };
                let goes_on = matches!(
                    event,
                    FetcherEvent::Wants(..) | FetcherEvent::Gone(_) | FetcherEvent::Tick
                );
                is_asking &= goes_on;
                let mut effects = fetcher.step(event, now_ms);
                effects.extend(fetcher.step(FetcherEvent::Told, now_ms));
                for effect in effects {
                    match effect {
                        FetcherEffect::Tell(key, position) => {
                            prop_assert_eq!(wanted.remove(&key), Some(position));
                        }
                        FetcherEffect::Send(session) => {
                            let FetchSession { epoch, asks, forgets, is_more, .. } = session;
                            prop_assert!(asks.len() + forgets.len() <= 2);
                            prop_assert!(!is_asking);
                            is_asking = true;
                            if epoch == 0 {
                                leader.clear();
                            } else {
                                prop_assert_eq!(epoch, last_epoch + 1);
                            }
                            last_epoch = epoch;
                            leader.extend(asks);
                            for key in forgets {
                                prop_assert!(leader.remove(&key).is_some());
                            }
                            // What it does not know yet is what the next one names.
                            let mut known = leader.clone();
                            for key in &fetcher.changed {
                                known.remove(key);
                                known.extend(wanted.get(key).map(|position| (*key, *position)));
                            }
                            prop_assert_eq!(&known, &wanted);
                            prop_assert_eq!(is_more, !fetcher.changed.is_empty());
                        }
                        FetcherEffect::WaitUntil(_) => {}
                    }
                }
                // Only a failure keeps it from asking.
                prop_assert!(is_asking || wanted.is_empty() || fetcher.wait_until_ms.is_some());
            }
        }
    }
}
