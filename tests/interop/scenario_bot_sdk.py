"""A bot with matrix-bot-sdk on one server, and a person of another who tells it what to do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.clients import Client
from tests.interop.programs import describe, run_js_sdk
from tests.interop.scenario_js_sdk import NO_BACKUP
from tests.interop.servers import Server
from tests.interop.setup import BOT_SDK, bot_sdk_folder

STOP_TIMEOUT_S = 10

Sides = tuple[Server, Server]


class Bot:
    """A process of bot_sdk/bot.mjs that can be started again with the same storage."""

    def __init__(self, account: Client, storage: Path, *, encryption: bool) -> None:
        self.user_id = account.user_id
        plan = {**describe(account)[0], "storage": str(storage), "encryption": encryption}
        self._command = ["node", str(BOT_SDK / "bot.mjs"), str(bot_sdk_folder()), json.dumps(plan)]
        self._log = storage / "output.log"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns once the bot syncs. Raises AssertionError if it ends before."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, text=True, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "ready\n":
                return
            print(line, end="")
        raise AssertionError(f"the bot ended\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Kills the bot if it runs. Raises AssertionError, with what it has said, if it has ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        status = process.poll()
        process.kill()
        said, _ = process.communicate(timeout=STOP_TIMEOUT_S)
        print(said, self._log.read_text()[-2000:])
        assert status is None, f"the bot ended with status {status}"


@contextmanager
def running(bot: Bot) -> Iterator[None]:
    """Starts the bot, and stops it whatever happens."""
    bot.start()
    try:
        yield
    finally:
        bot.stop()


@pytest.mark.parametrize("encryption", [False, True], ids=["without-encryption", "with-encryption"])
def test_a_bot_with_matrix_bot_sdk(organisations: Sides, tmp_path: Path, encryption: bool) -> None:
    here, there = organisations
    bot = Bot(Client(there, "bot"), tmp_path, encryption=encryption)

    def grant(wish: dict[str, Any]) -> None:
        if "server" in wish:
            there.stop()
            there.start()
        elif wish["bot"] == "stop":
            bot.stop()
        else:
            bot.start()

    with running(bot):
        refused = run_js_sdk("guest.mjs", Client(here, "alice"), grant=grant, bot=bot.user_id, encryption=encryption)
    assert refused == {NO_BACKUP}
