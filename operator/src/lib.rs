//! The operator of Letterbox, and the planner it shares with `letterbox up`.

pub mod api;
