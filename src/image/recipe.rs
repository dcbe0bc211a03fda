//! `images/deploy.toml`: what a deploy kernel and ramdisk are made from, as the file says it and as it is meant.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use crate::agent::drivers::Role;
use crate::boot::script::{KernelArgument, ParseKernelArgumentError};
use crate::image::digest::Digest;
use crate::image::library::is_profile_name;

const BUILT_IN: &str = include_str!("../../images/deploy.toml");
const BUILT_IN_NAME: &str = "images/deploy.toml";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The file it was read from, for messages.
    pub file: String,
    pub profiles: BTreeMap<String, ProfileRecipe>,
    /// Of the recipe's text; part of every manifest.
    pub digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRecipe {
    pub name: String,
    pub description: String,
    /// Meta package.
    pub kernel: String,
    /// In loading order.
    pub modules: Vec<WantedModule>,
    pub arguments: Vec<KernelArgument>,
    /// Whether a rescue is reached by ssh.
    pub ssh: bool,
    pub compression: Compression,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedModule {
    pub name: String,
    pub role: Role,
    /// Line of the recipe that names it.
    pub line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    None,
    Zstd(u8),
}

#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("{file} is not a recipe")]
    Syntax { file: String, source: Box<toml::de::Error> },
    #[error(
        "{file}: `{name}` is not a profile name: lower-case letters, digits and inner hyphens are wanted"
    )]
    ProfileName { file: String, name: String },
    #[error("{file}: profile {profile}: compression zstd = {level}: a level from 1 to 22 is wanted")]
    Level { file: String, profile: String, level: u8 },
    #[error("{file}, line {line}: `{name}` is not a module name: letters, digits, `-` and `_` are wanted")]
    ModuleName { file: String, line: usize, name: String },
    #[error("{file}, line {line}: profile {profile} names module `{name}` twice")]
    Twice { file: String, line: usize, profile: String, name: String },
    #[error("{file}: profile {profile}")]
    Argument { file: String, profile: String, source: ParseKernelArgumentError },
    #[error("{file}: profile {profile}: `{name}` is not a Debian package name")]
    Package { file: String, profile: String, name: String },
    #[error("{file} has no profile `{name}`; it has {known}")]
    NoProfile { file: String, name: String, known: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    profile: BTreeMap<String, ProfileTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileTable {
    description: String,
    kernel: String,
    bus: Vec<Spanned<String>>,
    network: Vec<Spanned<String>>,
    storage: Vec<Spanned<String>>,
    other: Vec<Spanned<String>>,
    arguments: Vec<String>,
    ssh: bool,
    compression: Compression,
}

impl Recipe {
    /// The recipe shipped with farrier.
    pub fn built_in() -> Recipe {
        // A test parses the embedded file, so this cannot fail in a build that passed its tests.
        Self::parse(BUILT_IN_NAME, BUILT_IN).expect("images/deploy.toml is valid")
    }

    /// `file` only names the text in messages.
    pub fn parse(file: &str, text: &str) -> Result<Recipe, RecipeError> {
        let parsed: RecipeFile = toml::from_str(text)
            .map_err(|source| RecipeError::Syntax { file: file.to_owned(), source: Box::new(source) })?;
        let mut profiles = BTreeMap::new();
        for (name, table) in parsed.profile {
            let profile = read_profile(file, text, &name, table)?;
            profiles.insert(name, profile);
        }
        Ok(Recipe { file: file.to_owned(), profiles, digest: Digest::of(text.as_bytes()) })
    }

    pub fn profile(&self, name: &str) -> Result<&ProfileRecipe, RecipeError> {
        self.profiles.get(name).ok_or_else(|| RecipeError::NoProfile {
            file: self.file.clone(),
            name: name.escape_default().collect(),
            known: self.profiles.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }
}

fn read_profile(
    file: &str,
    text: &str,
    name: &str,
    table: ProfileTable,
) -> Result<ProfileRecipe, RecipeError> {
    let (file, profile) = (file.to_owned(), name.to_owned());
    if !is_profile_name(name) {
        return Err(RecipeError::ProfileName { file, name: name.escape_default().collect() });
    }
    if !is_package_name(&table.kernel) {
        return Err(RecipeError::Package { file, profile, name: table.kernel.escape_default().collect() });
    }
    if let Compression::Zstd(level) = table.compression
        && !(1..=22).contains(&level)
    {
        return Err(RecipeError::Level { file, profile, level });
    }
    let mut modules: Vec<WantedModule> = Vec::new();
    let lists = [
        (Role::Bus, table.bus),
        (Role::Network, table.network),
        (Role::Storage, table.storage),
        (Role::Other, table.other),
    ];
    for (role, list) in lists {
        for spanned in list {
            let line = line_of(text, spanned.span().start);
            let name = spanned.into_inner();
            if !is_module_name(&name) {
                return Err(RecipeError::ModuleName { file, line, name: name.escape_default().collect() });
            }
            // The kernel takes `-` and `_` for one.
            let name = name.replace('-', "_");
            if modules.iter().any(|module| module.name == name) {
                return Err(RecipeError::Twice { file, line, profile, name });
            }
            modules.push(WantedModule { name, role, line });
        }
    }
    let arguments = table
        .arguments
        .iter()
        .map(|word| word.parse())
        .collect::<Result<_, _>>()
        .map_err(|source| RecipeError::Argument { file, profile: profile.clone(), source })?;
    Ok(ProfileRecipe {
        name: profile,
        description: table.description,
        kernel: table.kernel,
        modules,
        arguments,
        ssh: table.ssh,
        compression: table.compression,
    })
}

/// Debian Policy §5.6.1; also keeps a name from being taken for an option of apt-get.
pub fn is_package_name(name: &str) -> bool {
    let inner =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.');
    name.len() >= 2
        && name.bytes().all(inner)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

pub fn is_module_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

pub(in crate::image) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
[profile.vm]
description = "d"
kernel = "linux-image-cloud-amd64"
bus = ["virtio-pci"]
network = [
  "virtio_net",
]
storage = []
other = []
arguments = ["quiet"]
ssh = false
compression = { zstd = 19 }
"#;

    #[test]
    fn the_shipped_recipe_is_valid_and_has_both_profiles() {
        let recipe = Recipe::built_in();
        assert!(recipe.profile("vm").is_ok() && recipe.profile("metal").is_ok());
        let error = recipe.profile("arm").unwrap_err().to_string();
        assert!(error.contains("metal, vm"), "{error}");
    }

    #[test]
    fn modules_keep_their_order_their_role_and_their_line() {
        let recipe = Recipe::parse("r.toml", MINIMAL).unwrap();
        let modules = &recipe.profile("vm").unwrap().modules;
        let expected = [("virtio_pci", Role::Bus, 5), ("virtio_net", Role::Network, 7)];
        let found: Vec<_> = modules.iter().map(|m| (m.name.as_str(), m.role, m.line)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_mistake_names_its_place() {
        for (from, to, wanted) in [
            ("other = []", "other = [\"virtio_pci\"]", "line 10: profile vm names module `virtio_pci` twice"),
            ("\"virtio_net\",", "\"../evil\",", "line 7: `../evil` is not a module name"),
            ("zstd = 19", "zstd = 40", "zstd = 40: a level from 1 to 22"),
            ("linux-image-cloud-amd64", "--option", "`--option` is not a Debian package name"),
            ("profile.vm", "profile.VM", "`VM` is not a profile name"),
            ("description", "descripton", "r.toml is not a recipe"),
        ] {
            let error = Recipe::parse("r.toml", &MINIMAL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let argument = MINIMAL.replace("\"quiet\"", "\"a b\"");
        assert!(matches!(Recipe::parse("r.toml", &argument), Err(RecipeError::Argument { .. })));
    }
}
