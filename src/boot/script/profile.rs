//! The text of a boot profile: a kernel with its initrds, an EFI program, or an image that iPXE attaches as a drive.

use std::fmt::Write as _;

use crate::boot::namespace;
use crate::boot::profile::argument::ArgumentRefusal;
use crate::boot::profile::{ProfileFile, ProfileName, What};
use crate::boot::script::{KernelArgument, RETRY_SECS, ScriptContext, again_in_ipxe, wait_in_grub};

/// What is told of a boot profile.
#[derive(Clone, Copy, Debug, Default)]
pub enum BootText<'a> {
    /// There is none: the plan is another.
    #[default]
    Ramdisk,
    Profile {
        name: &'a ProfileName,
        what: &'a What,
        arguments: &'a [KernelArgument],
    },
    Refused {
        name: &'a ProfileName,
        reason: &'a ArgumentRefusal,
    },
}

/// What a machine that is told nothing else is told.
fn refusal(context: &ScriptContext<'_>) -> String {
    let who = context.who();
    match context.boot {
        BootText::Refused { name, reason } => format!("{who} cannot boot profile {name}: {reason}"),
        BootText::Ramdisk | BootText::Profile { .. } => format!("{who} has no boot profile any more"),
    }
}

fn command_line(arguments: &[KernelArgument]) -> String {
    arguments.iter().fold(String::new(), |mut line, word| {
        // Writing into a String does not fail.
        let _ = write!(line, " {word}");
        line
    })
}

pub(super) fn render_ipxe(context: &ScriptContext<'_>) -> String {
    let server = context.server;
    let who = context.who();
    let again = again_in_ipxe(server, context.mac);
    let BootText::Profile { name, what, arguments } = context.boot else {
        let refusal = refusal(context);
        return format!("#!ipxe\necho farrier: {refusal}; asking again in {RETRY_SECS} s\n:again\n{again}");
    };
    let url = |file| format!("http://{server}/{}", namespace::profile_file_name(name, file));
    let starts = match what {
        What::Kernel { initrds, .. } => {
            let mut named = String::new();
            let mut fetched = String::new();
            for number in 0..initrds.len() {
                let _ = write!(named, " initrd=initrd{number}.img");
                let from = url(ProfileFile::Initrd(number));
                let _ = writeln!(fetched, "initrd --name initrd{number}.img {from} || goto failed");
            }
            let kernel = url(ProfileFile::Kernel);
            let words = command_line(arguments);
            format!("kernel {kernel}{named}{words} || goto failed\n{fetched}boot || goto failed\n")
        }
        What::EfiProgram { .. } => format!(
            "chain {} || goto failed\n\
             echo farrier: profile {name} has ended; {who} starts over in {RETRY_SECS} s\n\
             sleep {RETRY_SECS}\n\
             reboot\n",
            url(ProfileFile::EfiProgram)
        ),
        What::Iso { .. } => format!("sanboot --no-describe {} || goto failed\n", url(ProfileFile::Iso)),
    };
    format!(
        "#!ipxe\n\
         echo farrier: {who} boots profile {name}\n\
         {starts}\
         :failed\n\
         echo farrier: {who} could not start profile {name}; trying again in {RETRY_SECS} s\n\
         imgfree\n\
         :again\n\
         {again}"
    )
}

pub(super) fn render_grub(context: &ScriptContext<'_>) -> String {
    let who = context.who();
    let wait_and_ask_again = wait_in_grub(context.mac);
    let name_of = |name, file| namespace::profile_file_name(name, file);
    let told = |name: &ProfileName, starts: &str| {
        format!(
            "echo 'farrier: {who} boots profile {name}'\n\
             {starts}\
             echo 'farrier: {who} could not start profile {name}; trying again in {RETRY_SECS} s'\n\
             {wait_and_ask_again}"
        )
    };
    match context.boot {
        BootText::Profile { name, what: What::Kernel { initrds, .. }, arguments } => {
            let mut starts =
                format!("linux /{}{}\n", name_of(name, ProfileFile::Kernel), command_line(arguments));
            if !initrds.is_empty() {
                starts.push_str("initrd");
                for number in 0..initrds.len() {
                    let _ = write!(starts, " /{}", name_of(name, ProfileFile::Initrd(number)));
                }
                starts.push('\n');
            }
            starts.push_str("boot\n");
            told(name, &starts)
        }
        BootText::Profile { name, what: What::EfiProgram { .. }, .. } => {
            let program = name_of(name, ProfileFile::EfiProgram);
            // A program that returns has done what it was to do. GRUB has no network any more then, and leaving it ends in
            // the firmware's menu: the machine starts over, and is told then what comes next.
            let starts = format!(
                "if chainloader /{program}; then\n\
                 boot\n\
                 echo 'farrier: profile {name} has ended; {who} starts over in {RETRY_SECS} s'\n\
                 sleep {RETRY_SECS}\n\
                 reboot\n\
                 fi\n"
            );
            told(name, &starts)
        }
        // GRUB attaches no images; such a rule is passed over before it comes to this.
        BootText::Profile { what: What::Iso { .. }, .. } | BootText::Refused { .. } | BootText::Ramdisk => {
            let refusal = refusal(context);
            format!("echo 'farrier: {refusal}; asking again in {RETRY_SECS} s'\n{wait_and_ask_again}")
        }
    }
}

pub(super) fn render_pxelinux(context: &ScriptContext<'_>) -> String {
    let who = context.who();
    match context.boot {
        BootText::Profile { name, what: What::Kernel { initrds, .. }, arguments } => {
            let kernel = namespace::profile_file_name(name, ProfileFile::Kernel);
            let initrd = match initrds.is_empty() {
                true => String::new(),
                false => format!("initrd /{}\n", namespace::profile_file_name(name, ProfileFile::Initrd(0))),
            };
            let append = match arguments.is_empty() {
                true => String::new(),
                false => format!("append{}\n", command_line(arguments)),
            };
            format!(
                "default farrier\n\
                 timeout 10\n\
                 menu title farrier: {who} boots profile {name}\n\
                 label farrier\n\
                 linux /{kernel}\n\
                 {initrd}{append}"
            )
        }
        BootText::Profile { what: What::EfiProgram { .. } | What::Iso { .. }, .. }
        | BootText::Refused { .. }
        | BootText::Ramdisk => format!("menu title farrier: {}\n", refusal(context)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::boot::decision::ScriptPlan;
    use crate::boot::profile::BootProfile;
    use crate::boot::profile::testing::{efi, iso, kernel};
    use crate::boot::script::tests::{
        Commands, Reader, Renderer, anything, commands_of_grub, commands_of_ipxe,
    };
    use crate::boot::script::{render_grub, render_ipxe, render_pxelinux};
    use crate::net::MacAddr;

    fn text(render: Renderer, profile: &BootProfile, arguments: &[KernelArgument]) -> String {
        let boot = BootText::Profile { name: &profile.name, what: &profile.what, arguments };
        let context = ScriptContext {
            server: Ipv4Addr::new(192, 168, 2, 2),
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            node: None,
            profile: "vm",
            token: "TOKEN",
            arguments: &[],
            grubs: &[],
            boot,
        };
        let text = render(ScriptPlan::Profile, &context);
        assert!(!text.contains("TOKEN"), "no token of ours in what is not ours: {text}");
        text
    }

    fn read(text: &str, reader: Reader) -> Commands {
        text.lines().flat_map(reader).collect()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_kernel_is_started_with_its_initrds_in_order() {
        let live = kernel("live", 2, &[]);
        let arguments = ["boot=live".parse().unwrap()];
        let ipxe = read(&text(render_ipxe, &live, &arguments), commands_of_ipxe);
        let at = "http://192.168.2.2/profile/live";
        for command in [
            format!("kernel {at}/kernel initrd=initrd0.img initrd=initrd1.img boot=live"),
            format!("initrd --name initrd0.img {at}/initrd/0"),
            format!("initrd --name initrd1.img {at}/initrd/1"),
            "boot".to_owned(),
        ] {
            assert!(ipxe.contains(&words(&command)), "{command}: {ipxe:?}");
        }
        let grub = read(&text(render_grub, &live, &arguments), commands_of_grub);
        for command in [
            "linux /profile/live/kernel boot=live",
            "initrd /profile/live/initrd/0 /profile/live/initrd/1",
            "boot",
        ] {
            assert!(grub.contains(&words(command)), "{command}: {grub:?}");
        }
        let one = text(render_pxelinux, &kernel("live", 1, &[]), &arguments);
        assert!(
            one.ends_with("linux /profile/live/kernel\ninitrd /profile/live/initrd/0\nappend boot=live\n")
        );
        // Neither a kernel's initrd nor its words are named where there are none.
        let bare = kernel("memtest", 0, &[]);
        for render in [render_ipxe as Renderer, render_grub, render_pxelinux] {
            let text = text(render, &bare, &[]);
            assert!(!text.contains("initrd") && !text.contains("append"), "{text}");
        }
    }

    #[test]
    fn programs_are_chained_and_images_attached() {
        let at = "http://192.168.2.2/profile";
        let memtest = text(render_ipxe, &efi("memtest"), &[]);
        assert!(
            memtest.contains(&format!(
                "\nchain {at}/memtest/boot.efi || goto failed\necho farrier: profile memtest has ended; "
            )),
            "{memtest}"
        );
        let disc = text(render_ipxe, &iso("disc"), &[]);
        assert!(
            disc.contains(&format!("\nsanboot --no-describe {at}/disc/image.iso || goto failed\n")),
            "{disc}"
        );
        let grub = text(render_grub, &efi("memtest"), &[]);
        assert!(grub.contains("\nif chainloader /profile/memtest/boot.efi; then\nboot\n"), "{grub}");
        // What a loader cannot start is not named to it, and the machine asks again.
        assert!(!text(render_grub, &iso("disc"), &[]).contains("image.iso"));
        assert!(
            text(render_grub, &iso("disc"), &[]).contains("source /grub/grub.cfg-01-52-54-00-00-00-01\n")
        );
        assert!(!text(render_pxelinux, &efi("memtest"), &[]).contains("boot.efi"));
    }

    #[test]
    fn a_refused_boot_says_why_and_asks_again() {
        let reason = ArgumentRefusal::Missing("node.label.rack".parse().unwrap());
        let name = "live".parse().unwrap();
        let context = ScriptContext {
            server: Ipv4Addr::new(192, 168, 2, 2),
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            node: None,
            profile: "vm",
            token: "",
            arguments: &[],
            grubs: &[],
            boot: BootText::Refused { name: &name, reason: &reason },
        };
        let plan = ScriptPlan::ProfileRefused;
        for text in
            [render_ipxe(plan, &context), render_grub(plan, &context), render_pxelinux(plan, &context)]
        {
            assert!(text.contains("cannot boot profile live: node.label.rack is wanted"), "{text}");
            assert!(!text.contains("/profile/live"), "{text}");
        }
        assert!(render_ipxe(plan, &context).contains("chain --replace --autofree"));
        assert!(render_grub(plan, &context).contains("source /grub/"));
    }

    proptest! {
        /// Whatever words a profile is added with and whatever the node is called: what is rendered reads back, by each
        /// loader's own rules, as the commands it is without them, and the words as they were filled.
        #[test]
        fn words_of_a_profile_read_back_as_they_were(
            texts in proptest::collection::vec(anything(), 0..6),
            initrds in 0_usize..4,
        ) {
            let arguments: Vec<KernelArgument> = texts.iter().filter_map(|text| text.parse().ok()).collect();
            let expected: Vec<&str> = arguments.iter().map(KernelArgument::as_str).collect();
            let profile = kernel("live", initrds, &[]);
            let kernels: [(Renderer, Reader, &str, usize); 2] =
                [(render_ipxe, commands_of_ipxe, "kernel", 2 + initrds), (render_grub, commands_of_grub, "linux", 2)];
            for (render, reader, keyword, before) in kernels {
                let starts = |commands: &Commands| -> (Commands, Commands) {
                    commands.iter().cloned().partition(|words| words.first().is_some_and(|word| word == keyword))
                };
                let (with, others) = starts(&read(&text(render, &profile, &arguments), reader));
                let (without, same) = starts(&read(&text(render, &profile, &[]), reader));
                prop_assert_eq!(others, same);
                prop_assert_eq!(with.len(), 1);
                prop_assert_eq!(&with[0][..before], &without[0][..]);
                prop_assert_eq!(&with[0][before..], &expected[..]);
            }
        }
    }
}
