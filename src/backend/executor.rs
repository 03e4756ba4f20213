//! `&ReplicatedDb` as a `sqlx::Executor` and a `sqlx::Acquire`.

use std::pin::pin;

use async_stream::try_stream;
use rocket::futures::StreamExt;
use rocket::futures::future::BoxFuture;
use rocket::futures::stream::BoxStream;
use rocket_db_pools::Database;
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::{Acquire, Describe, Either, Error, Execute, Executor, SqlStr, Transaction};

use super::{Backend, Driver};
use crate::ReplicatedDb;
use crate::attempts::{Attempts, Repeatable};
use crate::nodes::{At, Db, Place};

type Connection<DB> = <DB as sqlx::Database>::Connection;
type Step<DB> = Either<<DB as sqlx::Database>::QueryResult, <DB as sqlx::Database>::Row>;

type Run<DB, T> = for<'a> fn(&'a mut Connection<DB>, Attempt<DB>) -> BoxFuture<'a, Result<T, Error>>;

/// A query, taken out of what the caller built, so that it can be run more than once.
struct Query<DB: Driver> {
    sql: SqlStr,
    statement: Option<DB::Statement>,
    arguments: Option<DB::Arguments>,
    persistent: bool,
}

impl<DB: Driver> Query<DB> {
    fn take<'q>(mut query: impl Execute<'q, DB>) -> Result<Self, Error> {
        let arguments = query.take_arguments().map_err(Error::Encode)?;
        Ok(Self {
            arguments,
            statement: query.statement().cloned(),
            persistent: query.persistent(),
            sql: query.sql(),
        })
    }

    /// Without arguments it goes over the simple protocol, which takes several statements at once.
    fn repeatable(&self) -> Repeatable {
        if self.arguments.is_some() { Repeatable::Yes } else { Repeatable::No }
    }

    /// What one attempt runs. The last one that there can be takes the arguments along.
    fn attempt(&mut self, place: Place, prepared_statements: bool) -> Attempt<DB> {
        let arguments = match place.at {
            At::MasterReadWrite(_) => self.arguments.take(),
            At::MasterReadOnly(_) | At::Slave(_) => self.arguments.clone(),
        };
        Attempt {
            sql: self.sql.clone(),
            statement: self.statement.clone(),
            arguments,
            persistent: self.persistent && prepared_statements,
        }
    }
}

/// What holds the steps of an attempt together: preparing, binding, executing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// The connection.
    Connection,
    /// A transaction: a pooler in between may give each its own connection to the server.
    Transaction,
}

impl Frame {
    async fn open<DB: Driver>(self, conn: &mut Connection<DB>) -> Result<(), Error>
    where
        for<'a> &'a mut Connection<DB>: Executor<'a, Database = DB>,
    {
        self.run::<DB>(conn, "BEGIN").await
    }

    /// Ends it as the attempt ended; one that cannot be ended has not done what it should.
    async fn close<DB: Driver, T>(self, conn: &mut Connection<DB>, done: Result<T, Error>) -> Result<T, Error>
    where
        for<'a> &'a mut Connection<DB>: Executor<'a, Database = DB>,
    {
        // Whatever prevents a rollback has broken the connection, and so the transaction.
        match &done {
            Ok(_) => self.run::<DB>(conn, "COMMIT").await?,
            Err(_) => self.run::<DB>(conn, "ROLLBACK").await.unwrap_or_default(),
        }
        done
    }

    async fn run<DB: Driver>(self, conn: &mut Connection<DB>, sql: &'static str) -> Result<(), Error>
    where
        for<'a> &'a mut Connection<DB>: Executor<'a, Database = DB>,
    {
        if self == Self::Transaction {
            conn.execute(sqlx::raw_sql(sql)).await?;
        }
        Ok(())
    }
}

struct Attempt<DB: Driver> {
    sql: SqlStr,
    statement: Option<DB::Statement>,
    arguments: Option<DB::Arguments>,
    persistent: bool,
}

impl<DB: Driver> Execute<'_, DB> for Attempt<DB> {
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

impl<D: Database<Pool: Backend>> ReplicatedDb<D> {
    /// What to run at a place, and what holds it together there.
    fn attempt(&self, query: &mut Query<Db<D>>, place: Place) -> (Attempt<Db<D>>, Frame) {
        let prepared_statements = self.session.nodes.node(place.at).prepared_statements;
        let attempt = query.attempt(place, prepared_statements);
        let frame = match attempt.arguments {
            Some(_) if !prepared_statements => Frame::Transaction,
            _ => Frame::Connection,
        };
        (attempt, frame)
    }

    /// Runs what hands nothing over until it ends.
    async fn run<T>(&self, query: Result<Query<Db<D>>, Error>, run: Run<Db<D>, T>) -> Result<T, Error>
    where
        for<'a> &'a mut Connection<Db<D>>: Executor<'a, Database = Db<D>>,
    {
        let mut query = query?;
        let repeatable = query.repeatable();
        let mut attempts = Attempts::new(self);
        loop {
            let (mut lease, place) = self.session.checkout().await?;
            let done = {
                // In place, not moved along: a query's future is as large as its parts.
                let framed = pin!(async {
                    let (attempt, frame) = self.attempt(&mut query, place);
                    frame.open::<Db<D>>(lease.conn()).await?;
                    let done = run(lease.conn(), attempt).await;
                    frame.close::<Db<D>, _>(lease.conn(), done).await
                });
                self.session.nodes.node(place.at).unless_it_falls(framed).await
            };
            match done {
                Ok(done) => {
                    self.session.keep(place.at, lease);
                    return Ok(done);
                }
                Err(error) => {
                    lease.end_after(&error);
                    attempts.after(place, error, repeatable)?;
                }
            }
        }
    }
}

impl<'c, D: Database<Pool: Backend>> Executor<'c> for &'c ReplicatedDb<D>
where
    for<'a> &'a mut Connection<Db<D>>: Executor<'a, Database = Db<D>>,
{
    type Database = Db<D>;

    fn execute<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<<Db<D> as sqlx::Database>::QueryResult, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db<D>>,
    {
        Box::pin(self.run(Query::take(query), |conn, query| conn.execute(query)))
    }

    fn fetch_all<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Vec<<Db<D> as sqlx::Database>::Row>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db<D>>,
    {
        Box::pin(self.run(Query::take(query), |conn, query| conn.fetch_all(query)))
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<<Db<D> as sqlx::Database>::Row>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db<D>>,
    {
        Box::pin(self.run(Query::take(query), |conn, query| conn.fetch_optional(query)))
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step<Db<D>>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db<D>>,
    {
        let query = Query::take(query);
        Box::pin(try_stream! {
            let mut query = query?;
            let mut attempts = Attempts::new(self);
            loop {
                let (mut lease, place) = self.session.checkout().await?;
                let (attempt, frame) = self.attempt(&mut query, place);
                let mut repeatable = query.repeatable();
                let node = self.session.nodes.node(place.at);
                if let Err(error) = node.unless_it_falls(frame.open::<Db<D>>(lease.conn())).await {
                    lease.end_after(&error);
                    attempts.after(place, error, repeatable)?;
                    continue;
                }
                let mut steps = lease.conn().fetch_many(attempt);
                let done = loop {
                    let step = async { Ok(steps.next().await) };
                    match node.unless_it_falls(step).await.unwrap_or_else(|error| Some(Err(error))) {
                        Some(Ok(step)) => {
                            repeatable = Repeatable::No;
                            yield step;
                        }
                        Some(Err(error)) => break Err(error),
                        None => break Ok(()),
                    }
                };
                drop(steps);
                match node.unless_it_falls(frame.close::<Db<D>, _>(lease.conn(), done)).await {
                    Err(error) => {
                        lease.end_after(&error);
                        attempts.after(place, error, repeatable)?;
                    }
                    Ok(()) => {
                        self.session.keep(place.at, lease);
                        return;
                    }
                }
            }
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [<Db<D> as sqlx::Database>::TypeInfo],
    ) -> BoxFuture<'e, Result<<Db<D> as sqlx::Database>::Statement, Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let (mut lease, place) = self.session.checkout().await?;
            let prepared = lease.conn().prepare_with(sql, parameters).await;
            match &prepared {
                Ok(_) => self.session.keep(place.at, lease),
                Err(error) => lease.end_after(error),
            }
            prepared
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Db<D>>, Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let (mut lease, place) = self.session.checkout().await?;
            let described = lease.conn().describe(sql).await;
            match &described {
                Ok(_) => self.session.keep(place.at, lease),
                Err(error) => lease.end_after(error),
            }
            described
        })
    }
}

/// Not `for &'c ReplicatedDb`: in spawned code that is "not general enough". So the futures own
/// what they need.
impl<'c, D: Database<Pool: Backend>> Acquire<'c> for &'_ ReplicatedDb<D> {
    type Database = Db<D>;
    type Connection = PoolConnection<Db<D>>;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
        let db = self.clone();
        Box::pin(async move { db.get().await })
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Db<D>>, Error>> {
        let db = self.clone();
        Box::pin(async move { db.begin().await })
    }
}
