"""The job store: every SQL statement of the program lives in this folder."""

#: ``caro``: marks a SQLite file as a job store of ours. Here, and not beside the migrations, for the idle tick.
APPLICATION_ID = 0x6361726F
SCHEMA_VERSION = 3
