"""The agent is killed at any moment of a hold that outlives connections; nothing stays held."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from module_guest import Agent
from private_guest import await_that
from test_agent_mongodb import Guest as MongoGuest
from test_agent_redis import APPEND, server
from test_agent_redis import Guest as RedisGuest

pytestmark = [pytest.mark.needs_root, pytest.mark.soak]

RECORDS = Path("/run/atoll-agent")
KILLS = 25


@contextlib.contextmanager
def redis(base):
    guest = RedisGuest(base)
    guest.mount.mkdir()
    with server(guest.mount, guest.sock, *APPEND):
        yield guest


@contextlib.contextmanager
def mongodb(base):
    guest = MongoGuest(base)
    yield guest
    guest.server.close()


@pytest.mark.parametrize("product", [redis, mongodb])
@pytest.mark.parametrize("everybody", [False, True], ids=["agent", "everybody"])
def test_kills_at_any_moment(product, everybody, tmp_path):
    """Without the dead man, too, the next agent lets go."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, armed = random.Random(seed), 0
    with product(tmp_path) as guest:
        entry = guest.entry()
        record = RECORDS / f"{entry['kind']}-{entry['name']}.held"
        with guest.writer() as writer:
            for number in range(KILLS):
                agent = Agent([entry], [])
                orders = [f"prepare {number}", f"freeze {number} 60 30", f"thaw {number}"]
                held = number % 2
                for order in orders[: 2 if held else 3]:
                    agent.process.stdin.write(f"{order}\n")
                agent.process.stdin.flush()
                if held:
                    await_that(record.exists, "it is armed")
                time.sleep(chance.uniform(0, 1.5))
                armed += record.exists()
                if everybody:
                    kill_all(agent)
                else:
                    agent.kill()
                agent.stop()
                if everybody and record.exists():
                    agent.start()
                    assert agent.order("recover") == [None]
                    agent.stop()
                writer.goes_on()
                await_that(lambda: not record.exists(), "the record is gone")
    print(f"{armed} of {KILLS} kills while it was armed or held")
    assert armed, "no kill came when it mattered"


def kill_all(agent):
    """The agent is stopped first, so that it starts nothing while its processes are counted."""
    os.kill(agent.process.pid, signal.SIGSTOP)
    # A dead man that has just been started has no command line of its own yet.
    for pid in (*agent.dead_men(), *children(agent.process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    agent.kill()


def children(pid):
    done = subprocess.run(
        ["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, check=False
    )
    return [int(word) for word in done.stdout.split()]
