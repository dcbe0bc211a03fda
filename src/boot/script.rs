//! iPXE and GRUB text, rendered from typed values.
//!
//! Nothing is pasted: a kernel argument is a validated token, a URL is built from our own address and namespace
//! names, a node's name is a host name label. What cannot be expressed safely in both grammars is refused when it
//! is configured, not escaped when it is rendered.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::boot::decision::ScriptPlan;
use crate::boot::loader::GrubFile;
use crate::boot::namespace;
use crate::boot::script::profile::BootText;
use crate::net::MacAddr;
use crate::node::NodeName;

pub mod profile;

/// One kernel command line word that is inert in iPXE and GRUB alike: printable ASCII without space, quotes,
/// `$ { } \ ; & | < > ( ) #` and backquote; at most 256 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelArgument(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a kernel argument: one word of printable ASCII without quotes, `$`, `{{`, `}}`, `\\`, `;`, `&`, `|`, `<`, `>`, `(`, `)`, `#` or backquote is wanted, at most 256 bytes"
)]
pub struct ParseKernelArgumentError {
    pub text: String,
}

impl KernelArgument {
    pub const LEN_MAX: usize = 256;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KernelArgument {
    type Err = ParseKernelArgumentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inert = |byte: u8| byte.is_ascii_graphic() && !b"\"'`${}\\;&|<>()#".contains(&byte);
        if (1..=Self::LEN_MAX).contains(&text.len()) && text.bytes().all(inert) {
            Ok(KernelArgument(text.to_owned()))
        } else {
            Err(ParseKernelArgumentError { text: text.escape_default().take(80).collect() })
        }
    }
}

impl fmt::Display for KernelArgument {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Where systems put their UEFI loader, as GRUB's patterns of devices and files: the place for removable media, which what
/// we install has, and then those of systems that others installed, in folders of their own.
const LOCAL_LOADERS: [&str; 10] = [
    "(*)/EFI/BOOT/BOOTX64.EFI",
    "(*)/EFI/BOOT/BOOTAA64.EFI",
    "(*)/EFI/BOOT/BOOTIA32.EFI",
    "(*)/EFI/*/shimx64.efi",
    "(*)/EFI/*/shimaa64.efi",
    "(*)/EFI/*/grubx64.efi",
    "(*)/EFI/*/grubaa64.efi",
    "(*)/EFI/*/systemd-bootx64.efi",
    "(*)/EFI/*/systemd-bootaa64.efi",
    "(*)/EFI/Microsoft/Boot/bootmgfw.efi",
];

/// Seconds a waiting or failed machine lets pass before it asks again.
const RETRY_SECS: u32 = 10;

/// What the text is rendered from; every field is inert by type.
#[derive(Clone, Debug)]
pub struct ScriptContext<'a> {
    pub server: Ipv4Addr,
    pub mac: MacAddr,
    pub node: Option<&'a NodeName>,
    pub profile: &'a str,
    /// One-time token for the agent's first call.
    pub token: &'a str,
    pub arguments: &'a [KernelArgument],
    /// What iPXE may start on UEFI to find the local disk.
    pub grubs: &'a [GrubFile],
    /// What is told of a boot profile, where the plan is one.
    pub boot: BootText<'a>,
}

impl ScriptContext<'_> {
    /// Name for people: the operator's, else the MAC.
    fn who(&self) -> String {
        self.node.map_or_else(|| self.mac.to_string(), |name| format!("{name} ({})", self.mac))
    }

    /// The operator's arguments first, ours last: the kernel and the agent take the last of a repeated key.
    fn command_line(&self) -> String {
        let mut words: Vec<String> = self.arguments.iter().map(KernelArgument::to_string).collect();
        words.push(format!("farrier.server=http://{}", self.server));
        words.push(format!("farrier.mac={}", self.mac));
        words.push(format!("farrier.token={}", self.token));
        words.join(" ")
    }
}

/// An iPXE script. URLs are absolute, on our own address.
pub fn render_ipxe(plan: ScriptPlan, context: &ScriptContext<'_>) -> String {
    let ScriptContext { server, mac, profile, .. } = context;
    let who = context.who();
    let again = again_in_ipxe(*server, *mac);
    match plan {
        ScriptPlan::Ramdisk => format!(
            "#!ipxe\n\
             echo farrier: {who} boots the deploy ramdisk\n\
             kernel http://{server}/{kernel} initrd=initrd.img {arguments} || goto failed\n\
             initrd --name initrd.img http://{server}/{ramdisk} || goto failed\n\
             boot || goto failed\n\
             :failed\n\
             echo farrier: {who} could not load the deploy ramdisk; trying again in {RETRY_SECS} s\n\
             imgfree\n\
             :again\n\
             {again}",
            kernel = namespace::kernel_name(profile),
            ramdisk = namespace::ramdisk_name(profile),
            arguments = context.command_line(),
        ),
        ScriptPlan::AwaitApproval => format!(
            "#!ipxe\n\
             echo farrier: {who} waits for approval: farrier node approve {mac}\n\
             :again\n\
             {again}"
        ),
        // On UEFI, iPXE starts no disk: GRUB does. Where that fails, firmware goes on with its next entry: an exit without an
        // error would end in its menu.
        ScriptPlan::LocalDisk => format!(
            "#!ipxe\n\
             echo farrier: {who} boots from its local disk\n\
             iseq ${{platform}} efi || goto bios\n\
             {grubs}\
             exit 1\n\
             :bios\n\
             sanboot --no-describe --drive 0x80 || exit 1\n",
            grubs = grubs_in_ipxe(context),
        ),
        ScriptPlan::Profile | ScriptPlan::ProfileRefused | ScriptPlan::Installer => {
            profile::render_ipxe(context)
        }
    }
}

fn again_in_ipxe(server: Ipv4Addr, mac: MacAddr) -> String {
    format!(
        "sleep {RETRY_SECS}\nchain --replace --autofree http://{server}/{} || goto again\n",
        namespace::ipxe_script_name(mac)
    )
}

/// GRUB looks for its configuration where the answer of DHCP says it came from; what it finds of that here is iPXE's own.
fn grubs_in_ipxe(context: &ScriptContext<'_>) -> String {
    let server = context.server;
    let start = |GrubFile { architecture, name }: &GrubFile| {
        format!(
            "set netX/next-server {server}\n\
             set netX/filename {name}\n\
             iseq ${{buildarch}} {architecture} && chain --autofree http://{server}/{name} ||\n"
        )
    };
    context.grubs.iter().map(start).collect()
}

/// A GRUB configuration. Files come from where GRUB itself came from (`$root`), by the same names.
///
/// GRUB cannot tell a missing file from an empty one, nests a context per `configfile`, and takes the `then` branch
/// of a failed `source`. So a machine that waits loops in the first text it got and sources the same name again and
/// again; the variable makes a text that again says "wait" return at once, and one that says "boot" boots.
pub fn render_grub(plan: ScriptPlan, context: &ScriptContext<'_>) -> String {
    let ScriptContext { mac, profile, .. } = context;
    let who = context.who();
    let wait_and_ask_again = wait_in_grub(*mac);
    match plan {
        // Without a kernel, `initrd` and `boot` only say so, and the text goes on to wait.
        ScriptPlan::Ramdisk => format!(
            "echo 'farrier: {who} boots the deploy ramdisk'\n\
             linux /{kernel} {arguments}\n\
             initrd /{ramdisk}\n\
             boot\n\
             echo 'farrier: {who} could not load the deploy ramdisk; trying again in {RETRY_SECS} s'\n\
             {wait_and_ask_again}",
            kernel = namespace::kernel_name(profile),
            ramdisk = namespace::ramdisk_name(profile),
            arguments = context.command_line(),
        ),
        ScriptPlan::AwaitApproval => {
            format!(
                "echo 'farrier: {who} waits for approval: farrier node approve {mac}'\n{wait_and_ask_again}"
            )
        }
        // Leaving GRUB ends in the firmware's menu on some machines, and in another round of netboots on others. What a
        // pattern does not match stays as it is, and is no file; a loader that does not start leaves it to the next. Whatever the
        // file is called, the loader is told that it came from `$root`, and looks there for what it loads next.
        ScriptPlan::LocalDisk => format!(
            "echo 'farrier: {who} boots from its local disk'\n\
             for file in {places}; do\n\
             if [ -f \"$file\" ]; then\n\
             regexp --set=1:root '^\\((.*)\\)' \"$file\"\n\
             chainloader \"$file\"\n\
             boot\n\
             fi\n\
             done\n\
             echo 'farrier: {who} has no disk that boots by UEFI: leaving it to its firmware'\n\
             exit\n",
            places = LOCAL_LOADERS.join(" "),
        ),
        ScriptPlan::Profile | ScriptPlan::ProfileRefused | ScriptPlan::Installer => {
            profile::render_grub(context)
        }
    }
}

fn wait_in_grub(mac: MacAddr) -> String {
    format!(
        "if [ \"$farrier_waits\" != yes ]; then\n\
         set farrier_waits=yes\n\
         while true; do\n\
         sleep {RETRY_SECS}\n\
         source /{}\n\
         done\n\
         fi\n",
        namespace::grub_config_name(mac)
    )
}

/// The configuration PXELINUX has, as U-Boot's `pxe` command reads it. It knows no loops: who has to wait is told so, and
/// asks again when its firmware tries again.
pub fn render_pxelinux(plan: ScriptPlan, context: &ScriptContext<'_>) -> String {
    let ScriptContext { mac, profile, .. } = context;
    let who = context.who();
    match plan {
        ScriptPlan::Ramdisk => format!(
            "default farrier\n\
             timeout 10\n\
             menu title farrier: {who} boots the deploy ramdisk\n\
             label farrier\n\
             linux /{kernel}\n\
             initrd /{ramdisk}\n\
             append {arguments}\n",
            kernel = namespace::kernel_name(profile),
            ramdisk = namespace::ramdisk_name(profile),
            arguments = context.command_line(),
        ),
        ScriptPlan::AwaitApproval => {
            format!("menu title farrier: {who} waits for approval: farrier node approve {mac}\n")
        }
        ScriptPlan::LocalDisk => format!(
            "default local\ntimeout 10\nmenu title farrier: {who} boots from its local disk\n\
             label local\nlocalboot 1\n"
        ),
        ScriptPlan::Profile | ScriptPlan::ProfileRefused | ScriptPlan::Installer => {
            profile::render_pxelinux(context)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::boot::loader::LoaderTable;

    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);
    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

    pub(crate) type Commands = Vec<Vec<String>>;
    pub(crate) type Reader = fn(&str) -> Commands;
    pub(crate) type Renderer = fn(ScriptPlan, &ScriptContext<'_>) -> String;

    fn context(arguments: &[KernelArgument]) -> ScriptContext<'_> {
        let boot = BootText::Ramdisk;
        ScriptContext {
            server: SERVER,
            mac: MAC,
            node: None,
            profile: "vm",
            token: "TOKEN",
            arguments,
            grubs: &[],
            boot,
        }
    }

    fn rendered(arguments: &[KernelArgument]) -> (String, String) {
        let context = context(arguments);
        (render_ipxe(ScriptPlan::Ramdisk, &context), render_grub(ScriptPlan::Ramdisk, &context))
    }

    /// A line of iPXE as iPXE reads it: `${…}` expanded first (to nothing, here), then commands parted by `||`, `&&` and
    /// `;`, of words parted by spaces. It knows no quotes.
    pub(crate) fn commands_of_ipxe(line: &str) -> Commands {
        let mut line = line.to_owned();
        while let Some(start) = line.rfind("${") {
            let Some(length) = line[start..].find('}') else { break };
            line.replace_range(start..=start + length, "");
        }
        let mut commands = vec![Vec::new()];
        for word in line.split_ascii_whitespace() {
            match word {
                "||" | "&&" | ";" => commands.push(Vec::new()),
                // What follows is a comment.
                _ if word.starts_with('#') && commands.last().is_some_and(Vec::is_empty) => break,
                _ => commands.last_mut().unwrap().push(word.to_owned()),
            }
        }
        commands
    }

    /// A line as GRUB reads it: words parted by blanks, quotes and backslashes taken off, variables expanded (to nothing,
    /// here), commands parted by what has that meaning in a shell, comments dropped.
    pub(crate) fn commands_of_grub(line: &str) -> Commands {
        let (mut commands, mut word, mut quote) = (vec![Vec::new()], None::<String>, None);
        let mut bytes = line.chars().peekable();
        while let Some(next) = bytes.next() {
            match (quote, next) {
                (Some('\''), '\'') | (Some('"'), '"') => quote = None,
                (Some('\''), _) => word.get_or_insert_default().push(next),
                (_, '\\') => word.get_or_insert_default().extend(bytes.next()),
                (_, '$') => {
                    while bytes.next_if(|it| it.is_ascii_alphanumeric() || "_{}?*@".contains(*it)).is_some() {
                    }
                }
                (Some(_), _) => word.get_or_insert_default().push(next),
                (None, '\'' | '"') => {
                    quote = Some(next);
                    word.get_or_insert_default();
                }
                (None, '#') if word.is_none() => break,
                (None, ';' | '|' | '&' | '<' | '>' | '(' | ')' | '{' | '}') => {
                    commands.last_mut().unwrap().extend(word.take());
                    commands.push(Vec::new());
                }
                (None, ' ' | '\t') => commands.last_mut().unwrap().extend(word.take()),
                (None, _) => word.get_or_insert_default().push(next),
            }
        }
        commands.last_mut().unwrap().extend(word.take());
        commands
    }

    /// What somebody may write where a word is wanted, up to 4 KiB: words, near words, and all that means something to a
    /// loader.
    pub(crate) fn anything() -> impl Strategy<Value = String> {
        prop_oneof![
            6 => "[ -~]{1,24}",
            6 => "[a-z.]{1,9}=[!-~]{0,40}",
            6 => "[a-z0-9][a-z0-9-]{0,70}",
            3 => r#"(\n|\r|\t| |\$\{|\}|&&|\|\||["'`;#\\<>()]|[a-z=]{1,9}){1,40}"#,
            1 => r#"(\n|\$\{|\}|&&|\|\||["'`;#\\]|[a-z=]{1,9}){40,800}"#,
            1 => ".{0,300}",
            1 => "[a-z=/.-]{240,270}",
            1 => "[!-~]{3900,4096}",
        ]
    }

    /// The words that read back as the kernel's, and every other command of the text.
    pub(crate) fn split_kernel(text: &str, read: Reader, keyword: &str) -> (Commands, Commands) {
        text.lines().flat_map(read).partition(|command| command.first().is_some_and(|word| word == keyword))
    }

    #[test]
    fn the_readers_of_these_tests_see_what_breaks_out() {
        let words =
            |commands: Vec<Vec<String>>| commands.iter().map(|words| words.join(" ")).collect::<Vec<_>>();
        assert_eq!(words(commands_of_ipxe("kernel a && shell || b")), ["kernel a", "shell", "b"]);
        assert_eq!(words(commands_of_ipxe("kernel x${net0/mac}y")), ["kernel xy"]);
        assert_eq!(words(commands_of_grub("linux a;reboot")), ["linux a", "reboot"]);
        assert_eq!(words(commands_of_grub("linux 'a b' \"c\" d\\ e $root # f")), ["linux a b c d e"]);
    }

    #[test]
    fn a_configuration_of_pxelinux_is_one_label_and_its_arguments_one_line() {
        let arguments = ["console=ttyS0".parse().unwrap()];
        let context = ScriptContext {
            server: SERVER,
            mac: MAC,
            node: None,
            profile: "vm",
            token: "TOKEN",
            arguments: &arguments,
            grubs: &[],
            boot: BootText::Ramdisk,
        };
        let text = render_pxelinux(ScriptPlan::Ramdisk, &context);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "default farrier");
        assert_eq!(lines[3..6], ["label farrier", "linux /image/vm/vmlinuz", "initrd /image/vm/initrd.img"]);
        assert!(lines[6].starts_with("append console=ttyS0 ") && lines[6].ends_with("farrier.token=TOKEN"));
        assert_eq!(lines.len(), 7);
        assert!(!render_pxelinux(ScriptPlan::AwaitApproval, &context).contains("label"));
        assert!(render_pxelinux(ScriptPlan::LocalDisk, &context).contains("localboot 1"));
    }

    #[test]
    fn a_node_boots_its_kernel_with_token_and_arguments() {
        let arguments = ["console=ttyS0".parse().unwrap()];
        let (ipxe, grub) = rendered(&arguments);
        assert!(ipxe.starts_with("#!ipxe\n"));
        let words = "console=ttyS0 farrier.server=http://192.168.2.2 farrier.mac=52:54:00:00:00:01 farrier.token=TOKEN";
        assert!(
            ipxe.contains(&format!(
                "kernel http://192.168.2.2/image/vm/vmlinuz initrd=initrd.img {words} ||"
            ))
        );
        assert!(grub.contains(&format!("linux /image/vm/vmlinuz {words}\n")));
    }

    #[test]
    fn ipxe_goes_to_the_disk_by_the_bios_or_by_the_grub_of_its_platform() {
        let grubs = LoaderTable::built_in().grubs();
        let text = render_ipxe(ScriptPlan::LocalDisk, &ScriptContext { grubs: &grubs, ..context(&[]) });
        let uefi = "set netX/next-server 192.168.2.2\n\
                    set netX/filename uefi-x64/grubx64.efi\n\
                    iseq ${buildarch} x86_64 && chain --autofree http://192.168.2.2/uefi-x64/grubx64.efi ||\n";
        let (before, after) = text.split_once(uefi).expect(&text);
        assert!(before.ends_with("iseq ${platform} efi || goto bios\n"), "{text}");
        assert!(after.contains("uefi-arm64/grubaa64.efi ||\nexit 1\n:bios\nsanboot "), "{text}");
        let none = render_ipxe(ScriptPlan::LocalDisk, &context(&[]));
        assert!(none.contains("|| goto bios\nexit 1\n:bios\n"), "{none}");
    }

    #[test]
    fn a_waiting_node_asks_again_by_itself() {
        let context = ScriptContext { token: "", ..context(&[]) };
        let ipxe = render_ipxe(ScriptPlan::AwaitApproval, &context);
        assert!(
            ipxe.contains("chain --replace --autofree http://192.168.2.2/boot/52-54-00-00-00-01/script.ipxe")
        );
        let grub = render_grub(ScriptPlan::AwaitApproval, &context);
        assert!(grub.contains("source /grub/grub.cfg-01-52-54-00-00-00-01\n"));
        assert!(!ipxe.contains("kernel") && !grub.contains("linux"));
    }

    #[test]
    fn arguments_that_could_break_out_are_refused() {
        let hostile = [
            "",
            "a b",
            "a\nboot",
            "${net0/mac}",
            "a&&b",
            "a||b",
            "a;b",
            "'",
            "\"",
            "`id`",
            "a\\b",
            "a#b",
            "ü",
            "x{y}",
        ];
        for text in hostile {
            assert!(text.parse::<KernelArgument>().is_err(), "{text:?}");
        }
        assert!("a".repeat(257).parse::<KernelArgument>().is_err());
        for text in ["console=ttyS0,115200n8", "ip=dhcp", "quiet", "a.b-c_d=e:f/g,h@i%j+k~l!m^n*o?p[q]"] {
            assert!(text.parse::<KernelArgument>().is_ok(), "{text}");
        }
    }

    proptest! {
        /// Whatever an operator writes is refused, or comes out as exactly one word on exactly one line.
        #[test]
        fn an_accepted_argument_is_one_word_of_one_line(text in anything()) {
            if let Ok(argument) = text.parse::<KernelArgument>() {
                let (ipxe, grub) = rendered(&[argument]);
                let (plain_ipxe, plain_grub) = rendered(&[]);
                for (with, without) in [(ipxe, plain_ipxe), (grub, plain_grub)] {
                    prop_assert_eq!(with.lines().count(), without.lines().count());
                    let words = |text: &str| text.split_ascii_whitespace().count();
                    prop_assert_eq!(words(&with), words(&without) + 1);
                    prop_assert!(with.split_ascii_whitespace().any(|word| word == text));
                }
            }
        }

        /// What is rendered reads back, by each loader's own rules, as one command that starts the kernel with the words
        /// that were accepted, in order; and all else as it is without them.
        #[test]
        fn p_22_accepted_arguments_read_back_as_the_words_they_were(
            texts in proptest::collection::vec(anything(), 0..6),
        ) {
            let arguments: Vec<KernelArgument> = texts.iter().filter_map(|text| text.parse().ok()).collect();
            let words: Vec<&str> = arguments.iter().map(KernelArgument::as_str).collect();
            let (given, none) = (context(&arguments), context(&[]));
            let pxelinux: Reader =
                |line| vec![line.split_ascii_whitespace().map(str::to_owned).collect()];
            let renderings: [(Renderer, Reader, &str, usize); 3] = [
                (render_ipxe, commands_of_ipxe, "kernel", 3),
                (render_grub, commands_of_grub, "linux", 2),
                (render_pxelinux, pxelinux, "append", 1),
            ];
            for (render, read, keyword, before) in renderings {
                let (kernel, others) = split_kernel(&render(ScriptPlan::Ramdisk, &given), read, keyword);
                let (_, expected) = split_kernel(&render(ScriptPlan::Ramdisk, &none), read, keyword);
                prop_assert_eq!(others, expected);
                prop_assert_eq!(kernel.len(), 1);
                let ours = kernel[0].len() - 3;
                prop_assert_eq!(&kernel[0][before..ours], &words[..]);
                prop_assert!(kernel[0][ours..].iter().all(|word| word.starts_with("farrier.")));
            }
        }

        /// A node may be called whatever is accepted as its name: each loader reads the same commands as for any other
        /// name, and in place of that one this one.
        #[test]
        fn an_accepted_name_reads_back_as_the_name_it_was(text in anything()) {
            const PLAIN: &str = "anvil9";
            if let Ok(name) = text.parse::<NodeName>() {
                prop_assert!(name.as_str() == text);
                let plain: NodeName = PLAIN.parse().unwrap();
                let pxelinux: Reader =
                    |line| vec![line.split_ascii_whitespace().map(str::to_owned).collect()];
                let renderings: [(Renderer, Reader); 3] =
                    [(render_ipxe, commands_of_ipxe), (render_grub, commands_of_grub), (render_pxelinux, pxelinux)];
                for plan in [ScriptPlan::Ramdisk, ScriptPlan::AwaitApproval, ScriptPlan::LocalDisk] {
                    for (render, read) in renderings {
                        let read_back = |name| -> Commands {
                            let given = ScriptContext { node: Some(name), ..context(&[]) };
                            render(plan, &given).lines().flat_map(read).collect()
                        };
                        let mut expected = read_back(&plain);
                        prop_assert!(expected.iter().flatten().any(|word| word.contains(PLAIN)));
                        expected.iter_mut().flatten().for_each(|word| *word = word.replace(PLAIN, &text));
                        prop_assert_eq!(read_back(&name), expected);
                    }
                }
            }
        }
    }
}
