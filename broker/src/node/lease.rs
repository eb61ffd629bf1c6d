//! Up to when this broker leads what it leads by its metadata.
//!
//! As in Kafka, a broker that runs and does not reach the controller goes on. But a process that
//! stood still for a session (SIGSTOP, no CPU) was fenced meanwhile, and others lead; it goes on
//! when its roles follow all that the controller showed which has heard it since. So it is for one
//! that others take for no member any more. Until then nothing is appended, and nothing
//! acknowledged. Why that is enough is in `docs/design/0004-voters.md`.

use std::time::Duration;

use tokio::time::Instant;

use crate::metadata::decide::liveness::HeartbeatAnswer;

/// No index reaches it: the controller has to answer first.
const ANSWER: u64 = u64::MAX;

/// From the heartbeat that was answered last: for so long nobody fences this broker for its silence.
#[derive(Debug)]
pub(super) struct Lease {
    /// As it has registered with.
    own_session: Duration,
    /// When that heartbeat was sent. The controller has heard it later.
    asked: Instant,
    /// For how long the controller has said that it fences nobody it has heard.
    session: Duration,
    /// How long this process has run since then with nobody answering.
    ran: Duration,
    /// Up to when that was looked at.
    looked: Instant,
    /// What the roles have to follow before this broker leads again.
    awaited: Option<u64>,
}

impl Lease {
    /// Of a broker that has registered, with its session, after `since`.
    pub(super) fn new(since: Instant, own_session: Duration) -> Self {
        Self {
            own_session,
            asked: since,
            session: own_session,
            ran: Duration::ZERO,
            looked: since,
            awaited: None,
        }
    }

    /// How often the controller has to be told, so that one heartbeat may be lost.
    pub(super) fn tell_every(&self) -> Duration {
        (self.session / 4).max(Duration::from_millis(1))
    }

    /// From that moment on this broker does not lead; `None`: not now.
    pub(super) fn until(&self) -> Option<Instant> {
        self.awaited.is_none().then(|| self.asked + self.session + self.ran)
    }

    /// The index that the roles have to follow before it leads.
    pub(super) fn awaited(&self) -> Option<u64> {
        self.awaited
    }

    /// The controller has answered what it was told at `asked`.
    pub(super) fn heard(&mut self, now: Instant, asked: Instant, answer: &HeartbeatAnswer) {
        if answer.session_ms == 0 {
            return self.end();
        }
        // Heard before its session had ended it was not fenced since. The index stays that is
        // awaited then: with a newer one each time, a node that follows all of it a little late
        // would never lead again.
        let is_unbroken = self.awaited != Some(ANSWER) && now < self.asked + self.session;
        if answer.is_fenced || !is_unbroken {
            self.awaited = Some(answer.applied_index);
        }
        self.session = Duration::from_millis(answer.session_ms).min(self.own_session);
        (self.asked, self.looked, self.ran) = (asked, asked, Duration::ZERO);
    }

    /// Nobody has answered what the controller was told at `asked`. A process that runs is back
    /// `within` so long; longer than that it stood still, and that may be why.
    pub(super) fn unanswered(&mut self, now: Instant, asked: Instant, within: Duration) {
        let ran = asked.saturating_duration_since(std::mem::replace(&mut self.looked, asked));
        if self.until().is_none_or(|until| until <= now) {
            self.end();
        } else if ran <= within && now - asked <= within {
            self.ran += ran;
        }
    }

    /// The roles follow what was awaited.
    pub(super) fn shown(&mut self) {
        self.awaited = None;
    }

    /// It leads no more until the controller has answered again, and its metadata were shown.
    pub(super) fn end(&mut self) {
        self.awaited = Some(ANSWER);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use letterbox_protocol::model::BrokerId;
    use letterbox_sim::rng::Rng;

    use super::*;
    use crate::metadata::decide::liveness::{Effect, Heartbeat, Liveness};
    use crate::metadata::{BrokerRegistration, MetadataImage};

    const SESSION: Duration = Duration::from_secs(9);
    const WITHIN: Duration = Duration::from_secs(3);

    fn answer(applied_index: u64, session_ms: u64) -> HeartbeatAnswer {
        HeartbeatAnswer {
            is_caught_up: true,
            is_fenced: false,
            may_stop: false,
            applied_index,
            session_ms,
        }
    }

    /// One that goes by `heard` and the like at times in milliseconds.
    struct At(Lease, Instant);

    impl At {
        fn new() -> Self {
            let begun = Instant::now();
            Self(Lease::new(begun, SESSION), begun)
        }

        fn ms(&self, ms: u64) -> Instant {
            self.1 + Duration::from_millis(ms)
        }

        fn heard(&mut self, asked: u64, now: u64, answer: &HeartbeatAnswer) -> &mut Self {
            let (now, asked) = (self.ms(now), self.ms(asked));
            self.0.heard(now, asked, answer);
            self
        }

        fn unanswered(&mut self, asked: u64, now: u64) -> &mut Self {
            let (now, asked) = (self.ms(now), self.ms(asked));
            self.0.unanswered(now, asked, WITHIN);
            self
        }

        fn until(&self) -> Option<u64> {
            let until = self.0.until()? - self.1;
            Some(u64::try_from(until.as_millis()).unwrap())
        }
    }

    #[test]
    fn it_counts_from_when_the_heartbeat_was_sent_and_by_the_controllers_session() {
        let mut at = At::new();
        assert_eq!(at.until(), Some(9_000));
        assert_eq!(at.heard(2_000, 2_500, &answer(1, 9_000)).until(), Some(11_000));
        assert_eq!(at.heard(4_000, 4_100, &answer(1, 3_000)).until(), Some(7_000));
        assert_eq!(at.0.tell_every(), Duration::from_millis(750));
        // Never by a longer one than it has registered with: later controllers know only that.
        assert_eq!(at.heard(6_000, 6_100, &answer(1, u64::MAX)).until(), Some(15_000));
    }

    /// The controller goes on, and the roles follow all of it a little late.
    #[test]
    fn what_was_shown_at_the_first_answer_after_a_pause_is_waited_for() {
        let mut at = At::new();
        for (asked, index) in [(9_000, 5), (11_000, 7), (19_000, 9), (27_000, 11)] {
            at.heard(asked, asked, &answer(index, 9_000));
            assert_eq!((at.until(), at.0.awaited()), (None, Some(5)));
        }
        // It was sent in time, but heard perhaps when others led already.
        at.heard(35_900, 36_100, &answer(20, 9_000));
        assert_eq!(at.0.awaited(), Some(20));
        at.0.shown();
        assert_eq!(at.until(), Some(44_900));
    }

    #[test]
    fn a_fence_ends_it_whatever_the_time_is() {
        let (mut at, fenced) = (At::new(), HeartbeatAnswer { is_fenced: true, ..answer(7, 9_000) });
        // Also where the answer came well within the session.
        assert_eq!(At::new().heard(1_000, 1_100, &fenced).until(), None);
        assert_eq!(at.heard(1_000, 1_100, &answer(5, 0)).until(), None);
        // What it has to show is not known yet: the fence is under way.
        assert_eq!(at.0.awaited(), Some(ANSWER));
        assert_eq!(at.unanswered(1_500, 2_500).until(), None);
        assert_eq!(at.heard(3_000, 3_100, &fenced).0.awaited(), Some(7));
        assert_eq!(at.heard(5_000, 5_100, &answer(9, 9_000)).0.awaited(), Some(7));
    }

    #[test]
    fn one_that_runs_and_is_not_answered_goes_on_until_it_stands_still() {
        let mut at = At::new();
        at.heard(0, 100, &answer(1, 9_000));
        for n in 1..100 {
            at.unanswered(n * 2_500, n * 2_500 + 2_000);
        }
        assert_eq!(at.until(), Some(99 * 2_500 + 9_000));
        // Then it is away for a while, which counts, and once more.
        assert_eq!(at.unanswered(253_000, 255_000).until(), Some(99 * 2_500 + 9_000));
        assert_eq!(at.unanswered(255_500, 257_500).until(), None);
        assert_eq!(at.unanswered(258_000, 260_000).until(), None);
    }

    /// A broker, its controllers and what is between them, by the real decisions. Each step is 50 ms.
    struct World {
        rng: Rng,
        now: u64,
        begun: Instant,
        image: MetadataImage,
        liveness: Liveness,
        /// No controller before.
        controller_from: u64,
        /// When it is committed, and whether it fences.
        change: Option<(u64, bool)>,
        /// The last fence, and when each index was committed.
        fence: u64,
        committed: Vec<u64>,
        lease: Lease,
        stands_until: u64,
        followed: u64,
        next: u64,
        /// When it was sent, whether it was heard, and what comes when.
        asked: Option<(u64, bool, Option<Coming>)>,
    }

    const ID: BrokerId = BrokerId(1);

    type Coming = (u64, HeartbeatAnswer);

    impl World {
        fn new(seed: u64) -> Self {
            let mut rng = Rng::new(seed);
            let own = [3_000, 9_000, 20_000][usize::try_from(rng.below(3)).unwrap()];
            let registration = serde_json::json!({
                "id": 1, "epoch": 0, "endpoints": [], "rack": null, "fenced": false,
                "session_ms": own
            });
            let registration = serde_json::from_value(registration).unwrap();
            let mut image = MetadataImage::default();
            image.brokers = Arc::new([(ID, Arc::new(registration))].into());
            let begun = Instant::now();
            Self {
                liveness: Liveness::new(9_000, &image, 0),
                rng,
                now: 0,
                begun,
                image,
                controller_from: 0,
                change: None,
                fence: 0,
                committed: vec![0],
                lease: Lease::new(begun, Duration::from_millis(own)),
                stands_until: 0,
                followed: 0,
                next: 0,
                asked: None,
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.begun + Duration::from_millis(ms)
        }

        fn index(&self) -> u64 {
            u64::try_from(self.committed.len()).unwrap() - 1
        }

        fn control(&mut self) {
            if self.rng.below(800) == 0 {
                self.controller_from = self.now + 1_500;
                self.change = None;
                let session = [3_000, 9_000][usize::try_from(self.rng.below(2)).unwrap()];
                self.liveness = Liveness::new(session, &self.image, self.controller_from);
            }
            if self.now < self.controller_from {
                return;
            }
            if let Some((_, fenced)) = self.change.take_if(|(at, _)| *at <= self.now) {
                self.committed.push(self.now);
                self.fence = if fenced { self.index() } else { self.fence };
                let own = BrokerRegistration { fenced, ..(*self.image.brokers[&ID]).clone() };
                self.image.brokers = Arc::new([(ID, Arc::new(own))].into());
                self.liveness.take(&self.image, self.now);
            }
            let effect = self.liveness.tick(self.now);
            self.act(effect);
            let is_due = self.asked.filter(|(asked, heard, _)| !heard && *asked < self.now);
            if let Some((asked, ..)) = is_due.filter(|_| self.rng.below(2) == 0) {
                let (id, epoch, applied_index) = (ID, 0, self.followed);
                let (wants_fence, wants_stop, behind) = (false, false, Vec::new());
                let heartbeat =
                    Heartbeat { id, epoch, applied_index, wants_fence, wants_stop, behind };
                let (answer, effect) = self.liveness.heartbeat(heartbeat, self.now).unwrap();
                self.act(effect);
                let is_fencing = matches!(self.change, Some((_, true)));
                let session_ms = if is_fencing { 0 } else { answer.session_ms };
                let answer = HeartbeatAnswer { applied_index: self.index(), session_ms, ..answer };
                let comes = self.now + self.rng.below(300);
                self.asked = Some((asked, true, Some((comes, answer))));
            }
        }

        fn act(&mut self, effect: Option<Effect>) {
            let fenced = matches!(effect, Some(Effect::Fence(_)));
            if effect.is_some() && self.change.is_none() {
                self.change = Some((self.now + self.rng.below(400), fenced));
            }
        }

        fn run(&mut self) {
            let next = usize::try_from(self.followed + 1).unwrap();
            let is_due = |at: &&u64| **at <= self.now;
            if self.committed.get(next).filter(is_due).is_some() && self.rng.below(8) == 0 {
                self.followed += 1;
            }
            if self.lease.awaited().is_some_and(|index| index <= self.followed) {
                self.lease.shown();
            }
            let every = 2_000.min(u64::try_from(self.lease.tell_every().as_millis()).unwrap());
            let now = self.at(self.now);
            if let Some((asked, _, answer)) = self.asked {
                let (is_late, sent) = (self.now >= asked + every, self.at(asked));
                match answer.filter(|(comes, _)| *comes <= self.now) {
                    Some((_, answer)) if !is_late || self.rng.below(2) == 0 => {
                        self.lease.heard(now, sent, &answer);
                        (self.asked, self.next) = (None, self.now + every);
                    }
                    _ if is_late => {
                        let within = Duration::from_millis(every + 1_000);
                        self.lease.unanswered(now, sent, within);
                        (self.asked, self.next) = (None, self.now + every.min(500));
                    }
                    _ => {}
                }
            } else if self.now >= self.next {
                self.asked = Some((self.now, false, None));
            }
            let leads = self.lease.until().is_some_and(|until| until > now);
            assert!(!leads || self.fence <= self.followed, "it leads at {} ms", self.now);
        }
    }

    /// Nobody leads who was fenced for its silence and does not know it, whatever stood still.
    #[test]
    fn whoever_stands_still_does_not_lead_by_what_it_knew() {
        let (mut fences, mut led) = (0, 0);
        for seed in 0..300 {
            let mut world = World::new(seed);
            for _ in 0..4_000 {
                world.now += 50;
                world.control();
                if world.now < world.stands_until {
                    continue;
                }
                world.run();
                led += u64::from(world.lease.awaited().is_none());
                let still = match world.rng.below(150) {
                    0 => 3_500 + world.rng.below(20_000),
                    1..5 => world.rng.below(400),
                    _ => 0,
                };
                world.stands_until = world.now + still;
            }
            fences += u64::from(world.fence > 0);
        }
        assert!(fences > 250 && led > 300_000, "{fences} {led}");
    }
}
