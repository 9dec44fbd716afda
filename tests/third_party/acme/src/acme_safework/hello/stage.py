"""Write a dataset of greetings."""

from acme_safework.hello.config import HelloConfig
from safework_cli.core.stage import Inputs, Outcome, Plan, Stage, WorkDir


class HelloStage(Stage):
    """Nothing in, one dataset out."""

    name = "hello"
    summary = "Write a dataset of greetings."
    Config = HelloConfig
    inputs = {}
    output = "dataset"

    def plan(self, config: HelloConfig, inputs: Inputs) -> Plan:
        return Plan(lines=[f"write {config.greetings} greetings"], name="greetings")

    def run(self, config: HelloConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from acme_safework.hello.run import greet

        return greet(config, work)


stage = HelloStage()
