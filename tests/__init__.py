"""Makes the folder importable: ``from tests.builders import job``."""
