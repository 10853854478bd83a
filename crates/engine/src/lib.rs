//! The engine: one base model on one device, any number of training runs and chat answers beside
//! each other.
//!
//! `main.rs` loads the model and hands over to [`scheduler`], which takes commands from
//! [`protocol`] and gives turns to [`train::Run`]s (one micro-batch each) and
//! [`generate::Generation`]s (one token each). Everything runs in one thread, so results depend on
//! the plans alone and never on timing. The library half exists for the tests; the product is the
//! binary `finetuned-engine`. It knows nothing of leases, uploads or HTTP: that is the worker's
//! part. Beside the
//! engine there are two commands about devices: [`check`] and [`measure`].

pub mod check;
pub mod device;
pub mod failure;
pub mod generate;
pub mod measure;
pub mod protocol;
pub mod room;
pub mod scheduler;
pub mod seed;
pub mod train;
