"""Firefox by WebDriver BiDi, which it speaks itself: no driver is needed beside it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect


def run_in_firefox(profile: Path, address: str, script: str) -> Any:
    """The text, number or truth that a script's promise gives on a page.

    Args:
        profile: a new folder for the browser.
    """
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("there is no Firefox here")
    profile.mkdir()
    command = [program, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as browser:
        try:
            server = next(line.split()[-1] for line in browser.stderr if "WebDriver BiDi listening on " in line)
            with connect(f"{server}/session", max_size=None) as socket:

                def send(method: str, **params: Any) -> dict[str, Any]:
                    socket.send(json.dumps({"id": 1, "method": method, "params": params}))
                    while "id" not in (answer := json.loads(socket.recv(timeout=60))):  # an event
                        pass
                    return answer["result"]

                send("session.new", capabilities={})
                page = send("browsingContext.getTree")["contexts"][0]["context"]
                send("browsingContext.navigate", context=page, url=address, wait="complete")
                return send("script.evaluate", expression=script, target={"context": page}, awaitPromise=True)[
                    "result"
                ]["value"]
        finally:
            browser.terminate()
