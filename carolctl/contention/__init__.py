"""The contention test: what CI and operators run to see that writers do not starve each other on their machine.

Incident: a database whose checkpoint succeeded was taken for one that can be written, while twenty updates in a
row failed. Decision: writing is proved by writing, from real processes, beside real dispatches and beside a
foreign program that hogs the lock; and the designs that caused the incidents are kept at hand, to prove that the
test fails for them. Consequence: a claim about contention is a command that anybody can run.

It works in a folder of its own beside the data home, on the same file system, and never opens the live files.
"""
