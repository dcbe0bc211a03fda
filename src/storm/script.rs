//! What an iPXE script or a GRUB configuration tells a machine to do: the few commands boot servers really use, read
//! as the loader would act on them when everything works.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::storm::http::Url;

const TFTP_PORT: u16 = 69;

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Tftp(SocketAddrV4, String),
    Http(Url),
}

impl Source {
    /// A boot file as DHCP names it: a URL, or a name on that server.
    pub fn of_boot_file(file: &str, next_server: Option<Ipv4Addr>) -> Option<Source> {
        if file.contains("://") {
            return Source::parse(file);
        }
        Some(Source::Tftp(SocketAddrV4::new(next_server?, TFTP_PORT), file.to_owned()))
    }

    fn parse(url: &str) -> Option<Source> {
        match url.strip_prefix("tftp://") {
            Some(rest) => {
                let (host, name) = rest.split_once('/')?;
                Some(Source::Tftp(SocketAddrV4::new(host.parse().ok()?, TFTP_PORT), name.to_owned()))
            }
            None => Url::parse(url).map(Source::Http),
        }
    }

    /// Another file: by its whole address, by its path on the same server, or by its name in the same folder.
    pub fn beside(&self, word: &str) -> Option<Source> {
        if word.contains("://") {
            return Source::parse(word);
        }
        let path = match self {
            Source::Tftp(_, name) => name,
            Source::Http(url) => &url.path,
        };
        let path = if word.starts_with('/') {
            word.to_owned()
        } else {
            let folder = path.rfind('/').map_or("", |end| &path[..=end]);
            format!("{folder}{word}")
        };
        Some(match self {
            Source::Tftp(server, _) => Source::Tftp(*server, path),
            Source::Http(url) => Source::Http(Url { server: url.server, path }),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Load kernel and ramdisks, and start.
    Boot(Boot),
    /// Pause, then fetch a script again.
    Chain { after_secs: u64, script: Source },
    /// Leave the loader for the local disk.
    Leave,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    pub kernel: Source,
    pub ramdisks: Vec<Source>,
    pub arguments: Vec<String>,
    /// When something of it cannot be loaded: pause, then fetch this script.
    pub again: Option<(u64, Source)>,
}

/// GRUB's text. Names without a device are looked for where GRUB itself came from.
pub fn parse_grub(text: &str, base: &Source) -> Option<Instruction> {
    let mut kernel = None;
    let mut ramdisks = Vec::new();
    let mut again = None;
    let mut pause = 0;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let on_device = |word: &str| base.beside(word.rsplit(')').next().unwrap_or(word));
        match words.next().unwrap_or_default() {
            "linux" | "linuxefi" => {
                let target = on_device(words.next()?)?;
                kernel = Some((target, words.map(str::to_owned).collect::<Vec<_>>()));
            }
            "initrd" | "initrdefi" => {
                for word in words {
                    ramdisks.push(on_device(word)?);
                }
            }
            "sleep" => pause = words.next()?.parse().ok()?,
            "source" | "configfile" => again = Some((pause, on_device(words.next()?)?)),
            "exit" if kernel.is_none() => return Some(Instruction::Leave),
            _ => {}
        }
    }
    match kernel {
        Some((kernel, arguments)) => Some(Instruction::Boot(Boot { kernel, ramdisks, arguments, again })),
        None => again.map(|(after_secs, script)| Instruction::Chain { after_secs, script }),
    }
}

/// iPXE's script. `base` is where it came from; relative names are looked up beside it.
pub fn parse_ipxe(text: &str, base: &Source) -> Option<Instruction> {
    let mut kernel = None;
    let mut ramdisks = Vec::new();
    let mut again = None;
    let mut pause = 0;
    for line in text.lines() {
        let command = line.split("||").next().unwrap_or_default().split("&&").next().unwrap_or_default();
        let mut words = command.split_ascii_whitespace();
        let verb = words.next().unwrap_or_default();
        match verb {
            "kernel" | "chain" | "initrd" | "imgfetch" | "module" => {
                let mut rest = words.peekable();
                let mut target = None;
                while let Some(word) = rest.next() {
                    match word {
                        "--name" | "-n" | "--timeout" | "-t" => drop(rest.next()),
                        option if option.starts_with('-') => {}
                        word => {
                            target = base.beside(word);
                            break;
                        }
                    }
                }
                let target = target?;
                match verb {
                    "kernel" => kernel = Some((target, rest.map(str::to_owned).collect::<Vec<_>>())),
                    // A chain after a kernel is the way back from a failure.
                    "chain" if kernel.is_none() => {
                        return Some(Instruction::Chain { after_secs: pause, script: target });
                    }
                    "chain" => again = Some((pause, target)),
                    _ => ramdisks.push(target),
                }
            }
            "sleep" => pause = words.next()?.parse().ok()?,
            // Only a script that leads to the disk asks what it runs on: on UEFI it starts another loader for that.
            "iseq" | "exit" | "sanboot" if kernel.is_none() => return Some(Instruction::Leave),
            _ => {}
        }
    }
    kernel.map(|(kernel, arguments)| Instruction::Boot(Boot { kernel, ramdisks, arguments, again }))
}

/// The value of `key=` on a kernel command line; the last one counts.
pub fn argument<'a>(arguments: &'a [String], key: &str) -> Option<&'a str> {
    arguments.iter().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::decision::ScriptPlan;
    use crate::boot::script::{ScriptContext, render_grub, render_ipxe};
    use crate::net::MacAddr;

    fn base() -> Source {
        Source::parse("http://10.0.0.1/boot/x.ipxe").unwrap()
    }

    fn path(source: &Source) -> &str {
        match source {
            Source::Tftp(_, path) => path,
            Source::Http(url) => &url.path,
        }
    }

    fn context() -> ScriptContext<'static> {
        ScriptContext {
            server: Ipv4Addr::new(10, 0, 0, 1),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            node: None,
            profile: "vm",
            token: "SECRET",
            arguments: &[],
            grubs: &[],
            boot: Default::default(),
        }
    }

    #[test]
    fn our_own_scripts_are_understood() {
        let read = |plan| parse_ipxe(&render_ipxe(plan, &context()), &base()).unwrap();
        let Instruction::Boot(boot) = read(ScriptPlan::Ramdisk) else { panic!("no boot") };
        let Boot { kernel, ramdisks, arguments, again } = boot;
        assert_eq!(again.unwrap().0, 10);
        assert_eq!(path(&kernel), "/image/vm/vmlinuz");
        assert_eq!(ramdisks.iter().map(path).collect::<Vec<_>>(), ["/image/vm/initrd.img"]);
        assert_eq!(argument(&arguments, "farrier.token"), Some("SECRET"));
        assert!(matches!(read(ScriptPlan::AwaitApproval), Instruction::Chain { after_secs: 10, .. }));
        assert_eq!(read(ScriptPlan::LocalDisk), Instruction::Leave);
    }

    #[test]
    fn our_own_grub_texts_are_understood() {
        let server = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 69);
        let base = Source::Tftp(server, "/grub/grub.cfg".to_owned());
        let read = |plan| parse_grub(&render_grub(plan, &context()), &base).unwrap();
        let Instruction::Boot(boot) = read(ScriptPlan::Ramdisk) else { panic!("no boot") };
        assert_eq!(boot.kernel, Source::Tftp(server, "/image/vm/vmlinuz".to_owned()));
        assert_eq!(boot.ramdisks, [Source::Tftp(server, "/image/vm/initrd.img".to_owned())]);
        assert_eq!(argument(&boot.arguments, "farrier.token"), Some("SECRET"));
        let script = Source::Tftp(server, "/grub/grub.cfg-01-02-00-00-00-00-01".to_owned());
        assert_eq!(boot.again, Some((10, script.clone())));
        assert_eq!(read(ScriptPlan::AwaitApproval), Instruction::Chain { after_secs: 10, script });
        assert_eq!(read(ScriptPlan::LocalDisk), Instruction::Leave);
    }

    #[test]
    fn names_are_relative_to_the_script() {
        let text = "#!ipxe\nkernel vmlinuz quiet\ninitrd /img/initrd\nboot\n";
        let Some(Instruction::Boot(Boot { kernel, ramdisks, .. })) = parse_ipxe(text, &base()) else {
            panic!("no boot")
        };
        assert_eq!((path(&kernel), path(&ramdisks[0])), ("/boot/vmlinuz", "/img/initrd"));
        assert_eq!(parse_ipxe("<html>", &base()), None);
        let by_tftp = Source::of_boot_file("boot.ipxe", Some(Ipv4Addr::new(10, 0, 0, 1))).unwrap();
        assert_eq!(path(&by_tftp.beside("vmlinuz").unwrap()), "vmlinuz");
        assert_eq!(
            by_tftp.beside("tftp://10.0.0.1/a").map(|source| path(&source).to_owned()),
            Some("a".to_owned())
        );
    }
}
