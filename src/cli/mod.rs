//! The command line: one file per subcommand.
//!
//! Commands that ask the running appliance go through [`client`]; each asks, and hands the documents to a pure
//! function that lays them out ([`text`], [`table`], [`timeline`]). With `--json` the documents are printed as they
//! came. Exit codes are in [`error`].

use std::ffi::OsString;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::cli::client::Client;
use crate::cli::error::CommandError;
use crate::cli::text::Style;

mod audit;
mod backup;
pub mod client;
mod config;
mod demo;
mod doctor;
pub mod error;
mod event;
mod explain;
mod generate;
pub mod image;
mod lab;
mod lease;
mod node;
mod profile;
mod quirks;
mod roster;
mod serve;
mod status;
mod storm;
pub mod table;
mod task;
#[cfg(test)]
mod tests;
pub mod text;
pub mod timeline;
mod token;
pub mod view;
mod watch;
mod why;

const SOCKET_DEFAULT: &str = "/run/farrier/operator.sock";
const SOCKET_VARIABLE: &str = "FARRIER_SOCKET";

/// A boot appliance that owns one Linux bridge: DHCP, TFTP, HTTP boot, enrolment.
#[derive(Debug, Parser)]
#[command(name = "farrier", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Operator socket of the running appliance [default: $FARRIER_SOCKET, else /run/farrier/operator.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Print JSON instead of text for people; names are stable
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not found, 4 refused, \
                          5 appliance not reachable";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the appliance
    Serve(serve::ServeArgs),
    /// Say how the running appliance is
    Status,
    /// Register, list, show, approve, remove and order nodes
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// What nodes boot that is not the deploy ramdisk, and who boots it
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    /// Addresses given out, and kept
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Say why a machine did not boot, or how far it has come
    Why(why::WhyArgs),
    /// Print the whole dialogue a machine would have, without sending a packet
    Explain(explain::ExplainArgs),
    /// Tokens for the page and the API, and links to log in with
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// List who changed what, newest first
    Audit(audit::AuditArgs),
    /// What happens, as it happens, and what happened to a node
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Register or update every node of a list; the same as `node import`
    Import(roster::ImportArgs),
    /// Write all nodes as a list; the same as `node export`
    Export(roster::ExportArgs),
    /// Follow all nodes live, until Ctrl-C
    Watch,
    /// Build deploy images, import disk images, fetch boot loaders, list what is there
    Image(image::ImageArgs),
    /// Watch four machines, one per firmware, netboot and enroll
    Demo(demo::DemoArgs),
    /// A bridge, the appliance and machines in a network namespace of their own
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Simulated machines, as many as you like, netboot at once
    Storm(storm::StormArgs),
    /// Write leases, nodes, timelines and tokens to one file, also while the appliance runs
    Backup(backup::BackupArgs),
    /// Make such a file the store again; the appliance must be stopped, and what was there is kept
    Restore(backup::BackupArgs),
    /// Say whether a machine would boot from here, and mend what keeps it from it
    Doctor(doctor::DoctorArgs),
    /// Check a configuration file
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Completions for a shell, to be sourced by it
    Completions(generate::CompletionsArgs),
    /// Manual pages
    Man(generate::ManArgs),
}

/// What a command printed, and how it ended.
#[derive(Debug, Default)]
pub struct Finished {
    pub stdout: String,
    pub stderr: String,
    pub code: u8,
}

/// Runs the command named by the arguments; the caller prints and exits.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Finished {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        // What cannot be parsed may still say how it wants to be told so.
        Err(usage) if usage.use_stderr() && arguments.iter().any(|word| word == "--json") => {
            let text = usage.render().to_string();
            let error = CommandError::Usage(text.trim_start_matches("error: ").trim_end().to_owned());
            return Finished { stderr: error.render(true), code: error.exit_code(), ..Finished::default() };
        }
        Err(usage) => {
            let colour = std::io::stderr().is_terminal() && text::colours_wanted();
            let message = if colour { usage.render().ansi().to_string() } else { usage.render().to_string() };
            let code = u8::try_from(usage.exit_code()).unwrap_or(2);
            // `--help` and `--version` are no mistakes.
            return if usage.use_stderr() {
                Finished { stderr: message, code, ..Finished::default() }
            } else {
                Finished { stdout: message, code, ..Finished::default() }
            };
        }
    };
    let json = cli.json;
    match perform(cli) {
        Ok(finished) => finished,
        Err(error) => Finished { stderr: error.render(json), code: error.exit_code(), ..Finished::default() },
    }
}

fn perform(cli: Cli) -> Result<Finished, CommandError> {
    let style = Style::of_stdout();
    let socket = cli.socket.unwrap_or_else(default_socket);
    let json = cli.json;
    let stdout = match cli.command {
        Command::Doctor(arguments) => return doctor::run(&arguments, json, style),
        Command::Serve(arguments) => serve::run(&arguments).map(|()| String::new()),
        Command::Config(command) => config::run(&command, json),
        Command::Backup(arguments) => backup::back_up(&arguments, json),
        Command::Restore(arguments) => backup::restore(&arguments, json),
        Command::Completions(arguments) => generate::completions(&arguments),
        Command::Man(arguments) => generate::man(&arguments),
        Command::Status => ask(async { status::run(&Client::new(socket), json, style).await }),
        Command::Node(command) => ask(async { node::run(command, &Client::new(socket), json, style).await }),
        Command::Profile(command) => {
            ask(async { profile::run(command, &Client::new(socket), json, style).await })
        }
        Command::Lease(command) => {
            ask(async { lease::run(&command, &Client::new(socket), json, style).await })
        }
        Command::Token(command) => {
            ask(async { token::run(command, &Client::new(socket), json, style).await })
        }
        Command::Audit(arguments) => {
            ask(async { audit::run(&arguments, &Client::new(socket), json, style).await })
        }
        Command::Demo(arguments) => demo::run(&arguments, style),
        Command::Lab(command) => lab::run(command, json, style),
        Command::Image(arguments) => image::run(&arguments, json),
        Command::Storm(arguments) => storm::run(&arguments, json, style),
        Command::Why(arguments) => {
            ask(async { why::run(&arguments, &Client::new(socket), json, style).await })
        }
        Command::Explain(arguments) => {
            ask(async { explain::run(&arguments, &Client::new(socket), json, style).await })
        }
        Command::Event(command) => {
            ask(async { event::run(&command, &Client::new(socket), json, style).await })
        }
        Command::Import(arguments) => {
            ask(async { roster::import(&arguments, &Client::new(socket), json, style).await })
        }
        Command::Export(arguments) => {
            ask(async { roster::export(&arguments, &Client::new(socket), json).await })
        }
        Command::Watch => ask(async { watch::run(&Client::new(socket), json, style).await }),
    }?;
    Ok(Finished { stdout, ..Finished::default() })
}

fn default_socket() -> PathBuf {
    match std::env::var_os(SOCKET_VARIABLE) {
        Some(path) if !path.is_empty() => path.into(),
        Some(_) | None => SOCKET_DEFAULT.into(),
    }
}

/// Runs one question to the appliance; a thread of its own is not needed for that.
fn ask<T>(question: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Failed(format!("no runtime: {error}")))?;
    runtime.block_on(question)
}

/// A document as `--json` prints it.
fn json_text(document: &impl serde::Serialize) -> String {
    let text = serde_json::to_string_pretty(document).unwrap_or_default();
    format!("{text}\n")
}

impl Finished {
    /// A reader that closed the pipe has read enough: that is no failure.
    pub fn print(&self) {
        let _ = std::io::stdout().write_all(self.stdout.as_bytes());
        let _ = std::io::stdout().flush();
        let _ = std::io::stderr().write_all(self.stderr.as_bytes());
    }
}
