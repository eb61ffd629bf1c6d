//! Services, the service account and the disruption budget: changing these restarts nobody.

use super::{Plan, Step, Wait};
use crate::desired::Blueprint;
use crate::observe::{Observed, Part};

pub(super) fn plan_access(desired: &Blueprint, observed: &Observed, plan: &mut Plan) {
    if observed.was_read(Part::Access) && !observed.access.is_as_desired() {
        plan.steps.push(Step::ApplyAccess {
            is_missed: observed.access.may_be_missed(),
            what: observed.access.all(),
        });
    }
    if observed.was_read(Part::Budget) && !observed.budget.is_as_desired() {
        plan.steps.push(Step::ApplyBudget { what: observed.budget.all() });
    }
    let held = desired.evictions_held.clone();
    plan.waits.extend(held.map(|why| Wait::EvictionsHeld { why }));
}

/// Last of all steps, so that a client of a listener that moved has its new address before the old
/// one goes.
pub(super) fn plan_pruning(observed: &Observed, plan: &mut Plan) {
    if observed.was_read(Part::Access) {
        plan.steps.extend(observed.stale.iter().cloned().map(Step::Prune));
    }
}
