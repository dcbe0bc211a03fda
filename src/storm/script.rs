//! What an iPXE script tells a machine to do: the few commands boot servers really use, read as iPXE would act on
//! them when everything works.

use crate::storm::http::Url;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Load kernel and ramdisks, and start.
    Boot(Boot),
    /// Pause, then fetch a script again.
    Chain { after_secs: u64, url: Url },
    /// Leave iPXE for the local disk.
    Leave,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    pub kernel: Url,
    pub ramdisks: Vec<Url>,
    pub arguments: Vec<String>,
    /// When something of it cannot be loaded: pause, then fetch this script.
    pub again: Option<(u64, Url)>,
}

/// `base` is where the script came from; relative names are looked up beside it.
pub fn parse(text: &str, base: &Url) -> Option<Instruction> {
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
                            target = resolve(word, base);
                            break;
                        }
                    }
                }
                let target = target?;
                match verb {
                    "kernel" => kernel = Some((target, rest.map(str::to_owned).collect::<Vec<_>>())),
                    // A chain after a kernel is the way back from a failure.
                    "chain" if kernel.is_none() => {
                        return Some(Instruction::Chain { after_secs: pause, url: target });
                    }
                    "chain" => again = Some((pause, target)),
                    _ => ramdisks.push(target),
                }
            }
            "sleep" => pause = words.next()?.parse().ok()?,
            "exit" | "sanboot" if kernel.is_none() => return Some(Instruction::Leave),
            _ => {}
        }
    }
    kernel.map(|(kernel, arguments)| Instruction::Boot(Boot { kernel, ramdisks, arguments, again }))
}

fn resolve(word: &str, base: &Url) -> Option<Url> {
    if word.contains("://") {
        return Url::parse(word);
    }
    let path = if word.starts_with('/') {
        word.to_owned()
    } else {
        let folder = &base.path[..base.path.rfind('/')? + 1];
        format!("{folder}{word}")
    };
    Some(Url { server: base.server, path })
}

/// The value of `key=` on a kernel command line; the last one counts.
pub fn argument<'a>(arguments: &'a [String], key: &str) -> Option<&'a str> {
    arguments.iter().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::decision::ScriptPlan;
    use crate::boot::script::{ScriptContext, render_ipxe};
    use crate::net::MacAddr;

    fn base() -> Url {
        Url::parse("http://10.0.0.1/boot/x.ipxe").unwrap()
    }

    #[test]
    fn our_own_scripts_are_understood() {
        let context = ScriptContext {
            server: std::net::Ipv4Addr::new(10, 0, 0, 1),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            node: None,
            profile: "vm",
            token: "SECRET",
            arguments: &[],
        };
        let read = |plan| parse(&render_ipxe(plan, &context), &base()).unwrap();
        let Instruction::Boot(boot) = read(ScriptPlan::Ramdisk) else { panic!("no boot") };
        let Boot { kernel, ramdisks, arguments, again } = boot;
        assert_eq!(again.unwrap().0, 10);
        assert_eq!(kernel.path, "/image/vm/vmlinuz");
        assert_eq!(
            ramdisks.iter().map(|url| url.path.as_str()).collect::<Vec<_>>(),
            ["/image/vm/initrd.img"]
        );
        assert_eq!(argument(&arguments, "farrier.token"), Some("SECRET"));
        assert!(matches!(read(ScriptPlan::AwaitApproval), Instruction::Chain { after_secs: 10, .. }));
        assert_eq!(read(ScriptPlan::LocalDisk), Instruction::Leave);
    }

    #[test]
    fn names_are_relative_to_the_script() {
        let text = "#!ipxe\nkernel vmlinuz quiet\ninitrd /img/initrd\nboot\n";
        let Some(Instruction::Boot(Boot { kernel, ramdisks, .. })) = parse(text, &base()) else {
            panic!("no boot")
        };
        assert_eq!((kernel.path.as_str(), ramdisks[0].path.as_str()), ("/boot/vmlinuz", "/img/initrd"));
        assert_eq!(parse("<html>", &base()), None);
    }
}
