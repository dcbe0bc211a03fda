//! `DIFFERENCES.md`: what is known to differ, and why. Each row of its tables is one entry.

use std::fs;
use std::path::PathBuf;

use crate::compare::Difference;
use crate::ground::Who;

/// A cell's alternatives are joined by this.
const OR: &str = " or ";

#[derive(Debug)]
pub struct Entry {
    pub line: usize,
    peer: Who,
    /// Circumstances, all of which must hold; each may be one of several.
    when: Vec<Vec<String>>,
    what: Vec<String>,
    farrier: Vec<String>,
    theirs: Vec<String>,
    pub text: String,
    pub reason: String,
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/differential/DIFFERENCES.md")
}

/// The list as it is checked in.
pub fn read() -> Vec<Entry> {
    let text = fs::read_to_string(path()).expect("tests/differential/DIFFERENCES.md");
    let rows =
        text.lines().enumerate().filter(|(_, line)| line.starts_with("| ") && !line.starts_with("| peer"));
    rows.flat_map(|(index, line)| entries(index + 1, line)).collect()
}

/// A row names one peer, or both: then each has to be met.
fn entries(line: usize, row: &str) -> Vec<Entry> {
    let cells: Vec<&str> = row[1..row.len() - 1].split('|').map(str::trim).collect();
    let [peers, when, what, farrier, theirs, reason] = cells[..] else {
        panic!("DIFFERENCES.md:{line}: six columns: {row}")
    };
    let alternatives = |cell: &str| cell.split(OR).map(str::to_owned).collect::<Vec<_>>();
    let of = |peer: Who| Entry {
        line,
        peer,
        when: when.split(", ").filter(|tag| !tag.is_empty()).map(alternatives).collect(),
        what: alternatives(what),
        farrier: alternatives(farrier),
        theirs: alternatives(theirs),
        text: format!("{}: {when}: {what}: {farrier} / {theirs}", peer.name()),
        reason: reason.to_owned(),
    };
    let peer = |name: &str| {
        let found = Who::PEERS.into_iter().find(|peer| peer.name() == name);
        found.unwrap_or_else(|| panic!("DIFFERENCES.md:{line}: no peer is called {name:?}"))
    };
    peers.split(", ").map(|name| of(peer(name))).collect()
}

impl Entry {
    fn explains(&self, difference: &Difference) -> bool {
        let is = |words: &[String], word: &str| words.iter().any(|known| known == word || known == "*");
        self.peer == difference.peer
            && is(&self.what, &difference.what)
            && is(&self.farrier, &difference.farrier)
            && is(&self.theirs, &difference.theirs)
            && self.when.iter().all(|tags| tags.iter().any(|tag| difference.tags.contains(tag)))
    }
}

/// The entry that explains a difference: the one that says most of the circumstances.
pub fn place_of(list: &[Entry], difference: &Difference) -> Option<usize> {
    let explaining = list.iter().enumerate().filter(|(_, entry)| entry.explains(difference));
    explaining.max_by_key(|(index, entry)| (entry.when.len(), usize::MAX - index)).map(|(index, _)| index)
}
