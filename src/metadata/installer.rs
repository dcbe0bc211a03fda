//! Answers for distributions' own installers, made of the same document: Debian's preseed, RHEL's kickstart, Ubuntu's
//! autoinstall.
//!
//! These formats run what they hold in a shell, as root. So the templates (`metadata/templates/`) have places for names
//! and nothing more (no conditions, no loops, no files), and what is put into preseed and kickstart is a [`Word`]: inert,
//! or the whole file is refused. Into autoinstall, which is JSON, such words are put as well, and lists as JSON. What people wrote freely
//! (user data, the comments of keys) is not put into any of them: the installed system's first boot finds it in the
//! NoCloud seed that the last step (`metadata/templates/last-step`, one for all three) fetches from us. That step then says
//! that the disk is written; the kernel's command line has an address and nothing secret ([`Kind::boot_arguments`]).

use serde_json::json;

use crate::metadata::document::{Document, Word};

const PRESEED: &str = include_str!("../../metadata/templates/preseed.cfg");
const KICKSTART: &str = include_str!("../../metadata/templates/kickstart.cfg");
/// What all three run in the end: no place in it, so it is nobody's secret.
const LAST_STEP: &str = include_str!("../../metadata/templates/last-step");
const AUTOINSTALL: &str = include_str!("../../metadata/templates/autoinstall.json");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Preseed,
    Kickstart,
    Autoinstall,
}

/// What keeps an answer file from being made. None is made with a value left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    #[error("the template's `{place}` has no value")]
    NoSuchPlace { place: String },
    #[error(
        "the value of `{place}` would mean something to the installer: letters, digits and - . _ : / = + @ , are wanted"
    )]
    NotInert { place: &'static str },
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Preseed, Kind::Kickstart, Kind::Autoinstall];

    /// Below `/metadata/v1/`.
    pub fn path(self) -> &'static str {
        match self {
            Kind::Preseed => "preseed.cfg",
            Kind::Kickstart => "kickstart.cfg",
            Kind::Autoinstall => "autoinstall/user-data",
        }
    }

    /// Arguments of a boot profile that make the installer's kernel ask us. Anybody may read what becomes of them.
    pub fn boot_arguments(self) -> &'static [&'static str] {
        match self {
            Kind::Preseed => &["auto=true", "priority=critical", "interface={node.mac}", "url={preseed}"],
            Kind::Kickstart => &["ip=dhcp", "inst.ks={kickstart}"],
            Kind::Autoinstall => &["ip=dhcp", "autoinstall", "cloud-config-url={autoinstall}"],
        }
    }
}

/// What an installer's last step is, and what it leaves behind, by its name below `/metadata/v1/`.
pub fn left_behind(name: &str) -> Option<&'static str> {
    Some(match name {
        "last-step" => LAST_STEP,
        "first-boot/first-boot" => include_str!("../../images/first-boot/first-boot"),
        "first-boot/farrier-first-boot.service" => {
            include_str!("../../images/first-boot/debian/farrier-first-boot.service")
        }
        "first-boot/farrier-first-boot-finish.service" => {
            include_str!("../../images/first-boot/debian/farrier-first-boot-finish.service")
        }
        _ => return None,
    })
}

impl Document {
    pub fn answers(&self, kind: Kind) -> Result<String, RenderError> {
        match kind {
            Kind::Preseed => {
                let disk = self
                    .disk()
                    .map_or_else(String::new, |disk| format!("d-i partman-auto/disk string {disk}\n"));
                self.words_and(&[("disk", disk), ("packages", self.packages())])?.fill(PRESEED)
            }
            Kind::Kickstart => {
                // Without a comment: nothing that people wrote.
                let keys =
                    self.ssh_keys.iter().map(|key| format!("sshkey --username=root \"{}\"\n", key.bare()));
                let disk = self.disk().map_or_else(String::new, |disk| {
                    format!("ignoredisk --only-use={}\n", disk.trim_start_matches("/dev/"))
                });
                self.words_and(&[("disk", disk), ("ssh_keys", keys.collect())])?.fill(KICKSTART)
            }
            Kind::Autoinstall => {
                let matching = self.disk().map_or_else(|| json!({}), |disk| json!({ "path": disk }));
                // Words stand within JSON strings, and are as inert there; the lists are JSON by themselves.
                let lists =
                    [("ssh_keys", json!(self.key_lines()).to_string()), ("disk", matching.to_string())];
                Ok(format!("#cloud-config\n{}", self.words_and(&lists)?.fill(AUTOINSTALL)?))
            }
        }
    }

    /// curl is what our first boot calls home with; cloud-init comes where only it understands the user data.
    fn packages(&self) -> String {
        let cloud_config =
            self.user_data.as_ref().is_some_and(|data| data.as_str().starts_with("#cloud-config"));
        if cloud_config { "openssh-server curl cloud-init" } else { "openssh-server curl" }.to_owned()
    }

    fn disk(&self) -> Option<&str> {
        self.installer.disk.as_ref().map(Word::as_str)
    }

    fn words(&self) -> [(&'static str, String); 9] {
        let installer = &self.installer;
        [
            ("host_name", self.host_name.as_str().to_owned()),
            ("instance", self.instance.to_string()),
            ("token", self.phone_home.token.as_str().to_owned()),
            ("base", self.phone_home.base()),
            (
                "mac",
                self.network.ports.first().map_or_else(|| "link".to_owned(), |port| port.mac.to_string()),
            ),
            ("locale", installer.locale.as_str().to_owned()),
            ("time_zone", installer.time_zone.as_str().to_owned()),
            ("mirror", installer.mirror.as_str().to_owned()),
            ("mirror_directory", installer.mirror_directory.as_str().to_owned()),
        ]
    }

    /// Each word once more found inert, whatever its type promises; and what was made for this format beside them.
    fn words_and(&self, made: &[(&'static str, String)]) -> Result<Values, RenderError> {
        let words = self.words().into_iter().map(|(place, word)| Ok((place, inert(place, word)?)));
        let mut values = words.collect::<Result<Vec<_>, _>>()?;
        values.extend(made.iter().cloned());
        Ok(Values(values))
    }
}

fn inert(place: &'static str, word: String) -> Result<String, RenderError> {
    if Word::is_inert(&word) { Ok(word) } else { Err(RenderError::NotInert { place }) }
}

/// What goes where.
struct Values(Vec<(&'static str, String)>);

impl Values {
    /// Puts values at `{{place}}`; what has been put is not looked at again.
    fn fill(&self, template: &str) -> Result<String, RenderError> {
        let mut text = String::with_capacity(template.len() * 2);
        let mut rest = template;
        while let Some((before, behind)) = rest.split_once("{{") {
            let unknown = |place: &str| RenderError::NoSuchPlace { place: place.to_owned() };
            let (place, behind) = behind.split_once("}}").ok_or_else(|| unknown(behind))?;
            let value = self.0.iter().find(|(known, _)| *known == place);
            let (_, value) = value.ok_or_else(|| unknown(place))?;
            text.push_str(before);
            text.push_str(value);
            rest = behind;
        }
        text.push_str(rest);
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
