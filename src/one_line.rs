//! What others say, in our log.

use std::fmt::{self, Display, Write};

/// Shows control characters as they are written in Rust: what a database says may quote a client's data, in which a line
/// break would look like the end of ours and the beginning of another one.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            match part.char_indices().next_back() {
                Some((at, last)) if last.is_control() => {
                    write!(self.0, "{}{}", &part[..at], last.escape_default())?
                }
                _ => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_begins_a_line_of_its_own() {
        for (text, shown) in [
            ("", ""),
            ("no such table: größe", "no such table: größe"),
            ("a\nERROR: b\r\n", "a\\nERROR: b\\r\\n"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
        ] {
            assert_eq!(OneLine(text).to_string(), shown);
        }
    }
}
