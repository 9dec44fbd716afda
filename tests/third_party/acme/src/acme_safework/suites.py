"""Sums from a text file, one "QUESTION = ANSWER" a line."""

from safework_cli.data.suites import Suite


def read(suite, path):
    """The rows of the file."""
    for number, line in enumerate(path.read_text().splitlines()):
        question, answer = line.split(" = ")
        yield suite.row(str(number), [{"role": "user", "content": question}], answer=answer, meta={"answer_type": "exact"})


sums = Suite("their-sums", "sums", "sums.txt", "general", read, "example.org", "MIT")
