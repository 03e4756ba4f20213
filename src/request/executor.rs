//! `&ReplicatedDb` as a `sqlx::Executor` and a `sqlx::Acquire`.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;

use async_stream::try_stream;
use rocket::futures::future::BoxFuture;
use rocket::futures::stream::BoxStream;
use rocket::futures::{StreamExt, TryFutureExt, stream};
use rocket_db_pools::Database;
use sqlx::pool::PoolConnection;
use sqlx::{Acquire, Describe, Either, Error, Execute, Executor, SqlStr, Transaction};

use super::handle::ReplicatedDb;
use super::query::{Frame, Query};
use super::retry::{Attempts, Repeatable};
use crate::backend::{Backend, Conn, Driver, Engine, Left, Opens, Rest};
use crate::cluster::Db;
use crate::pool::{Checkout, CloseCause, Pool, StatementError};

type Step<DB> = Either<<DB as sqlx::Database>::QueryResult, <DB as sqlx::Database>::Row>;

/// What the caller wants from a query: its effect, all rows, or the first row.
trait Wanted<DB: Driver> {
    type Answer: Send;

    /// Runs the query on a connection, and returns how it leaves the connection. Not an `async fn`, whose future would
    /// have room for the query as well.
    fn run(
        conn: &mut Conn<DB>,
        query: Query<DB>,
        rest: Rest,
    ) -> impl Future<Output = Result<(Self::Answer, Left), Error>> + Send;
}

enum Effect {}

impl<DB: Driver> Wanted<DB> for Effect {
    type Answer = DB::QueryResult;

    fn run(
        conn: &mut Conn<DB>,
        query: Query<DB>,
        _: Rest,
    ) -> impl Future<Output = Result<(Self::Answer, Left), Error>> + Send {
        DB::executor(conn).execute(query).map_ok(|done| (done, Left::Clean))
    }
}

enum AllRows {}

impl<DB: Driver> Wanted<DB> for AllRows {
    type Answer = Vec<DB::Row>;

    fn run(
        conn: &mut Conn<DB>,
        query: Query<DB>,
        _: Rest,
    ) -> impl Future<Output = Result<(Self::Answer, Left), Error>> + Send {
        DB::executor(conn).fetch_all(query).map_ok(|rows| (rows, Left::Clean))
    }
}

enum FirstRow {}

impl<DB: Driver> Wanted<DB> for FirstRow {
    type Answer = Option<DB::Row>;

    fn run(
        conn: &mut Conn<DB>,
        query: Query<DB>,
        rest: Rest,
    ) -> impl Future<Output = Result<(Self::Answer, Left), Error>> + Send {
        DB::fetch_optional(conn, query, rest)
    }
}

/// The error of a statement that leaves a transaction open, which would be lost with its handler, or before.
fn left_open() -> Error {
    Error::InvalidArgument(
        "a statement over `&db` cannot leave a transaction open, because the next one may run on another connection: it \
         is rolled back; call `begin()`, or `get()` for a connection of one's own"
            .into(),
    )
}

/// Whether the connection may be in a transaction after a query.
///
/// # Errors
///
/// If it certainly is, because the next statement of the request may get another connection.
fn opens_transaction<DB: Driver>(query: &Query<DB>) -> Result<Opens, Error> {
    match query.opens_transaction() {
        Opens::Always => Err(left_open()),
        opens => Ok(opens),
    }
}

impl<D: Database<Pool: Backend>> ReplicatedDb<D> {
    fn attempts(&self) -> Attempts<'_, Db<D>> {
        Attempts::new(&self.session)
    }

    /// Runs a query whose answer is returned as a whole.
    ///
    /// Its future takes less than 1 KiB. Up to that size, glibc's allocator has a cache for each thread. It looks for
    /// larger blocks under a lock that threads share: <https://sourceware.org/glibc/wiki/MallocInternals>. So futures
    /// that are seldom needed are boxed, and a query is not kept where it is only passed on.
    fn run<'e, W>(&'e self, query: Result<Query<Db<D>>, Error>) -> BoxFuture<'e, Result<W::Answer, Error>>
    where
        W: Wanted<Db<D>> + 'e,
    {
        let mut query = match query {
            Ok(query) => query,
            Err(error) => return Box::pin(ready(Err(error))),
        };
        Box::pin(async move {
            let opens = opens_transaction(&query)?;
            let repeatable = query.repeatable(opens);
            let mut attempts = self.attempts();
            loop {
                let (mut checkout, under_way) = self.session.check_out().await?;
                let sent = under_way.send();
                let rest = Db::<D>::rest(query.text().as_str(), under_way.decision.access);
                let done = {
                    let (conn, watch) = checkout.parts();
                    let (frame, attempt) = query.attempt(watch.pool());
                    let mut watch = watch.of(query.text().as_str());
                    match frame {
                        Frame::Connection => watch.over(pin!(W::run(conn, attempt, rest))).await,
                        Frame::Transaction(_) => {
                            let framed = async {
                                frame.open::<Db<D>>(conn).await?;
                                let done = W::run(conn, attempt, rest).await;
                                frame.close::<Db<D>, _>(conn, done).await
                            };
                            watch.over(Box::pin(framed).as_mut()).await
                        }
                    }
                };
                sent.ended(&done);
                match done {
                    Ok((answer, left)) => {
                        self.leave(checkout, left, opens).await?;
                        return Ok(answer);
                    }
                    Err(failed) => {
                        let pool = self.after_error(checkout, &failed, opens);
                        attempts.judge(&pool, under_way, failed, repeatable)?;
                    }
                }
            }
        })
    }

    /// Keeps the connection for the next query of the request, unless this one has left something in it.
    async fn leave(&self, checkout: Checkout<Db<D>>, left: Left, opens: Opens) -> Result<(), Error> {
        match (left, opens) {
            (Left::Dirty, _) => checkout.close(CloseCause::Dirty),
            (Left::Clean, Opens::Never) => self.session.keep(checkout),
            (Left::Clean, _) => match Box::pin(checkout.settle()).await {
                Ok(Some(checkout)) => self.session.keep(checkout),
                Ok(None) => return Err(left_open()),
                // The statement is done, whatever has happened to its connection since.
                Err(_) => {}
            },
        }
        Ok(())
    }

    /// Puts the connection back if it can still be used. If the query may have begun a transaction, closes the
    /// connection: one of several statements may have begun it before another one failed.
    fn after_error(
        &self,
        checkout: Checkout<Db<D>>,
        failed: &StatementError,
        opens: Opens,
    ) -> Arc<Pool<Db<D>>> {
        let pool = checkout.pool().clone();
        match opens {
            Opens::Never => checkout.put_back_after(failed),
            Opens::Maybe | Opens::Always => checkout.close(CloseCause::Failed),
        }
        pool
    }

    /// Asks about a statement without running it.
    async fn prepare<T>(
        &self,
        ask: impl for<'a> Fn(&'a mut Conn<Db<D>>) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut attempts = self.attempts();
        loop {
            let (mut checkout, under_way) = self.session.check_out().await?;
            let told = {
                let (conn, mut watch) = checkout.parts();
                watch.over_harmless(pin!(ask(conn))).await
            };
            match told {
                Ok(told) => {
                    self.session.keep(checkout);
                    return Ok(told);
                }
                Err(failed) => {
                    let pool = self.after_error(checkout, &failed, Opens::Never);
                    attempts.judge(&pool, under_way, failed, Repeatable::Yes)?;
                }
            }
        }
    }
}

impl<'c, D: Database<Pool: Backend>> Executor<'c> for &'c ReplicatedDb<D> {
    type Database = Db<D>;

    fn execute<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<<Db<D> as sqlx::Database>::QueryResult, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db<D>>,
    {
        self.run::<Effect>(Query::take(query))
    }

    fn fetch_all<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Vec<<Db<D> as sqlx::Database>::Row>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db<D>>,
    {
        self.run::<AllRows>(Query::take(query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<<Db<D> as sqlx::Database>::Row>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db<D>>,
    {
        self.run::<FirstRow>(Query::take(query))
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step<Db<D>>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db<D>>,
    {
        let mut query = match Query::take(query) {
            Ok(query) => query,
            Err(error) => return Box::pin(stream::once(ready(Err(error)))),
        };
        Box::pin(try_stream! {
            let opens = opens_transaction(&query)?;
            let mut attempts = self.attempts();
            loop {
                let (mut checkout, under_way) = self.session.check_out().await?;
                let sent = under_way.send();
                let mut repeatable = query.repeatable(opens);
                let (conn, watch) = checkout.parts();
                let (frame, attempt) = query.attempt(watch.pool());
                let mut watch = watch.of(query.text().as_str());
                let opened = match frame {
                    Frame::Connection => Ok(()),
                    Frame::Transaction(_) => watch.over_harmless(pin!(frame.open::<Db<D>>(conn))).await,
                };
                let done = match opened {
                    Err(failed) => Err(failed),
                    Ok(()) => {
                        let mut steps = Db::<D>::executor(conn).fetch_many(attempt);
                        let done = loop {
                            match watch.over(pin!(async { steps.next().await.transpose() })).await {
                                Ok(Some(step)) => {
                                    repeatable = Repeatable::No;
                                    yield step;
                                }
                                Ok(None) => break Ok(()),
                                Err(failed) => break Err(failed),
                            }
                        };
                        drop(steps);
                        match (done, frame) {
                            (done, Frame::Connection) => done,
                            (Ok(()), Frame::Transaction(_)) => {
                                watch.over(pin!(frame.close::<Db<D>, _>(conn, Ok(())))).await
                            }
                            // The error of the statement is returned, even if the rollback fails, too.
                            (Err(failed), Frame::Transaction(_)) => {
                                let rollback = pin!(frame.roll_back::<Db<D>>(conn));
                                let _ = watch.over_harmless(rollback).await;
                                Err(failed)
                            }
                        }
                    }
                };
                drop(watch);
                sent.ended(&done);
                match done {
                    Ok(()) => {
                        self.leave(checkout, Left::Clean, opens).await?;
                        return;
                    }
                    Err(failed) => {
                        let pool = self.after_error(checkout, &failed, opens);
                        attempts.judge(&pool, under_way, failed, repeatable)?;
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
        Box::pin(self.prepare(move |conn| {
            let (sql, parameters) = (sql.clone(), parameters.to_vec());
            Box::pin(async move { Db::<D>::executor(conn).prepare_with(sql, &parameters).await })
        }))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Db<D>>, Error>>
    where
        'c: 'e,
    {
        Box::pin(self.prepare(move |conn| Db::<D>::executor(conn).describe(sql.clone())))
    }
}

/// Not `for &'c ReplicatedDb`: in spawned code that is "not general enough". So the futures own
/// what they need.
impl<'c, D: Database<Pool: Backend>> Acquire<'c> for &'_ ReplicatedDb<D> {
    type Database = Db<D>;
    type Connection = PoolConnection<Db<D>>;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
        let db = self.clone();
        Box::pin(async move { Ok(db.get().await?.into_inner()) })
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Db<D>>, Error>> {
        let db = self.clone();
        Box::pin(async move { Ok(db.begin().await?.into_inner()) })
    }
}
