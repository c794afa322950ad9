"""A box through its life, with the Python SDK: `pip install boxlite`."""

import asyncio
import tempfile
from pathlib import Path

from boxlite import Boxlite, BoxliteRestOptions, BoxOptions

GREET = "echo What is your name?; read -r name; echo Hello, $name. | tee /tmp/greeting"


async def main() -> None:
    # The address and the key come from BOXLITE_REST_URL and BOXLITE_API_KEY.
    runtime = Boxlite.rest(BoxliteRestOptions.from_env())
    box = await runtime.create(BoxOptions(image="alpine:latest", auto_remove=False), name="greeter-in-python-sdk")
    try:
        await box.start()
        execution = await box.exec("sh", ["-c", GREET])
        async for text in execution.stdout():
            print(text, end="")
            if text.endswith("?\n"):
                await execution.stdin().send_input(b"Ada\n")
        print("exit code:", (await execution.wait()).exit_code)
        with tempfile.TemporaryDirectory() as directory:
            await box.copy_out("/tmp/greeting", f"{directory}/greeting")
            print("file:", Path(directory, "greeting").read_text(), end="")
        try:
            await runtime.create(BoxOptions(image="alpine:latest"), name="greeter-in-python-sdk")
        except RuntimeError as exc:
            print("error:", type(exc).__name__)
    finally:
        await runtime.remove(box.id, force=True)


asyncio.run(main())
