//! What the host would choose: its mirror, its language, its time zone, its user's keys; and the user's own file.
//!
//! The text of each source is read here and understood in a function of its own, which the tests call.

use std::fs;
use std::path::{Path, PathBuf};

use crate::image::system::recipe::Choices;

/// Where packages come from when the host does not say.
const MIRROR_DEFAULT: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR_DEFAULT: &str = "http://security.debian.org/debian-security";
const LOCALE_DEFAULT: &str = "C.UTF-8";
const TIMEZONE_DEFAULT: &str = "Etc/UTC";

#[derive(Debug, thiserror::Error)]
pub enum ChoicesError {
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: mirror, security_mirror, locale, timezone and ssh_keys are wanted", path.display())]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    #[error("mirror `{text}`: http:// or https:// and a path are wanted")]
    Mirror { text: String },
    #[error("locale `{text}`: a name like de_DE.UTF-8 is wanted")]
    Locale { text: String },
    #[error("time zone `{text}`: a name like Europe/Berlin is wanted")]
    Timezone { text: String },
    #[error("ssh key `{text}`: a line like `ssh-ed25519 AAAA… comment` is wanted")]
    Key { text: String },
}

/// `~/.config/farrier/image.toml`; a missing one chooses nothing.
pub fn of_user(home: Option<&Path>) -> Result<Choices, ChoicesError> {
    let Some(path) = home.map(|home| home.join(".config/farrier/image.toml")) else {
        return Ok(Choices::default());
    };
    match fs::read_to_string(&path) {
        Ok(text) => {
            toml::from_str(&text).map_err(|source| ChoicesError::Syntax { path, source: Box::new(source) })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Choices::default()),
        Err(source) => Err(ChoicesError::Read { path, source }),
    }
}

/// What this host has chosen for itself, with something for everything.
pub fn of_host(home: Option<&Path>) -> Choices {
    let read = |path: &str| fs::read_to_string(path).ok();
    let mut sources = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        sources.extend(files);
    }
    let sources: Vec<String> = sources.iter().flat_map(fs::read_to_string).collect();
    let mirror_of = |archive| sources.iter().find_map(|text| mirror_in(text, archive));
    let locale = std::env::var("LANG").ok().or_else(|| locale_in(&read("/etc/default/locale")?));
    let zone_link = || fs::read_link("/etc/localtime").ok().and_then(|target| timezone_in(&target));
    let timezone = zone_link().or_else(|| read("/etc/timezone").map(|text| text.trim().to_owned()));
    Choices {
        mirror: mirror_of("/debian").or_else(|| Some(MIRROR_DEFAULT.to_owned())),
        security_mirror: mirror_of("/debian-security").or_else(|| Some(SECURITY_MIRROR_DEFAULT.to_owned())),
        locale: locale.filter(|text| is_locale(text)).or_else(|| Some(LOCALE_DEFAULT.to_owned())),
        timezone: timezone.filter(|text| is_timezone(text)).or_else(|| Some(TIMEZONE_DEFAULT.to_owned())),
        ssh_keys: Some(home.map(|home| keys_in(&home.join(".ssh"))).unwrap_or_default()),
    }
}

/// All of it goes into files and command lines of the new system.
pub fn check(choices: &Choices) -> Result<(), ChoicesError> {
    let wrong = |text: &str| text.escape_default().take(80).collect::<String>();
    let mirrors = choices.mirror.iter().chain(&choices.security_mirror);
    if let Some(text) = mirrors.into_iter().find(|text| !is_mirror(text)) {
        return Err(ChoicesError::Mirror { text: wrong(text) });
    }
    if let Some(text) = choices.locale.as_deref().filter(|text| !is_locale(text)) {
        return Err(ChoicesError::Locale { text: wrong(text) });
    }
    if let Some(text) = choices.timezone.as_deref().filter(|text| !is_timezone(text)) {
        return Err(ChoicesError::Timezone { text: wrong(text) });
    }
    match choices.ssh_keys.iter().flatten().find(|text| !is_key(text)) {
        Some(text) => Err(ChoicesError::Key { text: wrong(text) }),
        None => Ok(()),
    }
}

/// The first address of one of Debian's own archives among apt's sources, in either of their two forms.
fn mirror_in(text: &str, archive: &str) -> Option<String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter_map(|line| line.strip_prefix("URIs:").or_else(|| line.strip_prefix("deb ")))
        .flat_map(str::split_whitespace)
        .find(|word| is_mirror(word) && word.trim_end_matches('/').ends_with(archive))
        .map(str::to_owned)
}

fn locale_in(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("LANG=")).map(|value| value.trim_matches('"').to_owned())
}

/// `/usr/share/zoneinfo/Europe/Berlin` → `Europe/Berlin`.
fn timezone_in(target: &Path) -> Option<String> {
    target.to_str()?.split_once("/zoneinfo/").map(|(_, name)| name.to_owned())
}

fn keys_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let public = files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "pub"));
    public.flat_map(fs::read_to_string).map(|text| text.trim().to_owned()).filter(|key| is_key(key)).collect()
}

fn is_mirror(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|rest| !rest.is_empty())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'`\\$[]".contains(&byte))
}

fn is_locale(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.@-".contains(&byte);
    (1..40).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with(['-', '.'])
}

fn is_timezone(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-".contains(&byte))
            && !part.starts_with('-')
    };
    (1..60).contains(&text.len()) && text.split('/').all(part)
}

/// Options before the type are left to authorized_keys(5); a line is all it must be.
fn is_key(text: &str) -> bool {
    let known = ["ssh-", "ecdsa-", "sk-"];
    !text.contains(['\n', '\r', '\0'])
        && text.split_whitespace().zip(text.split_whitespace().skip(1)).any(|(kind, data)| {
            known.iter().any(|prefix| kind.starts_with(prefix)) && data.starts_with("AAAA")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_sources_are_read_in_both_forms() {
        let deb822 = "Types: deb\n# http://snapshot/debian\nURIs: http://security.debian.org/debian-security\n\n\
                      Types: deb\nURIs: https://mirror.example/debian/\nSuites: bookworm\n";
        assert_eq!(mirror_in(deb822, "/debian").as_deref(), Some("https://mirror.example/debian/"));
        let security = mirror_in(deb822, "/debian-security");
        assert_eq!(security.as_deref(), Some("http://security.debian.org/debian-security"));
        let lines =
            "# deb http://old/debian x main\ndeb [arch=amd64] http://near.example/debian bookworm main\n";
        assert_eq!(mirror_in(lines, "/debian").as_deref(), Some("http://near.example/debian"));
        assert_eq!(mirror_in("deb https://packages.example/apt sdk main\n", "/debian"), None);
    }

    #[test]
    fn the_hosts_language_zone_and_keys() {
        assert_eq!(locale_in("#x\nLANG=\"de_DE.UTF-8\"\n").as_deref(), Some("de_DE.UTF-8"));
        let zone = timezone_in(Path::new("/usr/share/zoneinfo/Europe/Berlin"));
        assert_eq!(zone.as_deref(), Some("Europe/Berlin"));
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".ssh")).unwrap();
        fs::write(home.path().join(".ssh/id_ed25519.pub"), "ssh-ed25519 AAAAC3 me@here\n").unwrap();
        fs::write(home.path().join(".ssh/id_ed25519"), "secret").unwrap();
        fs::write(home.path().join(".ssh/other.pub"), "no key\n").unwrap();
        assert_eq!(of_host(Some(home.path())).ssh_keys.unwrap(), ["ssh-ed25519 AAAAC3 me@here"]);
        assert_eq!(check(&of_host(Some(home.path()))).map_err(|e| e.to_string()), Ok(()));
    }

    #[test]
    fn the_users_file_has_those_keys_and_no_others() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(of_user(Some(home.path())).unwrap(), Choices::default());
        let place = home.path().join(".config/farrier");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("image.toml"), "timezone = \"Asia/Tokyo\"\n").unwrap();
        assert_eq!(of_user(Some(home.path())).unwrap().timezone.as_deref(), Some("Asia/Tokyo"));
        fs::write(place.join("image.toml"), "time_zone = \"Asia/Tokyo\"\n").unwrap();
        assert!(of_user(Some(home.path())).unwrap_err().to_string().contains("image.toml"));
    }

    #[test]
    fn what_would_be_an_option_or_another_line_is_refused() {
        let given = |change: fn(&mut Choices)| {
            let mut choices = Choices::default();
            change(&mut choices);
            check(&choices)
        };
        assert!(given(|c| c.mirror = Some("ftp://x/debian".to_owned())).is_err());
        assert!(given(|c| c.mirror = Some("http://x/debian bookworm".to_owned())).is_err());
        assert!(given(|c| c.locale = Some("-x".to_owned())).is_err());
        assert!(given(|c| c.timezone = Some("../etc/shadow".to_owned())).is_err());
        assert!(given(|c| c.ssh_keys = Some(vec!["ssh-rsa AAAA\nssh-rsa AAAA".to_owned()])).is_err());
        assert!(given(|c| c.ssh_keys = Some(vec!["ssh-ed25519 AAAAC3 me".to_owned()])).is_ok());
        assert!(given(|c| c.ssh_keys = Some(vec!["restrict ssh-ed25519 AAAAC3 me".to_owned()])).is_ok());
    }
}
