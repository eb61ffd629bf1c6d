//! Who lives: the active controller listens to the brokers' heartbeats, and fences those that are
//! silent or whose process has died. What it concludes is decided in `metadata::decide::liveness`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use letterbox_env::panics::lock;
use letterbox_protocol::model::BrokerId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::proposer::Job;
use super::{ControllerError, DECIDE_WITHIN_MAX, decide_here};
use crate::metadata::decide::liveness::{
    Effect, Heartbeat, HeartbeatAnswer, Lags, Liveness, Millis,
};
use crate::metadata::decide::{
    Answer, BalanceLeaders, FenceBrokers, Kind, LeaseTimes, StopBroker, TendLeases,
};
use crate::quorum::{MetadataQuorum, QuorumError, QuorumStatus};

/// What waits to be heard; more waits at those who tell it.
pub(super) const NEWS_LEN_MAX: usize = 1024;
/// Looks at whether a broker has died whose connections have ended, and the time between two.
const PROBES: usize = 5;
const PROBE_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Leads that are moved at once, because clients then look for the leaders.
const LEADS_TOGETHER_MAX: usize = 1_000;
/// How often it is looked at restart leases, while there are any.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// What was not fenced yet, although it should be, is said again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What the watch is told.
pub(super) enum News {
    /// A broker says that it lives.
    Heartbeat(Heartbeat, oneshot::Sender<Result<HeartbeatAnswer, ControllerError>>),
    /// Every connection of a node to this one has ended.
    Ended(BrokerId),
    /// A broker in an epoch was probed; whether nothing listens there any more.
    Probed(BrokerId, i64, bool),
    /// A broker in an epoch that is about to stop has nothing left, as that index shows.
    Left(BrokerId, i64, u64),
    /// A broker was changed, or could not be.
    Changed(BrokerId),
}

/// Watches over the brokers while this node leads.
pub(super) struct Watch {
    pub(super) quorum: Arc<dyn MetadataQuorum>,
    pub(super) session: Duration,
    /// How often leads are given back to the preferred replicas.
    pub(super) balance_every: Option<Duration>,
    pub(super) news: mpsc::Receiver<News>,
    /// Where what this node itself does is told.
    pub(super) tell: mpsc::WeakSender<News>,
    pub(super) queue: mpsc::Sender<Job>,
    pub(super) stopped: CancellationToken,
    /// Who leads, and in which term, as it was said last.
    pub(super) told: Option<(u64, BrokerId)>,
    /// How far behind brokers are, for the proposer; nothing while this node does not lead.
    pub(super) lags: Arc<Mutex<Lags>>,
}

/// What is known while this node leads.
struct Leading {
    term: u64,
    since: Instant,
    liveness: Liveness,
    /// How long restart leases last yet.
    leases: LeaseTimes,
    /// The look at them that was begun last.
    tending: Option<AbortHandle>,
    /// When leads were given back last.
    balanced: Instant,
    /// When it was looked at whose session is over.
    ticked: Instant,
    /// Probes and changes under way.
    tasks: JoinSet<()>,
    /// Brokers with a change under way, and whether it fences them.
    changing: BTreeMap<BrokerId, bool>,
}

impl Leading {
    fn now(&self) -> Millis {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }
}

impl Watch {
    pub(super) async fn run(mut self) {
        let mut images = self.quorum.subscribe();
        let mut leading: Option<Leading> = None;
        loop {
            self.follow_lead(&mut leading);
            let next = leading.as_ref().map(|leading| self.next_look(leading));
            let at = next.unwrap_or_else(|| Instant::now() + self.session);
            tokio::select! {
                biased;
                () = self.stopped.cancelled() => return,
                // Before what is told, of which there may be more than there is time for.
                () = tokio::time::sleep_until(at) => {
                    if let Some(leading) = leading.as_mut() {
                        self.tick(leading, at.elapsed());
                    }
                }
                news = self.news.recv() => match news {
                    Some(news) => self.hear(news, leading.as_mut()),
                    None => return,
                },
                changed = images.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if let Some(leading) = leading.as_mut() {
                        let now = leading.now();
                        let image = images.borrow_and_update();
                        leading.liveness.take(&image, now);
                        leading.leases.take(&image, now);
                    }
                }
            }
        }
    }

    /// Time has passed, `late` more than was meant.
    fn tick(&self, leading: &mut Leading, late: Duration) {
        let now = leading.now();
        leading.ticked = Instant::now();
        if late > self.session / 4 {
            leading.liveness.hear_all(now);
        }
        let effects = leading.liveness.tick(now);
        self.act(leading, effects);
        self.tend(leading);
        if self.balance_every.is_some_and(|every| leading.balanced.elapsed() >= every) {
            leading.balanced = Instant::now();
            leading.tasks.spawn(balance(self.queue.clone()));
        }
    }

    /// Begins when this node begins to lead, with a whole session for every broker but those that
    /// have died, perhaps with the leader before; ends when it does not lead any more.
    fn follow_lead(&mut self, leading: &mut Option<Leading>) {
        let status = self.quorum.status();
        self.tell_who_leads(&status);
        if status.leader != Some(status.node_id) {
            *leading = None;
            lock(&self.lags).clear();
        } else if leading.as_ref().is_none_or(|leading| leading.term != status.term) {
            let image = self.quorum.image();
            lock(&self.lags).clear();
            let mut leases = LeaseTimes::default();
            leases.take(&image, 0);
            let new = leading.insert(Leading {
                term: status.term,
                since: Instant::now(),
                balanced: Instant::now(),
                ticked: Instant::now(),
                liveness: Liveness::new(millis(self.session), &image, 0),
                leases,
                tending: None,
                tasks: JoinSet::new(),
                changing: BTreeMap::new(),
            });
            let brokers = image.live_brokers().map(|(id, broker)| (*id, broker.epoch));
            let probes: Vec<_> = brokers
                .filter_map(|(id, epoch)| new.liveness.connections_ended(id, epoch))
                .collect();
            self.act(new, probes);
        }
    }

    /// Says who becomes the active controller, where it may be another node.
    fn tell_who_leads(&mut self, status: &QuorumStatus) {
        let (Some(leader), term) = (status.leader, status.term) else { return };
        if status.voters.len() < 2 || self.told == Some((term, leader)) {
            return;
        }
        self.told = Some((term, leader));
        let whose = if leader == status.node_id { "this node" } else { "another node" };
        tracing::info!(controller = %leader, term, "{whose} is the active controller now");
    }

    fn next_look(&self, leading: &Leading) -> Instant {
        // Often enough to notice that this process was stopped.
        let every = self.session / 8;
        let every = if leading.leases.is_empty() { every } else { every.min(TEND_EVERY) };
        let latest = leading.ticked + every;
        let end = leading.liveness.next_end().map(Duration::from_millis);
        let end = end.and_then(|end| leading.since.checked_add(end)).unwrap_or(latest);
        end.min(latest).max(leading.ticked + AGAIN_AFTER)
    }

    /// Ends restart leases that are over, and moves leads on, one look at a time.
    fn tend(&self, leading: &mut Leading) {
        let is_begun = leading.tending.as_ref().is_some_and(|task| !task.is_finished());
        if leading.leases.is_empty() || is_begun {
            return;
        }
        let operation = leading.leases.tend(leading.now(), LEADS_TOGETHER_MAX);
        leading.tending = Some(leading.tasks.spawn(tend(self.queue.clone(), operation)));
    }

    fn hear(&self, news: News, leading: Option<&mut Leading>) {
        match (news, leading) {
            (News::Heartbeat(heartbeat, reply), Some(leading)) => {
                let _ = reply.send(self.answer(leading, heartbeat));
            }
            (News::Heartbeat(_, reply), None) => {
                let leader = self.quorum.status().leader;
                let _ = reply.send(Err(QuorumError::NotLeader { leader }.into()));
            }
            (News::Ended(id), Some(leading)) => {
                let image = self.quorum.image();
                let epoch = image.brokers.get(&id).map(|registration| registration.epoch);
                let effect = epoch.and_then(|epoch| leading.liveness.connections_ended(id, epoch));
                self.act(leading, effect);
            }
            (News::Probed(id, epoch, was_refused), Some(leading)) => {
                let effect = leading.liveness.probed(id, epoch, was_refused, leading.now());
                self.act(leading, effect);
            }
            (News::Left(id, epoch, index), Some(leading)) => {
                leading.liveness.has_left(id, epoch, index);
            }
            (News::Changed(id), Some(leading)) => drop(leading.changing.remove(&id)),
            (News::Ended(_) | News::Probed(..) | News::Left(..) | News::Changed(_), None) => {}
        }
    }

    /// A broker leads by the answer for a session: nobody gives one who may be the leader no more,
    /// nor while its lead is being given to others.
    fn answer(
        &self,
        leading: &mut Leading,
        heartbeat: Heartbeat,
    ) -> Result<HeartbeatAnswer, ControllerError> {
        let (now, id) = (leading.now(), heartbeat.id);
        let heard = leading.liveness.heartbeat(heartbeat, now);
        let (answer, effect) = heard.map_err(|code| ControllerError::Refused(code.into()))?;
        *lock(&self.lags) = leading.liveness.lags(now);
        self.act(leading, effect);
        if self.quorum.leads_alone() {
            return Err(QuorumError::NotLeader { leader: None }.into());
        }
        let applied_index = self.quorum.image().applied_index;
        Ok(match leading.changing.get(&id) {
            Some(true) => HeartbeatAnswer { applied_index, session_ms: 0, ..answer },
            _ => HeartbeatAnswer { applied_index, ..answer },
        })
    }

    fn act(&self, leading: &mut Leading, effects: impl IntoIterator<Item = Effect>) {
        while leading.tasks.try_join_next().is_some() {}
        for effect in effects {
            match effect {
                Effect::Probe(id, epoch) => {
                    let (quorum, tell) = (Arc::clone(&self.quorum), self.tell.clone());
                    leading.tasks.spawn(async move {
                        let was_refused = is_refused(&*quorum, id).await;
                        if let Some(tell) = tell.upgrade() {
                            let _ = tell.send(News::Probed(id, epoch, was_refused)).await;
                        }
                    });
                }
                Effect::Fence(brokers) => self.fence(leading, brokers, true),
                Effect::Unfence(id, epoch) => self.fence(leading, vec![(id, epoch)], false),
                Effect::Stop(id, epoch) => self.stop(leading, id, epoch),
            }
        }
    }

    /// Has a broker that is about to stop leave its partitions, some at a time.
    fn stop(&self, leading: &mut Leading, id: BrokerId, epoch: i64) {
        if leading.changing.contains_key(&id) {
            return;
        }
        leading.changing.insert(id, false);
        let (queue, tell) = (self.queue.clone(), self.tell.clone());
        leading.tasks.spawn(async move {
            let left = leave(&queue, id, epoch).await;
            match &left {
                Ok(_) => {
                    tracing::info!(broker = %id, epoch, "controlled shutdown of the broker is \
                        complete: it leads no partition")
                }
                // The broker asks again.
                Err(error) => {
                    tracing::warn!(broker = %id, epoch, %error, "controlled shutdown of the broker \
                        is not complete yet")
                }
            }
            if let Some(tell) = tell.upgrade() {
                if let Ok(index) = left {
                    let _ = tell.send(News::Left(id, epoch, index)).await;
                }
                let _ = tell.send(News::Changed(id)).await;
            }
        });
    }

    fn fence(&self, leading: &mut Leading, mut brokers: Vec<(BrokerId, i64)>, fenced: bool) {
        brokers.retain(|(id, _)| !leading.changing.contains_key(id));
        if brokers.is_empty() {
            return;
        }
        leading.changing.extend(brokers.iter().map(|(id, _)| (*id, fenced)));
        let (queue, tell) = (self.queue.clone(), self.tell.clone());
        leading.tasks.spawn(async move {
            let operation = FenceBrokers { brokers: brokers.clone(), fenced };
            let deadline = Instant::now() + DECIDE_WITHIN_MAX;
            let answer = decide_here(&queue, operation.into(), deadline).await;
            tell_fences(&brokers, fenced, answer);
            if let Some(tell) = tell.upgrade() {
                for (id, _) in brokers {
                    let _ = tell.send(News::Changed(id)).await;
                }
            }
        });
    }
}

fn tell_fences(brokers: &[(BrokerId, i64)], fenced: bool, answer: Result<Answer, ControllerError>) {
    let (done, asked) = if fenced { ("fenced", "fence") } else { ("unfenced", "unfence") };
    let outcome = answer.map(|answer| FenceBrokers::outcome(answer.outcome).unwrap_or_default());
    for (at, (id, epoch)) in brokers.iter().enumerate() {
        let why = match &outcome {
            Ok(each) => each.get(at).and_then(|one| one.as_ref().err()).map(ToString::to_string),
            Err(error) => Some(error.to_string()),
        };
        match why {
            None => tracing::info!(broker = %id, epoch, "broker is {done}"),
            // It is said again while it is true.
            Some(error) => tracing::warn!(broker = %id, epoch, error, "cannot {asked} the broker; \
                retrying"),
        }
    }
}

/// Gives leads back to the preferred replicas, some at a time.
async fn balance(queue: mpsc::Sender<Job>) {
    loop {
        let operation = BalanceLeaders { leads_max: LEADS_TOGETHER_MAX };
        let deadline = Instant::now() + DECIDE_WITHIN_MAX;
        let answer = decide_here(&queue, operation.into(), deadline).await;
        match answer.map(|answer| BalanceLeaders::outcome(answer.outcome)) {
            Ok(Some(moved)) if moved > 0 => {
                tracing::info!(moved, "moved leadership to the preferred replicas");
                if moved < LEADS_TOGETHER_MAX {
                    return;
                }
            }
            Ok(_) => return,
            // It is tried again in the next interval.
            Err(error) => {
                return tracing::warn!(%error, "cannot move leadership to the preferred \
                replicas; retrying");
            }
        }
    }
}

async fn tend(queue: mpsc::Sender<Job>, operation: TendLeases) {
    let deadline = Instant::now() + DECIDE_WITHIN_MAX;
    let answer = decide_here(&queue, operation.into(), deadline).await;
    let error = match answer.map(|answer| TendLeases::outcome(answer.outcome)) {
        Ok(Some(Err(error))) => error.to_string(),
        Err(error) => error.to_string(),
        Ok(_) => return,
    };
    tracing::warn!(error, "cannot look after restart leases; retrying");
}

/// The index that shows that a broker has left all partitions that another can take.
async fn leave(
    queue: &mpsc::Sender<Job>,
    id: BrokerId,
    epoch: i64,
) -> Result<u64, ControllerError> {
    loop {
        let operation = StopBroker { id, epoch, partitions_max: LEADS_TOGETHER_MAX };
        let deadline = Instant::now() + DECIDE_WITHIN_MAX;
        let Answer { index, outcome } = decide_here(queue, operation.into(), deadline).await?;
        match StopBroker::outcome(outcome) {
            Some(Ok(0)) => return Ok(index),
            Some(Err(error)) => return Err(ControllerError::Refused(error)),
            Some(Ok(_)) | None => {}
        }
    }
}

/// Whether nothing listens any more where `id` is reached. A process that ends closes one thing
/// after the other, so one look is too early.
async fn is_refused(quorum: &dyn MetadataQuorum, id: BrokerId) -> bool {
    for _ in 0..PROBES {
        if quorum.is_refused(id).await {
            return true;
        }
        tokio::time::sleep(PROBE_AGAIN_AFTER).await;
    }
    false
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}
