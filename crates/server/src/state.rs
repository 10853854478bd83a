//! What every handler and lane shares. Everything in it is cheap to reach and safe to lose: truth
//! is in the store.

use std::ops::Deref;
use std::sync::Arc;

use store::Store;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::egress::Egress;
use crate::follow::Hub;
use crate::grading::{Centers, Interpreters};
use crate::inference::broker::Broker;
use crate::lanes::models::Models;
use crate::limits::Limits;
use crate::outlook::Looks;
use crate::upload_turns::UploadTurns;

#[derive(Clone)]
pub(crate) struct AppState(Arc<Inner>);

pub(crate) struct Inner {
    pub config: Config,
    pub store: Store,
    pub broker: Broker,
    /// Requests to addresses that users have named.
    pub egress: Egress,
    pub limits: Arc<Limits>,
    pub upload_turns: UploadTurns,
    pub interpreters: Interpreters,
    /// What the embeddings of all texts share.
    pub centers: Centers,
    pub wake: Wake,
    /// Who reads the events of which jobs as they happen.
    pub follow: Hub,
    /// Lines and speeds as they were a moment ago.
    pub looks: Looks,
    /// Tokenizers and shapes of base models.
    pub models: Models,
    /// Requests whose files are checked while they wait.
    pub checks: Semaphore,
    /// Fires when the shutdown begins: readiness fails, long polls end, lanes stop.
    pub stopping: CancellationToken,
}

/// Hints within this process that spare a poll; a poll once a second is the guarantee.
#[derive(Default)]
pub(crate) struct Wake {
    /// A job waits for validation.
    pub validation: Notify,
    /// A job may have become claimable.
    pub claim: Notify,
    /// A run of an evaluation may have become claimable.
    pub evals: Notify,
    /// A report of a job was asked for.
    pub reports: Notify,
    /// A webhook is to be sent at once.
    pub webhooks: Notify,
}

impl AppState {
    pub(crate) fn new(
        config: Config,
        store: Store,
        egress: Egress,
        stopping: CancellationToken,
    ) -> Self {
        let broker = Broker::new(config.max_inference_requests);
        let checks = Semaphore::new(config.validations.max(1));
        let (wake, follow, models) = (Wake::default(), Hub::default(), Models::default());
        let interpreters = Interpreters::new(&config.graders);
        let looks = Looks::default();
        let limits = Arc::new(Limits::new(config.limits.clone()));
        Self(Arc::new(Inner {
            config,
            store,
            broker,
            egress,
            limits,
            upload_turns: UploadTurns::default(),
            interpreters,
            centers: Centers::default(),
            wake,
            follow,
            looks,
            models,
            checks,
            stopping,
        }))
    }
}

impl Deref for AppState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
