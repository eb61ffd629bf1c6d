//! (to come)

pub mod image_env;
