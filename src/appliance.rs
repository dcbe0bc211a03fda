//! The composition root: opens, wires, starts and joins all of it; the only place that knows every part.
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Config;
use crate::operator::problems::ProblemLog;
use crate::operator::{HandedOver, SocketError};

pub struct Appliance;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the operator plane does not start")]
    Operator(#[source] SocketError),
}

impl StartError {
    /// True if the way out is in the configuration file: `farrier serve` then exits with 2.
    pub fn is_configuration(&self) -> bool {
        match self {
            StartError::Operator(_) => true,
        }
    }
}

impl Appliance {
    pub async fn start(
        _config: Config,
        _config_path: PathBuf,
        _handed: HandedOver,
        _problems: Arc<ProblemLog>,
    ) -> Result<Appliance, StartError> {
        unimplemented!()
    }

    pub fn reload(&self, _config: Config) {}

    pub async fn stop(self) {}
}
