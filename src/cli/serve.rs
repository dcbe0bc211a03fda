//! `farrier serve`: configuration, log, signals around the running appliance.
//!
//! SIGTERM and SIGINT drain and end within two seconds; a second one ends at once. SIGHUP reads the configuration
//! again and takes it over whole: a file with a mistake, or one that changes what is fixed at start, changes nothing.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::error::{CommandError, error_chain};
use super::text::colours_wanted;
use crate::appliance::{Appliance, Ground, StartError};
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::net::sys::run_like_others;
use crate::operator::HandedOver;
use crate::operator::problems::ProblemLog;

mod notify;

/// A supervisor, or an operator with Ctrl-C, waits no longer than two seconds; a little is kept for the exit itself.
const STOP_WITHIN: Duration = Duration::from_millis(1600);

#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// Configuration file; config/farrier.toml shows every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// User to become when started as root, by name or number [default: process.user, else farrier]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// How to log to standard error; RUST_LOG chooses what (default: info)
    #[arg(long, value_enum, default_value = "text")]
    log: LogFormat,
}

impl ServeArgs {
    /// The file, and over it what the command line says.
    fn read(&self) -> Result<Config, ConfigError> {
        let config = Config::load(&self.config)?;
        Ok(Config { user: self.user.clone().or(config.user), ..config })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object per line
    Json,
}

/// A running appliance as far as signals are concerned.
trait Running {
    /// Takes it over whole, or says why not and changes nothing.
    fn reload(&self, config: Config) -> Result<(), String>;
    fn stop(self) -> impl Future<Output = ()> + Send;
}

impl Running for Appliance {
    fn reload(&self, config: Config) -> Result<(), String> {
        Appliance::reload(self, config).map_err(|error| error_chain(&error))
    }

    async fn stop(self) {
        Appliance::stop(self).await;
    }
}

pub(super) fn run(arguments: &ServeArgs) -> Result<(), CommandError> {
    let config = arguments.read()?;
    let clock = Clock::start();
    let problems = ProblemLog::new(clock);
    start_log(arguments.log, &problems)?;
    let handed = HandedOver::from_environment().map_err(|error| CommandError::Usage(error_chain(&error)))?;
    // While this is the only thread.
    let ground = Ground::open(&config, &arguments.config, handed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("farrier-io")
        .on_thread_start(run_like_others)
        .build()
        .map_err(|error| CommandError::Failed(format!("the runtime does not start: {error}")))?;
    let arguments = arguments.clone();
    let served = runtime.block_on(async {
        let signals = Signals::open().map_err(|error| CommandError::Failed(format!("signals: {error}")))?;
        let appliance = Appliance::start(config.clone(), ground, problems, clock).await?;
        run_like_others();
        notify::tell("READY=1");
        serve(appliance, config, &arguments, signals).await;
        Ok(())
    });
    // What has not drained by now is not waited for.
    runtime.shutdown_background();
    served
}

impl From<StartError> for CommandError {
    fn from(error: StartError) -> CommandError {
        let told = error_chain(&error);
        if error.is_configuration() { CommandError::Usage(told) } else { CommandError::Failed(told) }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn open() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn asked_to_stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn serve(appliance: impl Running, mut config: Config, arguments: &ServeArgs, mut signals: Signals) {
    let cause = loop {
        tokio::select! {
            _ = signals.hang_up.recv() => {
                let Some(new) = reread(&config, arguments) else { continue };
                match appliance.reload(new.clone()) {
                    Ok(()) => {
                        config = new;
                        tracing::info!(path = %arguments.config.display(), "configuration reloaded");
                    }
                    Err(error) => tracing::error!(error, "configuration not reloaded; nothing has changed"),
                }
            }
            _ = signals.terminate.recv() => break "SIGTERM",
            _ = signals.interrupt.recv() => break "SIGINT",
        }
    };
    tracing::info!(signal = cause, "stopping");
    notify::tell("STOPPING=1");
    tokio::select! {
        drained = tokio::time::timeout(STOP_WITHIN, appliance.stop()) => match drained {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::warn!("stopped before everything had drained"),
        },
        again = signals.asked_to_stop() => tracing::warn!(signal = again, "stopped at once"),
    }
}

/// The file's new meaning, if it may be taken over; otherwise the log says why it is not.
fn reread(running: &Config, arguments: &ServeArgs) -> Option<Config> {
    match arguments.read() {
        Err(error) => {
            tracing::error!(%error, "configuration not reloaded; nothing has changed");
            None
        }
        Ok(new) => {
            let fixed = running.fixed_at_start(&new);
            if fixed.is_empty() {
                return Some(new);
            }
            let keys = fixed.join(", ");
            tracing::error!(
                keys,
                "configuration not reloaded; nothing has changed: these keys are fixed at start, restart the appliance for them"
            );
            None
        }
    }
}

fn start_log(format: LogFormat, problems: &Arc<ProblemLog>) -> Result<(), CommandError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| {
            CommandError::Usage(format!("RUST_LOG={text}: {error}; write for example RUST_LOG=debug"))
        })?,
        Ok(_) | Err(_) => EnvFilter::new("info"),
    };
    let colour = std::io::stderr().is_terminal() && colours_wanted();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    let lines = match format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    };
    // The level says here, too, what nobody reads: else every debug line would be composed to be thrown away.
    let problems = problems.layer().with_filter(LevelFilter::WARN);
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter)).with(problems);
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|error| CommandError::Failed(format!("the log does not start: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[network]\nbridge = \"br0\"\naddress = \"192.168.2.2/24\"\n";

    #[test]
    fn a_file_with_a_mistake_or_a_fixed_key_is_not_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("farrier.toml");
        let running = Config::parse(TEXT, &path).unwrap();
        let attempt = |text: &str| {
            std::fs::write(&path, text).unwrap();
            reread(&running, &arguments(&path))
        };
        assert!(attempt(&format!("{TEXT}[dhcp]\nlease = \"1s\"\n")).is_none());
        assert!(attempt(&format!("{TEXT}[store]\npath = \"/srv\"\n")).is_none());
        let new = attempt(&format!("{TEXT}[dhcp]\nlease = \"1h\"\n")).unwrap();
        assert_eq!(new.dhcp.lease, Duration::from_secs(3600));
    }

    fn arguments(path: &std::path::Path) -> ServeArgs {
        ServeArgs { config: path.to_owned(), user: None, log: LogFormat::Text }
    }

    /// Tells what it is asked to do.
    struct Told(tokio::sync::mpsc::UnboundedSender<&'static str>);

    impl Running for Told {
        fn reload(&self, _config: Config) -> Result<(), String> {
            let _ = self.0.send("reload");
            Ok(())
        }

        async fn stop(self) {
            let _ = self.0.send("stop");
        }
    }

    #[tokio::test]
    async fn hang_up_reloads_and_terminate_stops() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("farrier.toml");
        std::fs::write(&path, TEXT).unwrap();
        let running = Config::load(&path).unwrap();
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
        // Handlers are in place before the first signal; this process is never ended by one.
        let signals = Signals::open().unwrap();
        let served =
            tokio::spawn(async move { serve(Told(sender), running, &arguments(&path), signals).await });
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
        assert_eq!(told.recv().await, Some("reload"));
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(told.recv().await, Some("stop"));
        served.await.unwrap();
    }
}
