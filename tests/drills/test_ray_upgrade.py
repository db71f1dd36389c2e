"""How the drill for a Ray upgrade reports its checks; the checks themselves need a cluster and are not run here."""

from drills.ray_upgrade import expect, run_checks


def test_passed_checks_give_exit_code_0(capsys):
    assert run_checks({"first": lambda: expect(True, "unused"), "second": lambda: None}) == 0
    assert capsys.readouterr().out.splitlines() == ["ok      first", "ok      second"]


def test_failed_check_gives_its_reason_and_exit_code_1_and_others_still_run(capsys):
    checks = {"refused": lambda: expect(False, "it\njoined"), "broken": lambda: 1 / 0, "fine": lambda: None}
    assert run_checks(checks) == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAILED  refused: AssertionError: it joined",
        "FAILED  broken: ZeroDivisionError: division by zero",
        "ok      fine",
    ]
