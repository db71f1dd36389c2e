"""Errors of other processes, shortened for people."""

LONGEST = 300


def cause_in_one_line(error: BaseException) -> str:
    """The original exception where the text is a remote traceback (its last line), else the text's first line.

    Ray's errors are whole tracebacks, or one sentence and a page of advice.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    is_traceback = any(line.startswith(("Traceback", "File ")) or line.startswith("ray::") for line in lines)
    return (lines[-1] if is_traceback else lines[0])[:LONGEST]
