"""A program that uses the public names, for the type checker: `make lint` reads it as strictly as the server itself.

Two of its lines are wrong. The checker has to find exactly what each comment expects there: where it finds nothing, it
reports that the comment ignores nothing.
"""

from __future__ import annotations

from pathlib import Path

from homeserver import AsyncioHomeserver, Client, Config, Homeserver, MatrixError, __version__


async def main(folder: Path) -> str:
    """Is never run."""
    async with Homeserver(Config(server_name="example.org", data_dir=str(folder))) as hs:
        alice: Client = await hs.register("alice", "a good password", exist_ok=True)
        room = await alice.create_room(name="Kitchen")
        await alice.send(room, "The kettle is on.")
        mxc = await alice.upload(b"water", "text/plain")
        content: bytes = (await alice.download(mxc)).content
        try:
            await hs.log_in(7)  # type: ignore[arg-type]  # a str is expected
        except MatrixError as error:
            return error.errcode + __version__ + content.decode()
    async with AsyncioHomeserver(Config(server_name="example.org")) as other:
        bob = await other.log_in("bob")
        return len(await bob.messages(room))  # type: ignore[return-value]  # a str is expected
