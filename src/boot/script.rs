//! iPXE and GRUB text, rendered from typed values.
//!
//! Nothing is pasted: a kernel argument is a validated token, a URL is built from our own address and namespace
//! names, a node's name is a host name label. What cannot be expressed safely in both grammars is refused when it
//! is configured, not escaped when it is rendered.

use std::fmt;
use std::str::FromStr;

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
