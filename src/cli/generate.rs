//! `farrier completions`, `farrier man`: what `make install` puts in place, made from the commands as they are.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::Cli;
use super::error::CommandError;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    shell: ShellWord,
}

/// The shells we promise; the generator knows more.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ShellWord {
    Bash,
    Zsh,
    Fish,
}

impl From<ShellWord> for Shell {
    fn from(word: ShellWord) -> Shell {
        match word {
            ShellWord::Bash => Shell::Bash,
            ShellWord::Zsh => Shell::Zsh,
            ShellWord::Fish => Shell::Fish,
        }
    }
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write one page per command into this directory, instead of the first page to the terminal
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

pub(super) fn completions(arguments: &CompletionsArgs) -> Result<String, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(Shell::from(arguments.shell), &mut Cli::command(), "farrier", &mut script);
    text(script)
}

pub(super) fn man(arguments: &ManArgs) -> Result<String, CommandError> {
    let mut command = Cli::command();
    command.build();
    let Some(directory) = &arguments.out else {
        return text(page(&command)?);
    };
    fs::create_dir_all(directory).map_err(|error| failed(directory, &error))?;
    let mut written = Vec::new();
    write_pages(&command, directory, &mut written)?;
    Ok(format!("{} pages written to {}\n", written.len(), directory.display()))
}

/// A page for the command and each below it, called as git calls its own: farrier-node-add.1.
fn write_pages(
    command: &clap::Command,
    directory: &Path,
    written: &mut Vec<PathBuf>,
) -> Result<(), CommandError> {
    let path =
        directory.join(format!("{}.1", command.get_display_name().unwrap_or_else(|| command.get_name())));
    fs::write(&path, page(command)?).map_err(|error| failed(&path, &error))?;
    written.push(path);
    let shown = |inner: &&clap::Command| !inner.is_hide_set() && inner.get_name() != "help";
    command.get_subcommands().filter(shown).try_for_each(|inner| write_pages(inner, directory, written))
}

fn page(command: &clap::Command) -> Result<Vec<u8>, CommandError> {
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command.clone()).render(&mut page);
    rendered.map_err(|error| CommandError::Failed(format!("the manual page was not written: {error}")))?;
    Ok(page)
}

fn text(bytes: Vec<u8>) -> Result<String, CommandError> {
    String::from_utf8(bytes).map_err(|error| CommandError::Failed(error.to_string()))
}

fn failed(path: &Path, error: &std::io::Error) -> CommandError {
    CommandError::Failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_and_every_command_is_served() {
        for shell in [ShellWord::Bash, ShellWord::Zsh, ShellWord::Fish] {
            let script = completions(&CompletionsArgs { shell }).unwrap();
            assert!(script.contains("approve") && script.contains("farrier"), "{shell:?}");
        }
        let directory = tempfile::tempdir().unwrap();
        man(&ManArgs { out: Some(directory.path().to_owned()) }).unwrap();
        for page in ["farrier.1", "farrier-node.1", "farrier-node-add.1", "farrier-serve.1"] {
            let text = fs::read_to_string(directory.path().join(page)).unwrap();
            assert!(text.contains(".TH"), "{page}");
        }
        assert!(man(&ManArgs { out: None }).unwrap().contains("farrier"));
    }
}
