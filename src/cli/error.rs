//! How a command fails: what is said, and with which exit code.

use std::path::Path;

use super::text::inert_lines;
use crate::config::ConfigError;
use crate::operator::api::ProblemDocument;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// 1
    #[error("{0}")]
    Failed(String),
    /// 2: the command line or the configuration is wrong.
    #[error("{0}")]
    Usage(String),
    /// 3
    #[error("{0}")]
    NotFound(String),
    /// 4: understood, and not done.
    #[error("{0}")]
    Refused(String),
    /// 5
    #[error(
        "no appliance answers at {socket}: {reason}\n  way out: start one with `farrier serve --config /etc/farrier/farrier.toml` or `systemctl start farrier`; name another socket with --socket or FARRIER_SOCKET"
    )]
    Unreachable { socket: String, reason: String },
}

impl CommandError {
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::Failed(_) => 1,
            CommandError::Usage(_) => 2,
            CommandError::NotFound(_) => 3,
            CommandError::Refused(_) => 4,
            CommandError::Unreachable { .. } => 5,
        }
    }

    pub fn unreachable(socket: &Path, reason: impl ToString) -> CommandError {
        CommandError::Unreachable { socket: socket.display().to_string(), reason: reason.to_string() }
    }

    /// For standard error.
    pub fn render(&self, json: bool) -> String {
        if json {
            let document = serde_json::json!({ "error": self.to_string(), "exit_code": self.exit_code() });
            format!("{document}\n")
        } else {
            format!("farrier: {}\n", inert_lines(&self.to_string()))
        }
    }
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> CommandError {
        CommandError::Usage(error.to_string())
    }
}

impl From<ProblemDocument> for CommandError {
    fn from(problem: ProblemDocument) -> CommandError {
        let mut told = problem.detail;
        if let Some(field) = problem.field {
            told.push_str(&format!("\n  field:   {field}"));
        }
        if let Some(way_out) = problem.way_out {
            told.push_str(&format!("\n  way out: {way_out}"));
        }
        match problem.status {
            400 | 413 | 415 | 422 => CommandError::Usage(told),
            404 => CommandError::NotFound(told),
            401 | 403 | 409 | 412 => CommandError::Refused(told),
            _ => CommandError::Failed(told),
        }
    }
}

/// An error and its sources, which their messages leave out.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |source| source.source());
    sources.fold(error.to_string(), |told, source| format!("{told}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_become_exit_codes() {
        let code = |status| {
            let problem = ProblemDocument {
                kind: String::new(),
                title: String::new(),
                status,
                detail: "no".to_owned(),
                field: Some("name".to_owned()),
                way_out: Some("ask".to_owned()),
            };
            let error = CommandError::from(problem);
            assert_eq!(error.to_string(), "no\n  field:   name\n  way out: ask");
            error.exit_code()
        };
        assert_eq!([400, 401, 403, 404, 409, 500, 503].map(code), [2, 4, 4, 3, 4, 1, 1]);
        let unreachable = CommandError::unreachable(Path::new("/x"), "gone");
        assert_eq!(unreachable.exit_code(), 5);
        assert!(unreachable.to_string().contains("farrier serve"));
    }
}
