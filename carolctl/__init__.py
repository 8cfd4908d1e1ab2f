"""carolctl: a job scheduler with no resident process, fired by a systemd timer."""

__version__ = "0.1.0"
