//! Random bytes from the machine's own seeded stream; it goes on across restarts.

use letterbox_env::Random;

use super::Machine;

pub(super) struct SimRandom(pub(super) Machine);

impl Random for SimRandom {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.with_rng(|rng| rng.fill(buffer));
        self.0.event("random", &[], buffer);
    }
}
