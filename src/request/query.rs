//! A statement, taken out of what the caller built, and the frame that holds its steps together on a connection.

use sqlx::error::BoxDynError;
use sqlx::{Error, Execute, Executor, SqlStr};

use super::retry::Repeatable;
use crate::backend::{Conn, Driver, Opens};
use crate::pool::Pool;

/// A query that can be run more than once.
pub(super) struct Query<DB: Driver> {
    sql: SqlStr,
    statement: Option<DB::Statement>,
    arguments: Option<DB::Arguments>,
    persistent: bool,
}

impl<DB: Driver> Query<DB> {
    pub(super) fn take<'q>(mut query: impl Execute<'q, DB>) -> Result<Self, Error> {
        let arguments = query.take_arguments().map_err(Error::Encode)?;
        Ok(Self {
            arguments,
            statement: query.statement().cloned(),
            persistent: query.persistent(),
            // sqlx copies a text that was built at run time when it is cloned, and shares that copy from then on.
            sql: query.sql().clone(),
        })
    }

    /// The text of the query.
    pub(super) fn text(&self) -> &SqlStr {
        &self.sql
    }

    /// Whether the query can be repeated. Without arguments it goes over the simple protocol, which takes several
    /// statements at once. A procedure may have committed a part of what it does.
    pub(super) fn repeatable(&self, opens: Opens) -> Repeatable {
        match (&self.arguments, opens) {
            (Some(_), Opens::Never) => Repeatable::Yes,
            _ => Repeatable::No,
        }
    }

    /// The query to run on a connection of this pool, and its frame there. An attempt that may write is the last one,
    /// and takes the arguments along.
    pub(super) fn attempt(&mut self, pool: &Pool<DB>) -> (Frame, Self) {
        let frame = match (&self.arguments, pool.begin_read_only()) {
            (None, _) => Frame::Connection,
            (Some(_), Some(begin)) => Frame::Transaction(begin),
            (Some(_), None) if pool.prepared_statements() => Frame::Connection,
            (Some(_), None) => Frame::Transaction("BEGIN"),
        };
        let attempt = Self {
            sql: self.sql.clone(),
            statement: self.statement.clone(),
            arguments: match pool.access().writes() {
                true => self.arguments.take(),
                false => self.arguments.clone(),
            },
            persistent: self.persistent && pool.prepared_statements(),
        };
        (frame, attempt)
    }

    /// Whether the connection may be in a transaction afterwards.
    pub(super) fn opens_transaction(&self) -> Opens {
        DB::opens_transaction(self.sql.as_str(), self.arguments.is_none())
    }
}

impl<DB: Driver> Execute<'_, DB> for Query<DB> {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&DB::Statement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<DB::Arguments>, BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

/// What holds the steps of an attempt together: preparing, binding, executing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// The connection.
    Connection,
    /// A transaction, with the statement that begins it. A pooler in between may give each transaction its own
    /// connection to the server.
    Transaction(&'static str),
}

impl Frame {
    pub(super) async fn open<DB: Driver>(self, conn: &mut Conn<DB>) -> Result<(), Error> {
        match self {
            Self::Connection => Ok(()),
            Self::Transaction(begin) => self.run::<DB>(conn, begin).await,
        }
    }

    /// Commits the frame if the attempt succeeded, else rolls it back. If the commit fails, the attempt has failed.
    pub(super) async fn close<DB: Driver, T>(
        self,
        conn: &mut Conn<DB>,
        done: Result<T, Error>,
    ) -> Result<T, Error> {
        // A rollback fails only if the connection is broken, which ends the transaction, too.
        match &done {
            Ok(_) => self.run::<DB>(conn, "COMMIT").await?,
            Err(_) => self.roll_back::<DB>(conn).await.unwrap_or_default(),
        }
        done
    }

    pub(super) async fn roll_back<DB: Driver>(self, conn: &mut Conn<DB>) -> Result<(), Error> {
        self.run::<DB>(conn, "ROLLBACK").await
    }

    async fn run<DB: Driver>(self, conn: &mut Conn<DB>, sql: &'static str) -> Result<(), Error> {
        if self != Self::Connection {
            DB::executor(conn).execute(sqlx::raw_sql(sql)).await?;
        }
        Ok(())
    }
}
