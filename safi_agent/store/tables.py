"""The tables, and the conditions of their partial indexes."""

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    literal_column,
    or_,
)

ERASURES = ""  # the memory key of rows that are not turns, but records of erasures; that of a turn is not empty

metadata = MetaData()
memory = Table(
    "safi_memory",
    metadata,
    Column("key", String, primary_key=True),
    Column("turns", Integer, nullable=False),
    Column("mu_turn", Integer, nullable=False, default=0),
    Column("mu", Text, nullable=False, default="{}"),
    Column("scores", Text, nullable=False, default="[]"),
    Column("note", Text, nullable=False, default=""),
)
turns = Table(
    "safi_turns",
    metadata,
    Column("id", String, primary_key=True),
    Column("key", String, nullable=False),
    Column("turn", Integer, nullable=False),
    Column("value_set", String, nullable=False),
    Column("values_id", String, nullable=False),
    Column("log", String, nullable=False),
    Column("status", String, nullable=False),
    Column("audit", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("ledger", Text),
    Column("attempts", Integer, nullable=False, default=0),
    Column("error", Text),
    Column("record", Text),
    Column("place", Integer),  # position in the commit order, which is the order of the log
    Column("logged", Integer, nullable=False, default=0),
    Column("settled", Integer, nullable=False, default=0),  # hooks have run, nothing is left to do
    Column("owner", String, nullable=False),
    Column("lease", Float, nullable=False),
    Column("since", Float),  # time of the answer, seconds since the epoch
    Column("reaudit_of", String),  # the id of the turn whose failed audit this one repeats
    Column("judge", String),  # the name of the judge's model
    Column("erased", Integer, nullable=False, default=0),  # 1 after the erasure of its contents
    UniqueConstraint("key", "turn"),
)
# The planner's statistics of PostgreSQL contain values of a column, which an erasure would leave there.
_WITHOUT_STATISTICS = ", ".join(f"ALTER COLUMN {name} SET STATISTICS 0" for name in ("body", "ledger", "record"))
_ALTER = DDL(f"ALTER TABLE {turns.name} {_WITHOUT_STATISTICS}")  # type: ignore[no-untyped-call]
event.listen(turns, "after_create", _ALTER.execute_if(dialect="postgresql"))
# Literal constants instead of parameters: the planner uses a partial index only if it recognizes the condition.
NOT_DONE = turns.c.status != literal_column("'done'")
NOT_LOGGED = turns.c.logged == literal_column("0")
NOT_SETTLED = turns.c.settled == literal_column("0")
UNFINISHED = or_(NOT_SETTLED, NOT_LOGGED)
PLACED = turns.c.place.is_not(None)
FAILED = turns.c.error.is_not(None)
NOT_ERASED = turns.c.erased == literal_column("0")
AGAIN = turns.c.reaudit_of.is_not(None)
Index("safi_turns_open", turns.c.key, turns.c.turn, sqlite_where=NOT_DONE, postgresql_where=NOT_DONE)
Index("safi_turns_unlogged", turns.c.log, turns.c.place, sqlite_where=NOT_LOGGED, postgresql_where=NOT_LOGGED)
Index("safi_turns_unfinished", turns.c.value_set, turns.c.owner, sqlite_where=UNFINISHED, postgresql_where=UNFINISHED)
Index("safi_turns_place", turns.c.place, sqlite_where=PLACED, postgresql_where=PLACED)
Index("safi_turns_failed", turns.c.value_set, sqlite_where=FAILED, postgresql_where=FAILED)
Index("safi_turns_again", turns.c.reaudit_of, sqlite_where=AGAIN, postgresql_where=AGAIN)
# Value sets, and prompts of the faculties, by the SHA-256 of their JSON.
value_sets = Table(
    "safi_value_sets", metadata, Column("id", String, primary_key=True), Column("body", Text, nullable=False)
)
anchors = Table(
    "safi_anchors",
    metadata,
    Column("log", String, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("mac", String, nullable=False),
    Column("key", String, nullable=False),
)
secrets = Table(
    "safi_secrets", metadata, Column("name", String, primary_key=True), Column("secret", String, nullable=False)
)
# The processes that have a chain of a value set; unfinished turns go to other chains of that set first.
chains = Table(
    "safi_chains",
    metadata,
    Column("value_set", String, primary_key=True),
    Column("owner", String, primary_key=True),
    Column("lease", Float, nullable=False),
)
version = Table("safi_version", metadata, Column("version", Integer, primary_key=True, autoincrement=False))
