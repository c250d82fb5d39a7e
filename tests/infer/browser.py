"""A headless Chromium driven through its debugging pipe: enough to use a page as a person would."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

# Windows' number of a key, and the text that it enters.
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), "Space": (32, " "), "ArrowLeft": (37, ""),
         "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, "")}  # fmt: skip


class Browser:
    """One page. Its microphone is Chromium's built-in fake, which beeps once a second."""

    def __init__(self, program: str, profile: Path) -> None:
        in_read, self._in = os.pipe()
        self._out, out_write = os.pipe()
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", f"--user-data-dir={profile}",
            "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip

        def pipes() -> None:
            # Chromium reads commands from 3 and answers on 4; first out of the way of those numbers.
            read, write = os.dup(in_read), os.dup(out_write)
            read, write = [os.dup2(fd, 50 + i) for i, fd in enumerate((read, write))]
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(in_read)
        os.close(out_write)
        self.events: list[dict[str, Any]] = []
        self._waiting = b""
        self._number = 0
        self._session: str | None = None
        # What the page threw, and what the browser complained about.
        self.complaints: list[str] = []
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setInterceptFileChooserDialog", enabled=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result; events are kept in ``events``, complaints also in ``complaints``."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._waiting:
                read = os.read(self._out, 1 << 20)
                assert read, "the browser has ended"
                self._waiting += read
            line, _, self._waiting = self._waiting.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, method: str | None, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.complaints.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning"):
            self.complaints.append(str([each.get("value") for each in event["args"]]))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression (promises are awaited)."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 30) -> Any:
        """Wait until the expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"still not true: {script}\n{self.run('document.body.innerText')}")

    def told(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of a kind so far."""
        self.run("0")
        return [event["params"] for event in self.events if event.get("method") == method]

    def press(self, *keys: str) -> None:
        """Press keys one after the other, as Tab, Shift+Tab, Enter, Space, Escape or ArrowDown."""
        for name in keys:
            shift, _, key = name.rpartition("+")
            code, text = _KEYS.get(key, (0, ""))
            event = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code,
                     "modifiers": 8 if shift else 0}  # fmt: skip
            self.call("Input.dispatchKeyEvent", type="keyDown", **event, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        """Type a text where the focus is."""
        self.call("Input.insertText", text=text)

    def tab_to(self, name: str) -> None:
        """Press Tab until the focus is on the element of that text or label."""
        for _ in range(60):
            self.press("Tab")
            focused = "(document.activeElement.ariaLabel || document.activeElement.textContent).trim()"
            if self.run(focused) == name:
                return
        raise AssertionError(f"Tab never comes to {name!r}")

    def choose(self, path: Path) -> None:
        """Answer the dialog for files that the page has just opened."""
        until = time.monotonic() + 10
        while not (opened := self.told("Page.fileChooserOpened")):
            assert time.monotonic() < until, "no dialog for files was opened"
        self.events.clear()
        self.call("DOM.setFileInputFiles", backendNodeId=opened[-1]["backendNodeId"], files=[str(path)])

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def close(self) -> None:
        """End the browser."""
        self.process.terminate()
        self.process.wait(timeout=20)
        os.close(self._in)
        os.close(self._out)
