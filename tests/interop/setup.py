"""Installs what the scenarios run besides our server, unless it is installed.

That is Synapse, the libraries of clients, and Element Web's user interface with what drives a browser.

Synapse never shares an environment with us: it is another program, under another licence, with its own dependencies.
matrix-nio has an environment of its own here because its cryptography (vodozemac) is compiled for some platforms only.
matrix-js-sdk, on which Element is built, matrix-bot-sdk, matrix-appservice-bridge and oidc-provider need Node; without
Node, their scenarios are left out and the run says so. Element is built from matrix-react-sdk, its user interface,
because only that is in npm's registry (until 2024-11, when it was merged into Element Web). It needs Chromium, too,
which the machine must have.

To move to another Synapse, matrix-nio or mautrix, change its requirements-….in and run in this folder, for example:

    uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
    requirements-synapse.in -o requirements-synapse.lock

To move to another matrix-js-sdk, matrix-bot-sdk, matrix-appservice-bridge, oidc-provider, Element or axe-core, change
package.json in js_sdk/, js_sdk_oauth/, bot_sdk/, appservice_bridge/, openid_provider/, element/ or chat_page/ and run
there:

    npm install --package-lock-only --omit-lockfile-registry-resolved --legacy-peer-deps

Then remove the "funding" entries, which contain addresses.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / ".ci"))

from environment import ensure_environment  # noqa: E402 (found only now)

ELEMENT = HERE / "element"
CHAT_PAGE = HERE / "chat_page"
ACCOUNT_PAGES = HERE / "account_pages"
JS_SDK = HERE / "js_sdk"
JS_SDK_OAUTH = HERE / "js_sdk_oauth"
BOT_SDK = HERE / "bot_sdk"
OPENID_PROVIDER = HERE / "openid_provider"
APPSERVICE_BRIDGE = HERE / "appservice_bridge"
MATRIX_NIO = HERE / "matrix_nio"
MAUTRIX = HERE / "mautrix_client"
NODE_MAJOR_MIN = 20
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


def synapse_venv() -> Path:
    """Returns the environment's folder: SYNAPSE_VENV, or `.venv-synapse` in the repository."""
    return Path(os.environ.get("SYNAPSE_VENV", REPOSITORY / ".venv-synapse")).absolute()


def ensure_synapse() -> Path:
    """The environment's Python. An environment that SYNAPSE_VENV names is taken as it is, if it is there."""
    folder = synapse_venv()
    python = folder / "bin" / "python"
    if "SYNAPSE_VENV" in os.environ and python.exists():
        print(f"Synapse: using {folder}")
        return python
    return ensure_environment("Synapse", folder, HERE / "requirements-synapse.lock", "make interop")


def nio_venv() -> Path:
    """Returns the folder of matrix-nio's environment: `.venv-nio` in the repository."""
    return REPOSITORY / ".venv-nio"


def ensure_nio() -> Path:
    """Returns the Python that has matrix-nio with its cryptography, and makes its environment if necessary."""
    return ensure_environment("matrix-nio", nio_venv(), HERE / "requirements-nio.lock", "make interop")


def mautrix_venv() -> Path:
    """Returns the folder of mautrix's environment: `.venv-mautrix` in the repository."""
    return REPOSITORY / ".venv-mautrix"


def ensure_mautrix() -> Path:
    """Returns the Python that has mautrix with its cryptography, and makes its environment if necessary.

    python-olm, which has libolm, is compiled for Linux and macOS.
    """
    return ensure_environment("mautrix", mautrix_venv(), HERE / "requirements-mautrix.lock", "make interop")


def synadm_venv() -> Path:
    """Returns the folder of synadm's environment: `.venv-synadm` in the repository."""
    return REPOSITORY / ".venv-synadm"


def ensure_synadm() -> Path:
    """Returns the Python that has synadm, a tool of administrators, and makes its environment if necessary."""
    return ensure_environment("synadm", synadm_venv(), HERE / "requirements-synadm.lock", "make interop")


def js_sdk_folder() -> Path:
    """Returns the folder of matrix-js-sdk: `.node-js-sdk` in the repository."""
    return REPOSITORY / ".node-js-sdk"


def js_sdk_oauth_folder() -> Path:
    """Returns the folder of the newer matrix-js-sdk, whose OAuth module is used: `.node-js-sdk-oauth`."""
    return REPOSITORY / ".node-js-sdk-oauth"


def bot_sdk_folder() -> Path:
    """Returns the folder of matrix-bot-sdk: `.node-bot-sdk` in the repository."""
    return REPOSITORY / ".node-bot-sdk"


def appservice_bridge_folder() -> Path:
    """Returns the folder of matrix-appservice-bridge: `.node-appservice-bridge` in the repository."""
    return REPOSITORY / ".node-appservice-bridge"


def openid_provider_folder() -> Path:
    """Returns the folder of oidc-provider: `.node-openid-provider` in the repository."""
    return REPOSITORY / ".node-openid-provider"


def ensure_node_packages() -> str:
    """Puts what needs Node into folders. Returns why that is not possible, "" if it is done."""
    lacking = _lacking_for_node()
    if not lacking:
        _ensure_node_folder("matrix-js-sdk", JS_SDK, js_sdk_folder())
        _ensure_node_folder("matrix-js-sdk for OAuth", JS_SDK_OAUTH, js_sdk_oauth_folder())
        _ensure_node_folder("matrix-bot-sdk", BOT_SDK, bot_sdk_folder())
        _ensure_node_folder("matrix-appservice-bridge", APPSERVICE_BRIDGE, appservice_bridge_folder())
        _ensure_node_folder("oidc-provider", OPENID_PROVIDER, openid_provider_folder())
    return lacking


def element_site() -> Path:
    """Returns the folder of Element as a browser loads it."""
    return REPOSITORY / ".node-element" / "site"


def playwright_venv() -> Path:
    """Returns the folder of the environment that drives the browser: `.venv-playwright` in the repository."""
    return REPOSITORY / ".venv-playwright"


def find_chromium() -> str | None:
    """Returns the path of Chromium or Chrome, or None if this machine has neither."""
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name)) is not None), None)


def axe_source() -> Path:
    """Returns the file of axe-core, which checks pages for accessibility."""
    return REPOSITORY / ".node-axe" / "node_modules" / "axe-core" / "axe.min.js"


def ensure_chat_page() -> str:
    """Installs what tests the chat page in a browser. Returns why that is not possible, "" if it is done."""
    lacking = _ensure_browser()
    if not lacking:
        _ensure_node_folder("axe-core", CHAT_PAGE, axe_source().parents[2])
    return lacking


def _ensure_browser() -> str:
    """Installs what drives the browser. Returns what is missing for that, "" if it is done."""
    lacking = _lacking_for_node()
    if find_chromium() is None:
        lacking = "Chromium is not on this machine (Debian: apt-get install chromium)"
    if not lacking:
        ensure_environment("Playwright", playwright_venv(), HERE / "requirements-playwright.lock", "make interop")
    return lacking


def ensure_element() -> str:
    """Builds Element, and installs what drives the browser. Returns why that is not possible, "" if it is done."""
    lacking = _ensure_browser()
    if lacking:
        return lacking
    folder = element_site().parent
    _ensure_node_folder("Element", ELEMENT, folder)
    sources = [path for path in sorted(ELEMENT.iterdir()) if path.suffix in (".html", ".js", ".json", ".mjs")]
    stamp, fingerprint = folder / "built-from", _fingerprint(*sources)
    if not _is_made(stamp, fingerprint):
        print(f"Element: building {element_site()} (once)", flush=True)
        for path in sources:
            shutil.copy(path, folder)
        subprocess.run(["node", "build.mjs", "."], cwd=folder, check=True)
        stamp.write_text(fingerprint)
    return ""


def _ensure_node_folder(name: str, source: Path, folder: Path) -> None:
    """Installs what the package-lock.json in `source` lists, unless it is installed. No scripts of packages run."""
    stamp, fingerprint = folder / "made-from", _fingerprint(source / "package-lock.json")
    if _is_made(stamp, fingerprint):
        print(f"{name}: {folder} is up to date")
        return
    print(f"{name}: making {folder} (once)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in ("package.json", "package-lock.json"):
        shutil.copy(source / file, folder)
    # Old packages do not know of newer versions of those that they go together with, and npm would refuse.
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier"]
    subprocess.run(["npm", "ci", "--ignore-scripts", "--legacy-peer-deps", *quiet], cwd=folder, check=True)
    stamp.write_text(fingerprint)


def _fingerprint(*files: Path) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _is_made(stamp: Path, fingerprint: str) -> bool:
    return stamp.exists() and stamp.read_text() == fingerprint


def _lacking_for_node() -> str:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return f"Node.js {NODE_MAJOR_MIN} or newer with npm is not on this machine (Debian: apt-get install nodejs npm)"
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < NODE_MAJOR_MIN:
        return f"Node.js {NODE_MAJOR_MIN} or newer is needed, and there is {version}"
    return ""
