//! Statements that other systems have and this one does not, and what to do instead.

/// Why a statement that begins with `word` (upper case) is refused, if it is a known one.
pub(super) fn why(word: &str) -> Option<&'static str> {
    Some(match word {
        "INSERT" | "REPLACE" | "LOAD" | "UPSERT" => {
            "rows cannot be inserted by a statement: they come from a source through a pipe (CREATE PIPE p INTO t FROM KAFKA (…))"
        }
        "UPDATE" | "DELETE" | "MERGE" | "TRUNCATE" => {
            "rows cannot be changed or deleted: a table keeps what its pipes delivered; DROP TABLE removes it with all rows"
        }
        "COPY" | "EXPORT" | "UNLOAD" | "IMPORT" => {
            "files cannot be read or written by a statement: run a SELECT and let the client write its answer"
        }
        "BEGIN" | "START" | "COMMIT" | "ROLLBACK" | "SAVEPOINT" | "END" => {
            "there are no transactions over several statements: each one sees one state of the catalog and is applied at once"
        }
        "USE" => "there is one database: tables need no prefix, the system's own are in schema 'system'",
        "GRANT" | "REVOKE" => "there are no users and rights yet",
        "OPTIMIZE" | "VACUUM" | "ANALYZE" | "REFRESH" | "COMPACT" => {
            "there is nothing to start by hand: parts carry their statistics from the commit on"
        }
        "PREPARE" | "EXECUTE" | "DEALLOCATE" | "DECLARE" | "FETCH" => {
            "there are no prepared statements or cursors: send the query itself"
        }
        "RESET" | "UNSET" => "settings are kept by the client: SET the value that you want",
        "KILL" | "CANCEL" => "a query ends when its client goes away",
        _ => return None,
    })
}

/// Why a thing of kind `word` (upper case) cannot be `done`, if it is a known one.
pub(super) fn object(word: &str, done: &str) -> Option<String> {
    let instead = match word {
        "EXTERNAL" => "tables are filled by pipes: CREATE TABLE, then CREATE PIPE",
        "VIEW" | "MATERIALIZED" => "use WITH in the query",
        "INDEX" | "UNIQUE" => "parts are skipped by ORDER BY and PARTITION BY of the table",
        "DATABASE" | "SCHEMA" => "there is one database",
        "FUNCTION" | "PROCEDURE" | "TRIGGER" | "SEQUENCE" | "TYPE" => "only the built-in ones exist",
        "USER" | "ROLE" => "there are no users and rights yet",
        "OR" => "drop it first, then create it",
        "TEMPORARY" | "TEMP" => "tables are kept; use WITH in the query",
        "STREAM" | "SOURCE" | "CONNECTOR" => "a source is connected by CREATE PIPE",
        _ => return None,
    };
    Some(format!("{word} cannot be {done} here: {instead}"))
}
