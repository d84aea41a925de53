from homeserver.asyncio_adapter import AsyncioClient as AsyncioClient
from homeserver.asyncio_adapter import AsyncioHomeserver as AsyncioHomeserver
from homeserver.client import Client as Client
from homeserver.client import File as File
from homeserver.client import RoomEvent as RoomEvent
from homeserver.config import Config as Config
from homeserver.config import ConfigError as ConfigError
from homeserver.config import Listener as Listener
from homeserver.database import DatabaseError as DatabaseError
from homeserver.errors import ClosedError as ClosedError
from homeserver.errors import MatrixError as MatrixError
from homeserver.server import Homeserver as Homeserver

__version__: str
