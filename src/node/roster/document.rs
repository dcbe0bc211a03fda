//! JSON and YAML with the line of every value. JSON is read as YAML, of which it is a part; Kea's comments and
//! trailing commas, which are neither, are blanked out first.

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{RosterError, inert};

/// A value with its line.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct At<T: for<'a> Deserialize<'a>>(#[serde(bound = "")] Spanned<T>);

impl<T: for<'a> Deserialize<'a>> At<T> {
    pub(super) fn line(&self) -> usize {
        usize::try_from(self.0.referenced.line()).unwrap_or(0)
    }

    pub(super) fn value(&self) -> &T {
        &self.0.value
    }
}

/// Reads one document of any number; strict about types, lenient about fields that are not ours.
pub(super) fn read<T: for<'a> Deserialize<'a>>(text: &str) -> Result<Vec<T>, RosterError> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(0, |location| usize::try_from(location.line()).unwrap_or(0));
        // The place is told by us, once.
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        RosterError::at(line, inert(&reason))
    })
}

/// JSON as Kea takes it, made plain: `//`, `#` and `/* */` comments, trailing commas and tabs become spaces.
/// Every character keeps its place.
pub(super) fn plain_json(text: &str) -> String {
    let mut plain: Vec<char> = Vec::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut last_comma = None;
    while let Some(c) = chars.next() {
        let comment = match (c, chars.peek()) {
            ('#', _) | ('/', Some('/')) => Some(false),
            ('/', Some('*')) => Some(true),
            _ => None,
        };
        match comment {
            Some(block) => {
                plain.push(' ');
                blank_comment(block, &mut chars, &mut plain);
                continue;
            }
            None if c == '"' => {
                plain.push(c);
                copy_string(&mut chars, &mut plain);
            }
            None => plain.push(if c == '\t' { ' ' } else { c }),
        }
        match c {
            ',' => last_comma = Some(plain.len() - 1),
            ']' | '}' => {
                if let Some(comma) = last_comma.take().and_then(|at| plain.get_mut(at)) {
                    *comma = ' ';
                }
            }
            c if c.is_whitespace() => {}
            _ => last_comma = None,
        }
    }
    plain.into_iter().collect()
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn blank_comment(block: bool, chars: &mut Chars<'_>, plain: &mut Vec<char>) {
    if !block {
        while chars.next_if(|c| *c != '\n').is_some() {
            plain.push(' ');
        }
        return;
    }
    let mut before = ' ';
    // The opening star ends nothing: `/*/` is open still.
    plain.extend(chars.next().map(|_| ' '));
    for c in chars.by_ref() {
        plain.push(if c == '\n' { c } else { ' ' });
        if before == '*' && c == '/' {
            return;
        }
        before = c;
    }
}

fn copy_string(chars: &mut Chars<'_>, plain: &mut Vec<char>) {
    while let Some(c) = chars.next() {
        plain.push(c);
        match c {
            '\\' => plain.extend(chars.next()),
            '"' => return,
            _ => {}
        }
    }
}
