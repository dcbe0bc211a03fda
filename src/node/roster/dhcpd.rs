//! ISC dhcpd.conf: `host` blocks, at any depth of groups and subnets.
//!
//! Only the grammar that matters is read: words, strings, `;`, braces and comments (dhcpd.conf(5)). What is no host
//! block is walked over.

use super::{Draft, RosterEntry, RosterError, RosterPort, inert, label, parse_address, parse_mac};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Semicolon,
    Open,
    Close,
}

pub(super) fn parse(text: &str, draft: &mut Draft) -> Result<(), RosterError> {
    let tokens = tokens(text)?;
    let mut rest = tokens.as_slice();
    while let [(token, line), tail @ ..] = rest {
        rest = match (token, tail) {
            (Token::Word(word), [(Token::Word(name), _), (Token::Open, _), body @ ..]) if word == "host" => {
                read_host(*line, name, body, draft)?
            }
            _ => tail,
        };
    }
    Ok(())
}

/// The statements of one host block; returns what follows it.
fn read_host<'a>(
    line: usize,
    name: &str,
    body: &'a [(Token, usize)],
    draft: &mut Draft,
) -> Result<&'a [(Token, usize)], RosterError> {
    let (mut mac, mut address, mut host_name) = (None, None, None);
    let mut statement: Vec<&str> = Vec::new();
    let mut depth = 0_usize;
    for (index, (token, at)) in body.iter().enumerate() {
        match token {
            Token::Word(word) => statement.push(word),
            Token::Open => depth += 1,
            Token::Close if depth > 0 => depth -= 1,
            Token::Close => {
                let Some(mac) = mac else {
                    draft.note(line, format!("host {}: left out, it has no hardware ethernet", inert(name)));
                    return Ok(&body[index + 1..]);
                };
                let name = draft.name(line, host_name.as_deref().unwrap_or(name))?;
                draft.add(line, name, vec![RosterPort { mac, address }])?;
                return Ok(&body[index + 1..]);
            }
            Token::Semicolon => {
                match statement.as_slice() {
                    ["hardware", "ethernet", text] => mac = Some(parse_mac(*at, text)?),
                    ["hardware", kind, ..] => {
                        return Err(RosterError::at(*at, format!("hardware {}: only ethernet", inert(kind))));
                    }
                    ["fixed-address", first, more @ ..] => {
                        let first = first.trim_end_matches(',');
                        address = Some(parse_address(*at, first).map_err(|error| {
                            RosterError::at(*at, format!("{}; names are not resolved here", error.reason))
                        })?);
                        if !more.is_empty() {
                            draft.note(*at, format!("only the first fixed-address, {first}, is kept"));
                        }
                    }
                    ["option", "host-name", text] => host_name = Some((*text).to_owned()),
                    [] => {}
                    [word, ..] => draft.note(*at, format!("{}: not taken over", inert(word))),
                }
                statement.clear();
            }
        }
    }
    Err(RosterError::at(line, format!("host {}: its block is not closed", inert(name))))
}

fn tokens(text: &str) -> Result<Vec<(Token, usize)>, RosterError> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => line += 1,
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            ';' => tokens.push((Token::Semicolon, line)),
            '{' => tokens.push((Token::Open, line)),
            '}' => tokens.push((Token::Close, line)),
            '"' => {
                let begun = line;
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => word.extend(chars.next()),
                        Some(c) => {
                            line += usize::from(c == '\n');
                            word.push(c);
                        }
                        None => return Err(RosterError::at(begun, "a string begins here and never ends")),
                    }
                }
                tokens.push((Token::Word(word), begun));
            }
            c if c.is_whitespace() => {}
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !";{}\"#".contains(*c)) {
                    word.push(c);
                }
                tokens.push((Token::Word(word), line));
            }
        }
    }
    Ok(tokens)
}

pub(super) fn emit(entries: &[RosterEntry]) -> String {
    let mut text = String::new();
    for entry in entries {
        for (index, port) in entry.ports.iter().enumerate() {
            // Block names are unique in the file; the host name tells which node it is.
            let suffix = if index == 0 { String::new() } else { format!("-{index}") };
            text.push_str(&format!("host {}{suffix} {{\n  hardware ethernet {};\n", label(entry), port.mac));
            if let Some(address) = port.address {
                text.push_str(&format!("  fixed-address {address};\n"));
            }
            if entry.name.is_some() {
                text.push_str(&format!("  option host-name \"{}\";\n", label(entry)));
            }
            text.push_str("}\n");
        }
    }
    text
}
