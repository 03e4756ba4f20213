//! Client programs that are kept running. Tests poll, and a new process for each question costs more than the answer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use crate::process::lock;

/// The text that a session selects after each statement, to mark the end of its rows.
const END: &str = "-- the end of the rows";

/// The sessions of one server, by database.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Session>>);

impl Sessions {
    /// Returns the rows of a [question](is_question). `client` makes the program of a new session, which reads
    /// statements from its standard input and ends at the first error.
    ///
    /// # Errors
    ///
    /// The server's message.
    pub(crate) fn ask(
        &self,
        database: &str,
        question: &str,
        client: impl FnOnce() -> Command,
    ) -> Result<String, String> {
        // Threads that ask at the same time have a session each. The last session is kept.
        let kept = lock(&self.0).remove(database);
        let answer = match kept.map(|session| session.ask(question)) {
            Some(Ok(answer)) => Ok(answer),
            // The kept session may have ended since, with its server or by a test.
            Some(Err(_)) | None => Session::start(client()).ask(question),
        };
        answer.map(|(rows, session)| {
            lock(&self.0).insert(database.to_owned(), session);
            rows
        })
    }

    /// Ends all sessions, because their server is about to end or to freeze.
    pub(crate) fn end(&self) {
        lock(&self.0).clear();
    }
}

/// True for SQL that leaves nothing behind in its session and may be run twice.
pub(crate) fn is_question(sql: &str) -> bool {
    const ACTIONS: [&str; 12] = [
        ";",
        "--",
        ":=",
        " into ",
        "create_",
        "drop_",
        "lock",
        "promote",
        "set_",
        "signal",
        "terminate",
        "val(",
    ];

    let sql = sql.to_lowercase();
    ["select ", "show "].iter().any(|verb| sql.starts_with(verb))
        && !ACTIONS.iter().any(|action| sql.contains(action))
}

#[derive(Debug)]
struct Session {
    client: Child,
    rows: BufReader<ChildStdout>,
    errors: File,
}

impl Session {
    fn start(mut client: Command) -> Self {
        let errors = tempfile::tempfile().expect("a file for errors");
        client.stdin(Stdio::piped()).stdout(Stdio::piped());
        client.stderr(errors.try_clone().expect("another handle of it"));
        let mut client = client.spawn().unwrap_or_else(|error| panic!("{client:?}: {error}"));
        let rows = BufReader::new(client.stdout.take().expect("piped"));
        Self { client, rows, errors }
    }

    /// Returns the rows, and the session for the next question. After an error, the session has ended.
    fn ask(mut self, question: &str) -> Result<(String, Self), String> {
        let stdin = self.client.stdin.as_mut().expect("piped");
        // The error output of a client that has ended says more than a broken pipe.
        let _ = writeln!(stdin, "{question};\nSELECT '{END}';").and_then(|()| stdin.flush());
        let mut answer = String::new();
        loop {
            let begin = answer.len();
            match self.rows.read_line(&mut answer) {
                Ok(0) | Err(_) => return Err(self.error()),
                Ok(_) if answer[begin..].trim_end() == END => {
                    answer.truncate(begin);
                    return Ok((answer.trim().to_owned(), self));
                }
                Ok(_) => {}
            }
        }
    }

    fn error(&mut self) -> String {
        let mut text = Vec::new();
        let _ = self.errors.rewind().and_then(|()| self.errors.read_to_end(&mut text));
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
