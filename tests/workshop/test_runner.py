"""What `helpers run` says at its end: checks apart from claims."""

from helpers.workshop.notebooks import Report, table

CAME_TO = [
    ("C01", "check", True),
    ("C02", "check", False),
    ("C03", "claim", True),
    ("C04", "claim", False),
    ("C05", "claim", None),
]
RECORDS = [{"id": id, "kind": kind, "holds": holds, "text": "t", "shown": {"n": "1"}} for id, kind, holds in CAME_TO]
UNMEASURED = {"id": "C52", "kind": "claim", "holds": None, "text": "t", "shown": {"not measured": "no larger model"}}


def test_the_table_counts_checks_and_claims_apart_and_names_what_is_open():
    said = []
    reports = [
        Report("01_first", 1.5, [*RECORDS, UNMEASURED]),
        Report("02_second", 0.0, RECORDS[:1], "stopped"),
        Report("03_third", failure="x"),
    ]
    table(reports, said.append)
    assert [line.split() for line in said[0].splitlines()] == [[], ["notebook", "minutes", "checks", "and", "claims", "result"]]
    assert said[1].endswith("1.5  checks 1 of 2; claims: 1 holds, 1 cannot tell, 1 does not, 1 not measured  done")
    assert [line.strip() for line in said[2:6]] == [
        "broken: C02 t",
        "does not hold: C04 t",
        "cannot tell: C05 t",
        "not measured: C52 t",
    ]
    assert "checks 1 of 1; claims: 0 hold, 0 cannot tell, 0 do not" in said[6] and said[6].endswith("  stopped")
    assert said[7].split() == ["03_third", "0.0", "none", "x"]
    assert said[8:] == ["In all: checks 2 of 3; claims: 1 holds, 1 cannot tell, 1 does not, 1 not measured"]
