//! The engine: one statement in, one answer out.
//!
//! It owns what all queries share (memory pool, prepared session, the versions that running queries
//! hold) and leads a statement through parsing, reading, planning and execution. It keeps no state of
//! a client: settings come with each call.
//!
//! Operators sort and join for seconds without a pause, on as many threads as there are. So they have a
//! runtime of their own, the one that the engine is made on; all else, which has to be in time (pins,
//! the snapshot, the plan), runs where it is called.

use crate::administer;
use crate::diagnosis::explain;
use crate::error::QueryError;
use crate::fresh::{Held, Reader};
use crate::ports::{Catalog, FreshRows, Progress, Replayer, Sources};
use crate::session::{NamedTable, Prepared, SYSTEM_SCHEMA, USER_SCHEMA};
use crate::settings::Settings;
use crate::show;
use crate::statement::words::Words;
use crate::statement::{self, Statement};
use crate::system;
use crate::table::UserTable;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use datafusion::physical_plan::stream::{RecordBatchReceiverStreamBuilder, RecordBatchStreamAdapter};
use datafusion::physical_plan::{ExecutionPlan, common, execute_stream};
use datafusion::sql::parser::Statement as SqlStatement;
use futures::{Stream, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tidemill_core::Version;
use tidemill_storage::store::PartStore;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// What a query takes for reading files, in each of its pieces: pages and columns that the operators do not count.
const SCAN_BYTES: usize = 4 << 20;

/// How many batches of an answer may be ready before its operators wait for whoever takes them.
const BATCHES_AHEAD: usize = 2;

/// How an [`Engine`] may use the machine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Memory that all running queries may use together, in bytes: for rows in memory that they read, for reading files, and
    /// for sorting, joining and aggregating.
    pub memory_limit_bytes: usize,
    /// How many pieces a query is cut into, to run side by side.
    pub target_partitions: usize,
    /// Where queries spill to when memory is short; without it they fail instead.
    pub spill_dir: Option<PathBuf>,
    /// How long a query waits for the leaders of its shards.
    pub pin_timeout: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            memory_limit_bytes: 1 << 30,
            target_partitions: std::thread::available_parallelism().map_or(1, usize::from),
            spill_dir: None,
            pin_timeout: Duration::from_secs(10),
        }
    }
}

/// The answer to a statement.
pub enum Answer {
    /// Rows, as they are computed.
    Rows {
        /// Their columns.
        schema: SchemaRef,
        /// The rows. An error in it turns into a [`QueryError`] with `QueryError::from`. Dropping it
        /// ends the query.
        stream: SendableRecordBatchStream,
    },
    /// It is done.
    Done {
        /// What was done, for people.
        message: String,
    },
}

/// Executes statements.
pub struct Engine {
    pub(crate) reader: Reader,
    pub(crate) sources: Arc<dyn Sources>,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) replayer: Arc<dyn Replayer>,
    pub(crate) store: Arc<dyn PartStore>,
    prepared: Prepared,
    /// Where operators run.
    operators: Handle,
    node: String,
}

impl Engine {
    /// An engine over `catalog` and `store`; `self_name` is the name of the node it runs on. To be made on the
    /// runtime that operators are to run on.
    ///
    /// # Errors
    /// When the spill folder cannot be used.
    ///
    /// # Panics
    /// When it is not made on a runtime.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of its surroundings, given once"
    )]
    pub fn new(
        config: EngineConfig,
        catalog: Arc<dyn Catalog>,
        fresh: Arc<dyn FreshRows>,
        progress: Arc<dyn Progress>,
        sources: Arc<dyn Sources>,
        replayer: Arc<dyn Replayer>,
        store: Arc<dyn PartStore>,
        self_name: String,
    ) -> Result<Self, QueryError> {
        let prepared = Prepared::new(&config, store.reader())?;
        let reader = Reader {
            catalog,
            fresh,
            held: Arc::default(),
            memory: prepared.memory().clone(),
            scan_bytes: SCAN_BYTES * config.target_partitions.max(1),
            pin_timeout: config.pin_timeout,
        };
        Ok(Self {
            reader,
            sources,
            progress,
            replayer,
            store,
            prepared,
            operators: Handle::current(),
            node: self_name,
        })
    }

    /// Executes one statement under `settings` (names and values as in `SET`).
    ///
    /// # Errors
    /// See [`QueryError`]; its kind says whether trying again may help.
    pub async fn execute(&self, sql: &str, settings: &BTreeMap<String, String>) -> Result<Answer, QueryError> {
        let settings = Settings::parse(settings)?;
        let words = Words::of(sql)?;
        let parsed = statement::parse(&words)?;
        let answer = match parsed {
            Statement::Query(query) => self.query(*query, &words, settings).await,
            Statement::Show(shown) => self.show(shown, settings).await,
            Statement::Set { name, value } => {
                // Clients keep settings and send them with each call; here only the check is done.
                Ok(Answer::Done {
                    message: format!("{name} = '{value}' from now on in this session"),
                })
            }
            change => administer::run(self, change)
                .await
                .map(|message| Answer::Done { message }),
        };
        answer.map_err(|error| {
            tracing::debug!(node = %self.node, kind = ?error.kind, %error, "statement failed");
            match error.place {
                Some(_) => error,
                None => {
                    let place = quoted_place(&error.message, &words);
                    error.at(place)
                }
            }
        })
    }

    /// The oldest version of the catalog that a running query still reads, if any runs: files that
    /// this version names must not be deleted.
    pub fn oldest_pinned_version(&self) -> Option<Version> {
        self.reader.held.oldest()
    }

    /// Bytes of memory that running queries have reserved.
    pub fn memory_used(&self) -> usize {
        self.prepared.memory().reserved()
    }

    async fn show(&self, shown: statement::Show, settings: Settings) -> Result<Answer, QueryError> {
        let snapshot = self.reader.snapshot(self.deadline()).await?;
        match show::prepare(shown, &*snapshot)? {
            show::Shown::Query(sql) => {
                let words = Words::of(&sql)?;
                match statement::parse(&words)? {
                    Statement::Query(query) => self.query(*query, &words, settings).await,
                    _ => Err(QueryError::internal("SHOW did not become a query")),
                }
            }
            show::Shown::Rows(rows) => Ok(rows_at_hand(rows)),
        }
    }

    async fn query(&self, query: SqlStatement, words: &Words, settings: Settings) -> Result<Answer, QueryError> {
        let (state, held) = self.session_for(&query, words, settings).await?;
        let plan = state
            .statement_to_plan(query)
            .await
            .map_err(|e| explain(e, words, Some(&state)))?;
        // Statements that change anything were refused by name; this is for those inside a query.
        let allowed = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        allowed
            .verify_plan(&plan)
            .map_err(|e| explain(e, words, Some(&state)))?;
        let physical = state
            .create_physical_plan(&plan)
            .await
            .map_err(|e| explain(e, words, Some(&state)))?;
        // Both the rows on their way and the operators that may outlive them need what is held.
        let held = held.map(Arc::new);
        let inner = self.run(physical, &state, held.clone());
        let inner = inner.map_err(|e| explain(e, words, Some(&state)))?;
        Ok(Answer::Rows {
            schema: inner.schema(),
            stream: Box::pin(HoldingStream { inner, _held: held }),
        })
    }

    /// Runs the operators of `plan`, and keeps what they read until they have ended. Dropping the rows ends them, as soon as they
    /// come to a pause.
    fn run(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        state: &SessionState,
        held: Option<Arc<Held>>,
    ) -> datafusion::common::Result<SendableRecordBatchStream> {
        let mut running = RecordBatchReceiverStreamBuilder::new(plan.schema(), BATCHES_AHEAD);
        let rows = running.tx();
        let mut batches = {
            // What they spawn runs there, too.
            let _on_their_runtime = self.operators.enter();
            execute_stream(plan, state.task_ctx())?
        };
        let operators = async move {
            let _until_they_end = held;
            while let Some(batch) = batches.try_next().await? {
                if rows.send(Ok(batch)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        running.spawn_on(operators, &self.operators);
        Ok(running.build())
    }

    /// A session with the tables that `query` names, all of one moment.
    async fn session_for(
        &self,
        query: &SqlStatement,
        words: &Words,
        settings: Settings,
    ) -> Result<(SessionState, Option<Held>), QueryError> {
        let bare = self.prepared.bare();
        let references = bare
            .resolve_table_references(query)
            .map_err(|e| explain(e, words, None))?;
        let (mut users, mut systems) = (BTreeSet::new(), BTreeSet::new());
        for reference in &references {
            match reference.schema() {
                None if bare.table_functions().contains_key(reference.table()) => {}
                None | Some(USER_SCHEMA) => _ = users.insert(reference.table().to_owned()),
                Some(SYSTEM_SCHEMA) => _ = systems.insert(reference.table().to_owned()),
                Some(_) => return Err(no_schema(reference, words)),
            }
        }
        if users.is_empty() && systems.is_empty() {
            return Ok((bare, None));
        }
        let columns = words.columns();
        let reading = self.reader.read(&users, columns.as_ref(), settings.consistency).await?;
        let mut progress = None;
        for name in &systems {
            if system::needs_progress(name, &*reading.snapshot)? {
                progress = self.progress.progress().await;
                break;
            }
        }
        let source = system::Source {
            snapshot: reading.snapshot.clone(),
            progress: progress.as_ref(),
            group: &*self.progress,
            settings,
        };
        let mut tables = Vec::new();
        for name in systems {
            let found = match name.as_str() {
                system::CHECK => Some(system::checked(&*reading.snapshot, &*self.store).await?),
                _ => system::table(&name, &source)?,
            };
            match found {
                Some(provider) => tables.push(NamedTable {
                    schema: SYSTEM_SCHEMA,
                    name,
                    provider,
                }),
                None => return Err(no_system_table(&name, words)),
            }
        }
        for (name, at_once) in reading.tables {
            let provider = Arc::new(UserTable::new(at_once, reading.snapshot.clone())?);
            tables.push(NamedTable {
                schema: USER_SCHEMA,
                name,
                provider,
            });
        }
        Ok((self.prepared.with_tables(tables)?, Some(reading.held)))
    }

    /// Runs `sql` over one table, called `name`, and nothing else.
    pub(crate) async fn over(
        &self,
        sql: &str,
        name: &str,
        provider: Arc<dyn TableProvider>,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        let words = Words::of(sql)?;
        let Statement::Query(query) = statement::parse(&words)? else {
            return Err(QueryError::invalid("this is not a condition"));
        };
        let table = NamedTable {
            schema: USER_SCHEMA,
            name: name.to_owned(),
            provider,
        };
        let state = self.prepared.with_tables(vec![table])?;
        // The places in such a text are not those of what the user wrote.
        let error = |e| explain(e, &words, Some(&state)).at(None);
        let plan = state.statement_to_plan(*query).await.map_err(error)?;
        let plan = state.create_physical_plan(&plan).await.map_err(error)?;
        let rows = self.run(plan, &state, None).map_err(error)?;
        common::collect(rows).await.map_err(error)
    }

    /// When a catalog that does not answer is given up.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.reader.pin_timeout
    }
}

fn no_schema(reference: &TableReference, words: &Words) -> QueryError {
    let schema = reference.schema().unwrap_or_default();
    let message = format!("there is no schema '{schema}'; your tables are in 'public', the system's own in 'system'");
    QueryError::invalid(message).at(words.place_of(schema))
}

fn no_system_table(name: &str, words: &Words) -> QueryError {
    let hint = crate::nearest::did_you_mean(name, system::NAMES.iter().copied());
    let known = if hint.is_empty() {
        format!("; there are {}", system::NAMES.join(", "))
    } else {
        hint
    };
    QueryError::invalid(format!("there is no system table '{name}'{known}")).at(words.place_of(name))
}

/// Where the first name that the message quotes stands in the text.
fn quoted_place(message: &str, words: &Words) -> Option<crate::error::Place> {
    message
        .split('\'')
        .skip(1)
        .step_by(2)
        .find_map(|name| words.place_of(name))
}

fn rows_at_hand(rows: RecordBatch) -> Answer {
    let schema = rows.schema();
    let batches = stream::iter([Ok(rows)]);
    Answer::Rows {
        schema: schema.clone(),
        stream: Box::pin(RecordBatchStreamAdapter::new(schema, batches)),
    }
}

/// A query's rows, with the version that they are read at and the memory for reading them.
struct HoldingStream {
    inner: SendableRecordBatchStream,
    _held: Option<Arc<Held>>,
}

impl Stream for HoldingStream {
    type Item = datafusion::common::Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

impl RecordBatchStream for HoldingStream {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }
}
