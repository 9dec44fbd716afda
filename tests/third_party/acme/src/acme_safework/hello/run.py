"""The greetings, as rows of a dataset."""

from acme_safework.hello.config import HelloConfig
from safework_cli.core.stage import Outcome, WorkDir
from safework_cli.data.reply import make_reply
from safework_cli.data.row import Row, write_rows


def greet(config: HelloConfig, work: WorkDir) -> Outcome:
    rows = [
        Row(
            f"hello-{i}",
            "general",
            [
                {"role": "user", "content": f"Say hello {i} times."},
                {"role": "assistant", "content": make_reply("I count.", "hello " * i)},
            ],
        )
        for i in range(1, config.greetings + 1)
    ]
    write_rows(work.output / "rows.parquet", rows)
    return Outcome(metrics={"rows": len(rows)}, seeds={"nothing is drawn": "no seed acts"})
