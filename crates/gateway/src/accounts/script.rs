//! Statements that are run one after the other. SQLite gets all of them at once: each time that something is handed to its thread costs two
//! changes of threads, which is more than the statements themselves.

use futures_util::TryStreamExt as _;
use sqlx::any::AnyRow;
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe, Either, Executor as _};

use super::store::Engine;

/// What stands for a `?`.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Number(number)
    }
}

/// A statement with `?` for each of its values. What it says is ours: whatever comes from outside is a value.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    sql: String,
    values: Vec<Value>,
}

impl Statement {
    /// A statement without values.
    pub(super) fn new(sql: impl Into<String>) -> Statement {
        Statement { sql: sql.into(), values: Vec::new() }
    }

    /// Values for the next `?`s.
    pub(super) fn with(mut self, values: impl IntoIterator<Item = impl Into<Value>>) -> Statement {
        self.values.extend(values.into_iter().map(Into::into));
        self
    }
}

/// As many `?` as a list has elements, which are at least one.
pub(super) fn marks(count: usize) -> String {
    let mut marks = "?, ".repeat(count.max(1));
    marks.truncate(marks.len() - 2);
    marks
}

/// Appends a statement; its values are numbered from `first`.
fn number(sql: &mut String, statement: &str, mut next: usize) {
    for c in statement.chars() {
        if c == '?' {
            sql.push_str(&format!("${next}"));
            next += 1;
        } else {
            sql.push(c);
        }
    }
}

fn query(sql: String, values: Vec<Value>) -> Query<'static, Any, sqlx::any::AnyArguments> {
    values.into_iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| match value {
        Value::Text(text) => query.bind(text),
        Value::Number(number) => query.bind(number),
    })
}

/// Runs statements in their order. The rows of each; at the first that fails, what came before it has happened.
pub(super) async fn run(
    connection: &mut PoolConnection<Any>,
    engine: Engine,
    statements: Vec<Statement>,
) -> Result<Vec<Vec<AnyRow>>, sqlx::Error> {
    let mut all = Vec::with_capacity(statements.len());
    match engine {
        Engine::Postgres => {
            for Statement { sql: marked, values } in statements {
                let mut sql = String::new();
                number(&mut sql, &marked, 1);
                all.push(query(sql, values).fetch_all(&mut **connection).await?);
            }
        }
        Engine::Sqlite => {
            let (mut sql, mut values) = (String::new(), Vec::new());
            for statement in statements {
                number(&mut sql, &statement.sql, values.len() + 1);
                sql.push_str(";\n");
                values.extend(statement.values);
            }
            let mut results = connection.fetch_many(query(sql, values));
            let mut rows = Vec::new();
            while let Some(result) = results.try_next().await? {
                match result {
                    Either::Left(_) => all.push(std::mem::take(&mut rows)),
                    Either::Right(row) => rows.push(row),
                }
            }
        }
    }
    Ok(all)
}
