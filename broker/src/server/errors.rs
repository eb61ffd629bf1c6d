//! The errors that an answer carries: what `kafka_network_requestmetrics_errors` counts.

/// An answer that knows which errors it carries. Produce and Fetch have no such message; theirs are
/// counted where their answers are made.
pub(super) trait Errors {
    /// Calls `found` with each error code, as often as it is there; 0 is none.
    fn each_error(&self, found: &mut dyn FnMut(i16));
}

/// Says which errors a response carries: a closure over it and over what is called with each code.
macro_rules! errors {
    ($response:ident, |$all:ident, $each:ident| $body:expr) => {
        impl Errors for kafka_protocol::messages::$response {
            fn each_error(&self, found: &mut dyn FnMut(i16)) {
                let ($all, mut $each) = (self, |code: i16| {
                    if code != 0 {
                        found(code);
                    }
                });
                $body
            }
        }
    };
}
pub(super) use errors;
