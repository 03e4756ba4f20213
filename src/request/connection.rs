//! Connections and transactions that a handler holds for itself.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;

use async_stream::try_stream;
use rocket::futures::StreamExt;
use rocket::futures::future::BoxFuture;
use rocket::futures::stream::BoxStream;
use sqlx::pool::PoolConnection;
use sqlx::{Describe, Either, Error, Execute, Executor, SqlStr};

use super::query::Query;
use super::session::Writer;
use crate::backend::{Conn, Driver, Opens, Remains, Rest};
use crate::pool::{Checkout, ConnectionState, Held, Lending, Pool, StatementError, Watch};

/// A connection of one's own, from [`ReplicatedDb::get`](crate::ReplicatedDb::get).
///
/// `&mut *connection` is a [`sqlx::Executor`], as with sqlx's [`PoolConnection`]. Dropped, the connection goes back to
/// its pool. A transaction that was begun by hand and left open is rolled back then.
///
/// No statement on it waits for ever. It ends with an error once its connection is known to be dead. A read also ends
/// when its server is found to be down.
///
/// Where a function asks for the driver's connection, `&mut *connection` coerces to that. Statements there are not
/// watched, and are not logged when they are slow. They wait until the operating system gives the connection up. Linux
/// does so once the other side has been silent for 25 s.
pub struct Connection<DB: Driver> {
    watched: Watched<DB, Held<DB>>,
}

/// A transaction, from [`ReplicatedDb::begin`](crate::ReplicatedDb::begin).
///
/// `&mut *transaction` is a [`sqlx::Executor`], as with sqlx's own [`Transaction`](sqlx::Transaction), and
/// coerces to the driver's connection. Statements are watched as those of a [`Connection`]. Dropped without a
/// [`commit`](Self::commit), the transaction is rolled back.
///
/// ```rust
/// # #[cfg(feature = "sqlite")] mod transfers {
/// use rocket::post;
/// use rocket_replicated::Error;
/// use rocket_replicated::sqlite::ReplicatedDb;
///
/// #[post("/transfer/<from>/<to>")]
/// async fn transfer(from: i64, to: i64, db: ReplicatedDb) -> Result<(), Error> {
///     let mut transaction = db.begin().await?;
///     for (change, account) in [(-1, from), (1, to)] {
///         sqlx::query("UPDATE accounts SET balance = balance + ? WHERE id = ?")
///             .bind(change)
///             .bind(account)
///             .execute(&mut *transaction)
///             .await?;
///     }
///     // A `?` above rolls both changes back.
///     Ok(transaction.commit().await?)
/// }
/// # }
/// ```
pub struct Transaction<DB: Driver> {
    watched: Watched<DB, sqlx::Transaction<'static, DB>>,
    /// Tells the session of the commit.
    writer: Writer<DB>,
}

/// A connection, or a transaction, whose statements are watched. `Connection` and `Transaction` dereference to it.
pub struct Watched<DB: Driver, C> {
    conn: C,
    pool: Arc<Pool<DB>>,
    state: Arc<ConnectionState<DB>>,
    /// Tells the session of each statement.
    writer: Writer<DB>,
}

impl<DB: Driver> Connection<DB> {
    pub(super) fn new(checkout: Checkout<DB>, writer: Writer<DB>) -> Self {
        let (pool, state) = (checkout.pool().clone(), checkout.state().clone());
        Self { watched: Watched { conn: Held::new(checkout), pool, state, writer } }
    }

    /// Unwraps sqlx's own connection, for libraries that ask for one. Its statements are not watched.
    pub fn into_inner(self) -> PoolConnection<DB> {
        self.watched.writer.send_unseen();
        self.watched.conn.lend()
    }
}

impl<DB: Driver> Transaction<DB> {
    /// Begins a transaction on a connection. Its caller judges an error, by the checkout's pool.
    pub(super) async fn begin(checkout: Checkout<DB>, writer: Writer<DB>) -> Result<Self, StatementError> {
        let (pool, state) = (checkout.pool().clone(), checkout.state().clone());
        // Lent as a connection: until the transaction has begun, sqlx does not know that it has to be rolled back.
        let begin = pool.begin_read_only().map(sqlx::SqlSafeStr::into_sql_str);
        let begun = pin!(sqlx::Transaction::begin(checkout.lend(Lending::Connection), begin));
        let conn = Watch::new(&pool, &state).over_harmless(begun).await?;
        state.lend_for(Lending::Transaction);
        // Statements before the commit need no writer: they are rolled back if the commit never comes.
        Ok(Self { watched: Watched { conn, pool, state, writer: Writer::NONE }, writer })
    }

    /// Commits the transaction.
    ///
    /// # Errors
    ///
    /// Those of the database. If the connection dies before the answer comes, the outcome is unknown:
    /// [`Error::is_outcome_unknown`](crate::Error::is_outcome_unknown) is true of the error.
    pub async fn commit(self) -> Result<(), Error> {
        let Self { watched: Watched { conn, pool, state, .. }, writer } = self;
        state.lend_for(Lending::EndingTransaction);
        let sent = writer.send();
        let done = Watch::new(&pool, &state).over(pin!(conn.commit())).await;
        sent.ended(&done);
        Ok(done?)
    }

    /// Rolls the transaction back.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub async fn rollback(self) -> Result<(), Error> {
        let Watched { conn, pool, state, .. } = self.watched;
        state.lend_for(Lending::EndingTransaction);
        Ok(Watch::new(&pool, &state).over_harmless(pin!(conn.rollback())).await?)
    }

    /// Unwraps sqlx's own transaction, for libraries that ask for one. Its statements are not watched.
    pub fn into_inner(self) -> sqlx::Transaction<'static, DB> {
        self.writer.send_unseen();
        self.watched.conn
    }
}

impl<DB: Driver, C: DerefMut<Target = Conn<DB>>> Watched<DB, C> {
    fn parts(&mut self) -> (&mut Conn<DB>, Watch<'_, DB>) {
        (&mut self.conn, Watch::new(&self.pool, &self.state))
    }

    /// Runs a statement, which may open a transaction. The connection counts as dirty from the moment at which it is
    /// touched until a statement that opens none has ended. A cancelled statement leaves it dirty.
    async fn run<T>(
        &mut self,
        opens: Opens,
        sql: &SqlStr,
        run: impl for<'a> FnOnce(&'a mut Conn<DB>) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<T, Error> {
        let before = self.state.left();
        let writer = self.writer.clone();
        let sent = writer.send();
        let done = {
            let (conn, watch) = self.parts();
            watch.of(sql.as_str()).over(pin!(run(conn))).await
        };
        sent.ended(&done);
        let is_usable = done.as_ref().err().is_none_or(|failed| failed.remains == Remains::Usable);
        if opens == Opens::Never && is_usable {
            self.state.leave(before);
        }
        Ok(done?)
    }
}

impl<'c, DB: Driver, C> Executor<'c> for &'c mut Watched<DB, C>
where
    C: DerefMut<Target = Conn<DB>> + Send,
{
    type Database = DB;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<DB::QueryResult, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(async move {
            let query = Query::take(query)?;
            let sql = query.text().clone();
            self.run(query.opens_transaction(), &sql, |conn| DB::executor(conn).execute(query)).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let query = Query::take(query);
        Box::pin(try_stream! {
            let query = query?;
            let (opens, sql) = (query.opens_transaction(), query.text().clone());
            let before = self.state.left();
            let writer = self.writer.clone();
            let sent = writer.send();
            let (conn, watch) = self.parts();
            let mut watch = watch.of(sql.as_str());
            let mut steps = DB::executor(conn).fetch_many(query);
            let done = loop {
                match watch.over(pin!(async { steps.next().await.transpose() })).await {
                    Ok(Some(step)) => yield step,
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            drop((steps, watch));
            sent.ended(&done);
            done.map_err(Error::from)?;
            if opens == Opens::Never {
                self.state.leave(before);
            }
        })
    }

    /// Reads the answer to its end, so that the next statement does not meet what is left of it.
    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(async move {
            let query = Query::take(query)?;
            let (opens, sql) = (query.opens_transaction(), query.text().clone());
            let rest = match DB::rest(sql.as_str(), self.pool.access()) {
                // The next statement would meet the rows that the server has sent.
                Rest::Abandon if DB::HAS_HOSTS => Rest::Read,
                rest => rest,
            };
            Ok(self.run(opens, &sql, |conn| Box::pin(DB::fetch_optional(conn, query, rest))).await?.0)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let (text, parameters) = (sql.clone(), parameters.to_vec());
            self.run(Opens::Never, &text, |conn| {
                Box::pin(async move { DB::executor(conn).prepare_with(sql, &parameters).await })
            })
            .await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            let text = sql.clone();
            self.run(Opens::Never, &text, |conn| DB::executor(conn).describe(sql)).await
        })
    }
}

impl<DB: Driver, C: Deref<Target = Conn<DB>>> Deref for Watched<DB, C> {
    type Target = Conn<DB>;

    fn deref(&self) -> &Conn<DB> {
        &self.conn
    }
}

impl<DB: Driver, C: DerefMut<Target = Conn<DB>>> DerefMut for Watched<DB, C> {
    fn deref_mut(&mut self) -> &mut Conn<DB> {
        self.writer.send_unseen();
        &mut self.conn
    }
}

impl<DB: Driver, C> fmt::Debug for Watched<DB, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("pool", &self.pool).finish_non_exhaustive()
    }
}

macro_rules! watched {
    ($Held:ident: $Inner:ty) => {
        impl<DB: Driver> Deref for $Held<DB> {
            type Target = Watched<DB, $Inner>;

            fn deref(&self) -> &Self::Target {
                &self.watched
            }
        }

        impl<DB: Driver> DerefMut for $Held<DB> {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.watched
            }
        }

        impl<DB: Driver> fmt::Debug for $Held<DB> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($Held)).field(&self.watched.pool).finish()
            }
        }
    };
}

watched!(Connection: Held<DB>);
watched!(Transaction: sqlx::Transaction<'static, DB>);
