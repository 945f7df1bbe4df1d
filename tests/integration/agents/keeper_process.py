"""An agent without its network: reads one order a line from standard input, prints JSON.

Arguments: the configuration's `applications` as JSON, and the mount points to
freeze as JSON. Orders: `prepare RUN`, `freeze RUN LEASE BUDGET`, `thaw RUN`,
`recover`, `remark`.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from atoll_agent.application import ApplicationConfig
from atoll_agent.clock import Deadline
from atoll_agent.errors import AgentError
from atoll_agent.keeper import Keeper
from atoll_agent.modules import load_module
from atoll_agent.mounts import freeze_order, read_mounts
from atoll_agent.protocol import FreezeRequest


def main():
    entries = [
        ApplicationConfig(entry.pop("kind"), entry.pop("name"), entry)
        for entry in json.loads(sys.argv[1])
    ]
    chosen = json.loads(sys.argv[2])

    def applications():
        return [
            application
            for entry in entries
            for application in load_module(entry.kind).discover([entry], False)
        ]

    def mounts():
        everything = read_mounts()
        return freeze_order([m for m in everything if m.mountpoint in chosen], everything)

    keeper = Keeper(applications, mounts)
    for line in sys.stdin:
        order, *words = line.split()
        try:
            if order == "prepare":
                answer = keeper.prepare(words[0])
            elif order == "freeze":
                request = FreezeRequest(words[0], float(words[1]), float(words[2]))
                answer = asdict(keeper.freeze(request))
            elif order == "thaw":
                answer = asdict(keeper.thaw(words[0]))
            elif order == "recover":
                answer = [application.recover(Deadline(30)) for application in applications()]
            else:
                answer = [application.remark(Deadline(10)) for application in applications()]
        except AgentError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
    keeper.stop()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
