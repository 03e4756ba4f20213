//! What can be told of a statement from its words.

/// Tells whether a statement leaves a transaction open, as far as its words show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    Never,
    Maybe,
    Always,
}

impl Opens {
    pub(super) fn by_words(sql: &str, several: bool) -> Self {
        if several && sql.trim_end().trim_end_matches(';').contains(';') {
            return Self::Maybe;
        }
        let mut words = words(sql);
        // A comment that the server executes.
        let Some(verb) = words.next() else { return Self::Maybe };
        let is = |word: &&str| verb.eq_ignore_ascii_case(word);
        match () {
            () if ["begin", "savepoint"].iter().any(is) => Self::Always,
            () if is(&"start")
                && words.next().is_some_and(|word| word.eq_ignore_ascii_case("transaction")) =>
            {
                Self::Always
            }
            () if ["commit", "end", "rollback", "abort"].iter().any(is) && chains(&mut words) => Self::Always,
            // A procedure; a statement prepared by hand; `autocommit`; a distributed transaction.
            () if ["call", "execute", "set", "xa"].iter().any(is) => Self::Maybe,
            () => Self::Never,
        }
    }
}

/// True if the statement certainly only reads.
#[cfg(feature = "sqlite")]
pub(super) fn only_reads(sql: &str) -> bool {
    let Some(verb) = words(sql).next() else { return false };
    let is = |word: &str| verb.eq_ignore_ascii_case(word);
    // `WITH` may begin a read or a write. A write has its verb further on. A name or a text may contain it as well.
    let writes = || {
        let sql = sql.to_ascii_lowercase();
        ["insert", "update", "delete", "replace"].iter().any(|word| sql.contains(word))
    };
    is("select") || is("values") || is("with") && !writes()
}

/// True if the words after `COMMIT` or `ROLLBACK` begin another transaction: `AND CHAIN`, but not `AND NO CHAIN`.
fn chains<'a>(mut words: impl Iterator<Item = &'a str>) -> bool {
    words.any(|word| word.eq_ignore_ascii_case("and"))
        && words.next().is_some_and(|word| word.eq_ignore_ascii_case("chain"))
}

/// The leading words of a statement, without blanks, comments and parentheses.
fn words(mut sql: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        loop {
            sql = sql.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '(');
            let rest = match sql {
                _ if sql.starts_with("--") => sql.split_once('\n').map_or("", |(_, rest)| rest),
                // A comment with `!` is one that MySQL executes.
                _ if sql.starts_with("/*") && !sql.starts_with("/*!") => {
                    sql.split_once("*/").map_or("", |(_, rest)| rest)
                }
                _ => break,
            };
            sql = rest;
        }
        let end = sql.bytes().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(sql.len());
        let (word, rest) = sql.split_at(end);
        sql = rest;
        (!word.is_empty()).then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::Opens::{self, *};

    #[cfg(feature = "sqlite")]
    #[test]
    fn what_only_reads_is_told_by_its_words() {
        for (sql, reads) in [
            ("SELECT 1", true),
            ("(select 1)", true),
            ("WITH a AS (SELECT 1) SELECT * FROM a", true),
            ("WITH a AS (SELECT 1) Insert INTO notes SELECT * FROM a RETURNING id", false),
            ("INSERT INTO notes VALUES (1) RETURNING id", false),
            ("/* without an end", false),
        ] {
            assert_eq!(super::only_reads(sql), reads, "{sql}");
        }
    }

    #[test]
    fn what_opens_a_transaction_is_told_by_its_words() {
        for (sql, several, opens) in [
            ("SELECT 1", true, Never),
            ("INSERT INTO notes VALUES ('begin')", false, Never),
            ("INSERT INTO notes VALUES (';')", false, Never),
            ("  begin;", false, Always),
            ("-- a comment\n/* another */ Start /* one more */ TRANSACTION", false, Always),
            ("START SLAVE", true, Never),
            ("SAVEPOINT here", false, Always),
            ("BEGIN; INSERT INTO notes VALUES (1); COMMIT", true, Maybe),
            ("INSERT INTO notes VALUES (1);", true, Never),
            ("(SELECT 1) UNION ALL (SELECT 2)", false, Never),
            ("( -- a comment\n (SELECT 1))", false, Never),
            ("COMMIT", false, Never),
            ("commit work and chain", false, Always),
            ("ROLLBACK AND NO CHAIN", false, Never),
            ("ROLLBACK TO SAVEPOINT and_chain", false, Never),
            ("CALL procedure()", false, Maybe),
            ("set autocommit = 0", false, Maybe),
            ("/*!40000 BEGIN */", false, Maybe),
            ("/* without an end", false, Maybe),
            ("WITH a AS (SELECT 1) SELECT * FROM a", true, Never),
        ] {
            assert_eq!(Opens::by_words(sql, several), opens, "{sql}");
        }
    }
}
