"""The job store: every SQL statement of the program lives in this folder."""
