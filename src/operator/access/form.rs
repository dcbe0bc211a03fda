//! Fields of a form as browsers send them: `application/x-www-form-urlencoded`.

/// The first field of that name, decoded.
pub(super) fn field(body: &[u8], name: &str) -> Option<String> {
    let pairs = body.split(|byte| *byte == b'&').map(|pair| {
        let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        (&pair[..end], pair.get(end + 1..).unwrap_or_default())
    });
    pairs
        .map(|(key, value)| (decoded(key), value))
        .find(|(key, _)| key == name)
        .map(|(_, value)| decoded(value))
}

/// `+` is a space, `%` begins two hexadecimal digits; what is malformed stays as it is.
fn decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_and_decoded() {
        let body = b"a=1&csrf=x%2By+z%&empty&%63=d&a=2";
        let found = |name| field(body, name);
        assert_eq!(found("a").as_deref(), Some("1"));
        assert_eq!(found("csrf").as_deref(), Some("x+y z%"));
        assert_eq!(found("empty").as_deref(), Some(""));
        assert_eq!(found("c").as_deref(), Some("d"));
        assert_eq!(found("b"), None);
        assert_eq!(field(b"a=%ff%", "a").as_deref(), Some("\u{fffd}%"));
    }
}
