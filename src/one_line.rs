//! Texts of databases and other programs, made fit for our log.

use std::fmt::{self, Display, Write};

/// Shows control characters as they are written in Rust. A database's message may quote a client's data. A line break
/// in there would look like the end of our line and the beginning of another.
pub(crate) struct OneLine<T>(pub(crate) T);

impl<T: Display> Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// The message of an error, without the line of PostgreSQL's own source that sqlx adds.
pub(crate) struct Message<'a>(pub(crate) &'a sqlx::Error);

impl Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            sqlx::Error::Database(error) => write!(f, "error returned from database: {}", error.message()),
            error => error.fmt(f),
        }
    }
}

/// Shows a text of several lines in one line, without its indentation. A long text is cut at its end.
pub(crate) fn folded(text: &str, longest: usize) -> OneLine<String> {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if let Some((end, _)) = line.char_indices().nth(longest) {
            line.truncate(end);
            line.push('…');
            break;
        }
    }
    OneLine(line)
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
    fn a_statement_is_shown_in_one_line_that_ends() {
        let shown = |text: &str| folded(text, 500).to_string();
        assert_eq!(shown("\n  SELECT id\n    FROM notes\n"), "SELECT id FROM notes");
        assert_eq!(shown("SELECT '\u{1b}[31m'"), "SELECT '\\u{1b}[31m'");
        let long = shown(&format!("INSERT INTO notes VALUES {}", "('ä'), ".repeat(1000)));
        assert_eq!(long.chars().count(), 501);
        assert!(long.starts_with("INSERT INTO notes VALUES ('ä'), ('ä'), ") && long.ends_with('…'));
        assert_eq!(shown(&"ä".repeat(600)).chars().count(), 501);
    }

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
