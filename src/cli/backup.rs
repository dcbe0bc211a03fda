//! `farrier backup` and `farrier restore`: the store in one file.

use std::path::PathBuf;

use clap::Args;
use indicatif::HumanBytes;

use super::error::CommandError;
use super::json_text;
use super::text::counted;
use crate::store::sqlite::backup::{self, BackupError, Contents};

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// File to write, replaced if it is there, or to read
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The appliance's state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/farrier")]
    state: PathBuf,
}

impl BackupArgs {
    fn database(&self) -> PathBuf {
        self.state.join("farrier.db")
    }
}

pub(super) fn back_up(arguments: &BackupArgs, json: bool) -> Result<String, CommandError> {
    let contents = backup::back_up(&arguments.database(), &arguments.file)?;
    let shown = arguments.file.display();
    Ok(match json {
        true => json_text(&document(contents)),
        false => format!("{} in {shown}\n", describe(contents)),
    })
}

pub(super) fn restore(arguments: &BackupArgs, json: bool) -> Result<String, CommandError> {
    let (contents, kept) = backup::restore(&arguments.file, &arguments.database())?;
    if json {
        let mut document = document(contents);
        document["kept"] = kept.map(|kept| kept.display().to_string()).into();
        return Ok(json_text(&document));
    }
    let kept = kept.map_or_else(String::new, |kept| format!("; the store before is {}", kept.display()));
    Ok(format!("restored: {}{kept}\n", describe(contents)))
}

fn describe(contents: Contents) -> String {
    let Contents { bindings, nodes, bytes } = contents;
    format!("{}, {}, {}", counted(nodes, "node"), counted(bindings, "lease"), HumanBytes(bytes))
}

fn document(contents: Contents) -> serde_json::Value {
    let Contents { bindings, nodes, bytes } = contents;
    serde_json::json!({ "nodes": nodes, "leases": bindings, "bytes": bytes })
}

impl From<BackupError> for CommandError {
    fn from(error: BackupError) -> CommandError {
        let told = error.to_string();
        match error {
            BackupError::Missing { .. } => CommandError::NotFound(told),
            BackupError::NotWhole { .. } | BackupError::TooNew { .. } | BackupError::Running { .. } => {
                CommandError::Refused(told)
            }
            BackupError::Failed { .. } => CommandError::Failed(told),
        }
    }
}
