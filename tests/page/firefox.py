"""Firefox by WebDriver BiDi, which it speaks itself: no driver is needed beside it."""

import itertools
import json
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect


class Firefox:
    """A headless Firefox with one page, until it is closed.

    Args:
        program: the browser.
        profile: an empty folder for it.
    """

    def __init__(self, program: str, profile: Path):
        profile.mkdir()
        command = [program, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
        self.opened = ExitStack()
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        self.process = self.opened.enter_context(subprocess.Popen(command, **options))
        self.opened.callback(self.process.terminate)
        for line in self.process.stderr:
            if "WebDriver BiDi listening on " in line:
                address = line.split()[-1]
                break
        else:
            self.opened.close()
            raise RuntimeError("Firefox did not start")
        self.ids = itertools.count()
        self.socket = self.opened.enter_context(connect(f"{address}/session", max_size=None))
        self.send("session.new", capabilities={})
        self.page = self.send("browsingContext.getTree")["contexts"][0]["context"]

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(answer["message"])
                return answer["result"]

    def goto(self, address: str) -> None:
        self.send("browsingContext.navigate", context=self.page, url=address, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression that is a text, a number or a truth."""
        options = {"target": {"context": self.page}, "awaitPromise": True}
        answer = self.send("script.evaluate", expression=expression, **options)
        if answer["type"] == "exception":
            raise RuntimeError(answer["exceptionDetails"]["text"])
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.05)

    def close(self) -> None:
        self.opened.close()
