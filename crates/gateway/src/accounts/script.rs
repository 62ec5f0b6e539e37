//! Statements that are run one after the other, on either database.

use rusqlite::types::{ToSqlOutput, ValueRef};
use sqlx::any::{AnyRow, AnyTypeInfoKind};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AssertSqlSafe, Column as _, Row as _};

use super::AccountsError;

/// What stands for a `?`, and what a row has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Nothing,
    Text(String),
    Number(i64),
    Bytes(Vec<u8>),
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

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Nothing => ValueRef::Null,
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Number(number) => ValueRef::Integer(*number),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// A row: its columns in the order in which they were asked for.
#[derive(Clone, Debug)]
pub(super) struct Row(Vec<Value>);

impl Row {
    pub(super) fn of(row: &AnyRow) -> Result<Row, sqlx::Error> {
        let value = |at: usize| {
            Ok(match row.column(at).type_info().kind() {
                AnyTypeInfoKind::Text => {
                    row.try_get::<Option<String>, _>(at)?.map_or(Value::Nothing, Value::Text)
                }
                AnyTypeInfoKind::Blob => {
                    row.try_get::<Option<Vec<u8>>, _>(at)?.map_or(Value::Nothing, Value::Bytes)
                }
                AnyTypeInfoKind::Null => Value::Nothing,
                _ => row.try_get::<Option<i64>, _>(at)?.map_or(Value::Nothing, Value::Number),
            })
        };
        (0..row.len()).map(value).collect::<Result<_, sqlx::Error>>().map(Row)
    }

    fn here(row: &rusqlite::Row<'_>, columns: usize) -> rusqlite::Result<Row> {
        let value = |at: usize| {
            Ok(match row.get_ref(at)? {
                ValueRef::Null => Value::Nothing,
                ValueRef::Integer(number) => Value::Number(number),
                ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
                _ => Value::Text(row.get(at)?),
            })
        };
        (0..columns).map(value).collect::<rusqlite::Result<_>>().map(Row)
    }

    fn get(&self, at: usize) -> &Value {
        self.0.get(at).unwrap_or(&Value::Nothing)
    }

    pub(super) fn text(&self, at: usize) -> Result<String, AccountsError> {
        match self.get(at) {
            Value::Text(text) => Ok(text.clone()),
            _ => Err(AccountsError::Row { at }),
        }
    }

    pub(super) fn bytes_if_any(&self, at: usize) -> Result<Option<Vec<u8>>, AccountsError> {
        match self.get(at) {
            Value::Nothing => Ok(None),
            Value::Bytes(bytes) => Ok(Some(bytes.clone())),
            _ => Err(AccountsError::Row { at }),
        }
    }

    pub(super) fn number(&self, at: usize) -> Result<i64, AccountsError> {
        match self.get(at) {
            Value::Number(number) => Ok(*number),
            _ => Err(AccountsError::Row { at }),
        }
    }

    pub(super) fn number_if_any(&self, at: usize) -> Result<Option<i64>, AccountsError> {
        if *self.get(at) == Value::Nothing { Ok(None) } else { self.number(at).map(Some) }
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

/// Numbers a statement's values, as Postgres wants it.
fn numbered(statement: &str) -> String {
    let (mut sql, mut next) = (String::with_capacity(statement.len() + 16), 1);
    for c in statement.chars() {
        if c == '?' {
            sql.push_str(&format!("${next}"));
            next += 1;
        } else {
            sql.push(c);
        }
    }
    sql
}

/// Runs statements in their order on Postgres. The rows of each; at the first that fails, what came before it has happened.
pub(super) async fn run(
    connection: &mut PoolConnection<Any>,
    statements: Vec<Statement>,
) -> Result<Vec<Vec<Row>>, AccountsError> {
    let mut all = Vec::with_capacity(statements.len());
    for Statement { sql, values } in statements {
        let query =
            values.into_iter().fold(sqlx::query(AssertSqlSafe(numbered(&sql))), |query, value| match value {
                Value::Nothing => query.bind(None::<i64>),
                Value::Text(text) => query.bind(text),
                Value::Number(number) => query.bind(number),
                Value::Bytes(bytes) => query.bind(bytes),
            });
        let rows = query.fetch_all(&mut **connection).await?;
        all.push(rows.iter().map(Row::of).collect::<Result<_, _>>()?);
    }
    Ok(all)
}

/// Runs one on SQLite, by the thread that calls. Its rows.
pub(super) fn run_here(
    connection: &rusqlite::Connection,
    Statement { sql, values }: Statement,
) -> Result<Vec<Row>, AccountsError> {
    let mut prepared = connection.prepare_cached(&sql)?;
    let columns = prepared.column_count();
    let mut found = prepared.query(rusqlite::params_from_iter(&values))?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        rows.push(Row::here(row, columns)?);
    }
    Ok(rows)
}
