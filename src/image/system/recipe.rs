//! `images/small.toml`, `images/debian-12.toml` and recipes like them: what a system image is made from, as the file
//! says it and as it is meant.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use crate::agent::drivers::Role;
use crate::boot::script::{KernelArgument, ParseKernelArgumentError};
use crate::image::digest::Digest;
use crate::image::library::is_profile_name;
use crate::image::recipe::{WantedModule, is_module_name, is_package_name, line_of};
use crate::image::system::esp;

const BUILT_IN: [(&str, &str, &str); 2] = [
    ("small", "images/small.toml", include_str!("../../../images/small.toml")),
    ("debian-12", "images/debian-12.toml", include_str!("../../../images/debian-12.toml")),
];
/// More would not be an image any more, and sizes stay far from overflow.
const MIB_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemRecipe {
    /// The file it was read from, for messages.
    pub file: String,
    /// Of the recipe's text.
    pub digest: Digest,
    pub name: String,
    pub description: String,
    pub base: Base,
    /// Meta package.
    pub kernel: String,
    pub arguments: Vec<KernelArgument>,
    pub menu_seconds: u16,
    pub esp_bytes: u64,
    pub root_free_bytes: u64,
    pub choices: Choices,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    Busybox { modules: Vec<WantedModule>, programs: Vec<Program> },
    Debian { suite: String, components: Vec<String>, packages: Vec<String> },
}

/// Files of a package that is not installed for them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    pub package: String,
    pub files: Vec<String>,
}

/// What a recipe, the user's own file, the command line and the host have a say in, in rising order from the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    pub mirror: Option<String>,
    pub security_mirror: Option<String>,
    pub locale: Option<String>,
    pub timezone: Option<String>,
    pub ssh_keys: Option<Vec<String>>,
}

impl Choices {
    /// Where this says nothing, `other` does.
    pub fn or(self, other: Choices) -> Choices {
        Choices {
            mirror: self.mirror.or(other.mirror),
            security_mirror: self.security_mirror.or(other.security_mirror),
            locale: self.locale.or(other.locale),
            timezone: self.timezone.or(other.timezone),
            ssh_keys: self.ssh_keys.or(other.ssh_keys),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SystemRecipeError {
    #[error("{file} is not a recipe of a system image")]
    Syntax { file: String, source: Box<toml::de::Error> },
    #[error("{file}: name `{name}`: lower-case letters, digits and inner hyphens are wanted")]
    Name { file: String, name: String },
    #[error("{file}: base \"{base}\" {what}")]
    Keys { file: String, base: &'static str, what: &'static str },
    #[error("{file}: `{name}` is not a Debian package name")]
    Package { file: String, name: String },
    #[error("{file}: `{path}` of package {package}: an absolute path without `..` is wanted")]
    Path { file: String, package: String, path: String },
    #[error("{file}: `{word}` is not the name of a suite or a component")]
    Suite { file: String, word: String },
    #[error("{file}, line {line}: `{name}` is not a module name: letters, digits, `-` and `_` are wanted")]
    Module { file: String, line: usize, name: String },
    #[error("{file}")]
    Argument { file: String, source: ParseKernelArgumentError },
    #[error("{file}: disk: {key} = {mib}: {least} to {MIB_MAX} is wanted")]
    Size { file: String, key: &'static str, mib: u64, least: u64 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    name: String,
    description: String,
    base: BaseName,
    kernel: String,
    arguments: Vec<String>,
    menu_seconds: u16,
    disk: DiskTable,
    modules: Option<Vec<Spanned<String>>>,
    program: Option<Vec<Program>>,
    suite: Option<String>,
    components: Option<Vec<String>>,
    packages: Option<Vec<String>>,
    mirror: Option<String>,
    security_mirror: Option<String>,
    locale: Option<String>,
    timezone: Option<String>,
    ssh_keys: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum BaseName {
    Busybox,
    Debian,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskTable {
    esp_mib: u64,
    root_free_mib: u64,
}

impl SystemRecipe {
    /// Nothing of the builder's own goes into it.
    pub fn is_for_tests(&self) -> bool {
        matches!(self.base, Base::Busybox { .. })
    }

    /// Names of the recipes shipped with farrier.
    pub fn built_in_names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _, _)| *name)
    }

    /// A recipe shipped with farrier.
    pub fn built_in(name: &str) -> Option<SystemRecipe> {
        let (_, file, text) = BUILT_IN.iter().find(|(known, _, _)| *known == name)?;
        // A test parses each of them, so this cannot fail in a build that passed its tests.
        Some(Self::parse(file, text).expect("the shipped recipes are valid"))
    }

    /// `file` only names the text in messages.
    pub fn parse(file: &str, text: &str) -> Result<SystemRecipe, SystemRecipeError> {
        let parsed: RecipeFile = toml::from_str(text).map_err(|source| SystemRecipeError::Syntax {
            file: file.to_owned(),
            source: Box::new(source),
        })?;
        let named = |name: &String| -> Result<(), SystemRecipeError> {
            if is_package_name(name) {
                return Ok(());
            }
            let name = name.escape_default().collect();
            Err(SystemRecipeError::Package { file: file.to_owned(), name })
        };
        if !is_profile_name(&parsed.name) {
            let name = parsed.name.escape_default().collect();
            return Err(SystemRecipeError::Name { file: file.to_owned(), name });
        }
        named(&parsed.kernel)?;
        let arguments = parsed
            .arguments
            .iter()
            .map(|word| word.parse())
            .collect::<Result<_, _>>()
            .map_err(|source| SystemRecipeError::Argument { file: file.to_owned(), source })?;
        let keys = |base, what| SystemRecipeError::Keys { file: file.to_owned(), base, what };
        let base = match parsed.base {
            BaseName::Busybox => {
                let of_debian =
                    [parsed.suite.is_some(), parsed.components.is_some(), parsed.packages.is_some()];
                let mirrors = parsed.mirror.is_some() || parsed.security_mirror.is_some();
                let choices = [mirrors, parsed.locale.is_some(), parsed.timezone.is_some()];
                if of_debian.iter().chain(&choices).any(|given| *given) {
                    let what = "has no suite, components, packages, mirrors, locale or timezone";
                    return Err(keys("busybox", what));
                }
                let (Some(modules), Some(programs)) = (parsed.modules, parsed.program) else {
                    return Err(keys("busybox", "wants modules and program"));
                };
                programs.iter().try_for_each(|program| check_program(file, program))?;
                Base::Busybox { modules: read_modules(file, text, modules)?, programs }
            }
            BaseName::Debian => {
                if parsed.modules.is_some() || parsed.program.is_some() {
                    return Err(keys("debian", "has no modules or program: its packages bring them"));
                }
                let (Some(suite), Some(components), Some(packages)) =
                    (parsed.suite, parsed.components, parsed.packages)
                else {
                    return Err(keys("debian", "wants suite, components and packages"));
                };
                packages.iter().try_for_each(named)?;
                for word in components.iter().chain([&suite]) {
                    if !is_suite_word(word) {
                        let word = word.escape_default().collect();
                        return Err(SystemRecipeError::Suite { file: file.to_owned(), word });
                    }
                }
                Base::Debian { suite, components, packages }
            }
        };
        let bytes = |key: &'static str, mib: u64, least: u64| {
            if (least..=MIB_MAX).contains(&mib) {
                return Ok(mib << 20);
            }
            Err(SystemRecipeError::Size { file: file.to_owned(), key, mib, least })
        };
        Ok(SystemRecipe {
            file: file.to_owned(),
            digest: Digest::of(text.as_bytes()),
            name: parsed.name,
            description: parsed.description,
            base,
            kernel: parsed.kernel,
            arguments,
            menu_seconds: parsed.menu_seconds,
            esp_bytes: bytes("esp_mib", parsed.disk.esp_mib, esp::BYTES_MIN >> 20)?,
            root_free_bytes: bytes("root_free_mib", parsed.disk.root_free_mib, 1)?,
            choices: Choices {
                mirror: parsed.mirror,
                security_mirror: parsed.security_mirror,
                locale: parsed.locale,
                timezone: parsed.timezone,
                ssh_keys: parsed.ssh_keys,
            },
        })
    }
}

fn check_program(file: &str, program: &Program) -> Result<(), SystemRecipeError> {
    if !is_package_name(&program.package) {
        let name = program.package.escape_default().collect();
        return Err(SystemRecipeError::Package { file: file.to_owned(), name });
    }
    for path in &program.files {
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            let (file, package) = (file.to_owned(), program.package.clone());
            return Err(SystemRecipeError::Path { file, package, path: path.escape_default().collect() });
        }
    }
    Ok(())
}

fn read_modules(
    file: &str,
    text: &str,
    list: Vec<Spanned<String>>,
) -> Result<Vec<WantedModule>, SystemRecipeError> {
    let mut modules = BTreeMap::new();
    let mut order = Vec::new();
    for spanned in list {
        let line = line_of(text, spanned.span().start);
        let name = spanned.into_inner();
        if !is_module_name(&name) {
            let name = name.escape_default().collect();
            return Err(SystemRecipeError::Module { file: file.to_owned(), line, name });
        }
        // The kernel takes `-` and `_` for one.
        let name = name.replace('-', "_");
        if modules.insert(name.clone(), ()).is_none() {
            order.push(WantedModule { name, role: Role::Bus, line });
        }
    }
    Ok(order)
}

/// Goes into a line of sources.list.
fn is_suite_word(word: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'/');
    !word.is_empty() && word.bytes().all(inner) && !word.starts_with(['-', '/'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = BUILT_IN[0].2;

    #[test]
    fn the_shipped_recipes_are_valid_and_named_after_themselves() {
        for name in SystemRecipe::built_in_names() {
            assert_eq!(SystemRecipe::built_in(name).unwrap().name, name);
        }
        assert_eq!(SystemRecipe::built_in("windows"), None);
    }

    #[test]
    fn each_mistake_names_its_place() {
        for (from, to, wanted) in [
            ("name = \"small\"", "name = \"../x\"", "name `../x`"),
            ("base = \"busybox\"", "base = \"debian\"", "base \"debian\" has no modules"),
            ("menu_seconds = 0", "menu_seconds = 0\nlocale = \"C\"", "base \"busybox\" has no suite"),
            ("linux-image-cloud-amd64", "--option", "`--option` is not a Debian package name"),
            ("\"virtio_blk\"", "\"../evil\"", "`../evil` is not a module name"),
            ("\"/sbin/sfdisk\"", "\"../sfdisk\"", "`../sfdisk` of package fdisk: an absolute path"),
            ("esp_mib = 34", "esp_mib = 3", "esp_mib = 3: 34 to"),
            ("description", "descripton", "r.toml is not a recipe"),
        ] {
            assert!(SMALL.contains(from), "{from}");
            let error = SystemRecipe::parse("r.toml", &SMALL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn the_nearer_choice_counts() {
        let near = Choices { locale: Some("C".to_owned()), ..Choices::default() };
        let far = Choices {
            locale: Some("de_DE.UTF-8".to_owned()),
            timezone: Some("UTC".to_owned()),
            ..Choices::default()
        };
        let both = near.or(far);
        assert_eq!((both.locale.as_deref(), both.timezone.as_deref()), (Some("C"), Some("UTC")));
    }
}
