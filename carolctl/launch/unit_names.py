"""What our units are called: the claim is part of the name, so that a name is never used twice."""

SLICE = "carolctl.slice"


def run_unit(run_id: int, claim_no: int) -> str:
    """The name of the unit of one claim of a command run."""
    return f"carolctl-run-{run_id}-{claim_no}.service"


def http_unit(run_id: int, claim_no: int) -> str:
    """The name of the unit of HTTP runs that were launched together, by the first of them."""
    return f"carolctl-http-{run_id}-{claim_no}.service"


def gate_unit(pid: int, number: int) -> str:
    """The name of the gate that a launcher of many runs holds closed."""
    return f"carolctl-gate-{pid}-{number}.service"
