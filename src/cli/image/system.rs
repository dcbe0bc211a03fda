//! `farrier image build small|debian-12|FILE`: a system image, into the library or a file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::{Args, Parser};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::json_text;
use crate::cli::text::bytes;
use crate::image::build::{Builder, progress_bar};
use crate::image::digest::Digest;
use crate::image::disk::import::{Label, import_raw};
use crate::image::library::is_profile_name;
use crate::image::package::Packages;
use crate::image::system::choices::{self, ChoicesError};
use crate::image::system::recipe::{Choices, SystemRecipe, SystemRecipeError};
use crate::image::system::{Built, build};

const TIME_VARIABLE: &str = "SOURCE_DATE_EPOCH";

#[derive(Debug, Args)]
pub struct SystemArgs {
    /// Write the raw disk to a file instead of the library
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the image in the library [default: the recipe's]
    #[arg(long)]
    name: Option<String>,
    /// Where packages come from [default: the recipe's, else the user's, else this host's]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Where security updates come from, likewise
    #[arg(long, value_name = "URL")]
    security_mirror: Option<String>,
    /// Language of the system, e.g. de_DE.UTF-8, likewise
    #[arg(long)]
    locale: Option<String>,
    /// Time zone, e.g. Europe/Berlin, likewise
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// A line as in authorized_keys, or the file of a public key, that may log in to every machine made of the image;
    /// may be repeated
    #[arg(long = "ssh-key", value_name = "KEY|FILE")]
    ssh_keys: Vec<String>,
    /// No key of this host or its user goes in: machines take those of their seeds
    #[arg(long, conflicts_with = "ssh_keys")]
    no_ssh_keys: bool,
}

/// What follows `image build` if it is none of the names that clap knows.
#[derive(Debug, Parser)]
#[command(name = "farrier image build", disable_help_subcommand = true)]
struct RecipeWords {
    /// The recipe
    recipe: String,
    #[command(flatten)]
    arguments: SystemArgs,
    /// The appliance's state directory
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Whether a mistake of the caller's is behind an error: the recipe, or a choice.
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<SystemRecipeError>() || error.is::<ChoicesError>() || error.is::<UsageError>()
}

#[derive(Debug, thiserror::Error)]
enum UsageError {
    #[error("there is no recipe `{given}`: {known}, or a file whose name ends in .toml, is wanted")]
    NoRecipe { given: String, known: String },
    #[error("{0}")]
    Words(String),
    #[error("`{name}` is no image name: 1 to 63 lower-case letters, digits and inner hyphens are wanted")]
    Name { name: String },
    #[error("{TIME_VARIABLE} is `{text}`: seconds since 1970 are wanted")]
    Time { text: String },
}

/// A recipe by the name it is shipped under, or a file's.
fn recipe(given: &str) -> anyhow::Result<SystemRecipe> {
    if let Some(recipe) = SystemRecipe::built_in(given) {
        return Ok(recipe);
    }
    if !given.ends_with(".toml") {
        let known = SystemRecipe::built_in_names().collect::<Vec<_>>().join(", ");
        return Err(UsageError::NoRecipe { given: given.escape_default().collect(), known }.into());
    }
    let text = fs::read_to_string(given).with_context(|| format!("{given} cannot be read"))?;
    Ok(SystemRecipe::parse(given, &text)?)
}

/// The command line's word first, then the recipe's, the user's, the host's.
fn settle(arguments: &SystemArgs, recipe: &SystemRecipe, home: Option<&Path>) -> anyhow::Result<Choices> {
    let mut keys = Vec::new();
    for given in &arguments.ssh_keys {
        match fs::read_to_string(given) {
            Ok(text) => keys.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned)),
            Err(_) => keys.push(given.clone()),
        }
    }
    let told = Choices {
        mirror: arguments.mirror.clone(),
        security_mirror: arguments.security_mirror.clone(),
        locale: arguments.locale.clone(),
        timezone: arguments.timezone.clone(),
        ssh_keys: (arguments.no_ssh_keys || !keys.is_empty()).then_some(keys),
    };
    let mut host = choices::of_host(home);
    if recipe.is_for_tests() {
        host.ssh_keys = None;
    }
    let settled = told.or(recipe.choices.clone()).or(choices::of_user(home)?).or(host);
    choices::check(&settled)?;
    Ok(settled)
}

/// The image's time: what the environment says, as every reproducible build takes it, else now.
fn time(variable: Option<&str>) -> Result<u64, UsageError> {
    match variable {
        Some(text) => text.parse().map_err(|_| UsageError::Time { text: text.escape_default().collect() }),
        None => Ok(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
    }
}

/// `farrier image build FILE …`, as it was typed.
pub fn run_words(words: &[String], state: &Path, json: bool) -> anyhow::Result<String> {
    let all = std::iter::once("farrier image build".to_owned()).chain(words.iter().cloned());
    match RecipeWords::try_parse_from(all) {
        Ok(parsed) => run(&parsed.recipe, &parsed.arguments, parsed.state.as_deref().unwrap_or(state), json),
        Err(help) if !help.use_stderr() => Ok(help.render().to_string()),
        Err(wrong) => {
            let text = wrong.render().to_string();
            Err(UsageError::Words(text.trim_start_matches("error: ").trim_end().to_owned()).into())
        }
    }
}

/// What was made, for programs.
#[derive(Debug, Serialize)]
struct BuiltDocument<'a> {
    /// In the library; none if the disk was written to a file.
    image: Option<&'a str>,
    output: Option<&'a Path>,
    bytes: u64,
    sha256: Digest,
    built_from: &'a BTreeMap<String, String>,
}

pub fn run(given: &str, arguments: &SystemArgs, state: &Path, json: bool) -> anyhow::Result<String> {
    let recipe = recipe(given)?;
    let name = arguments.name.as_deref().unwrap_or(&recipe.name);
    if !is_profile_name(name) {
        return Err(UsageError::Name { name: name.escape_default().collect() }.into());
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let choices = settle(arguments, &recipe, home.as_deref())?;
    let time = time(std::env::var(TIME_VARIABLE).ok().as_deref())?;
    let builder = Builder::beside_this_program(state)?;
    let progress = progress_bar();
    let (built, image) = match &arguments.output {
        Some(output) => (build(&recipe, &choices, time, &builder, output, &progress)?, None),
        None => {
            let folder = Packages::open(state)?.scratch()?;
            let built = build(&recipe, &choices, time, &builder, &folder.path.join("disk.raw"), &progress)?;
            let label = Label {
                name: name.to_owned(),
                description: recipe.description.clone(),
                source: format!("recipe {} {}", recipe.name, recipe.digest),
            };
            import_built(state, &built, &label)?;
            (built, Some(name))
        }
    };
    let output = arguments.output.as_deref();
    let document = BuiltDocument {
        image,
        output,
        bytes: built.bytes,
        sha256: built.sha256,
        built_from: &built.built_from,
    };
    if json {
        return Ok(json_text(&document));
    }
    Ok(text(&recipe, &document))
}

/// Into the library, where the name stands for it from then on.
fn import_built(state: &Path, built: &Built, label: &Label) -> anyhow::Result<()> {
    let mut disk =
        File::open(&built.raw).with_context(|| format!("{} cannot be read", built.raw.display()))?;
    let progress = ProgressBar::new(built.bytes);
    progress.set_style(ProgressStyle::with_template("{spinner} {msg} {bar:30} {bytes}/{total_bytes}")?);
    progress.set_message("into the library");
    let imported = import_raw(state, &mut disk, label, &progress);
    progress.finish_and_clear();
    imported?;
    Ok(())
}

fn text(recipe: &SystemRecipe, built: &BuiltDocument<'_>) -> String {
    let mut text = format!("built {}: a disk of {}\n", recipe.name, bytes(built.bytes));
    for (part, version) in built.built_from {
        text += &format!("  {part} {version}\n");
    }
    text += &format!("disk sha256 {}\n", built.sha256);
    match (built.output, built.image) {
        (Some(file), _) => text += &format!("written to {}\n", file.display()),
        (None, Some(name)) => {
            text += &format!("in the library as `{name}`: `farrier node deploy NODE --image {name}`\n")
        }
        (None, None) => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> SystemArgs {
        SystemArgs {
            output: None,
            name: None,
            mirror: None,
            security_mirror: None,
            locale: None,
            timezone: None,
            ssh_keys: Vec::new(),
            no_ssh_keys: false,
        }
    }

    #[test]
    fn what_is_no_recipe_is_a_mistake_of_usage_that_names_the_recipes() {
        let error = recipe("debian-11").unwrap_err();
        assert!(is_usage(&error) && error.to_string().contains("small, debian-12"), "{error}");
    }

    #[test]
    fn the_command_line_is_asked_before_recipe_user_and_host() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join(".config/farrier")).unwrap();
        let file = home.path().join(".config/farrier/image.toml");
        fs::write(file, "timezone = \"Asia/Tokyo\"\nlocale = \"ja_JP.UTF-8\"\n").unwrap();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        fs::write(home.path().join(".ssh/id.pub"), "ssh-ed25519 AAAAhost").unwrap();
        let mut recipe = SystemRecipe::built_in("debian-12").unwrap();
        recipe.choices.mirror = Some("http://recipe.example/debian".to_owned());
        let mut given = arguments();
        given.timezone = Some("Europe/Berlin".to_owned());
        let settled = settle(&given, &recipe, Some(home.path())).unwrap();
        assert_eq!(settled.timezone.as_deref(), Some("Europe/Berlin"));
        assert_eq!(settled.mirror.as_deref(), Some("http://recipe.example/debian"));
        assert_eq!(settled.locale.as_deref(), Some("ja_JP.UTF-8"));
        assert_eq!(settled.ssh_keys.unwrap(), ["ssh-ed25519 AAAAhost"]);
        given.no_ssh_keys = true;
        assert_eq!(settle(&given, &recipe, Some(home.path())).unwrap().ssh_keys.unwrap(), [""; 0]);
        given.ssh_keys = vec!["no key".to_owned()];
        assert!(is_usage(&settle(&given, &recipe, Some(home.path())).unwrap_err()));
    }

    #[test]
    fn the_time_is_the_environments() {
        assert_eq!(time(Some("1700000000")).unwrap(), 1_700_000_000);
        assert!(time(Some("yesterday")).is_err());
        assert!(time(None).unwrap() > 1_700_000_000);
    }
}
