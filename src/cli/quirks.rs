//! `farrier node quirks`: what a node's firmware has to be humoured in.

use clap::Args;

use super::client::Client;
use super::error::CommandError;
use super::json_text;
use super::node::{called, path};
use crate::boot::quirks::{BlksizeMax, QuirkProfile, Quirks, RateMax, WindowsizeMax};
use crate::operator::api::{NodeDetail, NodePatch};

/// What is not named is off afterwards.
#[derive(Clone, Debug, Args)]
pub struct QuirkArgs {
    /// Faults known by name: small-blocks (UEFI that asks for TFTP blocks it cannot take), garbled-shim-names (Dell and
    /// Wyse: shim asks for `<garbage>Onboard`), deaf-to-unicast (hears DHCP answers by broadcast only),
    /// stalls-on-fast-links (drivers that stop in the middle of a download)
    #[arg(long, value_name = "NAME")]
    profile: Option<QuirkProfile>,
    /// TFTP blocks of at most so many bytes, 512 to 65464
    #[arg(long, value_name = "BYTES")]
    blksize_max: Option<BlksizeMax>,
    /// At most so many TFTP blocks in flight, 1 to 64; 1 grants no window at all
    #[arg(long, value_name = "BLOCKS")]
    windowsize_max: Option<WindowsizeMax>,
    /// Send DHCP answers to everybody, whatever the firmware asks for
    #[arg(long)]
    broadcast_replies: bool,
    /// Take an odd name beside shim for the loader that shim fetches next
    #[arg(long)]
    shim_fallback: bool,
    /// Send files, by TFTP and HTTP, at so many Mbit/s at most, 1 to 10000
    #[arg(long, value_name = "MBITS")]
    rate_mbps_max: Option<RateMax>,
    /// Treat it as every other machine again
    #[arg(long, conflicts_with_all = ["profile", "blksize_max", "windowsize_max", "broadcast_replies", "shim_fallback", "rate_mbps_max"])]
    none: bool,
}

impl QuirkArgs {
    /// What is to be set; `None` if nothing was said.
    fn wanted(&self) -> Option<Quirks> {
        let quirks = Quirks {
            profile: self.profile,
            blksize_max: self.blksize_max,
            windowsize_max: self.windowsize_max,
            broadcast_replies: self.broadcast_replies,
            shim_fallback: self.shim_fallback,
            rate_mbps_max: self.rate_mbps_max,
        };
        (self.none || quirks != Quirks::default()).then_some(quirks)
    }
}

pub(super) async fn run(
    node: &str,
    arguments: &QuirkArgs,
    client: &Client,
    json: bool,
) -> Result<String, CommandError> {
    let detail: NodeDetail = match arguments.wanted() {
        Some(quirks) => {
            let patch = NodePatch { quirks: Some(quirks), ..NodePatch::default() };
            client.patch(&path(node, ""), &patch).await?
        }
        None => client.get(&path(node, "")).await?,
    };
    Ok(if json { json_text(&detail) } else { render(&detail) })
}

fn render(node: &NodeDetail) -> String {
    let name = called(&node.summary);
    let told = node.quirks.told();
    if told.is_empty() {
        return format!("{name} has no quirks\n");
    }
    format!("{name}\n{}", told.iter().map(|line| format!("  {line}\n")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: QuirkArgs,
    }

    fn read(words: &str) -> Result<Option<Quirks>, String> {
        let line = Line::try_parse_from(["quirks"].into_iter().chain(words.split_whitespace()));
        line.map(|line| line.arguments.wanted()).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_the_whole_of_the_quirks_and_nothing_said_changes_nothing() {
        assert_eq!(read(""), Ok(None));
        assert_eq!(read("--none"), Ok(Some(Quirks::default())));
        let set = read("--profile small-blocks --broadcast-replies --rate-mbps-max 100").unwrap().unwrap();
        assert_eq!(set.profile, Some(QuirkProfile::SmallBlocks));
        assert!(set.broadcast_replies && !set.shim_fallback && set.blksize_max.is_none());
        for (wrong, why) in [
            ("--blksize-max 100", "from 512 to 65464"),
            ("--windowsize-max 0", "from 1 to 64"),
            ("--profile dell", "garbled-shim-names"),
            ("--none --shim-fallback", "cannot be used with"),
        ] {
            let refused = read(wrong).unwrap_err();
            assert!(refused.contains(why), "{wrong}: {refused}");
        }
    }
}
